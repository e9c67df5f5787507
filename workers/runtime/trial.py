"""How fast an engine runs a model, tried in a process of its own that may die of it: ``python -m
hetero.workers.runtime.trial``.

Reads a ``Request`` from its standard input, as JSON in a line. Prints a ``Trial`` likewise. A ``partner`` then goes on
with forwards until its input ends, for another to be tried meanwhile: all the time, or a turn for each further line,
which it answers with one. Who is tried in turns prints an empty line when it is the other's and waits for a line.
Exit status 3: the engine does not run this model, the line says why.
"""

from __future__ import annotations

import os
import statistics
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec
import numpy as np
import psutil

from hetero.placement.errors import HeteroError
from hetero.workers.decoding.policy.tuning import RANKS
from hetero.workers.engines.base import Engine, Features, Head, Outcome, Row
from hetero.workers.errors import Unsupported
from hetero.workers.runtime.loading import load_engine
from hetero.workers.runtime.pinning import pin
from hetero.workers.runtime.spec import WorkerSpec
from hetero.workers.sampling.gumbel import prompt_digest
from hetero.workers.sampling.sampler import Candidates, Sampler
from hetero.workers.wire.messages import Sampling

NOT_THIS_MODEL = 3  # exit status
DEPTH = 48  # tokens in the cache while rows are timed
_REPEATS, _LEAST, _LONGEST = 12, 3, 1.0  # forwards of a width: most, least, and seconds of them
_TURN = {"target": (1, 4), "drafter": (3, 1)}  # forwards of a role before it is the other's turn, and their rows
_CALIBRATED = 3  # tokens of a commit, about
_GUESSED = 4  # tokens guessed behind exact ones, where guesses are not exact
_DEEP, _PATIENT = 1024, 6.0  # tokens of a deeper cache, if they come within so many seconds


Company: TypeAlias = Literal["", "beside", "turns"]  # of the other role: it works too, or in turns


class Request(msgspec.Struct, frozen=True):
    """``spec``: as of the worker; ``widths``: rows to time; ``text``: tokens whose samples (target) or candidates
    (drafter) are wanted; ``states``: the file where a target leaves the text's hidden states, and its head finds them;
    ``thorough``: whether prompts and deep caches are timed; ``company``, ``partner``: see above."""

    spec: WorkerSpec
    widths: list[int]
    text: list[int] = []
    states: str = ""
    temperature: float = 0.8
    thorough: bool = True
    company: Company = ""
    partner: bool = False


class Trial(msgspec.Struct, frozen=True):
    """Seconds and bytes; ``forward``: by rows; ``look``: of a row sampled, or of its candidates; ``prefill``: tokens a
    second; ``deeper``: seconds of a row that each further token of the cache adds; ``calibrate``: of a forward of
    committed tokens, where a drafter's guesses do not last (else 0); ``rows``, ``exact``: as in
    ``EngineLimits``. ``samples``, ``candidates``: at each position of the text behind the first."""

    forward: dict[int, float]
    look: float = 0.0
    prefill: float = 0.0
    load: float = 0.0
    memory: int = 0
    deeper: float = 0.0
    calibrate: float = 0.0
    rows: int = 64
    exact: bool = False
    samples: list[int] = []
    candidates: list[tuple[list[int], list[float]]] = []


def main() -> int:
    """One request."""
    request = msgspec.json.decode(sys.stdin.readline(), type=Request)
    spec = request.spec
    pin(spec.cores, spec.gpus, spec.kind)
    memory, began = psutil.Process().memory_info().rss, time.perf_counter()
    try:
        engine = load_engine(spec)
    except HeteroError as error:
        print(error)
        return NOT_THIS_MODEL if isinstance(error, Unsupported) else 1
    load = time.perf_counter() - began
    bench = _Bench(engine, request)
    found = bench.run()
    memory = max(0, psutil.Process().memory_info().rss - memory)
    limits = engine.limits
    found = msgspec.structs.replace(found, load=load, memory=memory, rows=limits.rows, exact=limits.exact)
    print(msgspec.json.encode(found).decode(), flush=True)
    if request.partner:
        bench.go_on()
    engine.shutdown()
    return 0


class _Bench:
    def __init__(self, engine: Engine, request: Request) -> None:
        self._engine, self._request = engine, request
        self._node = 0
        vocabulary = engine.limits.vocabulary
        self._tokens = [token % vocabulary for token in range(100, 100 + max(DEPTH, *request.widths))]
        sampling = Sampling(request.temperature, seed=1)
        self._sampler = Sampler(sampling, prompt_digest(request.text[:1]))
        self._drafts = request.spec.role == "drafter"
        self._turn = _TURN[request.spec.role]
        self._aside = ThreadPoolExecutor(1)
        self._position = 1000
        self._committed = False  # whether rows are committed tokens

    def run(self) -> Trial:
        self._prefill(self._tokens[:DEPTH])
        widths = [width for width in self._request.widths if width <= self._engine.limits.rows]
        forward = {width: self._forward(width) for width in widths}
        look = self._look()
        self._committed = self._drafts and not self._engine.limits.lasting
        calibrate = self._forward(_CALIBRATED) if self._committed else 0.0
        self._committed = False
        self._engine.close(1)
        if not self._request.thorough:
            return Trial(forward, look, calibrate=calibrate)
        samples, candidates, rate = self._text()
        prefill, deeper = self._deep(forward[1], rate)
        return Trial(forward, look, prefill, deeper=deeper, calibrate=calibrate, samples=samples, candidates=candidates)

    def go_on(self) -> None:
        """Keep the device as busy as a worker would, until the input ends."""
        self._prefill(self._tokens[:DEPTH])
        over = threading.Event()
        if self._request.company != "turns":
            threading.Thread(target=_wait_for_the_end, args=(over,), daemon=True).start()
        while not over.is_set():
            if self._request.company == "turns" and not sys.stdin.readline():
                return
            for _ in range(self._turn[0]):
                self._once(min(self._turn[1], self._engine.limits.rows))
                self._engine.commit(1, 0)
            if self._request.company == "turns":
                print(flush=True)

    def _prefill(self, tokens: list[int]) -> Outcome:
        chunk = self._engine.limits.chunk
        for first in range(0, len(tokens), chunk):
            found = self._engine.prefill(1, tokens[first : first + chunk])
        return found

    def _extend(self, width: int) -> Outcome:
        """A chain of rows for a target, the leaves of a tree for a drafter whose engine has branches."""
        flat = self._drafts and self._engine.limits.branches >= width and not self._committed
        first = self._node + 1
        parents = [first + n - 1 if n and not flat else 0 for n in range(width)]
        rows = [Row(1, first + n, parents[n], self._tokens[n], self._committed) for n in range(width)]
        self._node += width
        return self._engine.extend(rows)

    def _forward(self, width: int) -> float:
        """Mean seconds: it is the mean that a speed comes from. The first warms up."""
        turns = self._request.company == "turns" and not self._request.partner
        times: list[float] = []
        began = time.perf_counter()
        while len(times) <= _REPEATS and (len(times) <= _LEAST or time.perf_counter() - began < _LONGEST):
            if turns:
                print(flush=True)
                sys.stdin.readline()
            for _ in range(self._turn[0] if turns else 1):
                start = time.perf_counter()
                self._once(width)
                times.append(time.perf_counter() - start)
                self._engine.commit(1, 0)
        ordered = sorted(times[self._turn[0] if turns else 1 :])
        return statistics.mean(ordered[: max(1, len(ordered) - len(ordered) // 8)])

    def _once(self, width: int) -> None:
        # As in a worker, the noise of the next positions is prepared meanwhile, on the same cores: about one for each
        # token that a target's window may commit, and one for the leaves of a drafter, which lie at few positions.
        noise = self._aside.submit(self._prepare, 1 if self._drafts else 1 + width // 2)
        self._extend(width).logits(width - 1)
        noise.result()

    def _prepare(self, positions: int) -> None:
        for _ in range(positions):
            self._position += 1
            self._sampler.prepare(self._position, self._engine.limits.vocabulary)

    def _look(self) -> float:
        """Seconds of a row that is looked at, its noise prepared while the forward ran."""
        outcome, times = self._extend(1), []
        outcome.logits(0)
        for position in range(12):
            self._sampler.prepare(position, self._engine.limits.vocabulary)
            start = time.perf_counter()
            self._seen(outcome, 0, position)
            times.append(time.perf_counter() - start)
        self._engine.commit(1, 0)
        return statistics.median(times)

    def _seen(self, outcome: Outcome, row: int, position: int) -> int | Candidates:
        if self._drafts:
            return outcome.candidates(row, self._sampler, position, RANKS)
        return outcome.sample(row, self._sampler, position)

    def _text(self) -> tuple[list[int], list[tuple[list[int], list[float]]], float]:
        """What the text is thought to go on with at each of its tokens, and the speed of reading it."""
        if self._drafts and not self._engine.limits.lasting and len(self._request.text) > 1:
            return self._guesses()
        text, chunk = self._request.text, self._engine.limits.chunk
        samples: list[int] = []
        candidates: list[tuple[list[int], list[float]]] = []
        states: list[Features] = []
        seconds = 0.0
        for first in range(0, len(text) - 1, chunk):
            part = text[first : min(first + chunk, len(text) - 1)]
            start = time.perf_counter()
            outcome = self._engine.prefill(1, part, every=True)
            outcome.logits(len(part) - 1)
            seconds += time.perf_counter() - start
            if self._engine.limits.features and self._request.states:
                states.append(outcome.features(range(len(part))))
            for n in range(len(part)):
                seen = self._seen(outcome, n, first + n + 1)
                if isinstance(seen, Candidates):
                    candidates.append((seen.tokens, seen.confidences))
                else:
                    samples.append(seen)
        self._engine.close(1)
        if states:
            _leave(Path(self._request.states), np.concatenate(states))
        return samples, candidates, (len(text) - 1) / seconds if len(text) > 1 else 0.0

    def _guesses(self) -> tuple[list[int], list[tuple[list[int], list[float]]], float]:
        """The same of an engine whose guesses are not exact: a few at a time, behind what is."""
        text, found = self._request.text, list[tuple[list[int], list[float]]]()

        def see(outcome: Outcome, row: int) -> None:
            seen = self._seen(outcome, row, len(found) + 1)
            assert isinstance(seen, Candidates)
            found.append((seen.tokens, seen.confidences))

        if isinstance(self._engine, Head) and self._request.states:
            self._engine.inform(1, 1, np.load(self._request.states, allow_pickle=False))
        start, node = time.perf_counter(), 0
        see(self._engine.prefill(1, text[:1]), 0)
        for first in range(1, len(text) - 1, _GUESSED):
            part, tip = text[first : min(first + _GUESSED, len(text) - 1)], node
            for committed in (False, True):
                rows = [Row(1, node + 1 + n, node + n if n else tip, token, committed) for n, token in enumerate(part)]
                outcome = self._engine.extend(rows)
                outcome.logits(len(rows) - 1)
                for n in range(0 if committed else len(part)):
                    see(outcome, n)
                node += len(part)
                self._engine.commit(1, node if committed else tip)
        self._engine.close(1)
        return [], found, (len(text) - 1) / (time.perf_counter() - start)

    def _deep(self, shallow: float, rate: float) -> tuple[float, float]:
        """Tokens of a long prompt a second, and what each token of the cache adds to a row; ``rate``, which is too low,
        and 0 where such a prompt would take too long."""
        deep = min(_DEEP, self._engine.limits.context - 64)
        if not rate or deep < 4 * DEPTH or deep / rate > _PATIENT:
            return rate, 0.0
        vocabulary = self._engine.limits.vocabulary
        start = time.perf_counter()
        self._prefill([token % vocabulary for token in range(200, 200 + deep)]).logits(0)
        prefill = deep / (time.perf_counter() - start)
        found = max(0.0, self._forward(1) - shallow) / (deep - DEPTH)
        self._engine.close(1)
        return prefill, found


def _leave(file: Path, states: Features) -> None:
    """Whole or not at all."""
    aside = file.with_suffix(f".{os.getpid()}")
    with suppress(OSError):  # the head is then tried without
        try:
            with aside.open("wb") as out:
                np.save(out, states, allow_pickle=False)
            aside.replace(file)
        finally:
            aside.unlink(missing_ok=True)


def _wait_for_the_end(over: threading.Event) -> None:
    sys.stdin.read()
    over.set()


if __name__ == "__main__":
    sys.exit(main())
