"""What llama.cpp gives for a target: alone, or with its draft loop. A process of its own, fed JSON lines.

The loop is that of llama.cpp's draft mode: the drafter's greedy tokens while it is sure of them (probability at
least ``p_min``, at most ``n_max``), one target batch, the target's samples accepted while they equal the draft.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

from hetero.workers.engines.base import Row
from hetero.workers.engines.llama_cpp.engine import LlamaEngine, LlamaSettings
from hetero.workers.runtime.pinning import pin
from hetero.workers.sampling.gumbel import prompt_digest
from hetero.workers.sampling.sampler import Sampler
from hetero.workers.wire.messages import Sampling


@dataclass(frozen=True)
class BaselineSpec:
    """One baseline. ``draft`` None: no drafter; ``lookup``: tokens that are looked up in the text so far, as
    llama-cpp-python does (0: none are)."""

    target: str
    cores: list[int]
    draft: str | None = None
    n_max: int = 16
    p_min: float = 0.75
    context: int = 1024
    lookup: int = 0


class Baseline:
    """A baseline process, asked from here."""

    def __init__(self, spec: BaselineSpec) -> None:
        command = [sys.executable, "-P", "-m", "hetero.bench.baseline", json.dumps(asdict(spec))]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._line() == {"ready": True}

    def ask(self, prompt: list[int], temperature: float, seed: int, count: int) -> dict[str, Any]:
        """{"seconds", "tokens", "forwards", "accepted", "drafted", "output"} of one sequence but its prompt."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([prompt, temperature, seed, count]) + "\n")
        self._process.stdin.flush()
        return self._line()

    def close(self) -> None:
        """Stop the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(20)

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        found: dict[str, Any] = json.loads(self._process.stdout.readline())
        return found


class _Loop:
    def __init__(self, spec: BaselineSpec) -> None:
        settings = LlamaSettings(len(spec.cores), sequences=1, context=spec.context)
        self._spec = spec
        self._target = LlamaEngine(Path(spec.target), settings)
        self._drafter = LlamaEngine(Path(spec.draft), settings) if spec.draft else None
        self._lookup = LlamaPromptLookupDecoding(num_pred_tokens=spec.lookup) if spec.lookup else None

    def run(self, prompt: list[int], temperature: float, seed: int, count: int) -> dict[str, Any]:
        sampler = Sampler(Sampling(temperature, seed=seed), prompt_digest(prompt))
        for engine in filter(None, (self._target, self._drafter)):
            engine.close(1)
            for first in range(0, len(prompt), engine.limits.chunk):
                outcome = engine.prefill(1, prompt[first : first + engine.limits.chunk])
            if engine is self._target:
                newest = outcome.sample(0, sampler, len(prompt))
        output = [newest]
        forwards = accepted = drafted = 0
        node = tip = known = draft_tip = 0  # node ids; ``known``: output tokens the drafter has
        began = time.perf_counter()
        while len(output) < count:
            drafts: list[int] = []
            if self._drafter is not None:
                drafts, draft_tip, node = self._draft(output, known, draft_tip, node, count - len(output) - 1)
            elif self._lookup is not None:
                told = self._lookup(np.array([*prompt, *output], dtype=np.intc))
                drafts = told.tolist()[: max(0, count - len(output) - 1)]
            rows = []
            parent = tip
            for token in (output[-1], *drafts):
                node += 1
                rows.append(Row(1, node, parent, token))
                parent = node
            outcome = self._target.extend(rows)
            forwards += 1
            drafted += len(drafts)
            position = len(prompt) + len(output)
            for n in range(len(rows)):
                token = outcome.sample(n, sampler, position + n)
                output.append(token)
                tip = rows[n].node
                if n == len(drafts) or token != drafts[n] or len(output) == count:
                    break
                accepted += 1
            self._target.commit(1, tip)
            known = len(output) - 1
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "tokens": len(output) - 1, "forwards": forwards, "accepted": accepted,
                "drafted": drafted, "output": output}  # fmt: skip

    def _draft(self, output: list[int], known: int, tip: int, node: int, room: int) -> tuple[list[int], int, int]:
        """Greedy draft tokens after ``output``, the drafter's committed node, and the last node id used."""
        assert self._drafter is not None
        rows = []
        for token in output[known:]:
            node += 1
            rows.append(Row(1, node, tip, token))
            tip = node
        outcome = self._drafter.extend(rows)
        self._drafter.commit(1, tip)
        drafts: list[int] = []
        parent, row = tip, len(rows) - 1
        while len(drafts) < min(self._spec.n_max, room):
            logits = outcome.logits(row)
            best = int(logits.argmax())
            if self._spec.p_min > 0 and 1.0 / float(np.exp(logits - logits[best]).sum()) < self._spec.p_min:
                break
            drafts.append(best)
            if len(drafts) == min(self._spec.n_max, room):
                break
            node += 1
            outcome = self._drafter.extend([Row(1, node, parent, best)])
            parent, row = node, 0
        self._drafter.commit(1, tip)
        return drafts, tip, node


def main() -> None:
    """Serve one baseline until standard input ends."""
    spec = BaselineSpec(**json.loads(sys.argv[1]))
    pin(spec.cores, [])
    loop = _Loop(spec)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(loop.run(*json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
