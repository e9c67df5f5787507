"""All paths of octet have the same bits: those this CPU has, those it has not (their instructions as loops), and Arm's
under user-mode emulation."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
KERNEL = ROOT / "workers" / "engines" / "octet" / "kernel"
HELPERS = ROOT / "tests" / "helpers"
FLAGS = ["-O1", "-std=c++17", "-pthread", "-ffp-contract=off", "-w", "-static", f"-I{KERNEL}"]

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(900),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the other paths are x86's"),
]


def built(compiler: str, folder: Path, *more: str) -> Path:
    made = folder / compiler
    sources = [*sorted(KERNEL.glob("*.cpp")), HELPERS / "drive_octet.cpp"]
    subprocess.run([compiler, *FLAGS, *more, *map(str, sources), "-o", str(made)], check=True)
    return made


def said(*command: str) -> dict[str, list[str]]:
    """The lines of each path."""
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "not finite" not in done.stdout
    parts = done.stdout.split("path ")[1:]
    return {part.split("\n", 1)[0]: part.split("\n", 1)[1].splitlines() for part in parts}


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> list[str]:
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    found = said(str(built("g++", tmp_path_factory.mktemp("here"))))
    assert len(found["plain"]) == 20  # 16 types and four models
    for name, lines in found.items():
        assert lines == found["plain"], name
    return found["plain"]


def test_instructions_that_are_not_here_say_the_same(plain, tmp_path):
    if "avx2" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("the other paths need AVX2, too")
    made = built("g++", tmp_path, "-mavx2", "-mfma", "-mf16c", "-include", str(HELPERS / "emulated_avx512.h"))
    found = said(str(made), "avx512", "avxvnni", "avx2")
    assert found == {"avx512": plain, "avxvnni": plain, "avx2": plain}


def test_arm_says_the_same(plain, tmp_path):
    compiler, emulator = "aarch64-linux-gnu-g++", shutil.which("qemu-aarch64")
    if shutil.which(compiler) is None or emulator is None:
        pytest.skip("no cross compiler and emulator: apt install g++-aarch64-linux-gnu qemu-user")
    found = said(emulator, str(built(compiler, tmp_path)))
    assert found == {"dotprod": plain, "plain": plain}
