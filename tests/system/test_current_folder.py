"""Nothing is imported from the folder a command is started in: it may be full of traps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MODULES = [
    *("torch", "numpy", "ray", "zmq", "msgpack", "msgspec", "llama_cpp", "transformers", "click", "yaml", "google"),
    *("random", "queue", "json", "multiprocessing", "typing_extensions", "psutil", "gguf"),
]
PACKAGES = ["workers", "placement", "hetero", "tests"]


@pytest.fixture
def traps(tmp_path):
    """Each leaves a mark, then dies."""
    folder = tmp_path / "traps"
    for name in (*MODULES, *(f"{package}/__init__" for package in PACKAGES)):
        file = folder / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        mark = tmp_path / f"sprung-{name.replace('/', '-')}"
        file.write_text(f"open({str(mark)!r}, 'w')\nraise SystemExit('trap {name}')\n")
    yield folder
    assert not list(tmp_path.glob("sprung-*"))


def environment() -> dict[str, str]:
    """A user's: without what tests, and commands run within them, have set."""
    ours = ("RAY_AUTH", "PYTHONSAFEPATH")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def run(folder: Path, *args: str) -> str:
    command = Path(sys.executable).parent / "hetero"
    env = environment()
    done = subprocess.run([str(command), *args], cwd=folder, capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_traps_work(traps):
    command = [sys.executable, "-c", "import torch"]
    done = subprocess.run(command, cwd=traps, capture_output=True, text=True, env=environment())
    assert "trap torch" in done.stderr
    for mark in traps.parent.glob("sprung-*"):
        mark.unlink()


@pytest.mark.long
def test_generate_with_ray_actors(traps):
    assert "20 tokens" in run(traps, "generate", "import os", "-n", "20", "--seed", "4", "--exact")


@pytest.mark.long
def test_doctor_with_its_trial_processes(traps):
    assert "0 problems" in run(traps, "doctor", "--port", "0")


@pytest.mark.long
def test_benchmarks_with_their_processes(traps, tmp_path):
    file = tmp_path / "figures.json"
    run(traps, "bench", "regimes", "--tokens", "1000", "--regime", "C", "--strategy", "off", "--json", str(file))
    assert json.loads(file.read_text())["rows"]
    run(traps, "bench", "drafter", "--draft", "builtin", "--repeats", "1")
