"""One sequence at the verifier, in its parts: the prompt, the output, what each drafter knows, what it cost."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from hetero.workers.decoding.costs import Costs
from hetero.workers.decoding.feature_run import FeatureRun
from hetero.workers.decoding.graft import graft
from hetero.workers.decoding.kv_cursor import KvCursor
from hetero.workers.decoding.output import Output
from hetero.workers.decoding.policy.speculation_switch import SpeculationSwitch
from hetero.workers.decoding.proposers.indexed_text import IndexedText
from hetero.workers.decoding.proposers.past import Past
from hetero.workers.decoding.proposers.prediction import Prediction
from hetero.workers.decoding.proposers.proposer import Proposer
from hetero.workers.models.vocabulary import Vocabulary
from hetero.workers.sampling.gumbel import prompt_digest
from hetero.workers.sampling.logits_processors import LogitsProcessor
from hetero.workers.sampling.sampler import Sampler
from hetero.workers.sampling.thinking import ThinkingState
from hetero.workers.wire.messages import Draft, Logprob, Open, Stats


def sampler_of(opening: Open, vocabulary: Vocabulary | None = None) -> Sampler:
    """The sampler both roles derive from a request; with the target's ``vocabulary`` it obeys grammar and ends, too.
    Raises GrammarError."""
    digest = prompt_digest(opening.prompt)
    if vocabulary is None:
        return Sampler(opening.sampling, digest, LogitsProcessor(opening.sampling, opening.prompt))
    ends = vocabulary.ends
    processor = LogitsProcessor(
        opening.sampling,
        opening.prompt,
        vocabulary.grammars.start(opening.grammar) if opening.grammar else None,
        ThinkingState(opening.thinking, vocabulary.named) if opening.thinking is not None else None,
        ends | set(opening.stop_ids),
        ends - set(opening.stop_ids) if opening.ignore_end else (),
    )
    return Sampler(opening.sampling, digest, processor)


def objection(opening: Open, context: int, vocabulary: int) -> str | None:
    """Why a sequence cannot be admitted; what it asks may come from outside."""
    if len(opening.prompt) >= context:
        return (
            f"the prompt has {len(opening.prompt)} tokens and the context holds {context}: "
            "shorten it or serve with a larger --context"
        )
    biased = max((token for token, _ in opening.sampling.bias), default=0)
    thinking = [opening.thinking.begin, *opening.thinking.closing] if opening.thinking is not None else []
    others = [biased, *opening.committed, *opening.stop_ids, *opening.prediction, *thinking]
    if max(*opening.prompt, *others) >= vocabulary:
        return f"a token id lies outside the vocabulary of {vocabulary}"
    return None


@dataclass(slots=True)
class PrefixProgress:
    """How far the engine has come with the tokens a sequence begins with (the list may grow meanwhile). ``cache_key``:
    of the cached prefix it began with, 0 for none."""

    tokens: list[int]
    evaluated: int = 0
    cache_key: int = 0

    @property
    def complete(self) -> bool:
        return self.evaluated >= len(self.tokens)

    def restart(self) -> None:
        """Nothing of it is evaluated any more."""
        self.evaluated = self.cache_key = 0


@dataclass(slots=True)
class DrafterView:
    """What one drafter knows of a sequence: the ``length`` it is known to hold, and when (seconds) it was last told of
    commits and last brought a new draft. ``news``: there are commits to tell it; ``vain``: the last wait for it brought
    nothing, so nobody waits for it until it drafts again."""

    length: int
    told_at: float
    drafted_at: float = -inf
    news: bool = False
    vain: bool = False


class TargetSequence:
    """The verifier's record of one choice of one request."""

    def __init__(
        self,
        opening: Open,
        gateway: bytes,
        vocabulary: Vocabulary,
        limit: int,
        now: float,
        switch: SpeculationSwitch,
        past: Past | None = None,
    ) -> None:
        """``limit``: output tokens at most, the context counted in; ``past``: who proposes what stood in a text before
        (None: nobody does). Raises GrammarError."""
        self.opening = opening
        self.gateway = gateway
        self.switch = switch
        self.sampler = sampler_of(opening, vocabulary)
        self.prompt = PrefixProgress(opening.prompt)
        self.output = Output(opening, limit, self.sampler, vocabulary)
        self.cursor = KvCursor(opening.seq, len(opening.prompt) - 1, opening.prompt[-1])
        self.chosen: frozenset[int] = frozenset()  # drafters it should have, by index; none: all
        self.drafters: dict[int, DrafterView] = {}  # by the drafter's index; only those it is open at
        self.features: FeatureRun | None = None  # for heads; what was not told yet begins at ``features_told``
        self.features_told = 0
        self.waiting_since: float | None = None  # held back for more draft
        self.costs = Costs(len(opening.committed), now)
        self.draft_s = 0.0  # time of draft steps since the last window
        self.proposers: list[Proposer] = []
        self._text: IndexedText | None = None
        if opening.prediction and not opening.plain:
            self.proposers.append(Prediction(opening.prediction))
        self._past = past if not opening.plain else None
        self._vocabulary = len(vocabulary)
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
        return self.output.length

    def take(self, token: int, logprob: Logprob | None = None) -> bool:
        """A token was decided; True when the text ends with it."""
        if self._text is not None:
            self._text.append(token)
        for proposer in self.proposers:
            proposer.commit(token)
        return self.output.take(token, logprob)

    def propose(self, room: int) -> None:
        """Have the draft tree, of ``room`` nodes at most, hold what is proposed beside the verifier."""
        if self._past is not None and self._text is None:  # not sooner: those that wait for a place take no memory
            self._text = IndexedText([*self.opening.prompt, *self.output.committed])
            self.proposers += self._past.lookups(self.opening.owner, self._text)
        for proposer in self.proposers:
            proposer.propose(self.cursor.tree, room)

    def graft(self, draft: Draft, room: int, source: int) -> int:
        """Add a drafted subtree, ``room`` nodes in the tree at most; returns how many nodes are new."""
        if not len(self.prompt.tokens) <= draft.base <= self.length:
            return 0
        since, _, _ = self.output.since(draft.base)
        fresh = graft(self.cursor.tree, draft, since, room, self._vocabulary, source)
        if fresh:
            self.draft_s += draft.seconds
        return fresh

    def stats(self, plain_s: float, now: float) -> Stats:
        """What it cost; ``plain_s``: seconds of a token without speculation, 0 where not measured."""
        tokens = len(self.output.committed)
        return self.costs.stats(len(self.prompt.tokens), tokens, self.switch.plain, plain_s, now)
