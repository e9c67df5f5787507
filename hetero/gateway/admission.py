"""What a server takes on: requests, tokens and bytes."""

from __future__ import annotations

from dataclasses import dataclass

from hetero.errors import Busy, RequestError

_RETRY = 2  # seconds after which a refused client should ask again


@dataclass(frozen=True)
class AdmissionLimits:
    """``sequences`` and ``tokens`` (prompt and most output) under way or waiting at once; 0 tokens: no limit.
    ``body``: bytes of a request. ``seconds`` of a request, waiting included; 0: no limit."""

    sequences: int = 260
    tokens: int = 0
    body: int = 32 << 20
    seconds: float = 0.0


class Admission:
    """Counts what is under way. A place is taken in the moment it is found free."""

    def __init__(self, limits: AdmissionLimits) -> None:
        self._limits = limits
        self.sequences = self.tokens = 0
        self.refused = 0

    def reserve(self, sequences: int, tokens: int) -> Reservation:
        """Room for so many sequences and tokens together. Raises Busy, and RequestError for what never fits."""
        limits = self._limits
        full = None
        if sequences > limits.sequences:
            most = f"{limits.sequences} choices at once (--parallel, --max-waiting)"
            raise RequestError(f"n: {sequences} choices are asked for, and this server takes {most}", "n")
        if limits.tokens and tokens > limits.tokens:
            most = f"{limits.tokens} tokens of prompt and output at once (--max-pending-tokens)"
            raise RequestError(f"max_tokens: {tokens} tokens are asked for, and this server takes {most}", "max_tokens")
        if self.sequences + sequences > limits.sequences:
            full = f"{self.sequences} of {limits.sequences} sequences run or wait (--parallel, --max-waiting)"
        elif limits.tokens and self.tokens + tokens > limits.tokens:
            full = f"{self.tokens} of {limits.tokens} tokens are asked for already (--max-pending-tokens)"
        if full is not None:
            self.refused += 1
            raise Busy(f"the server is full: {full}; ask again in {_RETRY} s", _RETRY)
        self.sequences += sequences
        self.tokens += tokens
        return Reservation(self, sequences, tokens)


class Reservation:
    """What one request has taken, until it is released."""

    def __init__(self, admission: Admission, sequences: int, tokens: int) -> None:
        self._admission, self._sequences, self._tokens = admission, sequences, tokens

    def release(self) -> None:
        """Give it back; safe to call twice."""
        self._admission.sequences -= self._sequences
        self._admission.tokens -= self._tokens
        self._sequences = self._tokens = 0
