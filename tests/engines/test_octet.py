"""The octet engine: width-independent bits, the model's own function, the quality of its weights."""

from __future__ import annotations

import random

import gguf
import numpy as np
import pytest
import torch
import transformers
from helpers.builtin_pair import DRAFTER, PROMPTS, TARGET
from helpers.real_workers import Client, eager, opening, until, workers

from hetero.workers.engines.base import Row
from hetero.workers.engines.octet.engine import OctetEngine, OctetSettings
from hetero.workers.engines.octet.library import why_not
from hetero.workers.engines.octet.source import Source
from hetero.workers.engines.torch.engine import TorchEngine, TorchSettings
from hetero.workers.errors import ModelError, Unsupported
from hetero.workers.models.tokenizer import GgufTokenizer
from hetero.workers.runtime.spec import WorkerSpec

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


def engine(threads: int = 2, **settings) -> OctetEngine:
    return OctetEngine(TARGET, OctetSettings(threads=threads, **settings))


def random_tokens(seed: int, count: int) -> list[int]:
    return np.random.default_rng(seed).integers(3, 4096, count).tolist()


def prefill(made, seq: int, tokens: list[int], chunk: int) -> bytes:
    for first in range(0, len(tokens), chunk):
        outcome = made.prefill(seq, tokens[first : first + chunk])
    return outcome.logits(0).tobytes()


@pytest.mark.parametrize(
    "weights, threads, kv_cache",
    [
        pytest.param("as-is", 1, "f16", marks=pytest.mark.long),
        ("int4", 2, "f16"),
        pytest.param("as-is", 2, "q8_0", marks=pytest.mark.long),
    ],
)
def test_bits_do_not_depend_on_width_company_tree_chunks_or_threads(weights, threads, kv_cache):
    """Widths 1 to 32, trees, several sequences, contexts to 2k: one row's bits are always the same."""
    made = engine(threads, context=2048, sequences=4, weights=weights, kv_cache=kv_cache)
    reference = engine(1, context=2048, sequences=1, weights=weights, kv_cache=kv_cache)
    rng = random.Random(threads)
    for length in (1, 15, 16, 100, 1000, 2010):
        prompt, path = random_tokens(length, length), random_tokens(length + 1, 32)
        last = prefill(reference, 1, prompt, 128)
        want = []
        for n, token in enumerate(path):  # one row at a time
            want.append(reference.extend([Row(1, n + 1, n, token)]).logits(0).tobytes())
            reference.commit(1, n + 1)
        reference.close(1)
        other = random_tokens(7, 50)
        prefill(made, 9, other, 64)
        for width in (2, 3, 4, 5, 7, 8, 9, 13, 16, 17, 31, 32):
            assert prefill(made, 1, prompt, rng.choice([37, 64, 128])) == last
            node, done, next_id = 0, 0, 1
            while done < 32:
                mine = [
                    Row(1, next_id + n, node if n == 0 else next_id + n - 1, t)
                    for n, t in enumerate(path[done : done + rng.randint(1, width)])
                ]
                next_id += len(mine)
                # Wrong branches and another sequence's rows share the forward, in any order.
                extra = []
                for _ in range(rng.randint(0, 6)):
                    parent = rng.choice([node, *[row.node for row in mine]])
                    extra.append(Row(1, next_id, parent, rng.randrange(3, 4096)))
                    next_id += 1
                company = [Row(9, 1000 * length + next_id * 40 + n, 0, 5 + n) for n in range(rng.randint(0, 3))]
                rows = [*company, *mine, *extra] if rng.random() < 0.5 else [*mine, *company, *extra]
                outcome = made.extend(rows)
                got = {row.node: outcome.logits(i).tobytes() for i, row in enumerate(rows) if row.seq == 1}
                for n, row in enumerate(mine):
                    assert got[row.node] == want[done + n], (length, width, done + n)
                keep = frozenset()
                children = [row.node for row in extra if row.parent == mine[-1].node]
                if children and rng.random() < 0.5:
                    keep = frozenset(children[:1])
                node = mine[-1].node
                done += len(mine)
                made.commit(1, node, keep)
                made.commit(9, 0)
            made.close(1)
        made.close(9)
        assert made.used_cells == 0
    made.shutdown()
    reference.shutdown()


FAMILIES = {
    "llama": transformers.LlamaConfig,
    "mistral": transformers.MistralConfig,
    "qwen2": transformers.Qwen2Config,
    "qwen3": transformers.Qwen3Config,
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_families_compute_the_models_function(family, tied, tmp_path):
    more = {"head_dim": 48} if family == "qwen3" else {}
    config = FAMILIES[family](
        vocab_size=300, hidden_size=64, intermediate_size=112, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=tied, **more,
    )  # fmt: skip
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
            else:
                parameter.mul_(3.0)
    model.save_pretrained(tmp_path)
    made = OctetEngine(tmp_path, OctetSettings(threads=1, context=128))
    plain = TorchEngine(tmp_path, TorchSettings(context=128))
    prompt = np.random.default_rng(0).integers(0, 300, 60).tolist()
    rows = [Row(1, 1, 0, 5), Row(1, 2, 1, 6), Row(1, 3, 0, 7)]
    pairs = []
    for one in (made, plain):
        first = one.prefill(1, prompt).logits(0).copy()
        outcome = one.extend(rows)
        pairs.append([first, *[outcome.logits(n).copy() for n in range(3)]])
        one.shutdown()
    for got, want in zip(*pairs, strict=True):
        assert np.corrcoef(got, want)[0, 1] > 0.999
        assert np.abs(got - want).max() < 0.06 * np.abs(want).max()


def test_quality_stays_within_one_percent_of_float32():
    """Perplexity on this very file and its neighbours, against the float32 model."""
    from hetero.bench.quality import held_out, perplexity

    text = held_out(GgufTokenizer(TARGET), 1200)
    found = {}
    for name, make in (
        ("float32", lambda: TorchEngine(TARGET, TorchSettings(context=2048))),
        ("octet", lambda: engine(context=2048)),
        ("int4", lambda: engine(context=2048, weights="int4")),
    ):
        made = make()
        found[name] = perplexity(made, text)
        made.shutdown()
    assert 2 < found["float32"] < 200
    assert abs(found["octet"] / found["float32"] - 1) < 0.01
    assert abs(found["int4"] / found["float32"] - 1) < 0.06


def test_unfit_models_are_refused(tmp_path):
    config = transformers.GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=64)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    with pytest.raises((Unsupported, ModelError), match="octet"):
        Source(tmp_path)


@pytest.mark.long
def test_end_to_end_texts_do_not_depend_on_the_drafter_without_padding(monkeypatch):
    """``--exact``'s promise without its price: trees of work, batches of sequences, any strategy."""
    eager(monkeypatch)
    tokenizer = GgufTokenizer(TARGET)
    found = []
    strategies = [("off", 1, 1), ("serial", 6, 4), ("pearl", 0, 4), ("mirror", 3, 2), ("ahead", 0, 4)]
    for strategy, gamma, sequences, quick in [
        *((*strategy, False) for strategy in strategies),
        ("pearl", 0, 4, True),
        ("ahead", 0, 4, True),
    ]:
        common = {"strategy": strategy, "gamma": gamma, "context": 512, "sequences": sequences}
        target = WorkerSpec("target", str(TARGET), "octet", cores=[0], **common)
        drafter = None if strategy == "off" else WorkerSpec("drafter", str(DRAFTER), "llama_cpp", cores=[0], **common)
        with workers(target, drafter, quick) as (verifier, *_), Client(verifier.status().endpoint) as client:
            if drafter:
                until(lambda v=verifier: v.status().drafters)
            asked = [
                opening(n + 1, tokenizer.encode(PROMPTS[n % 4]), 120, temperature, seed=n)
                for n, temperature in enumerate([0.0, 0.8, 0.8, 1.0, 0.0, 0.8])
            ]
            answers = client.ask(*asked)
            found.append([answers[o.seq][0] for o in asked])
            if drafter and not quick:
                accepted = sum(answers[o.seq][2].stats.draft_n_accepted for o in asked)
                assert accepted > 50
    assert all(texts == found[0] for texts in found)


def split(source, folder, parts: int):
    """A GGUF file in parts, as llama.cpp's own tool names them; the first of them."""
    reader = gguf.GGUFReader(source)
    made = [folder / f"model-{n + 1:05d}-of-{parts:05d}.gguf" for n in range(parts)]
    for number, path in enumerate(made):
        writer = gguf.GGUFWriter(path, "llama")
        for name, field in reader.fields.items():
            if number == 0 and not name.startswith("GGUF.") and name != "general.architecture":
                writer.add_key_value(
                    name, field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None
                )
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", parts)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for tensor in reader.tensors[number::parts]:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return made[0]


def test_a_split_file_is_one_model(tmp_path):
    first = split(DRAFTER, tmp_path, 3)
    prompt = random_tokens(1, 30)
    found = []
    for path in (DRAFTER, first):
        made = OctetEngine(path, OctetSettings(threads=1, context=128))
        found.append(prefill(made, 1, prompt, 30))
        made.shutdown()
    assert found[0] == found[1]
    with pytest.raises(ModelError, match=r"whole GGUF files.*model-00001-of-00003"):
        TorchEngine(first, TorchSettings(context=128))
    (tmp_path / "model-00002-of-00003.gguf").unlink()
    with pytest.raises(ModelError, match=r"part model-00002-of-00003\.gguf is missing"):
        OctetEngine(first, OctetSettings(threads=1, context=128))
