"""Whether speculation pays for one sequence: its time a token against plain decoding's, as measured."""

from __future__ import annotations

from hetero.workers.decoding.policy import tuning


class SpeculationSwitch:
    """Counts the tokens and seconds of one sequence and says when to do without drafts."""

    def __init__(self, probe: bool, plain: int = 0) -> None:
        """``probe``: whether what plain decoding costs is not known yet."""
        self.plain = plain  # tokens decided plainly because speculation lost
        self._probing = probe
        self._left = tuning.PROBE if probe else 0
        self._rest = tuning.FIRST_REST
        self._tokens = self._since = 0
        self._balance = 0.0

    @property
    def resting(self) -> bool:
        """Whether to do without drafters now."""
        return self._left > 0

    @property
    def probing(self) -> bool:
        """Whether to decode plainly now, to learn what it costs."""
        return self._left > 0 and self._probing

    def round(self, tokens: int, seconds: float, plain: float) -> None:
        """A round took ``seconds`` for its tokens; plainly each of them takes ``plain`` (0: unknown)."""
        if self.resting:
            self.plain += 0 if self._probing else tokens
            self._left -= tokens
            return
        self._tokens += tokens
        self._since += tokens
        self._balance += seconds - tokens * plain
        if self._tokens < tuning.BLOCK:
            return
        if plain and self._balance > 0:
            self._left, self._rest = self._rest, min(tuning.LONGEST_REST, 2 * self._rest)
            self._probing = False
        else:
            self._rest = tuning.FIRST_REST
            if self._since >= tuning.RENEW:
                self._left, self._since = tuning.PROBE, 0
                self._probing = True
        self._tokens, self._balance = 0, 0.0
