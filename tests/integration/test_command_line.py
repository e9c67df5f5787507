"""The command line: ranks of settings, clear errors, and a server process from start to clean stop."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers.builtin_pair import DRAFTER
from helpers.odd_gguf import other_vocabulary

from hetero.cli import hide, main
from hetero.config import Config


def run(*args: str, env: dict[str, str] | None = None):
    return CliRunner().invoke(main, list(args), env=env)


@pytest.fixture
def planned(monkeypatch):
    """Runs ``serve`` up to the plan and returns its Config."""
    seen: list[Config] = []
    monkeypatch.setattr("hetero.serve.serve", lambda config, *rest: seen.append(config))

    def go(*args: str, env: dict[str, str] | None = None) -> Config:
        found = run(
            "serve", "--target-engine", "octet", "--draft-engine", "octet", *args, env=env
        )  # nothing is measured
        assert found.exit_code == 0, found.output
        return seen[-1]

    return go


def test_flag_beats_variable_beats_file_beats_default(planned, tmp_path):
    file = tmp_path / "hetero.yaml"
    file.write_text("port: 1111\ngamma: 2\nexact: true\n")
    assert planned().port == 8000
    assert planned("--config", str(file)).port == 1111
    assert planned("--config", str(file), env={"HETERO_PORT": "2222"}).port == 2222
    both = planned("--config", str(file), "--port", "3333", env={"HETERO_PORT": "2222"})
    assert (both.port, both.gamma, both.exact) == (3333, 2, True)
    assert planned(env={"HETERO_CONFIG": str(file), "HETERO_EXACT": "0"}).exact is False


def test_every_setting_is_a_flag_and_a_variable():
    text = run("serve", "--help").output
    for name in Config.__struct_fields__:
        assert f"--{name.replace('_', '-')}" in text
        assert f"HETERO_{name.upper()}" in text


def yaml(tmp_path: Path, text: str) -> list[str]:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    return ["--config", str(file)]


@pytest.mark.parametrize(
    "args, words",
    [
        (["--target", "/no/such.gguf"], ["/no/such.gguf", "no such file"]),
        (["--target", __file__], ["not a GGUF file"]),
        (["--target-device", "cpu:4095"], ["cpu:4095", "usable cores"]),
        (["--target-device", "cuda:7"], ["cuda:7"]),
        (["--draft-device", "tpu:1"], ["tpu:1", "cpu:0-3"]),
        (["--strategy", "magic"], ["strategy", "off, serial, pearl, mirror, ahead"]),
        (["--strategy", "ahead", "--draft", "none"], ["strategy", "drafter"]),
        (["--target-engine", "vllm"], ["target_engine", "llama_cpp, torch"]),
        (["--gamma", "-1"], ["gamma"]),
        (["--worker-ports", "²-³"], ["worker_ports"]),
        (["--port", "70000"], ["port"]),
        (["--draft-group", "2", "--draft-engine", "octet"], ["draft_group", "octet", "--draft-engine torch"]),
        (["--draft-group", "65"], ["draft_group"]),
        (["--draft-ranks", "2", "--draft-engine", "llama_cpp"], ["draft_ranks", "--draft-engine torch"]),
        (["--target-ranks", "2", "--exact"], ["target_ranks", "exact"]),
        (["--target-ranks", "16"], ["target_ranks", "heads"]),
        (["--context", "5000"], ["context", "2048"]),
        (["--host", "no.such.host.invalid"], ["host"]),
    ],
)
def test_mistakes_are_one_clear_line(args, words):
    found = run("serve", *args)
    assert found.exit_code == 1, found.output
    lines = [line for line in found.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    for word in words:
        assert word in lines[0]


@pytest.mark.parametrize(
    "text, words",
    [
        ("prot: 5", ["prot", "port"]),
        ("port: many", ["port", "int"]),
        ("- a", ["key: value"]),
        ("a: [", ["not YAML"]),
        ("gamma: 99", ["gamma"]),
    ],
)
def test_mistakes_in_the_file_name_the_file_and_the_key(tmp_path, text, words):
    found = run("serve", *yaml(tmp_path, text))
    assert found.exit_code == 1
    for word in ("c.yaml", *words):
        assert word in found.stderr


def test_a_vocabulary_mismatch_is_told_before_weights_load(tmp_path):
    """A drafter most of whose tokens read differently: found from the tokenizers alone."""
    other = other_vocabulary(DRAFTER, tmp_path / "other.gguf", range(4096), renamed=range(300, 4096))
    found = run("serve", "--draft", str(other))
    assert found.exit_code == 1 and "vocabulary mismatch" in found.stderr and "--draft none" in found.stderr
    assert "% of the tokens of a text are tokens of both" in found.stderr


def test_too_little_memory_is_told(monkeypatch):
    from hetero.placement.device import Inventory

    monkeypatch.setattr("hetero.placed.take_inventory", lambda: Inventory((0, 1), 100 << 20))
    found = run("serve")
    assert found.exit_code == 1 and "GiB" in found.stderr and "--context" in found.stderr


def test_a_taken_port_is_told_before_anything_loads():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        began = time.monotonic()
        found = run("serve", "--port", str(taken.getsockname()[1]))
        assert found.exit_code == 1 and "--port" in found.stderr
        assert time.monotonic() - began < 5


def test_devices_and_version():
    assert "cpu:" in run("devices").output
    found = json.loads(run("devices", "--json").output)["cpu"]
    assert found["fast"] and found["memory"] > 0 and {core["number"] for core in found["cores"]} >= set(found["fast"])
    assert re.search(r"hetero \d.*ray 2\.60", run("version").output, re.S)


def test_models_that_bring_code_are_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"auto_map": {"AutoModel": "x.Y"}}))
    found = run("serve", "--target", str(tmp_path))
    assert found.exit_code == 1 and "auto_map" in found.stderr


def test_bench_overhead_prints_and_writes(tmp_path):
    file = tmp_path / "o.json"
    found = run("bench", "overhead", "--rounds", "20", "--json", str(file))
    assert found.exit_code == 0, found.output
    assert "cores" in found.output.splitlines()[-1]
    report = json.loads(file.read_text())
    assert report["machine"] and {row["vocabulary"] for row in report["rows"]} == {4096, 131072}
    assert all(row["verifier us/round"] > 0 for row in report["rows"])


def test_a_key_given_as_a_flag_leaves_the_command_line(monkeypatch):
    """Everybody on a machine may read the command lines of its processes."""
    begun: list[list[str]] = []
    monkeypatch.setattr("os.execv", lambda path, words: begun.append(words))
    monkeypatch.setenv("HETERO_API_KEY", "")  # and as it was, afterwards
    for given in (["--api-key", "sesame"], ["--api-key=sesame"]):
        monkeypatch.setattr("sys.argv", ["hetero", "serve", "--port", "0", *given, "--draft", "none"])
        hide("--api-key", "HETERO_API_KEY", "sesame")
        assert begun[-1][-5:] == ["serve", "--port", "0", "--draft", "none"]
        assert os.environ["HETERO_API_KEY"] == "sesame"
    monkeypatch.setattr("sys.argv", ["hetero", "serve"])
    hide("--api-key", "HETERO_API_KEY", "")
    assert len(begun) == 2
