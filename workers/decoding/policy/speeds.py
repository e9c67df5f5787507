"""What a verifier measures of itself and its drafter, and decides waits and windows by."""

from __future__ import annotations

from hetero.placement.cost import Average, Curve, Rate
from hetero.workers.decoding.acceptance import Walk


class Speeds:
    """Speeds learned online. Seconds and tokens a second."""

    def __init__(self) -> None:
        self.forward = Curve()  # T_v(n)
        self.plain = Curve()  # of forwards without draft tokens, while the drafter rests, by sequences
        self.rate = Rate()  # committed tokens a second, waits included
        self._alpha = Rate(0.998)
        self._beta = Rate(0.998)
        self._alpha.add(7.0, 10.0)  # to begin with
        self._beta.add(8.0, 10.0)
        self._step = Average(0.1)
        self._delay = Average(0.2)

    def checked(self, walked: Walk) -> None:
        """A walk showed how good the draft tokens were."""
        self._alpha.add(walked.agreed, walked.offered)
        self._beta.add(walked.foreseen, walked.offered)

    def drafted(self, seconds: float) -> None:
        """A draft came that took its forward ``seconds``."""
        self._step.add(seconds)

    def answered(self, seconds: float) -> None:
        """The first draft below a commit came ``seconds`` after it was told."""
        self._delay.add(seconds)

    def facts(self) -> dict[str, object]:
        """The measures as builtins: alpha, beta, draft step and answer in seconds, T_v by rows."""
        return {
            "alpha": self.alpha,
            "beta": self.beta,
            "step": self.step,
            "delay": self.delay,
            "rate": self.rate(),
            "forward": {str(rows): seconds for rows, seconds in self.forward.points().items()},
            "plain": {str(rows): seconds for rows, seconds in self.plain.points().items()},
        }

    @property
    def alpha(self) -> float:
        """Chance that the target takes a drafter's first candidate."""
        return self._alpha()

    @property
    def beta(self) -> float:
        """Chance that it takes any candidate that was sent."""
        return self._beta()

    @property
    def step(self) -> float:
        """Seconds of a draft forward."""
        return max(self._step(0.01), 1e-6)

    @property
    def delay(self) -> float:
        """Seconds from a commit told to the first draft below it."""
        return self._delay(2.0 * self.step)

    @property
    def patience(self) -> float:
        """Longest wait for the next draft: a few draft steps and the way there and back; never beyond a second."""
        return min(1.0, 2e-3 + 4.0 * self.step + 1.5 * self.delay)
