"""Keeps one worker running: finds its machine, starts it there, watches it, and begins again when it ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

from hetero.cluster.cluster import Cluster
from hetero.cluster.incarnation import Incarnation, LoadFailed, WorkerEnded, WorkerRefused
from hetero.cluster.library import Library
from hetero.errors import HeteroError
from hetero.planning.plan import Placement
from hetero.workers.runtime.status import WorkerStatus

_QUICK = 60.0  # seconds: a worker that fails by itself sooner, or before it is loaded, did not do well
_HOPELESS = 5  # such ends in a row, after which its machine is left
_UNPROVEN = 2  # and of one that was never loaded: what kills it does so again
_LOOK = 1.0  # seconds between looks for a machine


class Told(Protocol):
    """Who hears of a worker's life, in the keeper's thread."""

    def ready(self, keeper: Keeper, status: WorkerStatus) -> None:
        """It works."""

    def hears(self, keeper: Keeper, line: str) -> None:
        """What it is at."""

    def lost(self, keeper: Keeper, why: str) -> None:
        """It ended."""

    def waits(self, keeper: Keeper) -> None:
        """No machine is there for it."""

    def refused(self, keeper: Keeper, why: str) -> None:
        """It cannot work where it is placed; with no other machine there, it never will."""


class Keeper:
    """One role's. ``placement``: where it is, or was last."""

    def __init__(
        self,
        role: str,
        first: Placement | None,
        again: Callable[[Placement | None, frozenset[str]], Placement | None],
        cluster: Cluster,
        library: Library,
        told: Told,
    ) -> None:
        """``first``: where the plan has it, None where it waits for a machine; ``again``: where it should be now, given
        where it was last and the machines (Ray's ids) on which it cannot work."""
        self.role = role
        self.first = self.placement = first
        self.restarts = 0
        self.incarnation: Incarnation | None = None
        self._again = again
        self._cluster = cluster
        self._library = library
        self._told = told
        self._given_up: dict[str, str] = {}  # machines on which it cannot work, and why
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._live, name=f"hetero-keep-{role}", daemon=True)

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """Begin nothing new, end every wait; the incarnation's process is the coordinator's to stop."""
        self._stopping.set()

    def join(self, seconds: float) -> None:
        """Wait for its thread."""
        if self._thread.is_alive():
            self._thread.join(seconds)

    # Its thread

    def _live(self) -> None:
        ends, ever = 0, False
        while (placement := self._find_place()) is not None:
            self.placement = placement
            began, own, hopeless, lived = time.monotonic(), True, False, False
            incarnation = self.incarnation = Incarnation(placement, self._cluster, self._library, self._stopping)
            try:
                status = incarnation.load(lambda line: self._told.hears(self, line))
                self._told.ready(self, status)
                lived = ever = True
                why = incarnation.hold(self._moves)
            except WorkerRefused as error:
                why, hopeless = str(error), True
            except WorkerEnded as error:
                # What failed to load before it ever did fails again.
                why, own, hopeless = str(error), error.own, isinstance(error, LoadFailed) and not ever
            finally:
                self.incarnation = None
                if not self._stopping.is_set():  # else it is stopping by itself
                    incarnation.end()
                del incarnation  # and with it what the process holds
            if self._stopping.is_set():
                return
            if lived:
                self._told.lost(self, why)
                self.restarts += 1
            elif own and not hopeless:
                self._told.hears(self, f"{why} while it loaded")
            where = self._where(placement)
            # What the machine is to blame for is not counted: it may come back.
            own = own and self._cluster.has(where)
            ends = ends + 1 if own and not (lived and time.monotonic() - began >= _QUICK) else 0
            if hopeless or ends >= (_HOPELESS if ever else _UNPROVEN):
                self._given_up[where], ends = why, 0
                self._told.refused(self, why)
            self._pause(ends, own)

    def _pause(self, ends: int, own: bool) -> None:
        self._stopping.wait(2.0**ends - 1 if own else _LOOK)

    def _find_place(self) -> Placement | None:
        """Wait for a machine; None: stop."""
        told = False
        while not self._stopping.is_set():
            placement = None
            try:
                placement = self._again(self.placement, frozenset(self._given_up))
            except HeteroError as error:
                if not told:
                    self._told.refused(self, str(error))
            if placement is not None and self._where(placement) not in self._given_up:
                return placement
            last = self._where(self.placement) if self.placement is not None else ""
            if not told and not (last in self._given_up and self._cluster.has(last)):  # else it is told already
                self._told.waits(self)
            told = True
            self._stopping.wait(_LOOK)
        return None

    def _moves(self) -> str:
        """Why it should go elsewhere, if it should."""
        assert self.placement is not None
        try:
            better = self._again(self.placement, frozenset(self._given_up))
        except HeteroError:
            return ""
        if better is None or self._where(better) in (self._where(self.placement), *self._given_up):
            return ""
        return f"it moves to {better.device}"

    def _where(self, placement: Placement) -> str:
        return placement.node.id if placement.node is not None else self._cluster.here()
