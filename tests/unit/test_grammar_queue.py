"""Requests with a grammar wait for it beside the socket thread: none is lost, none comes twice."""

from __future__ import annotations

import threading

import numpy as np
from llguidance import LLMatcher

from hetero.workers.runtime.grammar_queue import GrammarQueue
from hetero.workers.sampling import grammar as module
from hetero.workers.sampling.grammar import Grammars
from hetero.workers.wire.messages import Cancel, Open, Ping, Resume, Sampling


def opening(seq: int, grammar: str) -> Open:
    return Open(seq, 0, [1], [], Sampling(0.0), 5, [], grammar)


class Slow:
    """Grammars that are compiled when they are told to be."""

    def __init__(self) -> None:
        self.known: set[str] = set()
        self.may = threading.Semaphore(0)

    def knows(self, grammar: str) -> bool:
        return grammar in self.known

    def compile(self, grammar: str) -> str:
        self.may.acquire()
        return grammar

    def keep(self, grammar: str, compiled: str) -> None:
        self.known.add(compiled)


def test_only_requests_with_a_grammar_wait_and_each_comes_once():
    slow, called = Slow(), threading.Semaphore(0)
    waiting = GrammarQueue(lambda: slow, called.release)
    for message in (opening(1, ""), Ping("gateway", 0, []), Resume(opening(2, "")), Cancel(7)):
        assert not waiting.holds(b"g", message)
    first, again, other = opening(3, "a"), Resume(opening(3, "a")), opening(4, "b")
    assert waiting.holds(b"g", first) and waiting.holds(b"g", again) and waiting.holds(b"h", other)
    assert waiting.holds(b"g", opening(5, "b"))
    assert not waiting.holds(b"g", Cancel(5)) and list(waiting.released()) == []
    for _ in range(2):
        slow.may.release()
        assert called.acquire(timeout=5)
    assert list(waiting.released()) == [(b"g", again), (b"h", other)] and list(waiting.released()) == []
    assert not waiting.holds(b"g", opening(6, "a"))  # it is known now
    waiting.close()


def test_compiled_grammars_are_bounded_by_bytes(monkeypatch):
    grammars = Grammars([bytes([n]) for n in range(256)], frozenset({0}))
    monkeypatch.setattr(module, "_KEPT", 5 << 20)
    made = [LLMatcher.grammar_from_regex(f"[a-z]{{{n},20}}") for n in range(1, 9)]
    for each in made:
        grammars.keep(each, grammars.compile(each))
    assert 1 <= sum(map(grammars.knows, made)) <= 5 and grammars.knows(made[-1])
    assert grammars.start(made[0]).allowed(256)[ord("a")]  # compiled again
    assert isinstance(grammars.start(made[0]).allowed(256), np.ndarray)
