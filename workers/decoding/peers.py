"""The verifier's view of its peers: drafters and gateways, who lives, what each holds, and what to tell it.

Any message to a peer may be lost, repeated or late: a ping shows what it lacks, and it is told again. Methods return
the messages to send.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from hetero.workers.decoding.corrections import corrections
from hetero.workers.decoding.policy.speeds import DrafterSpeeds
from hetero.workers.decoding.protocol import Sends
from hetero.workers.decoding.target_sequence import DrafterView, TargetSequence
from hetero.workers.engines.base import Outcome
from hetero.workers.wire.messages import (
    MAX_FEATURES,
    MAX_MESSAGE,
    Close,
    Commit,
    Failed,
    Finished,
    Message,
    Open,
    Ping,
    PromptLogprobs,
    Round,
    Stats,
    Tokens,
)
from hetero.workers.wire.messages import Features as FeaturesMessage

SILENCE = 3.0  # seconds without a word after which a drafter counts as gone
DESERTED = 30.0  # the same of a gateway, whose sequences are then freed
ANSWERS = 256  # messages to a gateway or about strange sequences that one ping brings; the next brings more


@dataclass(slots=True)
class DrafterPeer:
    """One incarnation of the drafter of an ``index``: its socket, its speeds, and how many draft tokens it brought and
    how many of them were committed; how wide the ``features`` are that it drafts from, 0: none; whether it
    ``learns``."""

    index: int
    socket: bytes
    epoch: int
    heard: float
    speeds: DrafterSpeeds = field(default_factory=DrafterSpeeds)
    drafted: int = 0
    accepted: int = 0
    features: int = 0
    learns: bool = False


class Drafters:
    """Any number of drafters, by their index; another incarnation of one takes its place."""

    def __init__(self, epoch: int) -> None:
        """``epoch``: the verifier's."""
        self._epoch = epoch
        self._peers: dict[int, DrafterPeer] = {}

    def __iter__(self) -> Iterator[DrafterPeer]:
        return iter(tuple(self._peers.values()))  # whole at once: a status may be asked from another thread

    def __len__(self) -> int:
        return len(self._peers)

    def __getitem__(self, index: int) -> DrafterPeer:
        return self._peers[index]

    def at(self, socket: bytes) -> DrafterPeer | None:
        """The drafter behind a socket."""
        return next((peer for peer in self._peers.values() if peer.socket == socket), None)

    def forget(self, peer: DrafterPeer, sequences: Iterable[TargetSequence]) -> None:
        """It is gone: nothing is held there, nobody waits for it."""
        del self._peers[peer.index]
        for sequence in sequences:
            sequence.drafters.pop(peer.index, None)
            if not sequence.drafters:
                sequence.waiting_since = None

    def silent(self, now: float) -> list[DrafterPeer]:
        """Those that should be given up."""
        return [peer for peer in self._peers.values() if now - peer.heard > SILENCE]

    def pinged(self, socket: bytes, ping: Ping, active: Mapping[int, TargetSequence], now: float) -> Sends:
        """Compare what a drafter holds with what is true, and mend the difference."""
        peer = self._peers.get(ping.index)
        if peer is None or (peer.socket, peer.epoch) != (socket, ping.epoch):
            if peer is not None:
                self.forget(peer, active.values())
            peer = DrafterPeer(ping.index, socket, ping.epoch, now, features=ping.features, learns=ping.learns)
            self._peers[ping.index] = peer
        peer.heard = now
        lengths = dict(ping.lengths)
        strange = islice(lengths.keys() - active.keys(), ANSWERS)
        sends: Sends = [(socket, Close(seq, self._epoch)) for seq in strange]
        for sequence in active.values():
            length = lengths.get(sequence.seq)
            if not self._may_have(peer, sequence):
                if length is None:
                    sequence.drafters.pop(peer.index, None)
                continue
            if length is None or not len(sequence.prompt.tokens) <= length <= sequence.length:
                sends += self._offer(peer, sequence, now)
                continue
            view = sequence.drafters.setdefault(peer.index, DrafterView(length, now))
            view.length = length
            if length < sequence.length and not sequence.switch.resting:
                sends += self._tell(peer, view, sequence, now, 0.0)
        return sends

    def offer(self, sequence: TargetSequence, now: float) -> Sends:
        """Open a sequence at every drafter it should have, with all that is committed."""
        return [send for peer in self if self._may_have(peer, sequence) for send in self._offer(peer, sequence, now)]

    def tell(self, sequence: TargetSequence, now: float, due: float, begins: bool) -> Sends:
        """Send those that lack them the latest commits; all of them, when a window ``begins`` that should take ``due``
        seconds."""
        sends: Sends = []
        for index, view in sequence.drafters.items():
            if view.news or begins:
                sends += self._tell(self._peers[index], view, sequence, now, due if begins else 0.0)
        return sends

    def send(self, sequence: TargetSequence, message: Message) -> Sends:
        """A message to all where a sequence is open."""
        return [(self._peers[index].socket, message) for index in sequence.drafters]

    def features(self, sequence: TargetSequence, base: int, to: Iterable[int] | None = None) -> Sends:
        """The features that are kept of a sequence's tokens from a position on, to all who draft from them (``to``: of
        these drafters)."""
        run = sequence.features
        asked = sequence.drafters if to is None else to
        wanting = [self._peers[n].socket for n in asked if run is not None and self._peers[n].features == run.width]
        if run is None or not wanting:
            return []
        features, width = run.since(base), run.width
        most = max(1, MAX_FEATURES // (2 * width))
        sends: Sends = []
        for at in range(0, len(features), most):
            values = features[at : at + most].astype("<f2").tobytes()
            message = FeaturesMessage(sequence.seq, self._epoch, base + at, width, values)
            sends += [(socket, message) for socket in wanting]
        return sends

    def correct(self, sequence: TargetSequence, missed: Sequence[tuple[int, int]], outcome: Outcome) -> Sends:
        """What the target thought where drafts were wrong (``Walk.missed``), to all who learn."""
        learning = [self._peers[n].socket for n in sequence.drafters if self._peers[n].learns]
        found = corrections(sequence.seq, self._epoch, missed, outcome) if learning else ()
        return [(socket, correction) for correction in found for socket in learning]

    def close(self, sequence: TargetSequence) -> Sends:
        """The sequence is over: nothing more is said of it. Who learns from it first hears how it ended."""
        sends: Sends = []
        for index, view in sequence.drafters.items():
            if self._peers[index].learns and view.length < sequence.length:
                sends += self._tell(self._peers[index], view, sequence, 0.0, 0.0)
        sends += self.send(sequence, Close(sequence.seq, self._epoch))
        sequence.drafters.clear()
        return sends

    def _may_have(self, peer: DrafterPeer, sequence: TargetSequence) -> bool:
        """Whether a sequence should be open at a drafter; where those chosen for it are gone, at any."""
        chosen = sequence.chosen & self._peers.keys()
        return not sequence.opening.plain and (not chosen or peer.index in chosen)

    def _offer(self, peer: DrafterPeer, sequence: TargetSequence, now: float) -> Sends:
        asked = sequence.opening
        opening = Open(
            seq=asked.seq,
            epoch=self._epoch,
            prompt=asked.prompt,
            committed=list(sequence.output.committed),
            sampling=asked.sampling,
            max_tokens=asked.max_tokens,
            stop=[],
        )
        view = sequence.drafters.get(peer.index)
        if view is None:
            sequence.drafters[peer.index] = DrafterView(sequence.length, now)
        else:
            view.length = sequence.length
        first = sequence.features.first if sequence.features is not None else 0
        return [(peer.socket, opening), *self.features(sequence, first, [peer.index])]

    def _tell(self, peer: DrafterPeer, view: DrafterView, sequence: TargetSequence, now: float, due: float) -> Sends:
        """The tokens committed since the length it is known to hold, and when to expect more."""
        tokens, _, _ = sequence.output.since(view.length)
        if view.news:
            view.told_at = now
            view.news = False
        return [(peer.socket, Commit(sequence.seq, self._epoch, view.length, tokens, min(due, 3600.0)))]


class Gateways:
    """Any number of gateways."""

    def __init__(self, epoch: int) -> None:
        """``epoch``: the verifier's."""
        self._epoch = epoch
        self._heard: dict[bytes, float] = {}

    def alive(self, socket: bytes, now: float) -> None:
        """It gave a sign of life."""
        self._heard[socket] = now

    def forget(self, socket: bytes) -> None:
        """It is gone."""
        self._heard.pop(socket, None)

    def deserted(self, now: float) -> list[bytes]:
        """Those that have been silent for too long."""
        return [socket for socket, heard in self._heard.items() if now - heard > DESERTED]

    def tokens(self, sequence: TargetSequence, base: int, round_: Round | None = None) -> Sends:
        """What was committed from a length of prompt and output on."""
        tokens, text, logprobs = sequence.output.since(base)
        if not tokens:
            return []
        return [(sequence.gateway, Tokens(sequence.seq, self._epoch, base, tokens, text, logprobs, round_))]

    def prompt(self, sequence: TargetSequence, first: int, outcome: Outcome) -> Sends:
        """What the model thinks of the prompt's tokens behind those of a chunk, where that is asked for."""
        opening = sequence.opening
        if opening.prompt_logprobs < 0 or opening.committed:
            return []
        behind = opening.prompt[first + 1 : sequence.prompt.evaluated + 1]
        found = [
            sequence.sampler.logprob(outcome.logits(row), token, opening.prompt_logprobs)
            for row, token in enumerate(behind)
        ]
        return [(sequence.gateway, PromptLogprobs(sequence.seq, self._epoch, first + 1, found))]

    def finished(self, sequence: TargetSequence, stats: Stats) -> Sends:
        """A sequence ended."""
        output = sequence.output
        assert output.reason is not None
        end = Finished(sequence.seq, self._epoch, output.length, output.reason, output.last_text, stats, output.stop)
        return [(sequence.gateway, end)]

    def failed(self, socket: bytes, seq: int, code: str, why: str) -> Sends:
        """A sequence cannot go on."""
        return [(socket, Failed(seq, self._epoch, code, why[:MAX_MESSAGE]))]

    def mend(self, socket: bytes, ping: Ping, active: Mapping[int, TargetSequence], waiting: Collection[int]) -> Sends:
        """Send a gateway again what its ping shows it lacks; what is not known here it must resume."""
        sends: Sends = []
        for seq, length in dict(ping.lengths).items():
            if len(sends) >= ANSWERS:
                break
            if (sequence := active.get(seq)) is not None:
                sends += self.tokens(sequence, length)
            elif seq not in waiting:
                sends += self.failed(socket, seq, "unknown", "not known to this verifier")
        return sends
