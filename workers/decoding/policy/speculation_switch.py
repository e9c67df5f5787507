"""Whether drafters pay for one sequence: its time a token against what it would be without them, as measured."""

from __future__ import annotations

from hetero.workers.decoding.policy import tuning


class SpeculationSwitch:
    """Counts the tokens and seconds of one sequence and says when to do without drafts."""

    def __init__(self, probe: bool, plain: int = 0) -> None:
        """``probe``: whether what plain decoding costs is not known yet."""
        self.plain = plain  # tokens decided plainly because speculation lost
        self.seconds = self.alone = 0.0  # what speculation took, and what its tokens would have taken without drafters
        self._probing = probe
        self._left = tuning.PROBE if probe else 0
        self._rest = tuning.FIRST_REST
        self._since = 0
        self._begin()

    @property
    def resting(self) -> bool:
        """Whether to do without drafters now."""
        return self._left > 0

    @property
    def probing(self) -> bool:
        """Whether to decode plainly now, to learn what it costs."""
        return self._left > 0 and self._probing

    def rest(self) -> None:
        """Begin without drafters."""
        self._left, self._probing = self._rest, False

    def round(self, tokens: int, drafted: int, seconds: float, alone: float) -> None:
        """A round took ``seconds`` for its tokens, of which drafters brought ``drafted``; the others would have come
        without them, in ``alone`` seconds (0: unknown)."""
        if self.resting:
            self.plain += 0 if self._probing else tokens
            self._left -= tokens
            return
        self._tokens += tokens
        self._since += tokens
        self._others += tokens - drafted
        self._alone += alone
        usual = self._alone / max(1, self._others)  # seconds of a token without drafters
        took = min(seconds, tokens * usual + tuning.PAUSE * usual) if usual else seconds
        self._seconds += took
        if usual:
            self.seconds, self.alone = self.seconds + took, self.alone + tokens * usual
        lost = self._seconds - self._tokens * usual
        if not alone or (self._tokens < tuning.BLOCK and lost < tuning.LOSS * usual):
            return
        if lost > 0:
            self._left, self._rest = self._rest, min(tuning.LONGEST_REST, 2 * self._rest)
            self._probing = False
        else:
            self._rest = tuning.FIRST_REST
            if self._since >= tuning.RENEW:
                self._left, self._since = tuning.PROBE, 0
                self._probing = True
        self._begin()

    def _begin(self) -> None:
        """The balance of a block."""
        self._tokens = self._others = 0
        self._seconds = self._alone = 0.0
