"""Real clients in environments of their own under ``.clients``, which are made once: they want other versions of what
hetero itself uses, and of each other."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.builtin_pair import TARGET

HERE = Path(__file__).parent.parent / "clients"
KEPT = HERE.parent.parent / ".clients"


def checkpoint(there: Path) -> Path:
    """The built-in target as a transformers directory."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name = {"pretrained_model_name_or_path": TARGET.parent, "gguf_file": TARGET.name}
    AutoTokenizer.from_pretrained(**name).save_pretrained(there)
    read = AutoModelForCausalLM.from_pretrained(**name, dtype=torch.float32)
    config = read.config.to_dict()
    config.pop("quantization_config", None)  # what came of a GGUF file is not written as a checkpoint
    made = type(read)(type(read.config).from_dict(config)).to(torch.float32)
    made.load_state_dict(read.state_dict())
    made.save_pretrained(there)
    return there


def run(*command: object, seconds: int = 600, **more: str) -> str:
    """What a command says; its failure is the test's."""
    done = subprocess.run(
        [str(word) for word in command],
        env={**os.environ, **more},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout


def environment(name: str) -> Path:
    """The Python of an environment with what a requirements file names."""
    wanted = HERE / f"{name}.txt"
    there = KEPT / f"{name}-{hashlib.sha256(wanted.read_bytes()).hexdigest()[:12]}"
    python = there / "bin" / "python"
    if not (there / "complete").exists():
        shutil.rmtree(there, ignore_errors=True)
        run(sys.executable, "-m", "venv", there)
        run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-r", wanted, seconds=1500)
        (there / "complete").touch()
    return python


def node_folder() -> Path:
    """A folder with the packages of node/package.json and the scripts beside them."""
    if shutil.which("npm") is None:
        pytest.skip("no Node is installed")
    digest = hashlib.sha256((HERE / "node" / "package.json").read_bytes()).hexdigest()[:12]
    there = KEPT / f"node-{digest}"
    there.mkdir(parents=True, exist_ok=True)
    for source in (HERE / "node").iterdir():
        shutil.copy(source, there)
    if not (there / "complete").exists():
        run("npm", "install", "--prefix", there, "--no-fund", "--no-audit", "--silent", seconds=1500)
        (there / "complete").touch()
    return there


def talk(python: Path, name: str, url: str, **more: str) -> None:
    """Have a client's script run, of which at least one conversation must have taken place."""
    alone = ["-q", "-c", os.devnull, "--rootdir", HERE, "-p", "no:cacheprovider", "-W", "ignore"]
    said = run(python, "-m", "pytest", *alone, HERE / f"with_{name}.py", HETERO_URL=url, HETERO_MODEL="builtin", **more)
    print(f"{name}: {said.strip().splitlines()[-1]}")
    assert " passed" in said
