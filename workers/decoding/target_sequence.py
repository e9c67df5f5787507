"""One sequence at the verifier: what was asked, what is committed, what may be shown, what it cost."""

from __future__ import annotations

from math import inf

from hetero.workers.decoding.kv_cursor import KvCursor
from hetero.workers.decoding.policy.speculation_switch import SpeculationSwitch
from hetero.workers.models.vocabulary import Vocabulary
from hetero.workers.sampling.grammar import Grammar
from hetero.workers.sampling.gumbel import prompt_digest
from hetero.workers.sampling.sampler import Sampler
from hetero.workers.sampling.stop_strings import StopMatcher
from hetero.workers.wire.messages import Draft, Logprob, Open, Stats


def sampler_of(opening: Open, grammar: Grammar | None = None) -> Sampler:
    """The sampler both roles derive from a request."""
    return Sampler(opening.sampling, prompt_digest(opening.prompt), grammar)


def objection(opening: Open, context: int, vocabulary: int) -> str | None:
    """Why a sequence cannot be admitted; what it asks may come from outside."""
    if len(opening.prompt) >= context:
        return (
            f"the prompt has {len(opening.prompt)} tokens and the context holds {context}: "
            "shorten it or serve with a larger --context"
        )
    biased = max((token for token, _ in opening.sampling.bias), default=0)
    if max(max(opening.prompt), max(opening.committed, default=0), biased) >= vocabulary:
        return f"a token id lies outside the vocabulary of {vocabulary}"
    return None


class TargetSequence:
    """The verifier's record of one choice of one request."""

    def __init__(
        self, opening: Open, peer: bytes, vocabulary: Vocabulary, limit: int, now: float, switch: SpeculationSwitch
    ) -> None:
        """``limit``: output tokens at most, the context counted in. Raises GrammarError."""
        self.opening = opening
        self.peer = peer
        self.sampler = sampler_of(opening, vocabulary.grammars.start(opening.grammar) if opening.grammar else None)
        self.committed: list[int] = []
        self.texts: list[str] = []  # released by each committed token, to answer a Resume
        self.logprobs: list[Logprob | None] = []  # of each committed token, where they are asked for
        self.reason: str | None = None
        self.last_text = ""
        self.prefilled = 0
        self.drafting_s = 0.0  # time of draft steps since the last window
        self.cached = 0  # prompt tokens taken from a cached prefix
        self.prefix = 0  # that prefix' key
        self.cursor = KvCursor(opening.seq, len(opening.prompt) - 1, opening.prompt[-1])
        self.waiting_since: float | None = None
        self.drafter_length: int | None = None  # tokens the drafter is known to hold; None: not opened there
        self.stalled = False  # the last wait brought no draft: do not wait again until one comes
        self.news = False  # whether there are commits to tell the drafter
        self.told_at = now  # when the drafter was last told of commits
        self.drafted_at = -inf  # when the last new draft came
        self.switch = switch
        self._vocabulary = vocabulary
        self._matcher = StopMatcher(opening.stop)
        self._limit = limit
        self._opened = now
        self._started: float | None = None
        self._drafted = self._accepted = self._forwards = self._drafts = 0
        self._accepted_at: list[int] = []
        self._waited = 0.0
        self._resumed = len(opening.committed)
        for token in opening.committed:
            self.cursor.commit(token)
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

    def take(self, token: int, logprob: Logprob | None = None) -> bool:
        """Append a committed token; True when the text ends with it."""
        self.committed.append(token)
        self.logprobs.append(logprob)
        self.sampler.processor.commit(token)
        if token in self._vocabulary.ends:
            self.texts.append("")
            return self._end("stop")
        self.texts.append(self._matcher.feed(self._vocabulary.pieces[token]))
        if self._matcher.stopped or self.sampler.processor.complete:
            return self._end("stop")
        return len(self.committed) >= self._limit and self._end("length")

    def _end(self, reason: str) -> bool:
        self.reason = reason
        self.last_text = self._matcher.flush()
        return True

    def since(self, length: int) -> tuple[list[int], str, list[Logprob]]:
        """Output tokens from a length of prompt and output on, their text, and their logprobs where asked for."""
        first = max(0, length - len(self.opening.prompt))
        logprobs = [found for found in self.logprobs[first:] if found is not None]
        return self.committed[first:], "".join(self.texts[first:]), logprobs

    def graft(self, draft: Draft, room: int) -> int:
        """Add a drafted subtree, ``room`` nodes in the tree at most, where it still fits the committed tokens.

        A draft made for fewer tokens than are committed by now counts as far as it agrees with them. Returns how
        many draft tokens are new.
        """
        if not len(draft.parents) == len(draft.tokens) == len(draft.chances):
            return 0
        first = draft.base - len(self.opening.prompt)
        if first < 0 or draft.base > self.length:
            return 0
        known = self.committed[first:]
        tree, vocabulary = self.cursor.tree, len(self._vocabulary)
        before = held = len(tree)
        # Where each node lies: in the tree (its node), along the committed tokens (~how many of them), or nowhere.
        start: int | None = ~0 if known else tree.root
        places: list[int | None] = []
        for index, (parent, token, chance) in enumerate(zip(draft.parents, draft.tokens, draft.chances, strict=True)):
            above = start if parent < 0 else places[parent] if parent < index else None
            place: int | None = None
            if above is not None and above < 0:
                if known[~above] == token:
                    place = above - 1 if ~above + 1 < len(known) else tree.root
            elif above is not None and token < vocabulary:
                place = tree[above].children.get(token)
                if place is None and held < room:
                    place = tree.add(above, token, chance)
                    held += 1
            places.append(place)
        if held > before:
            self.drafting_s += draft.seconds
        return held - before

    def checked(self, drafted: int, accepted: int, waited: float) -> None:
        """Count a target forward of this sequence, for which it was held back ``waited`` seconds."""
        self._forwards += 1
        self._waited += waited
        self._drafted += drafted
        self._accepted += accepted
        self._drafts += drafted > 0
        self._accepted_at += [0] * (accepted - len(self._accepted_at))
        for place in range(accepted):
            self._accepted_at[place] += 1

    def admitted(self, now: float) -> None:
        """The sequence has a place in the engine: its prompt's time counts from here."""
        self._opened = now

    def started(self, now: float) -> None:
        """The prompt is evaluated; later calls change nothing."""
        if self._started is None:
            self._started = now

    def stats(self, now: float, plain_s: float) -> Stats:
        """What it cost; ``plain_s``: seconds of a token without speculation, 0 where not measured."""
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
            plain_n=self.switch.plain,
            waited_ms=1e3 * self._waited,
            cached_n=self.cached,
            drafts_n=self._drafts,
            accepted_at=self._accepted_at,
            plain_token_ms=1e3 * plain_s,
        )
