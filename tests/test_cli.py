"""The command line: ranks of settings, clear errors, and a server process from start to clean stop."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest
from click.testing import CliRunner
from pair import DRAFTER, TARGET

from hetero.cli import main
from hetero.config import Config


def run(*args: str, env: dict[str, str] | None = None):
    return CliRunner().invoke(main, list(args), env=env)


@pytest.fixture
def planned(monkeypatch):
    """Runs ``serve`` up to the plan and returns its Config."""
    seen: list[Config] = []
    monkeypatch.setattr("hetero.plan.make_plan", lambda config, *rest: seen.append(config))
    monkeypatch.setattr("hetero.serve.serve", lambda config, plan, cluster, console: 0)

    def go(*args: str, env: dict[str, str] | None = None) -> Config:
        found = run("serve", *args, env=env)
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
        (["--port", "70000"], ["port"]),
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
    """A drafter whose token 100 reads differently: found from the tokenizers alone."""
    data = DRAFTER.read_bytes()
    from hetero.workers.models.tokenizer import GgufTokenizer

    piece = next(p for p in GgufTokenizer(DRAFTER).vocabulary.pieces[300:] if len(p) >= 5 and p.isalpha())
    at = data.index(len(piece).to_bytes(8, "little") + piece)
    other = tmp_path / "other.gguf"
    other.write_bytes(data[: at + 8] + piece[::-1] + data[at + 8 + len(piece) :])
    found = run("serve", "--draft", str(other))
    assert found.exit_code == 1 and "vocabulary mismatch" in found.stderr and "--draft none" in found.stderr


def test_too_little_memory_is_told(monkeypatch):
    from hetero.placement.device import Inventory

    monkeypatch.setattr("hetero.cluster.inventory.take_inventory", lambda: Inventory((0, 1), 100 << 20))
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


# The real process


def family(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def wait_ready(url: str, process: subprocess.Popen) -> None:
    end = time.monotonic() + 90
    while True:
        assert process.poll() is None, process.stdout.read()
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return
        except httpx.TransportError:
            pass
        assert time.monotonic() < end
        time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def serve(port: int, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-P", "-m", "hetero.cli", "serve", "--port", str(port), *more]
    # As a user has it: without the token that the tests share.
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_loads_serves_drains_and_leaves_nothing(number):
    shared = set(os.listdir("/dev/shm"))
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = serve(port, "--strategy", "serial", "--drain", "200")
    try:
        end = time.monotonic() + 30
        while True:  # 503 while loading
            assert time.monotonic() < end
            try:
                answer = httpx.get(f"{url}/health")
                break
            except httpx.TransportError:
                time.sleep(0.02)
        assert answer.status_code == 503 and answer.json()["error"]["message"] == "Loading model"
        assert httpx.post(f"{url}/v1/completions", json={"prompt": "x"}).status_code == 503
        wait_ready(url, process)
        children = family(process.pid)
        assert len(children) >= 4
        body = {"prompt": "def f():\n", "max_tokens": 600, "seed": 3, "stream": True}
        chunks = []
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=240) as stream:
            for line in stream.iter_lines():
                chunks.append(line)
                if len(chunks) == 5:
                    process.send_signal(number)
        # The stop let the running request finish.
        assert chunks[-2] == "data: [DONE]"
        last = json.loads([line for line in chunks if line.startswith("data: {")][-1][6:])
        assert last["choices"][0]["finish_reason"] == "length" and last["timings"]["predicted_n"] == 600
        assert process.wait(40) == 0
    finally:
        process.kill()
        output = process.stdout.read()
    assert re.search(r"target .* cpu:0", output) and "strategy" in output, output
    assert "Traceback" not in output and "SIGTERM received" not in output, output
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive, alive
    assert set(os.listdir("/dev/shm")) <= shared
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{url}/health")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_https_for_other_machines(tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    make = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test -keyout {key} -out {certificate}"
    names = ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*make.split(), *names], check=True, capture_output=True)
    port = free_port()
    tls = ["--ssl-cert-file", str(certificate), "--ssl-key-file", str(key)]
    process = serve(port, "--draft", "none", "--host", "0.0.0.0", "--api-key", "sesame", *tls)
    try:
        context = ssl.create_default_context(cafile=str(certificate))
        with httpx.Client(verify=context, base_url=f"https://127.0.0.1:{port}", timeout=60) as client:
            end = time.monotonic() + 60
            while True:
                assert time.monotonic() < end and process.poll() is None
                try:
                    if client.get("/health").status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                time.sleep(0.1)
            body = {"prompt": "x = ", "max_tokens": 3}
            assert client.post("/v1/completions", json=body).status_code == 401
            found = client.post("/v1/completions", json=body, headers={"Authorization": "Bearer sesame"})
            assert found.json()["usage"]["completion_tokens"] == 3
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{port}/health")
        process.send_signal(signal.SIGTERM)
        assert process.wait(40) == 0
    finally:
        process.kill()
        output = process.stdout.read()
    assert f"https://0.0.0.0:{port}" in output and "Traceback" not in output, output


@pytest.mark.parametrize("after", [0.0, 1.0, 2.5])
def test_a_stop_while_loading_ends_and_leaves_nothing(after):
    process = serve(free_port())
    try:
        line = process.stdout.readline()
        assert line.startswith("loading target"), line
        time.sleep(after)  # somewhere in the start of Ray, of the actors, or of the models
        children = family(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(40) == 0
    finally:
        process.kill()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive, alive


def test_a_model_that_fails_to_load_ends_serve_with_one_line(tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(TARGET.read_bytes()[:-5_000_000])
    found = subprocess.run(
        [sys.executable, "-P", "-m", "hetero.cli", "serve", "--target", str(broken), "--draft", "none", "--port", "0"],
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert found.returncode == 1
    assert "cannot load" in found.stdout + found.stderr
    assert "Traceback" not in found.stdout + found.stderr


def test_generate_prints_a_text_the_same_twice():
    command = [sys.executable, "-P", "-m", "hetero.cli", "generate", "import os", "-n", "20", "--seed", "4", "--exact"]
    one = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert one.returncode == 0, one.stderr
    assert "20 tokens" in one.stderr and one.stdout.strip()
    two = subprocess.run([*command, "--strategy", "off"], capture_output=True, text=True, timeout=90)
    assert two.stdout == one.stdout
