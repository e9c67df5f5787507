"""The drafter: guesses ahead of the target. Messages, clock and outcomes in, actions out.

Its loop: take in messages -> pick the most valuable unexpanded nodes (here: the end of each sequence's chain) ->
one engine forward -> send the new nodes. A commit re-roots the tree; what survives is kept, tokens and KV.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from workers.engines.base import Limits, Outcome, Row
from workers.errors import EngineError
from workers.machine import Extend, Free, Keep, Prefill, Run, Step
from workers.sequence import sampler_of
from workers.strategy import Strategy
from workers.track import Track
from workers.wire.messages import Close, Commit, Draft, Message, Open, Ping, Pong

HEARTBEAT = 0.5  # seconds between pings
_TRIES = 3  # failed forwards in a row after which a sequence is left alone


class _Draftee:
    """One sequence at the drafter. ``track`` is None until its prefix is evaluated."""

    def __init__(self, opening: Open, peer: bytes) -> None:
        self.opening = opening
        self.peer = peer
        self.tokens = [*opening.prompt, *opening.committed]
        self.limit = len(opening.prompt) + opening.max_tokens
        self.sampler = sampler_of(opening)
        self.restart()
        self.failures = 0

    def restart(self) -> None:
        """Begin again from the tokens; the engine's state is freed by the caller."""
        self.prefilled = 0
        self.track: Track | None = None

    def learn(self, base: int, tokens: list[int]) -> bool:
        """Take committed tokens from ``base`` on; False when they do not fit what is known."""
        if base > len(self.tokens):
            return False
        known = self.tokens[base : base + len(tokens)]
        if known != tokens[: len(known)]:
            return False
        for token in tokens[len(known) :]:
            self.tokens.append(token)
            if self.track is not None:
                self.track.commit(token)
        return True


@dataclass(frozen=True, slots=True)
class _Growth:
    """A leaf in the forward in flight: where its outcome's row is."""

    draftee: _Draftee
    track: Track
    leaf: int
    row: int
    nodes: list[int]  # all its rows, evaluated when the forward succeeds


class Drafter:
    """State machine (``workers.machine.Machine``) of the drafter's worker."""

    def __init__(self, epoch: int, limits: Limits, ends: frozenset[int], strategy: Strategy) -> None:
        """``ends``: tokens below which nothing is worth drafting."""
        self.epoch = epoch
        self.dropped = 0
        self._limits = limits
        self._ends = ends
        self._strategy = strategy
        self._verifier: bytes | None = None
        self._verifier_epoch: int | None = None
        self._draftees: dict[int, _Draftee] = {}
        self._sends: list[tuple[bytes, Message]] = []
        self._before: list[Keep | Free] = []
        self._busy = False
        self._growing: list[_Growth] = []
        self._chunk: tuple[_Draftee, int] | None = None  # a prefill in flight, and the tokens it adds
        self._next_ping = -inf

    # Events

    def linked(self, verifier: bytes) -> None:
        """A verifier is reachable under this socket identity; it may be another incarnation."""
        self._verifier = verifier
        self._next_ping = -inf

    def receive(self, peer: bytes, message: Message, now: float) -> None:
        match message:
            case Open():
                self._follow_epoch(message.epoch)
                self._open(peer, message)
            case Commit():
                self._commit(message)
            case Close():
                self._drop(message.seq)
            case Pong():
                self._follow_epoch(message.epoch)
            case _:
                self.dropped += 1

    def lost(self, peer: bytes, now: float) -> None:
        """Nothing to do: a verifier that comes back pings and opens again."""

    def completed(self, outcome: Outcome | EngineError | None, elapsed: float, now: float) -> None:
        self._busy = False
        growing, self._growing = self._growing, []
        chunk, self._chunk = self._chunk, None
        if isinstance(outcome, EngineError):
            self._failed([chunk[0]] if chunk else [growth.draftee for growth in growing])
            return
        if outcome is None:
            return
        if chunk is not None:
            self._prefilled(*chunk, outcome)
        for growth in growing:
            growth.draftee.failures = 0
            growth.track.evaluated(growth.nodes)
            self._expand(growth, outcome)

    def prepare(self) -> None:
        for growth in self._growing:
            if growth.leaf in growth.track.tree:
                position = growth.track.tree[growth.leaf].position
                growth.draftee.sampler.prepare(position + 1, self._limits.vocabulary)

    def step(self, now: float) -> Step:
        if self._verifier is not None and now >= self._next_ping:
            self._next_ping = now + HEARTBEAT
            lengths = [(seq, len(draftee.tokens)) for seq, draftee in self._draftees.items()]
            self._sends.append((self._verifier, Ping("drafter", self.epoch, lengths)))
        run = None if self._busy else self._choose()
        step = Step(self._sends, run, self._next_ping if self._verifier is not None else inf)
        self._sends = []
        return step

    @property
    def load(self) -> tuple[int, int]:
        """Sequences (open, waiting), for health and tests."""
        return len(self._draftees), 0

    @property
    def idle(self) -> bool:
        """No sequence is left and the engine has been told so."""
        return not self._draftees and not self._before and not self._busy

    # Sequences

    def _follow_epoch(self, epoch: int) -> None:
        """Another incarnation of the verifier knows nothing of the sequences of the one before."""
        if epoch != self._verifier_epoch:
            for seq in list(self._draftees):
                self._drop(seq)
            self._verifier_epoch = epoch

    def _open(self, peer: bytes, opening: Open) -> None:
        known = self._draftees.get(opening.seq)
        tokens = [*opening.prompt, *opening.committed]
        if known is not None:
            if len(tokens) >= len(known.tokens) and known.learn(0, tokens):
                return
            self._drop(opening.seq)
        if max(tokens) < self._limits.vocabulary and len(tokens) < self._limits.context:
            self._draftees[opening.seq] = _Draftee(opening, peer)
        else:
            self.dropped += 1

    def _commit(self, commit: Commit) -> None:
        draftee = self._draftees.get(commit.seq)
        if draftee is None or commit.epoch != self._verifier_epoch:
            self.dropped += 1
        elif not draftee.learn(commit.base, commit.tokens):
            # Lost or damaged: forget the sequence; the next ping has it opened again.
            self._drop(commit.seq)
            self.dropped += 1

    def _drop(self, seq: int) -> None:
        if self._draftees.pop(seq, None) is not None:
            self._before.append(Free(seq))

    # Growing

    def _choose(self) -> Run | None:
        before, self._before = self._before, []
        for draftee in self._draftees.values():
            if draftee.track is None and draftee.failures < _TRIES and self._worth(draftee, len(draftee.tokens)):
                chunk = draftee.tokens[draftee.prefilled : draftee.prefilled + self._limits.chunk]
                self._chunk = draftee, len(chunk)
                self._busy = True
                return Run(before, Prefill(draftee.opening.seq, chunk))
        rows: list[Row] = []
        for draftee in self._draftees.values():
            track = draftee.track
            leaf = self._leaf(draftee, track) if track is not None else None
            if track is None or leaf is None or (rows and draftee.failures):
                continue
            keep = track.keep(guesses=True)
            if keep is not None:
                before.append(keep)
            path = [node.id for node in track.tree.chain() if not track.has(node.id)]
            own = track.rows(path, self._limits.rows - len(rows))
            if not own:
                continue
            rows.extend(own)
            self._growing.append(_Growth(draftee, track, own[-1].node, len(rows) - 1, [row.node for row in own]))
            if draftee.failures:  # it may be the one at fault: alone, it fails alone
                break
        if rows or before:
            self._busy = True
            return Run(before, Extend(rows) if rows else None)
        return None

    def _worth(self, draftee: _Draftee, position: int) -> bool:
        """Whether a guess at ``position`` could ever be used."""
        return position < min(draftee.limit, self._limits.context)

    def _leaf(self, draftee: _Draftee, track: Track) -> int | None:
        """The node to expand next: the end of the chain, unless it has gone as far as it should."""
        tree = track.tree
        last = tree[tree.root]
        for node in tree.chain():
            last = node
        far = last.position - tree.position >= self._strategy.lead
        if far or draftee.failures >= _TRIES or not self._worth(draftee, last.position + 1):
            return None
        if last.token in self._ends or track.has(last.id):
            return None
        return last.id

    def _prefilled(self, draftee: _Draftee, count: int, outcome: Outcome) -> None:
        draftee.prefilled += count
        if draftee.prefilled < len(draftee.tokens):  # more was committed meanwhile
            return
        track = Track(draftee.opening.seq, draftee.prefilled - 1, draftee.tokens[-1])
        draftee.track = track
        self._expand(_Growth(draftee, track, 0, 0, []), outcome)

    def _expand(self, growth: _Growth, outcome: Outcome) -> None:
        """Guess the token below an evaluated leaf and send it."""
        tree = growth.track.tree
        draftee = growth.draftee
        alive = self._draftees.get(draftee.opening.seq) is draftee and draftee.track is growth.track
        if not alive or growth.leaf not in tree:  # closed, or a commit went elsewhere meanwhile
            return
        position = tree[growth.leaf].position + 1
        if not self._worth(draftee, position):
            return
        try:
            guess = outcome.sample(growth.row, draftee.sampler, position)
        except EngineError:
            draftee.failures = _TRIES
            return
        path = []
        node = growth.leaf
        while node != tree.root:
            path.append(tree[node].token)
            node = tree[node].parent
        tree.add(growth.leaf, guess.token, guess.margin)
        draft = Draft(
            seq=draftee.opening.seq,
            epoch=draftee.opening.epoch,
            base=tree.position + 1,
            path=path[::-1],
            parents=[-1],
            tokens=[guess.token],
            confidences=[guess.margin],
        )
        self._sends.append((draftee.peer, draft))

    def _failed(self, draftees: list[_Draftee]) -> None:
        """Rebuild what was in a failed forward; a sequence that fails again and again is left alone."""
        for draftee in draftees:
            draftee.failures += 1
            draftee.restart()
            if self._draftees.get(draftee.opening.seq) is draftee:
                self._before.append(Free(draftee.opening.seq))
