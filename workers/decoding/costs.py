"""What one sequence costs: counts and times, for its answer and for metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from hetero.workers.decoding.proposers.proposer import name_of
from hetero.workers.wire.messages import Stats


class Costs:
    """Adds up the target forwards of one sequence."""

    def __init__(self, resumed: int, now: float) -> None:
        """``resumed``: output tokens that an earlier verifier decided."""
        self.cached = 0  # prompt tokens taken from a cached prefix
        self.alone = 0  # tokens decided while there was no drafter
        self._resumed = resumed
        self._opened = now
        self._started: float | None = None
        self._forwards = self._windows = 0
        self._drafted: Counter[str] = Counter()  # by the name of who proposed them
        self._accepted: Counter[str] = Counter()
        self._accepted_at: list[int] = []
        self._waited = 0.0

    def admitted(self, now: float) -> None:
        """The sequence has a place in the engine: its prompt's time counts from here."""
        self._opened = now

    def started(self, now: float) -> None:
        """The prompt is evaluated; later calls change nothing."""
        if self._started is None:
            self._started = now

    def checked(self, drafts: Mapping[int, int], hits: Mapping[int, int], waited: float) -> None:
        """A window was checked, for which the sequence was held back ``waited`` seconds; ``drafts``: how many of its
        draft tokens each source proposed, ``hits``: how many of those were accepted."""
        self._forwards += 1
        self._waited += waited
        for source, count in drafts.items():
            self._drafted[name_of(source)] += count
        for source, count in hits.items():
            self._accepted[name_of(source)] += count
        accepted = sum(hits.values())
        self._windows += bool(drafts)
        self._accepted_at += [0] * (accepted - len(self._accepted_at))
        for place in range(accepted):
            self._accepted_at[place] += 1

    def stats(self, prompt: int, output: int, plain: int, plain_s: float, now: float) -> Stats:
        """The sums, for a sequence of ``prompt`` and ``output`` tokens, ``plain`` of them decided with speculation off;
        ``plain_s``: seconds of a token without speculation, 0 where not measured."""
        started = self._started if self._started is not None else now
        return Stats(
            prompt_n=prompt,
            prompt_ms=1e3 * (started - self._opened),
            predicted_n=output,
            predicted_ms=1e3 * (now - started),
            draft_n=self._drafted.total(),
            draft_n_accepted=self._accepted.total(),
            forwards_n=self._forwards,
            resumed_n=self._resumed,
            plain_n=plain,
            waited_ms=1e3 * self._waited,
            alone_n=self.alone,
            cached_n=self.cached,
            drafts_n=self._windows,
            accepted_at=self._accepted_at,
            plain_token_ms=1e3 * plain_s,
            sources={name: (count, self._accepted[name]) for name, count in self._drafted.items()},
        )
