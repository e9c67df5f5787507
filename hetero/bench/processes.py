"""Real workers for benchmarks: plain pinned processes over ZeroMQ, several pairs side by side in one run."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import time
from dataclasses import dataclass

import msgspec
import zmq

from hetero.errors import ClusterError
from hetero.planning.vocabularies import spoken
from hetero.workers.models.model import read_model
from hetero.workers.runtime.spec import WorkerSpec
from hetero.workers.runtime.status import WorkerStatus, read_status
from hetero.workers.wire.codec import decode, encode
from hetero.workers.wire.messages import Failed, Finished, Open, Ping, Sampling, Stats, Tokens
from hetero.workers.wire.sockets import connect_dealer

_PATIENCE = 120.0  # seconds without a word
_ALIVE = 5.0  # seconds between two signs of life


@dataclass(frozen=True)
class Generation:
    """One finished sequence: its output, its cost, and the wall seconds from its first token to its last."""

    tokens: list[int]
    stats: Stats
    seconds: float


class Pair:
    """A verifier and perhaps a drafter, each a process of its own, and a client of theirs."""

    def __init__(self, target: WorkerSpec, drafter: WorkerSpec | None) -> None:
        if drafter is not None and not drafter.vocabulary:
            drafter = msgspec.structs.replace(
                drafter, vocabulary=spoken(read_model(target.path), read_model(drafter.path))
            )
        self._processes = [_spawn(spec) for spec in (target, drafter) if spec is not None]
        statuses = [_status(process) for process in self._processes]
        self._context = zmq.Context()
        self._socket = connect_dealer(self._context, statuses[0].endpoint, b"bench-" + secrets.token_hex(4).encode())
        if drafter is not None:
            _order(self._processes[1], f"link 0 {statuses[0].endpoint}")

    def ask(self, prompt: list[int], sampling: Sampling, count: int) -> Generation:
        """Generate ``count`` tokens of one sequence."""
        return self.ask_all([(prompt, sampling)], count)[0]

    def ask_all(self, asked: list[tuple[list[int], Sampling]], count: int) -> list[Generation]:
        """Several sequences at once; the generations in order. ``seconds`` count from each one's own first token."""
        openings = [Open(secrets.randbits(62), 0, p, [], s, count, []) for p, s in asked]
        tokens: dict[int, list[int]] = {o.seq: [] for o in openings}
        began: dict[int, float] = {}
        done: dict[int, Generation] = {}
        self._sign()
        for opening in openings:
            self._socket.send(encode(opening))
        heard = pinged = time.monotonic()
        while len(done) < len(openings):
            now = time.monotonic()
            if now - pinged > _ALIVE:
                self._sign()
                pinged = now
            if not self._socket.poll(1e3 * _ALIVE):
                if now - heard > _PATIENCE:
                    raise ClusterError(f"the benchmark's sequences got nothing for {_PATIENCE:.0f} seconds")
                continue
            message = decode(self._socket.recv())
            now = heard = time.monotonic()
            match message:
                case Tokens():
                    began.setdefault(message.seq, now)
                    tokens[message.seq] += message.tokens
                case Finished():
                    done[message.seq] = Generation(tokens[message.seq], message.stats, now - began[message.seq])
                case Failed():
                    raise ClusterError(f"the benchmark's sequence failed: {message.message}")
        return [done[o.seq] for o in openings]

    def _sign(self) -> None:
        """Of life: who is silent counts as gone, and its sequences with it."""
        self._socket.send(encode(Ping("gateway", 0, [])))

    def statuses(self) -> list[WorkerStatus]:
        """Each worker's status now, the verifier's first."""
        for process in self._processes:
            _order(process, "status")
        return [_status(process) for process in self._processes]

    def close(self) -> None:
        """Stop the processes."""
        self._socket.close(0)
        self._context.term()
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self._processes:
            process.wait(20)


def _spawn(spec: WorkerSpec) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-m", "hetero.workers", json.dumps(spec.plain())]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _status(process: subprocess.Popen[str]) -> WorkerStatus:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise ClusterError("a worker of the benchmark ended without a word")
    found = read_status(json.loads(line))
    if found.phase != "ready":
        raise ClusterError(f"a worker of the benchmark failed: {found.failure}")
    return found


def _order(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()
