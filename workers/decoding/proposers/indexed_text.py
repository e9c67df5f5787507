"""A text as tokens, and where in it any two of them stand in a row: what lookups search."""

from __future__ import annotations

from collections.abc import Sequence

from hetero.workers.decoding.policy import tuning

_BORDER = -1  # between two texts: nothing goes on over it


class IndexedText:
    """Tokens in the order they came; beyond ``room`` of them the oldest are forgotten (0: none is).

    For each place the place before it that the same two tokens lead to, as in LZ77's hash chains (RFC 1951, section 4):
    a new token costs the same however long the text is.
    """

    def __init__(self, tokens: Sequence[int] = (), room: int = 0) -> None:
        self._room = room
        self._tokens: list[int] = []
        self._first = 0  # place of the oldest token
        self._latest: dict[tuple[int, int], int] = {}  # place behind two tokens, where they stand last
        self._earlier: list[int] = []  # of each token: the place behind the same two tokens before, -1: none
        self._last = _BORDER
        self.extend(tokens)

    def __len__(self) -> int:
        """Tokens held."""
        return len(self._tokens)

    @property
    def end(self) -> int:
        """The place behind the newest token."""
        return self._first + len(self._tokens)

    def append(self, token: int) -> None:
        """One more token."""
        last, self._last = self._last, token
        self._tokens.append(token)
        if last == _BORDER or token == _BORDER:
            self._earlier.append(-1)
            return
        pair, end = (last, token), self._first + len(self._tokens)
        self._earlier.append(self._latest.get(pair, -1))
        self._latest[pair] = end

    def extend(self, tokens: Sequence[int]) -> None:
        """More tokens."""
        for token in tokens:
            self.append(token)
        if self._room and len(self._tokens) > self._room:
            self.forget(len(self._tokens) - self._room * 3 // 4)

    def part(self) -> None:
        """What comes next is another text."""
        if self._last != _BORDER:
            self.append(_BORDER)

    def tail(self, count: int) -> list[int]:
        """The newest tokens."""
        return self._tokens[-count:]

    def following(self, place: int, count: int) -> list[int]:
        """Up to ``count`` tokens that stand from a place on, none beyond its own text."""
        if place < self._first:  # forgotten
            return []
        found = self._tokens[place - self._first : place - self._first + count]
        return found[: found.index(_BORDER)] if _BORDER in found else found

    def matches(self, context: Sequence[int]) -> list[tuple[int, int]]:
        """Where the text goes on that ends as ``context`` does, in two tokens at least: (tokens that agree, place), of
        each next token the longest and then the latest; the longest first."""
        if len(context) < 2:
            return []
        tokens, first = self._tokens, self._first
        found: dict[int, tuple[int, int]] = {}
        place = self._latest.get((context[-2], context[-1]), -1)
        for _ in range(tuning.MATCHES):
            if place < first + 2:  # none, or forgotten
                break
            at = place - first
            if at < len(tokens) and (follows := tokens[at]) != _BORDER:
                most, length = min(len(context), at, tuning.MATCH), 2
                while length < most and tokens[at - 1 - length] == context[-1 - length]:
                    length += 1
                if follows not in found or length > found[follows][0]:
                    found[follows] = length, place
                if length >= tuning.MATCH:
                    break
            place = self._earlier[at - 1]
        return sorted(found.values(), reverse=True)

    def forget(self, count: int) -> None:
        """Forget the oldest ``count`` tokens."""
        for at in range(1, min(count + 1, len(self._tokens))):
            pair = self._tokens[at - 1], self._tokens[at]
            if self._latest.get(pair) == self._first + at + 1:
                del self._latest[pair]
        del self._tokens[:count], self._earlier[:count]
        self._first += count
