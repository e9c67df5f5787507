"""Processes around which the gateway's benchmark turns: gateways, and what stands for their verifier."""

from __future__ import annotations

import asyncio
import heapq
import logging
import os
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import TracebackType

import psutil
import uvicorn
import zmq

from hetero.gateway.admission import AdmissionLimits
from hetero.gateway.app import make_app
from hetero.gateway.chat.grammars import GrammarProbe
from hetero.gateway.chat.template import ChatTemplate
from hetero.gateway.door import connections
from hetero.gateway.pauses import spare_pauses
from hetero.gateway.state import GatewayOptions, GatewayState
from hetero.gateway.verifiers.pool import Verifiers
from hetero.models import TOY, find_model
from hetero.workers.runtime.pinning import pin
from hetero.workers.wire.codec import decode, encode
from hetero.workers.wire.messages import Cancel, Finished, Open, Ping, Pong, Stats, Tokens
from hetero.workers.wire.sockets import Doorkeeper, bind_router, make_keys

BUSY = 1  # the seed that busy streams ask with
_SEQUENCES = 1 << 16
_WORD = 5  # a token: any


class Parts:
    """Gateways on the first cores, the stand-in on the last, which this process shares."""

    def __init__(self, pace: float, gateways: int) -> None:
        """``pace``: tokens a second of a busy stream."""
        context = get_context("spawn")
        self._cores = cores = sorted(os.sched_getaffinity(0))
        first, last = cores[:-1] or cores, cores[-1]
        os.sched_setaffinity(0, {last})
        self._processes: list[BaseProcess] = []
        self._feeder, theirs = context.Pipe()
        self._start(context.Process(target=_feed, args=(theirs, pace, last), daemon=True))
        endpoint = self._feeder.recv()
        pipes, keys = [], []
        for n in range(gateways):
            ours, theirs = context.Pipe()
            self._start(context.Process(target=_serve, args=(theirs, endpoint, first[n % len(first)]), daemon=True))
            pipes.append(ours)
            keys.append(ours.recv())
        self._feeder.send(keys)
        self._feeder.recv()  # who dials before it is known is turned away for good
        for pipe in pipes:
            pipe.send("dial")
        self.ports: list[int] = [pipe.recv() for pipe in pipes]
        self._measured = [psutil.Process(process.pid) for process in self._processes[1:]]

    def __enter__(self) -> Parts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        os.sched_setaffinity(0, self._cores)

    def memory(self) -> int:
        """Bytes that the gateways hold."""
        return sum(process.memory_info().rss for process in self._measured)

    def cpu(self) -> float:
        """Seconds they have computed."""
        return sum(sum(process.cpu_times()[:2]) for process in self._measured)

    def open(self) -> int:
        """Streams that have come through to the stand-in."""
        self._feeder.send("open")
        found: int = self._feeder.recv()
        return found

    def end(self) -> int:
        """End all streams; returns how many tokens were sent in all."""
        self._feeder.send("end")
        found: int = self._feeder.recv()
        return found

    def _start(self, process: BaseProcess) -> None:
        process.start()
        self._processes.append(process)


def _serve(pipe: Connection, endpoint: str, core: int) -> None:
    """A gateway: tells its key, and its port once it is linked."""
    pin([core], [])
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    asyncio.run(_served(pipe, endpoint))


async def _served(pipe: Connection, endpoint: str) -> None:
    model = find_model(TOY, "target")
    verifiers = Verifiers(_SEQUENCES)
    pipe.send(verifiers.keys.public)
    await asyncio.to_thread(pipe.recv)
    template, probe = ChatTemplate(model.tokenizer), GrammarProbe(model.path)
    state = GatewayState(
        "toy", model, "none", 4096, _SEQUENCES, False, verifiers, template, probe, lambda: True, lambda: None,
        GatewayOptions(limits=AdmissionLimits(_SEQUENCES)),
    )  # fmt: skip
    await verifiers.link(0, endpoint)
    config = uvicorn.Config(
        make_app(state), "127.0.0.1", 0, log_level="error", access_log=False, lifespan="off", **connections.options()
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    spare_pauses()
    pipe.send(server.servers[0].sockets[0].getsockname()[1])
    await serving


def _feed(pipe: Connection, pace: float, core: int) -> None:
    """What stands for the verifier: takes all sequences, and sends the busy ones a token at their pace."""
    pin([core], [])
    context = zmq.Context()
    keys, door = make_keys(), Doorkeeper(context)
    socket, endpoint = bind_router(context, keys=keys)
    pipe.send(endpoint)
    door.admit(frozenset(pipe.recv()))
    pipe.send("known")
    poller = zmq.Poller()
    poller.register(socket, zmq.POLLIN)
    poller.register(pipe.fileno(), zmq.POLLIN)
    places: dict[int, tuple[bytes, int]] = {}  # of a sequence: its gateway, and how long it is
    due: list[tuple[float, int]] = []
    sent = 0
    while True:
        wait = max(0.0, due[0][0] - time.monotonic()) if due else 1.0
        ready = dict(poller.poll(int(1e3 * wait)))
        while socket in ready:
            try:
                peer, frame = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            match decode(frame):
                case Open() as opening:
                    places[opening.seq] = peer, len(opening.prompt)
                    if opening.sampling.seed == BUSY:
                        heapq.heappush(due, (time.monotonic(), opening.seq))
                case Cancel(seq):
                    places.pop(seq, None)
                case Ping():
                    socket.send_multipart([peer, encode(Pong(1))])
        now = time.monotonic()
        while due and due[0][0] <= now:
            at, seq = heapq.heappop(due)
            if seq not in places:
                continue
            peer, length = places[seq]
            socket.send_multipart([peer, encode(Tokens(seq, 1, length, [_WORD], f"{time.monotonic():.6f} "))])
            sent += 1
            places[seq] = peer, length + 1
            heapq.heappush(due, (at + 1 / pace, seq))
        if pipe.fileno() in ready and pipe.recv() == "open":
            pipe.send(len(places))
        elif pipe.fileno() in ready:
            stats = Stats(1, 0.0, 1, 1.0, 0, 0, 1, 0, 0, 0.0)
            for seq, (peer, length) in places.items():
                socket.send_multipart([peer, encode(Finished(seq, 1, length, "stop", "", stats))])
            due.clear()
            pipe.send(sent)
