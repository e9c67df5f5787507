"""A plan revised while it runs: what is measured takes the place of what was foreseen (``--strategy auto``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import inf, log2

from hetero.placement.candidates import Candidate
from hetero.placement.cost import Average
from hetero.planning.ranking import SHELL, Entry, Ranking
from hetero.workers.runtime.status import WorkerStatus
from hetero.workers.simulation.forecast import Duet, Play

_FORWARDS = 16  # of the target, after which a role's speed is believed
_MOVED = 0.1  # what has changed by less than this share is as it was
_GAIN, _MOVING = 1.05, 1.15  # a plan must be so many times as fast to be followed; to be proposed, where models move
_TWICE = 2  # times in a row that it must be found so
_DWELL = 5.0  # seconds a strategy is given at least: drafters begin anew with each
_PROPOSING = 30.0  # seconds between looks at other places
_STREAMS = 8  # most that are foreseen
_TOKENS = 300  # of a forecast
_AGAIN = 60.0  # seconds without drafts after which they are tried again; twice as many after each failure
_LONGEST = 960.0


@dataclass(frozen=True)
class Measured:
    """How the world differs from what was foreseen: seconds of a forward of either role, in times those foreseen; the
    share of positions at which the drafter is right; streams at work."""

    target: float = 1.0
    drafter: float = 1.0
    alpha: float | None = None
    streams: int = 1

    def near(self, other: Measured) -> bool:
        """Whether nothing has changed worth thinking it all over again."""
        if (self.alpha is None) != (other.alpha is None) or self.streams != other.streams:
            return False
        pairs = [(self.target, other.target), (self.drafter, other.drafter), (self.alpha or 1.0, other.alpha or 1.0)]
        return all(abs(one / two - 1.0) < _MOVED for one, two in pairs)


@dataclass(frozen=True)
class Advice:
    """``follow``: the strategy and gamma to go on by; ``said``: to people."""

    follow: tuple[str, int] | None
    said: str


@dataclass
class _Counters:
    epoch: int = 0
    forwards: int = 0
    rows: int = 0
    seconds: float = 0.0


class Reviser:
    """Of the first plan of a ranking, which runs. Strategies of the same place are followed; another place, where a
    model would have to be loaded again, is proposed."""

    def __init__(self, ranking: Ranking, clock: Callable[[], float]) -> None:
        chosen = ranking.entries[0]
        own = chosen.candidate
        self.follows = own.strategy, own.gamma
        self.proposed = ""
        self.measured = Measured()
        self._clock = clock
        self._here = {
            (e.candidate.strategy, e.candidate.gamma): e.duet for e in ranking.entries if _place(e) == _place(chosen)
        }
        if chosen.candidate.drafter is not None:
            self._here["off", 0] = replace(chosen.duet, strategy="off", gamma=0, draft=None)
        self._away = [e for e in ranking.entries if _place(e) != _place(chosen)]
        self._seen: dict[str, _Counters] = {}
        self._judged: Measured | None = None
        self._better, self._times = self.follows, 0
        self._rest, self._rests_until = _AGAIN, inf
        self._since, self._proposes_at = -inf, -inf
        self._streams = Average()

    def look(self, statuses: Mapping[str, WorkerStatus]) -> Advice | None:
        """What the roles' accounts now advise; None: to go on as before."""
        if not self._learn(statuses):
            return None
        if self._times == 0 and self._judged is not None and self.measured.near(self._judged):
            return None
        self._judged = self.measured
        return self._judge()

    def _learn(self, statuses: Mapping[str, WorkerStatus]) -> bool:
        """Whether there is something new."""
        target = statuses.get("target")
        if target is None or target.active == 0:
            return False
        if self.follows[0] == "off" and self._clock() >= self._rests_until:
            # What made drafts lose may be over: it is found out by trying.
            self._rests_until = inf
            self.measured = replace(self.measured, drafter=1.0, alpha=None)
            return True
        found: dict[str, float] = {}
        for role, status in statuses.items():
            last = self._seen.setdefault(role, _Counters())
            if status.epoch != last.epoch:
                self._seen[role] = _now(status)
                continue
            forwards = status.forwards - last.forwards
            if forwards < _FORWARDS:
                continue
            foreseen = self._foreseen(role, (status.rows - last.rows) / forwards)
            if foreseen:
                found[role] = (status.forward_s - last.seconds) / forwards / foreseen
            self._seen[role] = _now(status)
        if "target" not in found:
            return False
        alpha = self.measured.alpha
        if target.speeds is not None and sum(drafter.drafted for drafter in target.drafters) > _FORWARDS:
            alpha = target.speeds.alpha
        self._streams.add(target.active)
        # By twos: streams come and go, and each number of them would be another forecast.
        streams = min(_STREAMS, 1 << round(log2(max(1.0, self._streams(1.0)))))
        self.measured = Measured(found["target"], found.get("drafter", self.measured.drafter), alpha, streams)
        return True

    def _foreseen(self, role: str, rows: float) -> float:
        """Seconds of the engine's forward, of as many rows on average; 0 where none was foreseen, or where a drafter's
        forwards are of two kinds."""
        duet = self._here[self.follows]
        cost = duet.verify if role == "target" else duet.draft
        if cost is None or (role == "drafter" and duet.calibrate is not None):
            return 0.0
        low = int(rows)
        return cost(max(1, low)) + (rows - low) * (cost(low + 1) - cost(max(1, low))) - SHELL

    def _judge(self) -> Advice | None:
        rates = {kind: self._rate(duet) for kind, duet in self._here.items()}
        best = max(rates, key=lambda kind: rates[kind])
        proposal = self.proposed if self._propose(rates[best]) else ""
        follow, said = self._follow(rates, best)
        lines = [line for line in (said, proposal) if line]
        return Advice(follow, "\n".join(lines)) if lines else None

    def _follow(self, rates: dict[tuple[str, int], float], best: tuple[str, int]) -> tuple[tuple[str, int] | None, str]:
        """What to go on by, if by something else, and what is to be said of it."""
        if rates[best] < _GAIN * rates[self.follows]:
            best = self.follows
        if best != self._better:
            self._better, self._times = best, 0
        if best == self.follows:
            self._times = 0
            return None, ""
        self._times += 1
        now = self._clock()
        if self._times < _TWICE or now - self._since < _DWELL:
            return None, ""
        if self.follows[0] != "off" and now - self._since > self._rest:
            self._rest = _AGAIN  # drafts did well for long
        self._times, self._since = 0, now
        self.follows, gain = best, rates[best] / rates[self.follows]
        self._seen.clear()  # windows and drafts of another kind begin now
        if best[0] == "off":
            self._rests_until, self._rest = now + self._rest, min(_LONGEST, 2 * self._rest)
        name = best[0] + (f" {best[1]}" if best[1] else "")
        return best, f"plan: {name} from now on: by what was measured, {gain:.2f} times as fast"

    def _propose(self, rate: float) -> bool:
        """Whether there is something new to propose, given what the place allows; not looked for at every turn."""
        if self._clock() < self._proposes_at:
            return False
        self._proposes_at = self._clock() + _PROPOSING
        rates = [(self._rate(entry.duet), str(entry.candidate)) for entry in self._away]
        most, name = max(rates, default=(0.0, ""))
        found = ""
        if most > _MOVING * rate:
            found = f"plan: {name} would be {most / rate:.2f} times as fast now: start again to have it"
        new, self.proposed = bool(found) and not self.proposed, found
        return new

    def _rate(self, foreseen: Duet) -> float:
        found, verify, draft = self.measured, foreseen.verify, foreseen.draft
        agreement = foreseen.agreement if found.alpha is None else foreseen.agreement.at(found.alpha)
        duet = replace(
            foreseen,
            verify=lambda rows: SHELL + found.target * (verify(rows) - SHELL),
            draft=(lambda rows: SHELL + found.drafter * (draft(rows) - SHELL)) if draft is not None else None,
            agreement=agreement,
        )
        return Play(duet, max(100, _TOKENS // found.streams), seed=3, streams=found.streams).result(5).rate


def _place(entry: Entry) -> tuple[object, ...]:
    """What must be the same for a strategy to be followed without loading anything."""
    own: Candidate = entry.candidate
    return own.target, own.drafter, own.layers, *(placement.spec.engine for placement in entry.plan.placements)


def _now(status: WorkerStatus) -> _Counters:
    return _Counters(status.epoch, status.forwards, status.rows, status.forward_s)
