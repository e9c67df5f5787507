"""Real workers in one process, and a client on a real socket."""

from __future__ import annotations

import time
from contextlib import contextmanager

import zmq

from workers.engines.base import Engine
from workers.engines.load import load_engine
from workers.spec import WorkerSpec
from workers.wire.codec import decode, encode
from workers.wire.messages import Failed, Finished, Open, Ping, Sampling, Tokens
from workers.wire.socket import connect_dealer
from workers.worker import Worker


def until(condition, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.01)


def eager(monkeypatch) -> None:
    """Let ``ahead`` speculate although it does not pay, as it may not with toy models that share a core."""
    monkeypatch.setattr("workers.window.rows_worth", lambda reaches, *rest: len(reaches))
    monkeypatch.setattr("workers.trial._BLOCK", 1 << 30)


def slow(spec: WorkerSpec) -> Engine:
    """A target's engine whose checks take at least 20 ms, so that a drafter that nobody waits for is in time."""
    engine = load_engine(spec)
    extend = engine.extend

    def slowed(*args, **kwargs):
        time.sleep(0.02)
        return extend(*args, **kwargs)

    engine.extend = slowed
    return engine


@contextmanager
def workers(target: WorkerSpec, drafter: WorkerSpec | None, quick: bool = False):
    """``quick``: leave a target as it is that does not wait for drafts; it may then be done before any comes."""
    waits = quick or target.strategy in ("serial", "mirror") or not drafter
    started = [Worker(target, load_engine if waits else slow)] + ([Worker(drafter)] if drafter else [])
    try:
        for worker in started:
            worker.start()
        for worker in started:
            until(lambda w=worker: w.status()["phase"] != "loading", 60)
            assert worker.status()["phase"] == "ready", worker.status()
        if drafter:
            started[1].link(started[0].status()["endpoint"])
        yield started
    finally:
        for worker in started:
            worker.stop()
            assert worker.ended.is_set()


class Client:
    def __init__(self, endpoint: str) -> None:
        self.context = zmq.Context()
        self.socket = connect_dealer(self.context, endpoint, b"test-client")
        self.socket.setsockopt(zmq.RCVTIMEO, 20000)
        self.socket.send(encode(Ping("gateway", 0, [])))

    def ask(self, *openings: Open) -> dict[int, tuple[list[int], str, Finished | Failed]]:
        for opening in openings:
            self.socket.send(encode(opening))
        tokens = {o.seq: [] for o in openings}
        texts = dict.fromkeys(tokens, "")
        ends = {}
        while len(ends) < len(openings):
            message = decode(self.socket.recv())
            if isinstance(message, Tokens):
                tokens[message.seq] += message.tokens
                texts[message.seq] += message.text
            elif isinstance(message, Finished | Failed):
                ends[message.seq] = message
        return {seq: (tokens[seq], texts[seq], ends[seq]) for seq in tokens}

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_) -> None:
        self.socket.close(0)  # also when a test fails: a context with an open socket never ends
        self.context.term()


def opening(seq: int, prompt: list[int], max_tokens: int = 60, temperature: float = 0.8, seed: int = 1) -> Open:
    return Open(seq, 0, prompt, [], Sampling(temperature, 0, 1.0, 0.0, seed, 0), max_tokens, [])
