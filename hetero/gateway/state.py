"""What a gateway serves, as its routes see it."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property

from hetero import __version__
from hetero.gateway.admission import Admission, AdmissionLimits
from hetero.gateway.chat.formats import Format, format_of
from hetero.gateway.chat.grammars import GrammarProbe
from hetero.gateway.chat.template import ChatTemplate
from hetero.gateway.metrics import Facts, Metrics
from hetero.gateway.verifiers.pool import Verifiers
from hetero.workers.models.generation import SamplingDefaults
from hetero.workers.models.metadata import Metadata
from hetero.workers.models.model import Model
from hetero.workers.models.tokenizer import Tokenizer


@dataclass(frozen=True)
class GatewayOptions:
    """How requests are met. ``defaults``: sampling where they say nothing; ``strict``: what is not known is refused;
    ``origins``: pages from elsewhere that may ask ("*": any); ``share_lookup``: answers are looked up for everybody."""

    limits: AdmissionLimits = field(default_factory=AdmissionLimits)
    keys: tuple[str, ...] = ()
    defaults: SamplingDefaults = field(default_factory=SamplingDefaults)
    strict: bool = False
    origins: tuple[str, ...] = ()
    share_lookup: bool = False


@dataclass(frozen=True)
class Card:
    """What lists tell of a model; ``since``: when its file was made."""

    name: str
    model: Model
    context: int
    loaded: bool

    @property
    def since(self) -> str:
        found = 0.0
        with contextlib.suppress(OSError):  # it may have been moved meanwhile
            found = self.model.path.stat().st_mtime
        return datetime.fromtimestamp(found, UTC).isoformat().replace("+00:00", "Z")


@dataclass
class GatewayState:
    """What the routes serve. ``ready``: whether requests are taken; ``trouble``: why they are not answered now, or not
    quickly; ``drafter``: whether there is to be one; ``plan``: who does what where, and how fast it turned out;
    ``others``: further models of this server."""

    name: str
    model: Model
    engine: str
    context: int
    parallel: int
    drafter: bool
    verifiers: Verifiers
    template: ChatTemplate
    probe: GrammarProbe
    ready: Callable[[], bool]
    trouble: Callable[[], str | None]
    options: GatewayOptions = field(default_factory=GatewayOptions)
    facts: Callable[[], Facts] = lambda: Facts({}, {}, 0)
    plan: Callable[[], dict[str, object]] = dict
    others: Callable[[], Sequence[Card]] = list

    @property
    def tokenizer(self) -> Tokenizer:
        """The target's."""
        return self.model.tokenizer

    @property
    def shape(self) -> Metadata:
        """The target's numbers."""
        return self.model.metadata

    @cached_property
    def since(self) -> str:
        """When the model's file was made."""
        return self.card.since

    @cached_property
    def card(self) -> Card:
        """What lists tell of it."""
        return Card(self.name, self.model, self.context, loaded=True)

    @property
    def cards(self) -> list[Card]:
        """Of all models of this server."""
        return [self.card, *self.others()]

    @cached_property
    def admission(self) -> Admission:
        """What is under way."""
        return Admission(self.options.limits)

    @cached_property
    def metrics(self) -> Metrics:
        """What is counted."""
        return Metrics(self.facts, self.admission)

    @cached_property
    def longest_piece(self) -> int:
        """Most bytes a token can stand for."""
        return max(len(self.tokenizer.vocabulary.named(n)) for n in range(len(self.tokenizer.vocabulary)))

    @cached_property
    def fingerprint(self) -> str:
        """Changes where answers to the same request and seed may."""
        what = f"{__version__} {self.name} {self.engine} {self.shape}"
        return f"hetero-{hashlib.blake2b(what.encode(), digest_size=6).hexdigest()}"

    @cached_property
    def _formats(self) -> tuple[Format, Format]:
        plain, tools = self.template.sources
        return format_of(plain, self.tokenizer.vocabulary), format_of(tools, self.tokenizer.vocabulary)

    def format(self, tools: bool) -> Format:
        """How the model writes reasoning and calls, in a chat with or without ``tools``."""
        return self._formats[tools]
