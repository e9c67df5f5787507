"""Drives an octet kernel of your choice: windows, trees, copies of cells, and models that are not what they say.

``exercise_octet.py KERNEL MODEL SEED COUNT``: KERNEL is a shared object (a sanitised one, with its runtime preloaded).
Prints what became of each of COUNT altered models, and "well" at its end.
"""

from __future__ import annotations

import collections
import ctypes
import functools
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np

from hetero.workers.engines.octet import library

library.library = functools.cache(lambda: library.declared(ctypes.CDLL(sys.argv[1])))

from hetero.placement.errors import HeteroError  # noqa: E402
from hetero.workers.engines.base import Row  # noqa: E402
from hetero.workers.engines.octet.engine import OctetEngine, OctetSettings  # noqa: E402

NUMBERS = ("block_count", "embedding_length", "attention.head_count", "attention.head_count_kv", "feed_forward_length")
ODD = (0, 1, 2, 3, 7, 8, 16, 48, 63, 64, 65, 255, 256, 1 << 16, (1 << 31) - 1, (1 << 32) - 1)


def drive(made: OctetEngine, rng: random.Random, rounds: int) -> None:
    """Forwards as a verifier makes them, over the whole context."""
    limits = made.limits
    token = lambda: rng.randrange(limits.vocabulary)  # noqa: E731
    for seq in (1, 2):
        made.prefill(seq, [token() for _ in range(rng.randint(1, 20))])
    nodes, tips, lengths = 0, {1: 0, 2: 0}, {1: 20, 2: 20}
    for _ in range(rounds):
        rows, paths = [], {}
        for seq in (1, 2):
            if lengths[seq] + 10 > limits.context:
                continue
            mine = [tips[seq]]
            for _ in range(rng.randint(1, 8)):
                nodes += 1
                rows.append(Row(seq, nodes, rng.choice(mine), token()))
                mine.append(nodes)
            paths[seq] = next(row.node for row in rows if row.seq == seq)
        if not rows:
            break
        outcome = made.extend(rows)
        assert all(outcome.logits(n).shape == (limits.vocabulary,) for n in range(len(rows)))
        for seq, node in paths.items():
            made.commit(seq, node)
            tips[seq] = node
            lengths[seq] += 1
    made.save_prefix(1, 5, 1)
    made.close(1)
    made.load_prefix(3, 5, 1)
    made.drop_prefix(5)
    for seq in (2, 3):
        made.close(seq)
    assert made.used_cells == 0


def small(path: Path, rng: random.Random, **numbers: int) -> None:
    """A model of random weights; ``numbers``: what it says of itself that is not so. One tensor in two models has
    another shape, type, name or value."""
    width, heads, kv, head, ffn, vocabulary, layers = 64, 4, 2, 16, 96, 70, 2
    writer = gguf.GGUFWriter(path, rng.choice(["llama", "qwen2", "qwen3", "mistral"]))
    true = dict(zip(NUMBERS, (layers, width, heads, kv, ffn), strict=True))
    for key, value in {**true, "context_length": 64, **numbers}.items():
        writer.add_uint32(f"{writer.arch}.{key}", value)
    writer.add_float32(f"{writer.arch}.attention.layer_norm_rms_epsilon", 1e-5)
    shapes = {"token_embd": (vocabulary, width), "output_norm": (width,)}
    for n in range(layers):
        shapes |= {
            f"blk.{n}.{name}": shape
            for name, shape in {
                "attn_q": (heads * head, width), "attn_k": (kv * head, width), "attn_v": (kv * head, width),
                "attn_output": (width, heads * head), "ffn_gate": (ffn, width), "ffn_up": (ffn, width),
                "ffn_down": (width, ffn), "attn_norm": (width,), "ffn_norm": (width,),
            }.items()
        }  # fmt: skip
    for optional, shape in {
        "output": (vocabulary, width),
        "rope_freqs": (head // 2,),
        "blk.1.attn_q_norm": (head,),
    }.items():
        if rng.random() < 0.3:
            shapes[optional] = shape
    made = np.random.default_rng(rng.randrange(1 << 30))
    altered = rng.choice(list(shapes)) if rng.random() < 0.5 else ""
    for name, shape in shapes.items():
        values = made.standard_normal(shape).astype(np.float32)
        kind = rng.randrange(6) if name == altered else -1
        if kind == 0:
            continue
        if kind == 1:
            values = values[: rng.randint(1, len(values))]
        elif kind == 2:
            values = values.T if values.ndim == 2 else values[None]
        elif kind == 3:
            values[rng.randrange(len(values))] = rng.choice([np.nan, np.inf, 3e38])
        elif kind == 4:
            values = np.zeros(shape, rng.choice([np.int8, np.int32, np.float64]))
        elif kind == 5:
            values = np.concatenate([values] * rng.randint(2, 5))
        writer.add_tensor(f"{name}.weight", np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main(model: Path, seed: int, count: int) -> None:
    rng = random.Random(seed)
    for weights, threads, kv_cache in (("as-is", 2, "f16"), ("int4", 1, "q8_0")):
        own = OctetSettings(threads, 3, context=100, weights=weights, draft_nodes=32, kv_cache=kv_cache)
        made = OctetEngine(model, own)
        drive(made, rng, 80)
        made.shutdown()
    seen: collections.Counter[str] = collections.Counter()
    folder = Path(tempfile.mkdtemp())
    try:
        for n in range(count):
            path = folder / f"{n}.gguf"
            small(path, rng, **({rng.choice(NUMBERS): rng.choice(ODD)} if rng.random() < 0.5 else {}))
            if rng.random() < 0.3:  # damaged on its way
                data = bytearray(path.read_bytes())
                for _ in range(rng.randint(1, 4)):
                    data[rng.randrange(min(len(data), 3000))] = rng.randrange(256)
                path.write_bytes(data[: rng.choice([len(data), rng.randrange(len(data))])])
            try:
                how = {"weights": rng.choice(["as-is", "int4"]), "kv_cache": rng.choice(["f16", "q8_0"])}
                made = OctetEngine(path, OctetSettings(1, sequences=3, context=40, rows=16, chunk=20, **how))
            except HeteroError as error:
                assert "\n" not in str(error)
                seen[type(error).__name__] += 1
                continue
            finally:
                path.unlink()
                shutil.rmtree(os.environ["HETERO_CACHE"], ignore_errors=True)
            drive(made, rng, 8)
            made.shutdown()
            seen["ran"] += 1
        print(dict(seen))
        print("well")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
