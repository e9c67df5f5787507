"""What rank 0 of an engine over several devices tells the other ranks: typed, bounded, as all messages are.

    rank 0 -> ranks  Prefill, Extend (with Calibrate), Commit, Close, Save, Load, Drop      rank -> rank 0  Ready

Tensors go by collectives, never here.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgpack
import msgspec
from msgspec import Meta, Struct

from hetero.workers.wire.codec import checked
from hetero.workers.wire.messages import MAX_TOKENS, Length, Seq, Token, TokenList

_MOST_ROWS = 4096
Node = Annotated[int, Meta(ge=0, lt=1 << 53)]
Nodes = Annotated[list[Node], Meta(max_length=MAX_TOKENS)]


class _Order(Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Base of all orders."""


class Prefill(_Order, frozen=True):
    """Append ``tokens`` to a sequence's prefix; ``every``: logits of each are wanted."""

    seq: Seq
    tokens: TokenList
    every: bool


class Calibrate(Struct, frozen=True, forbid_unknown_fields=True):
    """KV calibration: ``tokens`` are committed from length ``base`` on; they become exact rows, nodes ``nodes`` below
    ``parent``. Each rank makes its own keys and values of them."""

    seq: Seq
    base: Length
    tokens: Annotated[list[Token], Meta(max_length=_MOST_ROWS)]
    nodes: Annotated[list[Node], Meta(max_length=_MOST_ROWS)]
    parent: Node


class Extend(_Order, frozen=True):
    """One forward: what is calibrated first, then further ``rows`` (sequence, node, parent, token)."""

    calibrate: Annotated[list[Calibrate], Meta(max_length=_MOST_ROWS)]
    rows: Annotated[list[tuple[Seq, Node, Node, Token]], Meta(max_length=_MOST_ROWS)]


class Commit(_Order, frozen=True):
    """As ``Engine.commit``."""

    seq: Seq
    node: Node
    keep: Nodes


class Close(_Order, frozen=True):
    """A sequence is freed."""

    seq: Seq


class Save(_Order, frozen=True):
    """As ``Engine.save_prefix``."""

    seq: Seq
    key: Seq
    length: Length


class Load(_Order, frozen=True):
    """As ``Engine.load_prefix``."""

    seq: Seq
    key: Seq
    length: Length


class Drop(_Order, frozen=True):
    """As ``Engine.drop_prefix``."""

    key: Seq


class Ready(_Order, frozen=True):
    """A rank has loaded its part."""

    rank: Annotated[int, Meta(ge=1, lt=1 << 16)]


Order: TypeAlias = Prefill | Extend | Commit | Close | Save | Load | Drop | Ready
_reader = msgspec.msgpack.Decoder(Order)


def encode_order(order: Order) -> bytes:
    """The frame of one order."""
    frame: bytes = msgpack.packb(msgspec.to_builtins(order))
    return frame


def decode_order(frame: bytes) -> Order:
    """The order of one frame. Raises WireError for anything else than one known, bounded order."""
    order: Order = checked(_reader, frame)
    return order
