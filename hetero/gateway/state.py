"""What a gateway serves, as its routes see it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import cached_property

from hetero.gateway.admission import Admission, AdmissionLimits
from hetero.gateway.chat import ChatTemplate
from hetero.gateway.client import VerifierClient
from hetero.gateway.metrics import Facts, Metrics
from hetero.workers.models.tokenizer import Tokenizer


@dataclass
class GatewayState:
    """What the routes serve. ``objection``: why a grammar cannot be used; ``ready``: whether requests are taken;
    ``trouble``: why they are not answered now, or not quickly."""

    name: str
    tokenizer: Tokenizer
    context: int
    client: VerifierClient
    template: ChatTemplate
    objection: Callable[[str], Awaitable[str | None]]
    ready: Callable[[], bool]
    trouble: Callable[[], str | None]
    limits: AdmissionLimits = field(default_factory=AdmissionLimits)
    keys: tuple[str, ...] = ()
    facts: Callable[[], Facts] = lambda: Facts({}, {}, 0)

    @cached_property
    def admission(self) -> Admission:
        """What is under way."""
        return Admission(self.limits)

    @cached_property
    def metrics(self) -> Metrics:
        """What is counted."""
        return Metrics(self.facts, self.admission)

    @cached_property
    def longest_piece(self) -> int:
        """Most bytes a token can stand for."""
        return max(map(len, self.tokenizer.vocabulary.pieces))
