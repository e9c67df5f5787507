"""A worker: a state machine with its engine on one thread and its socket on another.

The socket thread serves messages, pings and cancels while a forward of seconds runs on the engine thread; only a
drafter's quick forwards run between messages on the socket thread itself.
"""

from __future__ import annotations

import logging
import os
import queue
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeAlias

import psutil
import zmq
from msgspec import structs

from hetero.placement.errors import HeteroError, one_line
from hetero.workers.decoding.drafter import Drafter
from hetero.workers.decoding.peers import DrafterPeer
from hetero.workers.decoding.policy.strategy import strategy
from hetero.workers.decoding.proposers.past import Past
from hetero.workers.decoding.protocol import Extend, Job
from hetero.workers.decoding.verifier import Verifier
from hetero.workers.engines.base import Engine, Outcome, Row
from hetero.workers.engines.registry import Progress
from hetero.workers.errors import EngineError, EngineLost, WireError
from hetero.workers.models.travel import model_here
from hetero.workers.runtime.grammar_queue import GrammarQueue
from hetero.workers.runtime.loading import Loaded, load_model
from hetero.workers.runtime.pulse import Pulse
from hetero.workers.runtime.spec import WorkerSpec
from hetero.workers.runtime.status import DrafterStatus, SpeedStatus, WorkerStatus
from hetero.workers.runtime.trace import FileTrace
from hetero.workers.wire.codec import Drops, decode, encode
from hetero.workers.wire.endpoints import Dialling, Listening
from hetero.workers.wire.sockets import Doorkeeper, make_keys

_log = logging.getLogger("hetero.worker")
_QUICK = 3e-3  # seconds: a drafter's forwards below this run on the socket thread
_BURST = 256  # messages of a socket taken in before the machine decides again


Load: TypeAlias = Callable[[WorkerSpec, Progress], Loaded]


class Worker:
    """One role on one device. Methods may be called from any thread."""

    def __init__(self, spec: WorkerSpec, load: Load = load_model) -> None:
        self.spec = spec
        self.epoch = secrets.randbits(62)
        self.settled = threading.Event()  # loaded, or failed to
        self.ended = threading.Event()
        self.pulse = Pulse()
        self._load = load
        self._phase: Literal["loading", "ready", "stopped", "failed"] = "loading"
        self._failure = ""
        self._endpoint = ""
        self._loaded_s = 0.0
        self._busy = 0.0  # seconds the engine worked
        self._forwards = 0, 0, 0.0  # of windows or leaves: how many, their rows and seconds; replaced whole
        self._repacked = 0.0  # share of the model that is ready
        self._fetched = 0  # bytes of the model that came from another machine
        self._cells = 0  # KV cells held when the worker was last idle
        self._machine: Verifier | Drafter | None = None
        self._engine: Engine | None = None
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._inbox: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._wake_read, self._wake_write = os.pipe()
        self._drops = Drops(_log)
        self._keys = make_keys() if spec.secure else None
        self._door: Doorkeeper | None = None
        self._allowed: frozenset[str] = frozenset()
        self._thread = threading.Thread(target=self._live, name=f"hetero-{spec.role}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def status(self) -> WorkerStatus:
        """An account of the worker as it is now."""
        machine, engine = self._machine, self._engine
        active, waiting = machine.counts if machine is not None else (0, 0)
        prefixes, prefix_tokens = machine.prefixes.facts if machine is not None else (0, 0)
        verifier = machine if isinstance(machine, Verifier) else None
        notebook = machine.notebook if isinstance(machine, Drafter) else None
        return WorkerStatus(
            role=self.spec.role,
            index=self.spec.index,
            phase=self._phase,
            failure=self._failure,
            epoch=self.epoch,
            endpoint=self._endpoint,
            public=self._keys.public if self._keys is not None else "",
            turned_away=self._door.turned_away if self._door is not None else 0,
            pid=os.getpid(),
            loaded_s=self._loaded_s,
            active=active,
            waiting=waiting,
            idle=machine.idle if machine is not None else True,
            cells=self._cells,
            gpu=os.environ.get("CUDA_VISIBLE_DEVICES", ""),
            prefixes=prefixes,
            prefix_tokens=prefix_tokens,
            dropped=self._drops.count + (machine.dropped if machine is not None else 0),
            memory=int(psutil.Process().memory_info().rss),
            busy_s=self._busy,
            forwards=self._forwards[0],
            rows=self._forwards[1],
            forward_s=self._forwards[2],
            fetched=self._fetched,
            repacked=self._repacked,
            early_exit=engine.limits.early_exit if engine is not None else False,
            landings=dict(machine.landings.counts) if isinstance(machine, Drafter) else {},
            lessons=len(notebook) if notebook is not None else 0,
            studied=notebook.steps if notebook is not None else 0,
            speeds=_speeds(verifier) if verifier is not None else None,
            drafters=[_drafter(peer) for peer in verifier.drafters] if verifier is not None else [],
        )

    def link(self, endpoint: str, index: int = 0) -> None:
        """A drafter's order: the verifier of this index listens here now."""
        self._post("link", (endpoint, index))

    def follow(self, name: str, gamma: int) -> None:
        """Go on by another strategy. Raises ConfigError where there is none of that name."""
        self._post("follow", strategy(name, gamma))

    def allow(self, keys: list[str]) -> None:
        """A verifier's order: peers with these public keys (hex) may come in, and no others."""
        self._allowed = frozenset(keys)
        if self._door is not None:
            self._door.admit(self._allowed)

    def stop(self, seconds: float = 5.0) -> None:
        """End both threads and free the engine; returns when done, or after ``seconds``."""
        self._post("stop", None)
        if (engine := self._engine) is not None:
            engine.abort()
        if self._thread.is_alive():
            self._thread.join(seconds)

    # The socket thread

    def _live(self) -> None:
        try:
            self._serve()
        except HeteroError as error:
            self._fail(str(error))
        except Exception as error:  # the worker's last line: report it, then end
            _log.exception("worker failed")
            self._fail(one_line(f"{type(error).__name__}: {error}"))
        finally:
            self.settled.set()
            self.ended.set()

    def _note(self, share: float) -> None:
        self._repacked = share

    def _fail(self, why: str) -> None:
        self._failure, self._phase = why, "failed"

    def _serve(self) -> None:
        began = time.monotonic()
        loaded = self._load(self._model_here(), self._note)
        engine = self._engine = loaded.engine
        machine = self._machine = self._make(loaded)
        context = zmq.Context()
        link = self._link(context)
        self._endpoint = link.endpoint
        engine_thread = threading.Thread(target=self._work, args=(engine,), name="hetero-engine", daemon=True)
        engine_thread.start()
        self._loaded_s = time.monotonic() - began
        self._phase = "ready"
        self.settled.set()
        grammars = GrammarQueue(lambda: loaded.vocabulary.grammars, lambda: self._post("grammar", None))
        try:
            self._loop(machine, link, engine, grammars)
        finally:
            grammars.close()
            self._jobs.put(None)
            engine.abort()
            engine_thread.join()
            self._phase, self._engine = "stopped", None  # nobody may ask a freed engine
            engine.shutdown()
            link.close()
            context.term()

    def _model_here(self) -> WorkerSpec:
        """The spec with the model where it lies on this machine, fetched if need be. Raises ModelError."""
        spec = self.spec
        if spec.origin is None:
            return spec

        def told(done: int) -> None:
            self._fetched = done

        assert self._keys is not None
        return structs.replace(spec, model=str(model_here(spec.path, spec.origin, self._keys, told)))

    def _link(self, context: zmq.Context[Any]) -> Listening | Dialling:
        if self.spec.role == "drafter":
            return Dialling(context, f"drafter-{self.spec.index}-{self.epoch:x}".encode(), self._keys)
        ports = (self.spec.ports[0], self.spec.ports[1]) if self.spec.ports else None
        link = Listening(context, self.spec.host, ports, self._keys)
        self._door = link.door
        self.allow(list(self._allowed))
        return link

    def _make(self, loaded: Loaded) -> Verifier | Drafter:
        spec = self.spec
        chosen = strategy(spec.strategy, spec.gamma)
        trace = FileTrace(Path(spec.trace)) if spec.trace else None
        limits, vocabulary = loaded.engine.limits, loaded.vocabulary
        if spec.role == "target":
            if chosen.hints and not limits.early_exit:
                _log.warning("engine %s has no early exit: branches start at the drafter's candidates", spec.engine)
            past = Past(spec.past) if spec.lookup else None
            return Verifier(self.epoch, limits, vocabulary, chosen, trace=trace, cached=spec.cached, past=past)
        return Drafter(self.epoch, limits, vocabulary.ends, chosen, trace=trace, cached=spec.cached, index=spec.index)

    def _loop(
        self, machine: Verifier | Drafter, link: Listening | Dialling, engine: Engine, grammars: GrammarQueue
    ) -> None:
        clock = time.monotonic
        # Handing a drafter's forward of a millisecond to another thread and back costs as much again.
        quick = self.spec.role == "drafter" and _row_seconds(engine) < _QUICK
        wake = 0.0
        while True:
            link.wait(self._wake_read, wake - clock())
            self.pulse.turned()
            now = clock()
            if not self._take_inbox(machine, link, now):
                return
            for peer, message in grammars.released():
                machine.receive(peer, message, now)
            for peer, frame in link.receive(_BURST):
                try:
                    message = decode(frame)
                    if not grammars.holds(peer, message):
                        machine.receive(peer, message, clock())  # each may take its time
                except WireError as error:
                    self._drops.add(frame, error)
            step = machine.step(clock())
            for peer, message in step.sends:
                if not link.send(peer, encode(message)):
                    machine.lost(peer, clock())
            wake = step.wake
            if step.job is None:
                continue
            if quick and isinstance(step.job.forward, Extend):
                outcome, elapsed = self._execute(step.job, engine)
                _go_on(outcome)
                machine.completed(outcome, elapsed, clock())
                wake = 0.0
            else:
                self._jobs.put(step.job)
                machine.prepare()

    def _take_inbox(self, machine: Verifier | Drafter, link: Listening | Dialling, now: float) -> bool:
        """Outcomes and orders; False: stop."""
        while not self._inbox.empty():
            kind, what = self._inbox.get()
            if kind == "stop":
                return False
            if kind == "link" and isinstance(link, Dialling) and isinstance(machine, Drafter):
                machine.linked(link.dial(*what))
            elif kind == "follow":
                machine.follow(what)
            elif kind == "early exit" and isinstance(machine, Verifier):
                machine.early_exit(what, now)
            elif kind == "done":
                outcome, elapsed = what
                _go_on(outcome)
                machine.completed(outcome, elapsed, now)
        return True

    # The engine thread

    def _work(self, engine: Engine) -> None:
        while (job := self._jobs.get()) is not None:
            self._post("done", self._execute(job, engine))

    def _execute(self, job: Job, engine: Engine) -> tuple[Outcome | EngineError | None, float]:
        """Do a job; returns its outcome and the seconds it took."""
        began = time.monotonic()
        outcome: Outcome | EngineError | None
        self.pulse.begins(job.rows)
        try:
            outcome = job.execute(engine, self._early_exit)
        except EngineError as error:
            outcome = error
        except Exception as error:  # whatever a library throws must not end the loop
            _log.exception("engine failed")
            outcome = EngineError(f"{type(error).__name__}: {error}")
        self.pulse.ends(outcome is not None and not isinstance(outcome, EngineError))
        if job.forward is None:  # only frees: the moment to count what is left
            self._cells = engine.used_cells
        elapsed = time.monotonic() - began
        self._busy += elapsed
        if isinstance(job.forward, Extend) and not isinstance(outcome, EngineError):
            count, rows, seconds = self._forwards
            self._forwards = count + 1, rows + job.rows, seconds + elapsed
        return outcome, elapsed

    def _early_exit(self, early: Outcome) -> None:
        self._post("early exit", early)

    def _post(self, kind: str, what: Any) -> None:
        self._inbox.put((kind, what))
        os.write(self._wake_write, b"!")


def _go_on(outcome: object) -> None:
    """Raises the EngineLost that an engine ended with."""
    if isinstance(outcome, EngineLost):
        raise outcome


def _row_seconds(engine: Engine) -> float:
    """Seconds of a forward of one row, measured; leaves the engine as it was."""
    engine.prefill(0, [0])
    try:
        times = []
        for node in range(1, 5):
            began = time.monotonic()
            engine.extend([Row(0, node, node - 1, 0)])
            times.append(time.monotonic() - began)
        return min(times)
    finally:
        engine.close(0)


def _speeds(verifier: Verifier) -> SpeedStatus:
    speeds = verifier.speeds
    forward, plain = speeds.forward.points, speeds.plain.points
    return SpeedStatus(
        alpha=speeds.alpha,
        beta=speeds.beta,
        rate=speeds.rate(),
        forward=list(zip(forward.rows, forward.seconds, strict=True)),
        plain=list(zip(plain.rows, plain.seconds, strict=True)),
        alpha_first=speeds.alpha_first,
    )


def _drafter(peer: DrafterPeer) -> DrafterStatus:
    return DrafterStatus(peer.index, peer.drafted, peer.accepted, peer.speeds.step, peer.speeds.answer)
