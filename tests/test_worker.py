"""Two real workers in one process, over real sockets."""

from __future__ import annotations

import time
from contextlib import contextmanager

import zmq


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


@contextmanager
def workers(target: WorkerSpec, drafter: WorkerSpec | None):
    started = [Worker(target)] + ([Worker(drafter)] if drafter else [])
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

    def close(self) -> None:
        self.socket.close(0)
        self.context.term()


def opening(seq: int, prompt: list[int], max_tokens: int = 60, temperature: float = 0.8, seed: int = 1) -> Open:
    return Open(seq, 0, prompt, [], Sampling(temperature, 0, 1.0, 0.0, seed, 0), max_tokens, [])


def test_table_pair_over_sockets_is_independent_of_strategy():
    found = []
    for plan in ("off", "serial", "ahead"):
        target = WorkerSpec("target", "", "table", plan, 4)
        drafter = None if plan == "off" else WorkerSpec("drafter", "", "table", plan, 4)
        with workers(target, drafter) as (verifier, *_):
            client = Client(verifier.status()["endpoint"])
            if drafter:
                until(lambda v=verifier: v._machine._drafter is not None)
            asked = [opening(10 + n, [n, n + 1], seed=n) for n in range(6)]
            answers = client.ask(*asked)
            found.append([answers[o.seq][0] for o in asked])
            if drafter:
                assert sum(answers[o.seq][2].stats.draft_n_accepted for o in asked) > 20
            until(lambda v=verifier: v.status()["idle"])
            # Garbage on the socket is dropped and counted, and hurts nobody.
            for frame in (b"", b"\x80\x04N.", b"x" * 1000, encode(Ping("x", 1, []))[:-1]):
                client.socket.send(frame)
            client.socket.send_multipart([b"a", b"b"])
            until(lambda v=verifier: v.status()["dropped"] >= 5)
            client.close()
    assert found[0] == found[1] == found[2]
    assert all(found[0])
