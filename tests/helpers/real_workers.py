"""Real workers in one process, and a client on a real socket."""

from __future__ import annotations

import time
from contextlib import contextmanager

import zmq

from hetero.workers.engines.registry import Progress, unheard
from hetero.workers.engines.table import TableEngine, TableSpec
from hetero.workers.models.vocabulary import Vocabulary
from hetero.workers.runtime.loading import Loaded, load_model
from hetero.workers.runtime.spec import WorkerSpec
from hetero.workers.runtime.worker import Worker
from hetero.workers.wire.codec import decode, encode
from hetero.workers.wire.messages import Failed, Finished, Open, Ping, Sampling, Tokens
from hetero.workers.wire.sockets import connect_dealer


def until(condition, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.01)


def eager(monkeypatch) -> None:
    """Let ``ahead`` speculate although it does not pay, as it may not with toy models that share a core."""
    monkeypatch.setattr("hetero.workers.decoding.policy.window.rows_worth", lambda reaches, *rest: len(reaches))
    for name in ("BLOCK", "LOSS"):
        monkeypatch.setattr(f"hetero.workers.decoding.policy.tuning.{name}", 1 << 30)


def load_any(spec: WorkerSpec, progress: Progress = unheard) -> Loaded:
    """As workers load, and the engine "table" besides."""
    if spec.engine != "table":
        return load_model(spec)
    agreement = 1.0 if spec.role == "target" else 0.8
    engine = TableEngine(TableSpec(4096, spec.context, agreement=agreement, sequences=spec.sequences))
    pieces = [f" {token}".encode() for token in range(4096)]
    return Loaded(engine, Vocabulary(pieces, frozenset({4095})))


def slow(spec: WorkerSpec, progress: Progress = unheard) -> Loaded:
    """A target's engine whose checks take at least 20 ms, so that a drafter that nobody waits for is in time."""
    loaded = load_any(spec)
    extend = loaded.engine.extend

    def slowed(*args, **kwargs):
        time.sleep(0.02)
        return extend(*args, **kwargs)

    loaded.engine.extend = slowed
    return loaded


@contextmanager
def workers(target: WorkerSpec, drafter: WorkerSpec | None, quick: bool = False):
    """``quick``: leave a target as it is that does not wait for drafts; it may then be done before any comes."""
    waits = quick or target.strategy in ("serial", "mirror") or not drafter
    started = [Worker(target, load_any if waits else slow)]
    started += [Worker(drafter, load_any)] if drafter else []
    try:
        for worker in started:
            worker.start()
        for worker in started:
            until(lambda w=worker: w.status().phase != "loading", 60)
            assert worker.status().phase == "ready", worker.status()
        if drafter:
            started[1].link(started[0].status().endpoint)
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
