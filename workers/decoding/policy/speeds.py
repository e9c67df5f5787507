"""What a verifier measures of itself and of its drafters, and decides waits and windows by. Seconds and tokens."""

from __future__ import annotations

from hetero.placement.cost import Average, Curve, Rate
from hetero.workers.decoding.acceptance import Walk
from hetero.workers.decoding.policy import tuning


class Speeds:
    """Of the verifier itself, and of how good the drafts are that it gets."""

    def __init__(self) -> None:
        self.forward = Curve(tuning.FORWARD_WEIGHT)  # T_v(n)
        self.plain = Curve(tuning.FORWARD_WEIGHT)  # of forwards without drafts, while the drafters rest, by sequences
        self.rate = Rate(tuning.RATE_KEEP)  # committed tokens a second, waits included
        self._alpha, self._beta = Rate(tuning.CHANCE_KEEP), Rate(tuning.CHANCE_KEEP)
        self._first = [0, 0]
        self._alpha.add(tuning.ALPHA_START * tuning.START_WEIGHT, tuning.START_WEIGHT)
        self._beta.add(tuning.BETA_START * tuning.START_WEIGHT, tuning.START_WEIGHT)

    def checked(self, walked: Walk) -> None:
        """A walk showed how good the drafts were."""
        if self._first[1] < tuning.FIRST_DRAFTS:
            self._first = [self._first[0] + walked.agreed, self._first[1] + walked.offered]
        self._alpha.add(walked.agreed, walked.offered)
        self._beta.add(walked.foreseen, walked.offered)

    def alone(self, windows: int, looked_up: int) -> float:
        """Seconds of a forward of so many windows without drafters, one of them with some draft tokens of other
        sources; 0: unknown."""
        usual = self.forward(windows)
        return self.plain(windows) * (self.forward(windows + looked_up) / usual if usual else 1.0)

    def share(self, part: int, rows: int) -> float:
        """Of a forward's time, that of some of its rows alone."""
        whole = self.forward(rows)
        return self.forward(part) / whole if whole else 1.0

    @property
    def alpha_first(self) -> float:
        """The same as ``alpha``, of the first drafts there were: what a drafter that learns began with."""
        return self._first[0] / max(1, self._first[1])

    @property
    def alpha(self) -> float:
        """Chance that the target takes a drafter's first candidate."""
        return self._alpha()

    @property
    def beta(self) -> float:
        """Chance that it takes any candidate that was sent."""
        return self._beta()


class DrafterSpeeds:
    """Of one drafter, as the verifier sees it."""

    def __init__(self) -> None:
        self._step = Average(tuning.STEP_WEIGHT)
        self._answer = Average(tuning.FORWARD_WEIGHT)

    def drafted(self, seconds: float) -> None:
        """A draft came that took its forward ``seconds``."""
        self._step.add(seconds)

    def answered(self, seconds: float) -> None:
        """The first draft below a commit came ``seconds`` after it was told."""
        self._answer.add(seconds)

    @property
    def step(self) -> float:
        """Seconds of a draft forward."""
        return max(self._step(tuning.STEP_START), 1e-6)

    @property
    def answer(self) -> float:
        """Seconds from a commit told to the first draft below it."""
        return self._answer(tuning.ANSWER_STEPS * self.step)

    @property
    def patience(self) -> float:
        """Longest wait for its next draft."""
        wait = tuning.PATIENCE_S + tuning.PATIENCE_STEPS * self.step + tuning.PATIENCE_ANSWERS * self.answer
        return min(tuning.PATIENCE_MOST, wait)
