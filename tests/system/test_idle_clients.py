"""Clients that connect and do not ask, ask slowly, or do not read: they end, and shut nobody out."""

from __future__ import annotations

import json
import socket
import time

import httpx
import pytest
from helpers.builtin_pair import NO_END
from helpers.running_server import RunningServer

from hetero.gateway import auth, connections


@pytest.fixture(scope="module")
def stack():
    made = RunningServer(strategy="serial", port=0)
    yield made
    made.close()


def connect(stack: RunningServer) -> socket.socket:
    host, port = stack.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), 30)


def ended(client: socket.socket, seconds: float = 20) -> bool:
    """Whether the other end hangs up."""
    client.settimeout(seconds)
    try:
        while client.recv(1 << 16):
            pass
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
    return True


HALF = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nX-Slow: "
WHOLE = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize("sent", [b"", HALF, WHOLE, WHOLE + HALF])
def test_one_that_does_not_ask_is_closed(stack, monkeypatch, sent):
    monkeypatch.setattr(connections, "IDLE", 1.0)
    with connect(stack) as client:
        client.sendall(sent)
        assert ended(client)
    assert not connections.Connection.waiting


def test_a_trickle_of_a_header_is_no_request(stack, monkeypatch):
    monkeypatch.setattr(connections, "IDLE", 1.0)
    with connect(stack) as client:
        began = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() < began + 20:
                client.sendall(HALF[:1] if time.monotonic() - began > 0.1 else HALF)
                time.sleep(0.05)


def test_idle_ones_shut_nobody_out(stack, monkeypatch):
    monkeypatch.setattr(connections.Connection, "most", 50)
    idle = [connect(stack) for _ in range(200)]
    try:
        for _ in range(3):
            assert httpx.get(f"{stack.url}/health", timeout=10).status_code == 200
        assert stack.complete("x", max_tokens=4)["usage"]["completion_tokens"] == 4
        assert ended(idle[0], 5) and not ended(idle[-1], 0.3)  # those that wait longest go first
    finally:
        for client in idle:
            client.close()


def test_a_request_under_way_is_not_idle(stack, monkeypatch):
    monkeypatch.setattr(connections, "IDLE", 0.3)
    found = stack.complete("x", max_tokens=1200, temperature=0.5, seed=1)
    assert found["usage"]["completion_tokens"] == 1200


def test_a_body_that_stops_coming_is_told_so(stack, monkeypatch):
    monkeypatch.setattr(auth, "_CHUNK", 1.0)
    with connect(stack) as client:
        client.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b'Content-Length: 500\r\n\r\n{"prompt": '
        )
        client.settimeout(20)
        assert client.recv(12) == b"HTTP/1.1 408"
    stack.settled()


def test_one_that_does_not_read_is_cut_and_its_place_is_free(stack, monkeypatch):
    monkeypatch.setattr(connections, "STALLED", 1.0)
    body = {"prompt": "x", "max_tokens": 1500, "logprobs": 20, "stream": True, "logit_bias": NO_END}
    data = json.dumps(body).encode()
    with socket.socket() as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        host, port = stack.url.removeprefix("http://").split(":")
        lazy.connect((host, int(port)))
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n"
        lazy.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + data)
        end = time.monotonic() + 60
        while stack.served.admission.sequences == 0:
            assert time.monotonic() < end
            time.sleep(0.01)
        while stack.served.admission.sequences:  # nobody closed it
            assert time.monotonic() < end
            time.sleep(0.1)
    stack.settled()
