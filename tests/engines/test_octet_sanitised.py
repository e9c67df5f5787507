"""The octet kernel under AddressSanitizer and UndefinedBehaviorSanitizer, over right models and hundreds of wrong ones.

Before shapes were checked, a model that claims 255 heads of keys was read far beyond its end.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers.builtin_pair import DRAFTER

from hetero.workers.engines.octet.library import why_not

ROOT = Path(__file__).parent.parent.parent
KERNEL = sorted((ROOT / "workers" / "engines" / "octet" / "kernel").glob("*.cpp"))
FLAGS = ["-O1", "-g", "-std=c++17", "-pthread", "-ffp-contract=off", "-fPIC", "-w"]


pytestmark = pytest.mark.long


def runtime(name: str) -> str:
    found = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return found.stdout.strip()


@pytest.fixture(scope="module")
def kernel(tmp_path_factory) -> Path:
    if (missing := why_not()) or shutil.which("g++") is None:
        pytest.skip(missing or "no g++")
    if not os.path.isabs(runtime("libasan.so")):
        pytest.skip("g++ comes without AddressSanitizer")
    made = tmp_path_factory.mktemp("kernel") / "octet.so"
    checks = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    objects = [made.with_name(f"{source.stem}.o") for source in KERNEL]

    def compiled(source: Path, to: Path) -> None:
        subprocess.run(["g++", *FLAGS, *checks, "-c", str(source), "-o", str(to)], check=True)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compiled, KERNEL, objects))
    subprocess.run(["g++", *FLAGS, "-shared", *checks, *map(str, objects), "-o", str(made)], check=True)
    return made


def exercised(kernel: Path, folder: Path, seed: int, count: int) -> str:
    script = str(ROOT / "tests" / "helpers" / "exercise_octet.py")
    done = subprocess.run(
        [sys.executable, script, str(kernel), str(DRAFTER), str(seed), str(count)],
        env={
            **os.environ,
            "LD_PRELOAD": f"{runtime('libasan.so')} {runtime('libubsan.so')}",
            "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter's own
            "UBSAN_OPTIONS": "print_stacktrace=1",
            "HETERO_CACHE": str(folder / "cache"),
        },
        capture_output=True, text=True, timeout=1500,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.endswith("well\n"), done.stdout[-3000:] + done.stderr[-6000:]
    assert "Sanitizer" not in done.stderr and "runtime error" not in done.stderr, done.stderr[-6000:]
    return done.stdout


@pytest.mark.timeout(1800)
def test_no_model_makes_the_kernel_read_beyond_its_arrays(kernel, tmp_path):
    said = exercised(kernel, tmp_path, 2, 1000)
    assert all(word in said for word in ("'ran'", "'ModelError'", "'Unsupported'")), said


def test_the_sanitisers_would_see_it(kernel, tmp_path):
    """A kernel told of more cells than there are is caught."""
    code = (
        "import ctypes, sys; lib = ctypes.CDLL(sys.argv[1]); lib.octet_bandwidth.argtypes = "
        "[ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int]; libc = ctypes.CDLL(None); "
        "libc.malloc.restype = ctypes.c_void_p; lib.octet_bandwidth(libc.malloc(256), 512, 1, 1)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(kernel)],
        env={**os.environ, "LD_PRELOAD": runtime("libasan.so"), "ASAN_OPTIONS": "detect_leaks=0"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode != 0 and "heap-buffer-overflow" in done.stderr
