"""Models that are damaged, odd or hostile: one line each, and never a traceback.

Each is looked at as ``hetero`` does: first in a process that may die of it, then, if it could be read, in this one.
"""

from __future__ import annotations

import collections
import json
import os
import random
import shutil
from pathlib import Path

import gguf
import llama_cpp  # noqa: F401  (once, not in each fork)
import pytest
import torch
import transformers
from helpers.builtin_pair import DRAFTER
from helpers.forked import Died, forked
from helpers.mutation import mutated
from helpers.odd_gguf import rewritten
from helpers.small_tokenizer import save_tokenizer

from hetero.config import Config
from hetero.errors import HeteroError
from hetero.models import find_model
from hetero.placement.device import Inventory
from hetero.planning.planner import make_plan
from hetero.workers.models import model, probe

os.environ["GGML_NO_BACKTRACE"] = "1"  # as the probe has it
HERE = Inventory(cores=(0, 1), memory=1 << 36, gpus=())


def planned(path: Path) -> None:
    """As a command does it, with what the probe let pass."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    find = probe.check_readable
    probe_only = lambda path: None  # noqa: E731  (it was asked already)
    import hetero.models as models

    models.check_readable = probe_only
    try:
        made = make_plan(Config(target=str(path), draft="none"), HERE)
        tokenizer = made.target.model.tokenizer
        tokenizer.encode("Tell me more <s> of ümlauts \n")
        assert all(isinstance(piece, bytes) for piece in tokenizer.vocabulary.pieces)
        assert isinstance(tokenizer.bos + tokenizer.eos + "".join(tokenizer.chat_templates.values()), str)
    finally:
        models.check_readable = find


def outcome(path: Path) -> str:
    """What becomes of a model: refused, unreadable (its process died), or planned."""
    try:
        said = forked(lambda: probe.objection(path))
    except Died as death:
        assert death.args[0] != 14, "it hangs"
        return "died"
    if said is not None:
        assert "\n" not in said and len(said) < 5000
        return "refused"
    try:
        forked(lambda: planned(path))
    except HeteroError as error:
        assert "\n" not in str(error)
        return "refused later"
    return "planned"


# GGUF


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """The built-in drafter with few tokens: quick to read and to write anew."""
    fields = gguf.GGUFReader(DRAFTER).fields
    arrays = ("tokens", "token_type", "merges")
    few = {f"tokenizer__ggml__{name}": fields[f"tokenizer.ggml.{name}"].contents()[:500] for name in arrays}
    return rewritten(DRAFTER, tmp_path_factory.mktemp("right") / "right.gguf", llama__vocab_size=500, **few)


def odd_gguf(path: Path, rng: random.Random, base: Path, data: bytes, reader: gguf.GGUFReader) -> None:
    """Another GGUF file: bytes changed or cut, or well formed with a value that is not right."""
    if rng.random() < 0.5:
        changed = bytearray(data)
        end = rng.choice([200, 2000, 100_000, len(data)])
        for _ in range(rng.choice([1, 1, 3, 20])):
            at = rng.randrange(min(end, len(data)))
            changed[at] = rng.choice([0, 255, 127, changed[at] ^ (1 << rng.randrange(8)), rng.randrange(256)])
        path.write_bytes(changed[: len(data) if rng.random() < 0.8 else rng.randrange(end)])
        return
    name = rng.choice(
        [name for name in reader.fields if not name.startswith("GGUF.") and name != "general.architecture"]
    )
    value = reader.fields[name].contents()
    if isinstance(value, list):
        value = list(value)
        kind = rng.randrange(4)
        if kind == 0:
            value = value[: rng.randrange(len(value) + 1)] or value[:1]
        elif kind == 1:
            value[rng.randrange(len(value))] = value[rng.randrange(len(value))]
        elif kind == 2:
            rng.shuffle(value)
        else:
            value[rng.randrange(len(value))] = rng.choice(
                ["", "\0", " ", "a" * 5000, "<0xZZ>"] if isinstance(value[0], str) else [0, -1, 7, 127]
            )
    elif isinstance(value, str):
        value = rng.choice(["", "x", "llama", "gpt2", "bert", "spm", "t5", "rwkv", "tekken", "²", "{% endif %}"])
    else:
        value = rng.choice([0, 1, 2, 255, 4095, 4096, 65536, 2**31 - 1])
    try:
        rewritten(base, path, **{name.replace(".", "__"): value})
    except Exception:  # the value has no place in a field of that type
        path.write_bytes(data[:100])


def files_seen(base: Path, tmp_path: Path, seed: int, count: int) -> collections.Counter[str]:
    rng, data, reader = random.Random(seed), base.read_bytes(), gguf.GGUFReader(base)
    seen: collections.Counter[str] = collections.Counter()
    path = tmp_path / "odd.gguf"
    for _ in range(count):
        odd_gguf(path, rng, base, data, reader)
        seen[outcome(path)] += 1
    return seen


def test_odd_files_are_one_line_each(file, tmp_path):
    assert outcome(file) == "planned"
    seen = files_seen(file, tmp_path, 1, 60)
    assert seen["refused"] > 10 and seen["planned"] > 10, seen


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_many_odd_files(file, tmp_path):
    print(files_seen(file, tmp_path, 2, 150))


def test_a_file_that_kills_its_reader_is_one_line(tmp_path):
    tokens = gguf.GGUFReader(DRAFTER).fields["tokenizer.ggml.tokens"].contents()
    tokens[500] = tokens[501]  # two tokens of one text
    odd = rewritten(DRAFTER, tmp_path / "odd.gguf", tokenizer__ggml__tokens=tokens)
    with pytest.raises(HeteroError, match=r"the process that read it died.*GGML_ASSERT"):
        find_model(str(odd), "target")


def test_a_file_larger_than_memory_is_read_all_the_same(tmp_path):
    large = tmp_path / "large.gguf"
    shutil.copy(DRAFTER, large)
    os.truncate(large, 40 << 30)  # of which nothing lies on the disk
    assert find_model(str(large), "target").shape.weights == 40 << 30


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(HeteroError, match="neither a file nor a directory"):
        find_model(str(tmp_path / "pipe"), "target")


# Directories


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    """A small right one."""
    path = tmp_path_factory.mktemp("right")
    size = save_tokenizer(path, chat_template="{{ messages }}")
    config = transformers.LlamaConfig(
        vocab_size=size, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    return path


def odd_directory(path: Path, rng: random.Random) -> None:
    """One of its files is changed: a value of its JSON, its bytes, or it is gone."""
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        names = sorted(file.name for file in path.iterdir() if file.is_file())
        texts = [name for name in names if name.endswith(".json")]
        if not texts:
            return
        kind, name = rng.random(), rng.choice(texts)
        file = path / name
        if kind < 0.75:
            try:
                value = json.loads(file.read_text())
            except (ValueError, RecursionError):
                continue
            file.write_text(json.dumps(mutated(value, rng)))
        elif kind < 0.85:
            data = bytearray((path / rng.choice(names)).read_bytes()) or bytearray(b"x")
            for _ in range(rng.choice([1, 5])):
                data[rng.randrange(len(data))] = rng.randrange(256)
            file = path / rng.choice(names)
            file.write_bytes(data[: rng.choice([len(data), rng.randrange(len(data))])])
        elif kind < 0.9:
            file.write_text(rng.choice(["", "[]", "null", "7", '"x"', "[" * 100_000, "{}", '{"a":' * 10_000]))
        elif kind < 0.95:
            file.unlink()
        else:
            file.unlink()
            file.mkdir()


def directories_seen(right: Path, tmp_path: Path, seed: int, count: int) -> collections.Counter[str]:
    rng = random.Random(seed)
    seen: collections.Counter[str] = collections.Counter()
    path = tmp_path / "odd"
    for _ in range(count):
        shutil.copytree(right, path)
        odd_directory(path, rng)
        seen[outcome(path)] += 1
        shutil.rmtree(path)
    return seen


def test_odd_directories_are_one_line_each(directory, tmp_path):
    assert outcome(directory) == "planned"
    seen = directories_seen(directory, tmp_path, 1, 50)
    assert seen["refused"] > 10 and seen["planned"] > 10, seen


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_many_odd_directories(directory, tmp_path):
    print(directories_seen(directory, tmp_path, 2, 200))


def test_an_empty_vocabulary_is_refused(monkeypatch):
    monkeypatch.setattr(
        model, "load_tokenizer", lambda path: type("T", (), {"vocabulary": type("V", (), {"pieces": []})})
    )
    with pytest.raises(HeteroError, match="vocabulary is empty"):
        model.read_model(DRAFTER)


def test_an_extra_that_is_not_installed_is_no_fault_of_the_model(monkeypatch):
    def lacks(path: Path) -> None:
        raise ModuleNotFoundError("No module named 'llama_cpp'", name="llama_cpp")

    monkeypatch.setattr(probe, "read_model", lacks)
    assert probe.objection(DRAFTER) is None
