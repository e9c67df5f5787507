"""Requests whose grammar is being compiled: on a thread of its own, while the socket thread goes on."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator

from hetero.workers.sampling.grammar import Compiled, Grammars
from hetero.workers.wire.messages import Cancel, Message, Open, Resume


class GrammarQueue:
    """Belongs to the socket thread, except where said."""

    def __init__(self, grammars: Callable[[], Grammars], compiled: Callable[[], None]) -> None:
        """``compiled`` is called, from the other thread, whenever a request may go on."""
        self._grammars, self._compiled = grammars, compiled
        self._held: dict[str, dict[int, tuple[bytes, Message]]] = {}  # by grammar and sequence
        self._work: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[str, Compiled | None]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False

    def holds(self, peer: bytes, message: Message) -> bool:
        """Whether a message is kept until ``released``: a request with a grammar that is not compiled yet. It may be
        repeated, and cancelled."""
        if isinstance(message, Cancel):
            for held in self._held.values():
                held.pop(message.seq, None)
            return False
        opening = message.opening if isinstance(message, Resume) else message
        if not isinstance(opening, Open) or not opening.grammar or self._grammars().knows(opening.grammar):
            return False
        if opening.grammar not in self._held:
            self._held[opening.grammar] = {}
            if self._thread is None:
                self._thread = threading.Thread(target=self._compile, name="hetero-grammars", daemon=True)
                self._thread.start()
            self._work.put(opening.grammar)
        self._held[opening.grammar][opening.seq] = peer, message
        return True

    def released(self) -> Iterator[tuple[bytes, Message]]:
        """The messages that may go on now; each must have been taken in before the next, which may need its room."""
        while not self._done.empty():
            grammar, compiled = self._done.get()
            if compiled is not None:
                self._grammars().keep(grammar, compiled)
            yield from self._held.pop(grammar).values()

    def close(self) -> None:
        """End the thread, after what it is at."""
        self._closed = True
        self._work.put(None)

    def _compile(self) -> None:
        while (grammar := self._work.get()) is not None and not self._closed:
            try:
                compiled = self._grammars().compile(grammar)
            except BaseException:  # it is met, and told, where the request begins; this thread serves others
                compiled = None
            self._done.put((grammar, compiled))
            self._compiled()
