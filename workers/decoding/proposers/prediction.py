"""What a client expects of an output, as drafts: where the output agrees with it, it probably goes on so.

As in prompt lookup (Saxena 2023), over a text the client gives (OpenAI's predicted outputs).
"""

from __future__ import annotations

from collections.abc import Sequence

from hetero.workers.decoding.policy import tuning
from hetero.workers.decoding.proposers.proposer import PREDICTION
from hetero.workers.decoding.tree import DraftTree


class Prediction:
    """Follows one output through the text it was expected to be."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = tokens
        self._at = 0  # what should come next
        self._places: dict[tuple[int, ...], list[int]] = {}  # of every two tokens, where a text goes on after them
        for end in range(2, len(tokens) + 1):
            self._places.setdefault((tokens[end - 2], tokens[end - 1]), []).append(end)
        self._last: tuple[int, ...] = ()
        self._chance = tuning.PREDICTED_START

    def commit(self, token: int) -> None:
        """A token was decided."""
        self._last = (*self._last, token)[-2:]
        if self._at < len(self._tokens):
            hit = self._tokens[self._at] == token
            self._chance += tuning.PREDICTED_WEIGHT * (hit - self._chance)
            if hit:
                self._at += 1
                return
        # The output left the text: it may come back to it behind the same two tokens, further on if it can be.
        places = self._places.get(self._last, [])
        self._at = next((place for place in places if place > self._at), places[-1] if places else len(self._tokens))

    def propose(self, tree: DraftTree, room: int) -> None:
        node, chance = tree.root, min(max(self._chance, tuning.PREDICTED_LEAST), tuning.PREDICTED_MOST)
        for token in self._tokens[self._at : self._at + tuning.PREDICTED]:
            if len(tree) >= room:
                return
            node = tree.add(node, token, chance, PREDICTION)
