"""Python's collector, which stops all streams while it looks at every object there is."""

from __future__ import annotations

import gc

_YOUNG, _MIDDLE, _OLD = 50_000, 20, 50


def spare_pauses() -> None:
    """Call once all is loaded: what is here stays, and is not looked at again; the rest seldom. A body of a million
    lists must not have it all looked through again and again, and ten thousand streams take over a second of a look."""
    gc.freeze()
    gc.set_threshold(_YOUNG, _MIDDLE, _OLD)
