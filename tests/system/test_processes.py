"""A server process from start to clean stop, as a user starts it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest
from helpers.builtin_pair import TARGET
from helpers.server_process import free_port, serve, wait_ready


def family(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def mapped(pid: int) -> set[str]:
    """The shared memory a process has, by name."""
    with suppress(OSError):
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
        return {line.partition("/dev/shm/")[2] for line in lines if "/dev/shm/" in line}
    return set()


@pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=pytest.mark.long), signal.SIGINT])
def test_serve_loads_serves_drains_and_leaves_nothing(number):
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = serve(port, "--strategy", "serial", "--drain", "200")
    try:
        end = time.monotonic() + 120
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
        shared = {name for child in children for name in mapped(child.pid)}
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
    assert not shared & set(os.listdir("/dev/shm"))
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{url}/health")


@pytest.mark.long
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
            end = time.monotonic() + 200
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


@pytest.mark.long
@pytest.mark.parametrize("after", [0.0, 1.0, 2.5])
def test_a_stop_while_loading_ends_and_leaves_nothing(after):
    process = serve(free_port())
    try:
        lines = iter(process.stdout.readline, "")  # which engine was the fastest may be told before
        assert any(line.startswith("loading target") for line in lines)
        time.sleep(after)  # somewhere in the start of Ray, of the actors, or of the models
        children = family(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(40) == 0
    finally:
        process.kill()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive, alive


def test_a_stop_while_engines_are_measured_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("HETERO_CACHE", str(tmp_path))
    process = serve(free_port())
    try:
        assert any(line.startswith("measuring") for line in iter(process.stdout.readline, ""))
        time.sleep(0.5)
        children = family(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 128 + signal.SIGTERM
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


@pytest.mark.long
def test_generate_prints_a_text_the_same_twice():
    command = [sys.executable, "-P", "-m", "hetero.cli", "generate", "import os", "-n", "20", "--seed", "4", "--exact"]
    one = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert one.returncode == 0, one.stderr
    assert "20 tokens" in one.stderr and one.stdout.strip()
    two = subprocess.run([*command, "--strategy", "off"], capture_output=True, text=True, timeout=90)
    assert two.stdout == one.stdout
