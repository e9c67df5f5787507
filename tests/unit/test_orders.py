"""What goes from rank 0 to the other ranks: typed and bounded, as all messages are."""

from __future__ import annotations

import pickle

import msgpack
import pytest

from hetero.workers.errors import WireError
from hetero.workers.wire.codec import encode
from hetero.workers.wire.messages import Close as OtherClose
from hetero.workers.wire.orders import (
    Calibrate,
    Close,
    Commit,
    Drop,
    Extend,
    Load,
    Prefill,
    Ready,
    Save,
    decode_order,
    encode_order,
)

EVERY = [
    Prefill(1, [2, 3], False), Extend([Calibrate(1, 7, [4, 5], [8, 9], 3)], [(1, 10, 9, 6)]), Commit(1, 9, [10]),
    Close(1), Save(1, 2, 3), Load(1, 2, 3), Drop(2), Ready(1),
]  # fmt: skip


@pytest.mark.parametrize("order", EVERY, ids=lambda order: type(order).__name__)
def test_every_order_comes_back_as_it_was(order):
    assert decode_order(encode_order(order)) == order


@pytest.mark.parametrize(
    "frame",
    [
        b"", b"\x00" * 40, pickle.dumps(Close(1)), encode(OtherClose(1, 2)),
        msgpack.packb({"type": "Close", "seq": -1}), msgpack.packb({"type": "Close", "seq": 1, "more": 2}),
        msgpack.packb({"type": "Ready", "rank": 0}), msgpack.packb({"type": "Commit", "seq": 1, "node": 1 << 60,
                                                                    "keep": []}),
        msgpack.packb({"type": "Extend", "calibrate": [], "rows": [(1, 2, 3, 1 << 40)]}),
        msgpack.packb({"type": "Prefill", "seq": 1, "tokens": ["a"], "every": False}),
        b"x" * (17 << 20),
    ],
    ids=range(11),
)  # fmt: skip
def test_anything_else_is_refused(frame):
    with pytest.raises(WireError):
        decode_order(frame)
