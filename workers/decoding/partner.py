"""The verifier's view of its drafter: who it is, what it holds of each sequence, and what to tell it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import inf

from hetero.workers.decoding.target_sequence import TargetSequence
from hetero.workers.wire.messages import Close, Commit, Message, Open, Ping

SILENCE = 3.0  # seconds without a word after which a drafter counts as gone


class Partner:
    """At most one drafter at a time; any of its messages may be lost, repeated or late."""

    def __init__(self, epoch: int, sends: list[tuple[bytes, Message]]) -> None:
        """``sends``: where its messages are put."""
        self.peer: bytes | None = None
        self._epoch = epoch
        self._sends = sends
        self._heard = -inf

    def alive(self, now: float) -> None:
        """It gave a sign of life."""
        self._heard = now

    def silent(self, now: float) -> bool:
        """Whether it should be given up."""
        return self.peer is not None and now - self._heard > SILENCE

    def forget(self, sequences: Iterable[TargetSequence]) -> None:
        """It is gone: nothing is held there, nobody waits for it."""
        self.peer = None
        for sequence in sequences:
            sequence.drafter_length = None
            sequence.waiting_since = None

    def pinged(self, peer: bytes, ping: Ping, active: Mapping[int, TargetSequence], now: float) -> None:
        """Compare what it holds with what is true, and mend the difference."""
        if self.peer != peer:
            self.forget(active.values())
            self.peer = peer
        self.alive(now)
        lengths = dict(ping.lengths)
        for seq in lengths.keys() - active.keys():
            self._sends.append((peer, Close(seq, self._epoch)))
        for sequence in active.values():
            length = lengths.get(sequence.seq)
            if length is None or not len(sequence.opening.prompt) <= length <= sequence.length:
                self.offer(sequence)
            elif length < sequence.length and not sequence.switch.resting:
                sequence.drafter_length = length
                self.tell(sequence, now)

    def send(self, message: Message) -> None:
        """Tell it something, if it is there."""
        if self.peer is not None:
            self._sends.append((self.peer, message))

    def offer(self, sequence: TargetSequence) -> None:
        """Open a sequence there, with all that is committed."""
        asked = sequence.opening
        if self.peer is None or asked.plain:
            return
        opening = Open(
            seq=asked.seq,
            epoch=self._epoch,
            prompt=asked.prompt,
            committed=list(sequence.committed),
            sampling=asked.sampling,
            max_tokens=asked.max_tokens,
            stop=[],
        )
        self._sends.append((self.peer, opening))
        sequence.drafter_length = sequence.length

    def tell(self, sequence: TargetSequence, now: float, due: float = 0.0) -> None:
        """Send the tokens committed since the length it is known to hold, and when to expect more."""
        if self.peer is None or sequence.drafter_length is None:
            return
        tokens, _, _ = sequence.since(sequence.drafter_length)
        if sequence.news:
            sequence.told_at = now
            sequence.news = False
        due = min(due, 3600.0)
        self._sends.append((self.peer, Commit(sequence.seq, self._epoch, sequence.drafter_length, tokens, due)))

    def close(self, sequence: TargetSequence) -> None:
        """The sequence is over."""
        if self.peer is not None and sequence.drafter_length is not None:
            self._sends.append((self.peer, Close(sequence.seq, self._epoch)))
