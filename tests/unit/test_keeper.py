"""One worker kept running: what counts as its own fault, what is waited for, and when it is given up."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

from hetero.cluster import keeper as module
from hetero.cluster.incarnation import LoadFailed, WorkerEnded, WorkerRefused
from hetero.cluster.keeper import Keeper
from hetero.errors import MemoryShortage


class World:
    """Machines, what becomes of each incarnation there, and what is told."""

    def __init__(self, monkeypatch, script) -> None:
        self.machines = {"a"}
        self.told: list[tuple[str, str]] = []
        self.lives: list[str] = []
        self.ended: list[str] = []  # processes that were ended for good
        self.done = threading.Event()
        self._script = iter(script)
        monkeypatch.setattr(module, "Incarnation", self._incarnate)
        monkeypatch.setattr(module, "_LOOK", 0.01)
        monkeypatch.setattr(module.Keeper, "_pause", lambda keeper, ends, own: keeper._stopping.wait(0.001))
        self.keeper = Keeper("drafter", self._place("a"), self._again, self, SimpleNamespace(), self)

    def _place(self, name):
        return SimpleNamespace(node=SimpleNamespace(id=name), device=f"{name}/cpu") if name in self.machines else None

    def _again(self, last, barred):
        for name in ("better", last.node.id if last else "a", "b"):
            if name in self.machines and name not in barred:
                return last if last and last.node.id == name else self._place(name)
        return None

    def has(self, name):
        return name in self.machines

    def here(self):
        return "here"

    def _incarnate(self, placement, cluster, library, stopping):
        self.lives.append(placement.node.id)
        what = next(self._script, None)
        if what is None:
            self.done.set()
            stopping.wait(10)

        def load(told):
            if what is None:
                raise WorkerEnded("stopping", own=False)
            phase, do = what
            if phase == "load":
                return self._do(do)
            return "status"

        def hold(turn):
            return self._do(what[1], turn)

        return SimpleNamespace(load=load, hold=hold, end=lambda: self.ended.append(placement.node.id))

    def _do(self, do, turn=None):
        found = do(self) if callable(do) else do
        if isinstance(found, Exception):
            raise found
        return turn() if found == "turn" else found

    # Told

    def ready(self, keeper, status):
        self.told.append(("ready", status))

    def hears(self, keeper, line):
        self.told.append(("hears", line))

    def lost(self, keeper, why):
        self.told.append(("lost", why))

    def waits(self, keeper):
        self.told.append(("waits", ""))

    def refused(self, keeper, why):
        self.told.append(("refused", why))

    def run(self):
        self.keeper.start()
        assert self.done.wait(10), (self.told, self.lives)
        self.keeper.stop()
        self.keeper.join(5)
        return [what for what, _ in self.told]


DIED = ("hold", WorkerEnded("its process died"))


def leave(world):
    world.machines.discard("a")
    threading.Timer(0.1, lambda: world.machines.add("a")).start()
    return WorkerEnded("its process died")


def test_it_begins_again_after_each_end(monkeypatch):
    hung = ("hold", WorkerEnded("it has not answered for 15 s", own=False))
    world = World(monkeypatch, [DIED, ("hold", "its loop ended"), hung])
    assert world.run() == ["ready", "lost"] * 3
    assert world.lives == ["a"] * 4 and world.keeper.restarts == 3


def test_five_quick_ends_of_its_own_and_its_machine_is_left(monkeypatch):
    world = World(monkeypatch, [DIED] * 5)
    threading.Timer(0.3, lambda: world.machines.add("b") or world.machines.discard("a")).start()
    told = world.run()
    assert told.count("lost") == 5 and told.count("refused") == 1
    assert world.lives == ["a"] * 5 + ["b"]  # another machine takes it


def test_what_the_machine_is_to_blame_for_is_never_counted(monkeypatch):
    hung = ("hold", WorkerEnded("it has not answered for 15 s", own=False))
    world = World(monkeypatch, [hung] * 12 + [("hold", leave)] * 8)
    told = world.run()
    assert "refused" not in told and told.count("lost") == 20


def test_while_its_machine_is_known_as_there_it_is_told_once(monkeypatch):
    gone = ("load", WorkerEnded("its machine left", own=False))
    world = World(monkeypatch, [DIED, gone, gone, gone, ("hold", "x")])
    assert world.run() == ["ready", "lost", "ready", "lost"]
    assert world.keeper.restarts == 2


def test_it_waits_for_its_machine(monkeypatch):
    world = World(monkeypatch, [("hold", leave), ("hold", "x")])
    assert world.run() == ["ready", "lost", "waits", "ready", "lost"]


def test_where_it_cannot_work_it_is_not_tried_again(monkeypatch):
    world = World(monkeypatch, [("load", WorkerRefused("has hetero 0.0.9, and this machine 0.1.0"))])
    threading.Timer(0.2, lambda: world.machines.add("better")).start()
    assert world.run() == ["refused"]  # and not that its machine is not there
    assert world.lives == ["a", "better"] and world.ended == ["a"]  # its process holds nothing any more


def test_what_does_not_load_at_first_is_told_at_once(monkeypatch):
    world = World(monkeypatch, [("load", LoadFailed("x.gguf: damaged"))])
    threading.Timer(0.2, lambda: world.machines.add("better")).start()
    world.run()
    assert world.told == [("refused", "x.gguf: damaged")]


def test_what_did_load_before_gets_five_tries(monkeypatch):
    """Memory of the one that was killed may not be free yet."""
    short = ("load", LoadFailed("CUDA out of memory"))
    world = World(monkeypatch, [("hold", WorkerEnded("hung", own=False)), *[short] * 5])
    threading.Timer(0.5, lambda: world.machines.add("better")).start()
    assert world.run() == ["ready", "lost"] + ["hears"] * 5 + ["refused"]  # each try says why it failed
    assert world.told[-1] == ("refused", "CUDA out of memory") and world.lives == ["a"] * 6 + ["better"]


def test_deaths_while_it_loads_count_however_long_it_takes(monkeypatch):
    monkeypatch.setattr(module, "_QUICK", -1.0)  # as if each took longer
    world = World(monkeypatch, [("load", WorkerEnded("its process died"))] * 2)
    threading.Timer(0.3, lambda: world.machines.add("better")).start()
    assert world.run() == ["hears", "hears", "refused"]  # what kills one that was never loaded does so again
    assert world.lives == ["a", "a", "better"]


def test_it_moves_to_a_better_machine(monkeypatch):
    def better(world):
        world.machines.add("better")
        return "turn"

    world = World(monkeypatch, [("hold", better), ("hold", "turn")])
    assert world.run()[:2] == ["ready", "lost"]
    assert world.told[1] == ("lost", "it moves to better/cpu") and world.lives[1] == "better"


def test_a_machine_it_does_not_fit_is_told_of_once(monkeypatch):
    world = World(monkeypatch, [])
    tries = []

    def again(last, barred):
        tries.append(1)
        if len(tries) < 5:
            raise MemoryShortage("drafter x on a/cpu needs 9 GiB")
        return world._place("a")

    world.keeper._again = again
    assert world.run() == ["refused", "waits"]


def test_a_stop_ends_every_wait(monkeypatch):
    world = World(monkeypatch, [])
    world.machines.clear()
    world.keeper.start()
    time.sleep(0.05)
    world.keeper.stop()
    world.keeper.join(5)
    assert not world.keeper._thread.is_alive()
