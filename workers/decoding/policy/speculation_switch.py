"""Whether speculation pays for one sequence: its time a token against plain decoding's, as measured."""

from __future__ import annotations

_BLOCK = 32  # tokens after which the balance is drawn
_PROBE = 3  # tokens decided plainly to learn what plain decoding costs
_REST = 64  # tokens of the first rest; each further one in a row doubles
_LONGEST = 1024
_RENEW = 1024  # tokens of speculation after which plain decoding is measured again


class SpeculationSwitch:
    """Counts the tokens and seconds of one sequence and says when to do without drafts."""

    def __init__(self, probe: bool) -> None:
        """``probe``: whether what plain decoding costs is not known yet."""
        self.plain = 0  # tokens decided plainly because speculation lost
        self._probing = probe
        self._left = _PROBE if probe else 0
        self._rest = _REST
        self._tokens = self._since = 0
        self._balance = 0.0

    @property
    def resting(self) -> bool:
        """Whether to decode plainly now."""
        return self._left > 0

    def round(self, tokens: int, seconds: float, plain: float) -> None:
        """A round took ``seconds`` for its tokens; plainly each of them takes ``plain`` (0: unknown)."""
        if self.resting:
            self.plain += 0 if self._probing else tokens
            self._left -= tokens
            return
        self._tokens += tokens
        self._since += tokens
        self._balance += seconds - tokens * plain
        if self._tokens < _BLOCK:
            return
        if plain and self._balance > 0:
            self._left, self._rest = self._rest, min(_LONGEST, 2 * self._rest)
            self._probing = False
        else:
            self._rest = _REST
            if self._since >= _RENEW:
                self._left, self._since = _PROBE, 0
                self._probing = True
        self._tokens, self._balance = 0, 0.0
