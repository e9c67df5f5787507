"""One conformance suite over all engines: a tree of rows is nothing but many plain forwards at once."""

from __future__ import annotations

import random
import threading
import time

import numpy as np
import pytest
from helpers.engines import CONTEXT, ENGINES, EXACT, close_to, held, llama, plain, prefill, teams_long, tokens, torch_

from hetero.workers.engines.base import Row
from hetero.workers.engines.table import TableEngine, TableSpec
from hetero.workers.engines.torch.team import TeamEngine
from hetero.workers.errors import Aborted, EngineError, KvFull, TooManyLeaves, Unsupported


@pytest.fixture(scope="module", params=teams_long(ENGINES))
def engine(request):
    make, tolerance = ENGINES[request.param]
    made = make()
    made.tolerance = tolerance
    yield made
    made.shutdown()


@pytest.fixture(scope="module", params=EXACT)
def exact(request):
    made = EXACT[request.param]()
    yield made
    made.shutdown()


@pytest.fixture(autouse=True)
def nothing_left(request):
    yield
    for name in ("engine", "exact"):
        if name in request.fixturenames:
            made = request.getfixturevalue(name)
            for seq in range(200):
                made.close(seq)
            assert held(made) == 0


def random_rows(rng: random.Random, seq: int, above: dict[int, list[int]], first: int, count: int):
    """Rows of a random tree over known nodes; returns rows and their token paths below the prefix."""
    known = dict(above)
    rows = []
    for node in range(first, first + count):
        parent = rng.choice(list(known)[-4:])
        token = rng.randrange(3, 4096)
        known[node] = [*known[parent], token]
        rows.append(Row(seq, node, parent, token))
    return rows, known


@pytest.mark.parametrize("seed", range(2))
def test_a_tree_is_many_plain_forwards(engine, seed):
    rng = random.Random(seed)
    prompts = {seq: tokens(rng, rng.randrange(1, 100)) for seq in (1, 2)}
    for seq, prompt in prompts.items():
        close_to(engine, prefill(engine, seq, prompt), plain(engine, prompt))
    known = {seq: {0: []} for seq in prompts}
    first = 1
    for _ in range(3):
        rows = []
        for seq in prompts:
            own, known[seq] = random_rows(rng, seq, known[seq], first, 5)
            rows += own
        if seed % 2:  # interleave the sequences' rows
            rows = [row for pair in zip(rows[:5], rows[5:], strict=True) for row in pair]
        first += 5
        outcome = engine.extend(rows)
        got = [outcome.logits(i).copy() for i in range(len(rows))]
        for row, logits in zip(rows, got, strict=True):
            close_to(engine, logits, plain(engine, prompts[row.seq] + known[row.seq][row.node]))


def test_every_row_of_a_prompt_is_what_a_shorter_prompt_ends_with(engine):
    """``every``, over two chunks, of which one is full: more rows than a window has."""
    prompt = tokens(random.Random(9), 90)
    assert engine.limits.chunk > engine.limits.rows
    rows: list[np.ndarray] = []
    for first in range(0, len(prompt), engine.limits.chunk):
        chunk = prompt[first : first + engine.limits.chunk]
        outcome = engine.prefill(1, chunk, every=True)
        rows += [outcome.logits(row).copy() for row in range(len(chunk))]
    for end in (1, 2, 33, 63, 64, 65, 90):
        close_to(engine, rows[end - 1], plain(engine, prompt[:end]))


@pytest.mark.parametrize("seed", range(2))
def test_a_commit_keeps_its_path_and_the_nodes_named(engine, seed):
    rng = random.Random(100 + seed)
    prompt = tokens(rng, 30)
    prefill(engine, 1, prompt)
    known = {0: []}
    parents: dict[int, int] = {}
    first, tip = 1, 0
    for _ in range(6):
        rows, known = random_rows(rng, 1, known, first, 6)
        parents.update({row.node: row.parent for row in rows})
        first += 6
        outcome = engine.extend(rows)
        for i in rng.sample(range(6), 2):
            close_to(engine, outcome.logits(i).copy(), plain(engine, prompt + known[rows[i].node]))
            outcome = engine.extend([Row(1, first, rows[0].parent, 77)])  # plain() ran another forward
            known[first] = [*known[rows[0].parent], 77]
            parents[first] = rows[0].parent
            first += 1
            break
        tip = rng.choice([node for node in known if node != tip] or [tip])
        below = {tip}
        for node in sorted(known):
            if parents.get(node) in below:
                below.add(node)
        keep = set()
        for node in sorted(below - {tip}):
            if (parents[node] == tip or parents[node] in keep) and rng.random() < 0.7:
                keep.add(node)
        engine.commit(1, tip, frozenset(keep))
        known = {node: path for node, path in known.items() if node == tip or node in keep}
    rows = [Row(1, first + n, node, 9 + n) for n, node in enumerate(known)][:8]
    outcome = engine.extend(rows)
    got = [outcome.logits(i).copy() for i in range(len(rows))]
    for row, logits in zip(rows, got, strict=True):
        close_to(engine, logits, plain(engine, [*prompt, *known[row.parent], row.token]))


def test_failures_leave_nothing_behind(engine):
    rng = random.Random(5)
    prompt = tokens(rng, 20)
    prefill(engine, 1, prompt)
    engine.extend([Row(1, 1, 0, 50)])
    before = held(engine)
    for rows in (
        [Row(1, 2, 9, 5)],  # unknown parent
        [Row(1, 2, 1, 5), Row(2, 1, 0, 5)],  # unknown sequence
        [Row(1, 1, 0, 5)],  # a node id that is taken
        [Row(1, 2, 1, 4096)],  # outside the vocabulary
        [Row(1, 2 + n, 1 + n, 5) for n in range(33)],  # too many rows
        [],
    ):
        with pytest.raises(EngineError):
            engine.extend(rows)
        assert held(engine) == before
    for chunk in ([], [-1], [4096], [5] * 65):
        with pytest.raises(EngineError):
            engine.prefill(3, chunk)
    with pytest.raises(EngineError):
        engine.prefill(1, [5])  # nodes hang on the prefix already
    with pytest.raises(EngineError):
        engine.commit(1, 7)
    outcome = engine.extend([Row(1, 2, 1, 60)])
    close_to(engine, outcome.logits(0).copy(), plain(engine, [*prompt, 50, 60]))


def test_the_context_is_a_limit_and_so_are_sequences(engine):
    rng = random.Random(6)
    prompt = tokens(rng, CONTEXT - 2)
    prefill(engine, 1, prompt)
    with pytest.raises(KvFull):
        engine.extend([Row(1, 1, 0, 5), Row(1, 2, 1, 5), Row(1, 3, 2, 5)])
    outcome = engine.extend([Row(1, 1, 0, 5), Row(1, 2, 1, 6)])
    got = outcome.logits(1).copy()
    close_to(engine, got, plain(engine, [*prompt, 5, 6]))
    with pytest.raises(KvFull):
        engine.prefill(2, [5] * 64) and [engine.prefill(2, [5] * 64) for _ in range(8)]
    engine.close(2)
    prefill(engine, 2, [5])
    prefill(engine, 3, [5])
    with pytest.raises(TooManyLeaves):
        engine.prefill(4, [5])


def test_an_aborted_forward_leaves_nothing_behind(engine):
    if isinstance(engine, TeamEngine):
        pytest.skip("a team's forward goes on to its end: its ranks would part ways")
    if isinstance(engine, TableEngine):
        engine = TableEngine(TableSpec(vocabulary=4096, latency=lambda rows: 0.2))
        engine.tolerance = 0.0
    rng = random.Random(8)
    prompt = tokens(rng, 40)
    prefill(engine, 1, prompt)
    before = held(engine)
    stop = threading.Event()

    def nag() -> None:
        while not stop.is_set():
            engine.abort()
            time.sleep(0.0002)

    thread = threading.Thread(target=nag)
    thread.start()
    aborted = 0
    try:
        for _ in range(40):
            try:
                engine.extend([Row(1, n, max(0, n - 1), 5 + n) for n in range(1, 30)])
            except Aborted:
                aborted += 1
                assert held(engine) == before
                if aborted == 3:
                    break
            else:
                engine.commit(1, 0)
        with pytest.raises(Aborted):
            for _ in range(200):
                engine.prefill(2, [7] * 64)
                engine.close(2)
    finally:
        stop.set()
        thread.join()
    assert aborted > 0
    time.sleep(0.01)
    outcome = engine.extend([Row(1, 100, 0, 60)])
    close_to(engine, outcome.logits(0).copy(), plain(engine, [*prompt, 60]))


# Exact mode: bits, not tolerances


class Replay:
    """Decodes a fixed continuation in exact mode and keeps every row's bits."""

    def __init__(self, engine, seq: int, prompt: list[int], continuation: list[int], windows: int):
        self.engine, self.seq, self.prompt, self.continuation = engine, seq, prompt, continuation
        self.rng = random.Random(windows)
        self.bits: list[bytes] = []
        self.node = 0
        self.done = 0

    def prefill(self, between=None) -> None:
        for first in range(0, len(self.prompt), self.engine.limits.chunk):
            chunk = self.prompt[first : first + self.engine.limits.chunk]
            outcome = self.engine.prefill(self.seq, chunk)
            self.last = outcome.logits(0).tobytes()
            if between is not None:
                between()

    def window(self) -> None:
        """One window: some true tokens, then wrong draft tokens, cut back by the commit."""
        true = self.continuation[self.done : self.done + self.rng.randint(1, 8)]
        wrong = [self.rng.randrange(3, 4096) for _ in range(self.rng.randint(0, 8 - len(true)))]
        rows, parent, first = [], self.node, self.node + 1
        for n, token in enumerate([*true, *wrong]):
            rows.append(Row(self.seq, first + n, parent, token))
            parent = first + n
        outcome = self.engine.extend(rows)
        self.bits += [outcome.logits(n).tobytes() for n in range(len(true))]
        self.node = first + len(true) - 1
        self.engine.commit(self.seq, self.node)
        self.done += len(true)

    def run(self) -> list[bytes]:
        self.prefill()
        while self.done < len(self.continuation):
            self.window()
        return [self.last, *self.bits]


@pytest.fixture(scope="module")
def story():
    rng = random.Random(11)
    return tokens(rng, 150), tokens(rng, 60)


def test_exact_bits_do_not_depend_on_windows_or_company(exact, story):
    prompt, continuation = story
    alone = Replay(exact, 1, prompt, continuation, windows=0).run()
    exact.close(1)
    # Other windows.
    assert Replay(exact, 1, prompt, continuation, windows=1).run() == alone
    exact.close(1)
    # Another sequence first, decoding in between, closed and its cells reused.
    other = Replay(exact, 2, continuation * 2, prompt[:70], windows=5)
    other.prefill()
    mine = Replay(exact, 1, prompt, continuation, windows=2)
    mine.prefill(between=other.window)
    assert mine.last == alone[0]
    while mine.done < len(continuation):
        mine.window()
        if other.done < len(other.continuation):
            other.window()
    assert mine.bits == alone[1:]
    exact.close(2)
    third = Replay(exact, 3, prompt, continuation, windows=3)
    assert third.run() == alone
    exact.close(1)
    # After a restart: the prompt in its chunks, what was committed in whole windows, then on.
    replay = Replay(exact, 1, prompt, continuation, windows=4)
    replay.prefill()
    for first in range(0, 40, 8):
        rows = [Row(1, first + n + 1, first + n, token) for n, token in enumerate(continuation[first : first + 8])]
        outcome = exact.extend(rows)
        replay.bits += [outcome.logits(n).tobytes() for n in range(8)]
        exact.commit(1, first + 8)
    replay.node, replay.done = 40, 40
    while replay.done < len(continuation):
        replay.window()
    assert replay.bits == alone[1:]


def test_exact_mode_refuses_what_it_cannot_keep_exact(exact):
    prefill(exact, 1, [5, 6, 7])
    prefill(exact, 2, [5, 6, 7])
    with pytest.raises(Unsupported):
        exact.extend([Row(1, 1, 0, 5), Row(2, 1, 0, 5)])
    with pytest.raises(Unsupported):
        exact.extend([Row(1, 1, 0, 5), Row(1, 2, 0, 6)])
    exact.extend([Row(1, 1, 0, 5), Row(1, 2, 1, 6)])
    with pytest.raises(Unsupported):
        exact.extend([Row(1, 3, 1, 5)])
    exact.extend([Row(1, 4, 2, 5)])


def test_equal_logits_where_engines_share_weights():
    """torch and llama.cpp read the same file as the same function."""
    one, two = torch_(), llama()
    prompt = tokens(random.Random(1), 60)
    a, b = prefill(one, 1, prompt), prefill(two, 1, prompt)
    assert np.abs(a - b).max() < 0.1
    assert a.argmax() == b.argmax()
    one.shutdown()
    two.shutdown()
