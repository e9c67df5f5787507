"""A machine that only drafts need not install what it never runs; what is missing is told in one line."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from helpers.builtin_pair import DRAFTER

from hetero.cli import EXTRAS
from hetero.workers.runtime.spec import WorkerSpec

_BLOCKED = """
import importlib.machinery, importlib.util, sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name.partition(".")[0])
sys.meta_path.insert(0, Missing())
spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in {blocked!r} else spec(name, package)
sys.argv = {argv!r}
from {module} import main
sys.exit(main())
"""


def run(module: str, blocked: list[str], *args: str) -> subprocess.CompletedProcess[str]:
    """A command where these modules are not installed."""
    code = _BLOCKED.format(blocked=blocked, argv=[module, *args], module=module)
    return subprocess.run([sys.executable, "-P", "-c", code], input="", capture_output=True, text=True, timeout=60)


def test_a_drafter_runs_with_its_own_engine_alone():
    spec = WorkerSpec("drafter", str(DRAFTER), "llama_cpp", "ahead", 0, cores=[0], context=256)
    missing = [*EXTRAS["torch"], *(name for name in EXTRAS["serve"] if name != "jinja2")]  # llama-cpp-python has it
    done = run("hetero.workers.runtime.process", missing, json.dumps(spec.plain()))
    assert done.returncode == 0 and json.loads(done.stdout.splitlines()[0])["phase"] == "ready", done.stderr


@pytest.mark.parametrize("extra", EXTRAS)
def test_what_is_missing_is_told_in_one_line(extra):
    args = ["serve", "--port", "0"]
    if extra == "torch":
        args += ["--target-engine", "torch"]
    done = run("hetero.cli", list(EXTRAS[extra]), *args)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and "Traceback" not in done.stderr, done.stderr
    assert f"hetero[{extra}]" in lines[0] or "torch" in lines[0]


def test_devices_are_listed_without_any_engine():
    done = run("hetero.cli", [*EXTRAS["torch"], *EXTRAS["llama"], *EXTRAS["serve"]], "devices")
    assert done.returncode == 0 and "cpu:" in done.stdout, done.stderr


@pytest.mark.long
@pytest.mark.parametrize("extra", EXTRAS)
def test_the_doctor_says_what_is_missing_and_goes_on(extra):
    done = run("hetero.cli", list(EXTRAS[extra]), "doctor", "--port", "0")
    assert "Traceback" not in done.stderr, done.stderr
    assert "problems" in done.stdout or "1 problem" in done.stdout
