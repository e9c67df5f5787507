"""A running plan is revised by what its workers measure, here told by a test."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from helpers.foreseen import ranked, trial

from hetero.planning.ranking import SHELL, Ranking
from hetero.planning.reviser import Advice, Reviser
from hetero.planning.running import running
from hetero.workers.runtime.status import DrafterStatus, SpeedStatus, WorkerStatus


@dataclass
class World:
    """Workers that follow a reviser; each step is a second, in which ``forwards`` of each happen."""

    ranking: Ranking
    now: float = 0.0
    target: float = 1.0
    drafter: float = 1.0
    alpha: float = 0.8
    streams: int = 1
    counts: dict[str, tuple[int, int, float]] = field(default_factory=lambda: {"target": (0, 0, 0.0)})
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reviser = Reviser(self.ranking, lambda: self.now)

    def run(self, seconds: int) -> list[str]:
        """What was followed meanwhile."""
        return [
            f"{name} {gamma}" for advice in self._advice(seconds) if advice.follow for name, gamma in [advice.follow]
        ]

    def _advice(self, seconds: int) -> Iterator[Advice]:
        for _ in range(seconds):
            self.now += 1.0
            entry = self.ranking.entries[0]
            drafts = self.reviser.follows[0] != "off"
            rows = 3 if drafts else 1
            self._work("target", rows, self.target * (entry.duet.verify(rows) - SHELL))
            if drafts:
                self._work("drafter", 1, self.drafter * (entry.duet.draft(1) - SHELL))
            advice = self.reviser.look({role: self.status(role) for role in ("target", "drafter")})
            if advice is not None:
                self.said.append(advice.said)
                yield advice

    def _work(self, role: str, rows: int, seconds: float) -> None:
        count, known, spent = self.counts.get(role, (0, 0, 0.0))
        self.counts[role] = count + 20, known + 20 * rows, spent + 20 * seconds

    def status(self, role: str) -> WorkerStatus:
        count, rows, seconds = self.counts.get(role, (0, 0, 0.0))
        speeds = SpeedStatus(self.alpha, self.alpha, 0.0, [], []) if role == "target" else None
        return WorkerStatus(
            role, 0, "ready", "", 5, "", "", 0, 1, 1.0, self.streams, 0, False, 0, "", 0, 0, 0, 1 << 30, seconds,
            count, rows, seconds, 0, 1.0, False, speeds=speeds,
            drafters=[DrafterStatus(0, count, count // 2, 0.1, 0.1)],
        )  # fmt: skip


@pytest.fixture
def world(monkeypatch) -> World:
    found = World(ranked(monkeypatch, trial(0.05, 0.002), trial(0.004, 0.0005, 0.8)))
    assert found.reviser.follows[0] == "ahead"
    return found


@pytest.fixture
def shared(monkeypatch) -> World:
    """Both roles on the same cores: they take turns."""
    cores = {"target_device": "cpu:0-1", "draft_device": "cpu:0-1"}
    found = World(ranked(monkeypatch, trial(0.05, 0.002), trial(0.004, 0.0005, 0.8), **cores))
    assert found.reviser.follows == ("serial", 7)
    return found


def test_as_foreseen_nothing_changes(world):
    assert world.run(40) == [] and world.said == []
    assert world.reviser.measured.target == pytest.approx(1.0, rel=0.01)


def test_a_drafter_that_grows_slow_is_left_alone_and_tried_again_later(shared):
    shared.drafter = 15.0
    assert shared.run(8) == ["off 0"]
    assert shared.run(40) == []
    shared.drafter = 1.0  # what took its cycles is over
    found = shared.run(40)
    assert len(found) == 1 and found[0] != "off 0"
    assert shared.run(40) == []
    assert "from now on" in shared.said[-1]


@pytest.mark.long
def test_a_drafter_that_stays_slow_is_tried_ever_less_often(shared):
    shared.drafter = 15.0
    found = shared.run(900)
    assert found[0] == "off 0" and 4 <= len(found) <= 12  # off, on, off, ...


def test_drafts_that_are_never_right_end(shared):
    shared.alpha = 0.01
    assert shared.run(8)[-1] == "off 0"


def test_the_draft_length_follows(shared):
    """The slower the drafter, the shorter its drafts."""
    first = shared.reviser.follows[1]
    shared.drafter = 4.0
    found = shared.run(10)
    assert found and int(found[-1].split()[1]) < first


def test_another_place_that_became_better_is_proposed_once_and_not_taken(monkeypatch):
    # Alone the target has both cores: without a drafter that is the better place.
    world = World(ranked(monkeypatch, trial(0.05, 0.0001), trial(0.004, 0.0005, 0.9)))
    apart = world.reviser.follows
    world.reviser._away = [entry for entry in world.reviser._away if entry.candidate.drafter is None]
    assert world.reviser._away
    for entry in world.reviser._away:  # as two cores would have it
        object.__setattr__(entry.duet, "verify", lambda rows: 0.02 + 0.0001 * rows)
    world.drafter, world.alpha = 40.0, 0.1
    world.run(20)
    told = [line for line in world.said if "start again" in line]
    assert len(told) == 1 and "off on cpu:0-1" in told[0]
    assert apart[0] != "off" and world.reviser.proposed == told[0]
    plan = world.ranking.entries[0].plan
    shown = running(plan, plan.placements, {"target": world.status("target")}, world.reviser)
    assert shown["strategy"] == world.reviser.follows[0] and shown["revised"]["proposed"] == told[0]
    assert shown["revised"]["drafter_forward"] > 10


def test_a_proposal_hides_nothing_that_can_be_followed(shared):
    """Elsewhere it would be faster still: that is told, and what can be had here is taken at once."""
    for entry in shared.reviser._away:
        object.__setattr__(entry.duet, "verify", lambda rows: 0.02 + 0.002 * rows)
    assert shared.reviser._away
    shared.drafter = 15.0
    assert shared.run(8) == ["off 0"]
    assert len([line for line in shared.said if "start again" in line]) == 1


@pytest.mark.long
def test_streams_that_come_and_go_are_counted(world):
    world.streams = 6
    world.run(5)
    assert world.reviser.measured.streams == 8  # by twos
    world.streams = 1
    world.run(20)
    assert world.reviser.measured.streams == 1


def test_a_worker_born_again_is_measured_anew(world):
    world.run(3)
    before = world.reviser.measured
    world.counts["target"] = 1000, 3000, 5000.0  # of another life: nothing to be compared with
    status = world.status("target")
    again = type(status)(**{name: getattr(status, name) for name in status.__struct_fields__} | {"epoch": 6})
    assert world.reviser.look({"target": again}) is None
    assert world.reviser.measured == before
