"""The verifier's view of its gateways: who lives, and what to tell them of their sequences."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping

from hetero.workers.decoding.target_sequence import TargetSequence
from hetero.workers.wire.messages import Failed, Finished, Message, Ping, Round, Stats, Tokens

_REMEMBERED = 4096  # ended sequences
DESERTED = 30.0  # seconds without a word after which a gateway's sequences are freed


class Remembered:
    """Sequences that ended of late, so that a frame seen before begins none of them again."""

    def __init__(self) -> None:
        self._seqs: OrderedDict[int, None] = OrderedDict()

    def __contains__(self, seq: int) -> bool:
        return seq in self._seqs

    def add(self, seq: int) -> None:
        """It ended; the oldest is forgotten."""
        self._seqs[seq] = None
        if len(self._seqs) > _REMEMBERED:
            self._seqs.popitem(last=False)


class Gateways:
    """Any number of them; any message to one may be lost, and is sent again when a ping shows it."""

    def __init__(self, epoch: int, sends: list[tuple[bytes, Message]]) -> None:
        """``sends``: where messages to them are put."""
        self._epoch = epoch
        self._sends = sends
        self._heard: dict[bytes, float] = {}

    def alive(self, peer: bytes, now: float) -> None:
        """It gave a sign of life."""
        self._heard[peer] = now

    def forget(self, peer: bytes) -> None:
        """It is gone."""
        self._heard.pop(peer, None)

    def deserted(self, now: float) -> list[bytes]:
        """Those that have been silent for too long."""
        return [peer for peer, heard in self._heard.items() if now - heard > DESERTED]

    def tokens(self, sequence: TargetSequence, base: int, round_: Round | None = None) -> None:
        """Send what was committed from a length of prompt and output on."""
        tokens, text, logprobs = sequence.since(base)
        if tokens:
            self._sends.append((sequence.peer, Tokens(sequence.seq, self._epoch, base, tokens, text, logprobs, round_)))

    def finished(self, sequence: TargetSequence, stats: Stats) -> None:
        """Tell that a sequence ended."""
        assert sequence.reason is not None
        end = Finished(sequence.seq, self._epoch, sequence.length, sequence.reason, sequence.last_text, stats)
        self._sends.append((sequence.peer, end))

    def failed(self, peer: bytes, seq: int, code: str, why: str) -> None:
        """Tell that a sequence cannot go on."""
        self._sends.append((peer, Failed(seq, self._epoch, code, why)))

    def mend(self, peer: bytes, ping: Ping, active: Mapping[int, TargetSequence], waiting: Collection[int]) -> None:
        """Send a gateway again what its ping shows it lacks; what is not known here it must resume."""
        for seq, length in ping.lengths:
            if (sequence := active.get(seq)) is not None:
                self.tokens(sequence, length)
            elif seq not in waiting:
                self.failed(peer, seq, "unknown", "not known to this verifier")
