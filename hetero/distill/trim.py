"""``hetero trim``: a drafter that reads less for each token, because it knows fewer (VocabTrim, Goel et al. 2025).

Nothing is learned: the rows of the tokens it hardly ever says leave its embedding and its head. What it can no longer
propose costs agreement, what it no longer reads is time; both are measured here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import gguf
import numpy as np
import torch
from rich.console import Console

from hetero.distill.answers import Author
from hetero.distill.prompts import chat_of, own_prompts
from hetero.errors import ConfigError
from hetero.models import find_model
from hetero.workers.engines.base import Engine, Row
from hetero.workers.engines.registry import EngineSettings, default_engine
from hetero.workers.engines.translated import TranslatedEngine
from hetero.workers.models.cache import disk_error
from hetero.workers.models.forms import GGUF
from hetero.workers.models.gguf_header import parts
from hetero.workers.models.gguf_writing import as_it_is, header_of, write_gguf
from hetero.workers.models.model import Model
from hetero.workers.models.tokenizer import load_tokenizer
from hetero.workers.models.translation import translation
from hetero.workers.models.trimming import kept_tokens, trimmed_header

_VOCABULARY = ("token_embd.weight", "output.weight")
_SEQUENCES, _CONTEXT = 32, 640
_TIMED = 60  # forwards


def run(source: str, out: Path, size: int, minutes: float, threads: int, console: Console) -> None:
    """Write ``out`` and say what it costs and saves. Raises HeteroError."""
    model = find_model(source, "drafter")
    if model.form != GGUF:
        raise ConfigError(f"source: {source} is no GGUF file")
    if out.exists() or not out.parent.is_dir():
        raise ConfigError(f"out: {out} is there already, or its folder is not: take another name")
    if len(parts(model.path)) > 1:
        raise ConfigError(f"source: {source} is one of several parts: join them with llama-gguf-split --merge")
    torch.set_num_threads(threads)
    vocabulary = len(model.tokenizer.vocabulary)
    if not 0 < size < vocabulary:
        raise ConfigError(f"vocabulary: {size} is no number from 1 to {vocabulary - 1}: {model.name} has {vocabulary}")
    reader = gguf.GGUFReader(model.path)
    header = header_of(reader)
    kept_tokens(header, np.zeros(vocabulary, np.int64), size)  # whether it can be done
    engine = _loaded(model.path, threads)
    learned, kept_apart = np.zeros(vocabulary, np.int64), np.zeros(vocabulary, np.int64)
    for n, tokens in enumerate(_written(engine, model, minutes)):
        np.add.at(kept_apart if n % 4 == 3 else learned, tokens, 1)
    if not kept_apart.any():
        raise ConfigError(f"minutes: {minutes:g} are too few: {model.name} wrote next to nothing")
    kept = kept_tokens(header, learned, size)
    _write(reader, header, kept, out)
    between = translation(model.tokenizer.vocabulary, load_tokenizer(out).vocabulary)
    trimmed = TranslatedEngine(_loaded(out, threads), between)  # as it is asked when it drafts
    whole, less = _milliseconds(engine), _milliseconds(trimmed)
    for one in (engine, trimmed):
        one.shutdown()
    console.print(
        f"{out}, {out.stat().st_size / 1e6:.1f} MB of {model.path.stat().st_size / 1e6:.1f}: {len(kept):,} tokens of "
        f"{vocabulary:,}, which are {kept_apart[kept].sum() / kept_apart.sum():.1%} of what it writes (in texts that "
        f"were not counted); a token takes {less:.2f} ms, {whole:.2f} before, on {threads} threads",
        highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip


def _loaded(path: Path, threads: int) -> Engine:
    settings = EngineSettings(path, threads, sequences=_SEQUENCES, context=_CONTEXT, draft_nodes=8)
    return default_engine(GGUF, "cpu").load(settings)


def _written(engine: Engine, model: Model, minutes: float) -> Iterator[Any]:
    """The tokens of its texts."""
    end = time.monotonic() + 60 * minutes
    author = Author(engine, model.tokenizer.vocabulary.ends, 0)
    for text in author.write(own_prompts(chat_of(model.tokenizer), model.tokenizer), lambda: time.monotonic() > end):
        yield text.tokens[text.first :]


def _write(reader: gguf.GGUFReader, header: dict[str, Any], kept: list[int], out: Path) -> None:
    """The same bytes, but for the rows of tokens that go."""
    tensors = [as_it_is(tensor, kept if tensor.name in _VOCABULARY else None) for tensor in reader.tensors]
    part = out.with_name(f"{out.name}.part")
    try:
        write_gguf(part, reader, trimmed_header(header, kept), "", tensors)
        part.rename(out)
    except OSError as error:
        raise disk_error(out.parent, error) from None
    finally:
        part.unlink(missing_ok=True)


def _milliseconds(engine: Engine) -> float:
    """Of a single row, the median."""
    engine.prefill(1, [1, 2, 3])
    times = []
    for node in range(1, _TIMED + 1):
        began = time.perf_counter()
        engine.extend([Row(1, node, node - 1, 5 + node)]).logits(0)
        times.append(time.perf_counter() - began)
        engine.commit(1, node)
    engine.close(1)
    return 1e3 * median(times)
