"""One sequence at the verifier: what was asked, what is committed, what may be shown, what it cost."""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from dataclasses import dataclass

from workers.noise import prompt_digest
from workers.sampling import Sampler, SamplingSpec
from workers.stopping import StopMatcher
from workers.track import Track
from workers.tree import DraftTree
from workers.wire.messages import Draft, Open, Sampling, Stats


@dataclass(frozen=True)
class Vocabulary:
    """What the verifier must know of the tokenizer: each token's bytes, and the tokens that end a text."""

    pieces: Tokens[bytes]
    ends: frozenset[int]

    def __len__(self) -> int:
        return len(self.pieces)


def sampler_of(opening: Open) -> Sampler:
    """The sampler both roles derive from a request."""
    asked: Sampling = opening.sampling
    spec = SamplingSpec(asked.temperature, asked.top_k, asked.top_p, asked.min_p, asked.seed, asked.choice)
    return Sampler(spec, prompt_digest(opening.prompt))


class Sequence:
    """The verifier's record of one choice of one request."""

    def __init__(self, opening: Open, peer: bytes, vocabulary: Vocabulary, limit: int, now: float) -> None:
        """``limit``: output tokens at most, the context counted in."""
        self.opening = opening
        self.peer = peer
        self.sampler = sampler_of(opening)
        self.committed: list[int] = []
        self.texts: list[str] = []  # released by each committed token, to answer a Resume
        self.reason: str | None = None
        self.last_text = ""
        self.prefilled = 0
        self.track = Track(opening.seq, len(opening.prompt) - 1, opening.prompt[-1])
        self.waiting_since: float | None = None
        self.drafter_length: int | None = None  # tokens the drafter is known to hold; None: not opened there
        self.stalled = False  # the last wait brought no draft: do not wait again until one comes
        self._vocabulary = vocabulary
        self._matcher = StopMatcher(opening.stop)
        self._limit = limit
        self._opened = now
        self._started: float | None = None
        self._lap = now
        self._drafted = self._accepted = self._forwards = 0
        self._resumed = len(opening.committed)
        for token in opening.committed:
            self.track.commit(token)
            if self.take(token):
                break

    @property
    def seq(self) -> int:
        return self.opening.seq

    @property
    def length(self) -> int:
        """Tokens of prompt and output."""
        return len(self.opening.prompt) + len(self.committed)

    @property
    def prefilling(self) -> bool:
        return self.prefilled < len(self.opening.prompt)

    @property
    def remaining(self) -> int:
        """Output tokens still allowed."""
        return self._limit - len(self.committed)

    def take(self, token: int) -> bool:
        """Append a committed token; True when the text ends with it."""
        self.committed.append(token)
        if token in self._vocabulary.ends:
            self.texts.append("")
            return self._end("stop")
        self.texts.append(self._matcher.feed(self._vocabulary.pieces[token]))
        if self._matcher.stopped:
            return self._end("stop")
        return len(self.committed) >= self._limit and self._end("length")

    def _end(self, reason: str) -> bool:
        self.reason = reason
        self.last_text = self._matcher.flush()
        return True

    def since(self, length: int) -> tuple[list[int], str]:
        """Output tokens from a length of prompt and output on, and their text."""
        first = max(0, length - len(self.opening.prompt))
        return self.committed[first:], "".join(self.texts[first:])

    def graft(self, draft: Draft, room: int) -> int:
        """Add a drafted subtree to the tree where it still fits the committed tokens; returns new nodes.

        A draft made for fewer tokens than are committed by now counts as far as it agrees with them.
        """
        if draft.base > self.length or not len(draft.parents) == len(draft.tokens) == len(draft.confidences):
            return 0
        known = self.committed[max(0, draft.base - len(self.opening.prompt)) :]
        if draft.base < len(self.opening.prompt):
            return 0
        tree = self.track.tree
        before = len(tree)
        # Each node of the draft is followed either along the committed tokens (an int: how many) or in the tree.
        node: int | None = None if known else tree.root
        matched = 0
        for token in draft.path[: room - before + len(known)]:
            node, matched = self._follow(tree, node, matched, known, token, 0.0)
            if matched < 0:
                return 0
        ends = {-1: (node, matched)}
        for index, (parent, token) in enumerate(zip(draft.parents, draft.tokens, strict=True)):
            above = ends.get(parent)
            if parent < index and above is not None and len(tree) < room:
                below = self._follow(tree, *above, known, token, draft.confidences[index])
                if below[1] >= 0:
                    ends[index] = below
        return len(tree) - before

    def _follow(
        self, tree: DraftTree, node: int | None, matched: int, known: list[int], token: int, confidence: float
    ) -> tuple[int | None, int]:
        """One token down: (tree node, or None while among committed tokens; how many of those matched or -1)."""
        if node is not None:
            if token >= len(self._vocabulary):
                return node, -1
            return tree.add(node, token, confidence), matched
        if known[matched] != token:
            return None, -1
        matched += 1
        return (tree.root if matched == len(known) else None), matched

    def checked(self, drafted: int, accepted: int) -> None:
        """Count a target forward of this sequence."""
        self._forwards += 1
        self._drafted += drafted
        self._accepted += accepted

    def admitted(self, now: float) -> None:
        """The sequence has a place in the engine: its prompt's time counts from here."""
        self._opened = now

    def started(self, now: float) -> None:
        """The prompt is evaluated; later calls change nothing."""
        if self._started is None:
            self._started = self._lap = now

    def lap(self, now: float) -> float:
        """Seconds since the last lap."""
        seconds, self._lap = now - self._lap, now
        return seconds

    def stats(self, now: float) -> Stats:
        started = self._started if self._started is not None else now
        return Stats(
            prompt_n=len(self.opening.prompt),
            prompt_ms=1e3 * (started - self._opened),
            predicted_n=len(self.committed),
            predicted_ms=1e3 * (now - started),
            draft_n=self._drafted,
            draft_n_accepted=self._accepted,
            forwards_n=self._forwards,
            resumed_n=self._resumed,
        )
