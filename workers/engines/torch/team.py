"""One engine on several devices: the ranks' processes, their collectives, and rank 0's side of an ``Engine``.

Rank 0 lives in the worker. It tells the others each call over ZeroMQ and makes it itself; inside a forward they meet in
collectives of ``torch.distributed``, at the same places since all run the same calls in the same order. One is lost:
all are, and the worker with them, to be started again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
import torch.distributed as dist
import zmq

from hetero.workers.engines.base import EngineLimits, OnEarlyExit, Outcome, Row
from hetero.workers.engines.torch.collectives import LOADING, Team, enter, loaded
from hetero.workers.engines.torch.engine import TorchEngine, TorchSettings
from hetero.workers.errors import EngineError, EngineLost
from hetero.workers.sampling.logits_processors import Logits
from hetero.workers.wire.orders import (
    Calibrate,
    Close,
    Commit,
    Drop,
    Extend,
    Load,
    Order,
    Prefill,
    Ready,
    Save,
    decode_order,
    encode_order,
)
from hetero.workers.wire.sockets import Doorkeeper, Keys, bind_router, make_keys

_ENDING = 3.0  # seconds a rank may take to end by itself


class TeamEngine:
    """Rank 0 of a team; an ``Engine`` as any other."""

    limits: EngineLimits

    def __init__(self, path: Path, settings: TorchSettings, size: int, tensor: bool, cores: Sequence[int]) -> None:
        """``cores``: of all ranks together, each gets its share. Raises HeteroError as ``TorchEngine`` does, EngineLost
        where a rank does not come up."""
        self._room = tempfile.TemporaryDirectory(prefix="hetero-team-")
        self._context = zmq.Context()
        self._door = Doorkeeper(self._context)
        keys = [make_keys() for _ in range(size)]
        self._door.admit(frozenset(key.public for key in keys[1:]))
        self._ranks: list[subprocess.Popen[bytes]] = []
        self._engine: TorchEngine | None = None
        self._socket: zmq.Socket[bytes] | None = None
        meeting, team = Path(self._room.name) / "meeting", Team(0, size, tensor)
        cores = cores or _cores()
        threads = max(1, len(cores) // size)
        try:
            self._socket, endpoint = bind_router(self._context, keys=keys[0])
            for rank in range(1, size):
                own = [cores[(rank * threads + n) % len(cores)] for n in range(threads)]
                self._ranks.append(_spawn(path, settings, replace(team, rank=rank), meeting, endpoint, keys[rank], own))
            torch.set_num_threads(threads)
            enter(team, meeting, team.device(settings.device))
            self._engine = TorchEngine(path, settings, team=team)
            self._wait_for_all(size)
            loaded()
        except RuntimeError as error:  # of torch.distributed
            self.shutdown()
            raise EngineLost(f"the team did not come up: {error}") from error
        except BaseException:
            self.shutdown()
            raise
        self.limits = self._engine.limits

    def prefill(self, seq: int, tokens: Sequence[int], every: bool = False) -> Outcome:
        return self._run(lambda engine: engine.prefill(seq, tokens, every), lambda: Prefill(seq, list(tokens), every))

    def extend(self, rows: Sequence[Row], on_early_exit: OnEarlyExit | None = None) -> Outcome:
        committed = [at for at, row in enumerate(rows) if row.committed]
        places = [*committed, *(at for at, row in enumerate(rows) if not row.committed)]
        told = [rows[at] for at in places]

        def order() -> Extend:
            guessed = [(r.seq, r.node, r.parent, r.token) for r in told[len(committed) :]]
            return Extend(self._calibrations(told[: len(committed)]), guessed)

        outcome = self._run(lambda engine: engine.extend(told), order)
        return _Reordered(outcome, {at: place for place, at in enumerate(places)})

    def commit(self, seq: int, node: int, keep: Collection[int] = ()) -> None:
        self._here().commit(seq, node, keep)
        self._tell(Commit(seq, node, list(keep)))

    def close(self, seq: int) -> None:
        self._here().close(seq)
        self._tell(Close(seq))

    def save_prefix(self, seq: int, key: int, length: int) -> None:
        self._here().save_prefix(seq, key, length)
        self._tell(Save(seq, key, length))

    def load_prefix(self, seq: int, key: int, length: int) -> None:
        self._here().load_prefix(seq, key, length)
        self._tell(Load(seq, key, length))

    def drop_prefix(self, key: int) -> None:
        self._here().drop_prefix(key)
        self._tell(Drop(key))

    def abort(self) -> None:
        """Nothing: the ranks would part ways in mid-forward. Whoever waits, waits for its end."""

    def shutdown(self) -> None:
        """End all ranks, answering or not."""
        for process in self._ranks:
            assert process.stdin is not None
            if process.poll() is None:
                process.stdin.close()
        end = time.monotonic() + _ENDING
        for process in self._ranks:
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if dist.is_initialized():
            dist.destroy_process_group()
        if self._engine is not None:
            self._engine.shutdown()
            self._engine = None
        if self._socket is not None:
            self._socket.close(0)
        self._door.close()
        self._context.term()
        self._room.cleanup()

    @property
    def used_cells(self) -> int:
        return self._here().used_cells

    def _here(self) -> TorchEngine:
        assert self._engine is not None
        return self._engine

    def _calibrations(self, rows: Sequence[Row]) -> list[Calibrate]:
        """Committed rows, each sequence's chain as one message."""
        chains: list[list[Row]] = []
        for row in rows:
            if chains and (chains[-1][-1].seq, chains[-1][-1].node) == (row.seq, row.parent):
                chains[-1].append(row)
            else:
                chains.append([row])
        length = self._here().length
        return [
            Calibrate(own[0].seq, length(own[0].seq), [r.token for r in own], [r.node for r in own], own[0].parent)
            for own in chains
        ]

    def _tell(self, order: Order) -> None:
        assert self._socket is not None
        frame = encode_order(order)
        for rank, process in enumerate(self._ranks, 1):
            try:
                if process.poll() is not None:
                    raise EngineLost(f"rank {rank} of the team ended ({process.returncode})")
                self._socket.send_multipart([_name(rank), frame], zmq.NOBLOCK)
            except zmq.ZMQError as error:
                raise EngineLost(f"rank {rank} of the team does not listen any more: {error}") from None

    def _run(self, call: Callable[[TorchEngine], Outcome], order: Callable[[], Order]) -> Outcome:
        """A forward: what is refused beforehand the ranks never hear of, what goes wrong within it goes wrong for the
        whole team."""
        engine = self._here()
        telling = [order]
        engine.announce = lambda: self._tell(telling.pop()()) if telling else None  # a call may be two forwards
        try:
            found = call(engine)
        except EngineError as error:
            if isinstance(error.__cause__, RuntimeError):
                raise EngineLost(f"the team's forward failed, a rank may be lost: {error.__cause__}") from error
            raise
        return found

    def _wait_for_all(self, size: int) -> None:
        assert self._socket is not None
        end, missing = time.monotonic() + LOADING, set(range(1, size))
        while missing:
            if self._socket.poll(200):
                _, frame = self._socket.recv_multipart()
                order = decode_order(frame)
                missing -= {order.rank} if isinstance(order, Ready) else set()
            ended = next((rank for rank in missing if self._ranks[rank - 1].poll() is not None), None)
            if ended is not None or time.monotonic() > end:
                raise EngineLost(f"rank {ended or min(missing)} of the team did not come up")


class _Reordered(Outcome):
    """An outcome whose rows stand elsewhere."""

    def __init__(self, outcome: Outcome, place: dict[int, int]) -> None:
        self._outcome, self._place = outcome, place

    def logits(self, row: int) -> Logits:
        return self._outcome.logits(self._place[row])


def _cores() -> list[int]:
    """Those this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def _name(rank: int) -> bytes:
    return b"rank-%d" % rank


def _spawn(
    path: Path, settings: TorchSettings, team: Team, meeting: Path, endpoint: str, keys: Keys, cores: list[int]
) -> subprocess.Popen[bytes]:
    """A rank's process; it ends when its standard input does, so with this one's."""
    asked = {
        "path": str(path),
        "settings": asdict(settings),
        "rank": team.rank,
        "size": team.size,
        "tensor": team.tensor,
        "meeting": str(meeting),
        "endpoint": endpoint,
        "public": keys.public,
        "secret": keys.secret.decode(),
        "cores": cores,
    }
    command = [sys.executable, "-P", "-m", "hetero.workers.engines.torch.rank"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert process.stdin is not None
    process.stdin.write(json.dumps(asked).encode() + b"\n")
    process.stdin.flush()
    return process
