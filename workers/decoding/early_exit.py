"""What the target's early exit expects of a window in flight, for the drafters (Mirror-SD, section 3)."""

from __future__ import annotations

from hetero.workers.decoding.policy.tuning import HINT_WIDTH
from hetero.workers.decoding.policy.window import Window
from hetero.workers.engines.base import Outcome
from hetero.workers.wire.messages import Hint


def hint_of(window: Window, early: Outcome, epoch: int) -> Hint:
    """The likeliest samples below each row of a window. Raises EngineError."""
    sequence = window.sequence
    tree = sequence.cursor.tree
    nodes = [node for node in window.rows if node in tree]
    index = {node: at for at, node in enumerate(nodes)}
    likely = []
    for node in nodes:
        sampler = sequence.sampler.below(tree.tokens(node))
        likely.append(early.candidates(window.rows[node], sampler, tree[node].position + 1, HINT_WIDTH).tokens)
    parents = [index.get(tree[node].parent, -1) for node in nodes]
    return Hint(sequence.seq, epoch, sequence.length, parents, [tree[node].token for node in nodes], likely)
