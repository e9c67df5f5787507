"""Clients that connect and do not ask, ask slowly, or do not read: they end, and shut nobody out."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Awaitable, Callable

import httpx
import pytest
import uvicorn
from helpers.builtin_pair import NO_END
from helpers.running_server import RunningServer

from hetero.gateway.door import connections

pytestmark = pytest.mark.long


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
    monkeypatch.setattr(connections, "KEPT", 2.0)
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
    monkeypatch.setattr(connections, "IDLE", 1.0)
    began = time.monotonic()
    while time.monotonic() < began + 2.5:
        found = stack.complete("x", max_tokens=1900, temperature=0.5, seed=1)
        assert found["usage"]["completion_tokens"] == 1900


def test_bodies_that_do_not_come_shut_nobody_out(stack, monkeypatch):
    monkeypatch.setattr(connections.Connection, "most", 20)
    held = [connect(stack) for _ in range(60)]
    try:
        for client in held:
            with contextlib.suppress(OSError):
                client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n")
        for _ in range(3):
            assert httpx.get(f"{stack.url}/health", timeout=10).status_code == 200
    finally:
        for client in held:
            client.close()


@pytest.mark.long
@pytest.mark.parametrize("limit", ["IDLE", "STALLED"])
def test_one_that_reads_slowly_gets_all_of_a_large_answer(monkeypatch, limit):
    """Longer than the limit, at a steady pace."""
    monkeypatch.setattr(connections, limit, 1.0)
    size = 16 << 20

    async def app(scope: dict, receive: object, send: Callable[[dict], Awaitable[None]]) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % size)]})
        await send({"type": "http.response.body", "body": b"x" * size})

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="off", **connections.options()))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
            client.connect(server.servers[0].sockets[0].getsockname())
            client.settimeout(60)
            client.sendall(WHOLE)
            got = 0
            while got < size:
                more = client.recv(1 << 17)
                assert more, f"{got} of {size} bytes came"
                got += len(more)
                time.sleep(0.03)
    finally:
        server.should_exit = True
        thread.join(30)


def reading_little(stack) -> socket.socket:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    host, port = stack.url.removeprefix("http://").split(":")
    client.connect((host, int(port)))
    client.settimeout(120)
    return client


def ask(client: socket.socket, body: dict) -> None:
    data = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n"
    client.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + data)


@pytest.mark.long
def test_one_that_does_not_read_is_cut_and_its_place_is_free(stack, monkeypatch):
    monkeypatch.setattr(connections, "STALLED", 1.0)
    cut, hang_up = [], connections.Connection.hang_up
    monkeypatch.setattr(connections.Connection, "hang_up", lambda self: cut.append(1) or hang_up(self))
    with reading_little(stack) as lazy:
        ask(lazy, {"prompt": "x", "max_tokens": 1900, "logprobs": 20, "n": 16, "stream": True, "logit_bias": NO_END})
        end = time.monotonic() + 100
        while not cut:
            assert time.monotonic() < end
            time.sleep(0.05)
        while stack.served.admission.sequences:  # nobody closed it
            assert time.monotonic() < end
            time.sleep(0.1)
    stack.settled()
