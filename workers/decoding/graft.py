"""A drafted subtree into the draft tree, where it still fits what was committed since it was made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hetero.workers.decoding.tree import DraftTree
from hetero.workers.wire.messages import Draft


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a drafted node lies: behind the root, with ``along`` of the tokens committed since on its path; or, once it
    has come by all of those, at ``node`` of the tree."""

    along: int
    node: int | None


def graft(tree: DraftTree, draft: Draft, since: Sequence[int], room: int, vocabulary: int, source: int) -> int:
    """Add the nodes of a draft of ``source``, a drafter; returns how many no drafter had proposed before.

    ``since``: tokens committed since the length it was made for; nodes that agree with them are behind the tree's root
    by now, nodes that do not are dropped, with all below them. ``room``: nodes the tree may hold. Draft tokens outside
    the ``vocabulary`` are dropped.
    """
    if not len(draft.parents) == len(draft.tokens) == len(draft.chances):
        return 0
    fresh = 0

    def reached(along: int) -> _Place:
        return _Place(along, tree.root if along == len(since) else None)

    places: list[_Place | None] = []  # None: dropped
    for index, (parent, token, chance) in enumerate(zip(draft.parents, draft.tokens, draft.chances, strict=True)):
        above = reached(0) if parent < 0 else places[parent] if parent < index else None
        place: _Place | None = None
        if above is None or token >= vocabulary:
            pass
        elif above.node is None:
            place = reached(above.along + 1) if since[above.along] == token else None
        elif (known := tree[above.node].children.get(token)) is not None or len(tree) < room:
            fresh += known is None or not tree[known].drafted
            place = _Place(above.along, tree.add(above.node, token, chance, source))
        places.append(place)
    return fresh
