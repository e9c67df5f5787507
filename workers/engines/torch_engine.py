"""Transformers models (safetensors or GGUF) on CPU and CUDA, with a tree-shaped KV cache of our own.

The model's attention is replaced, through transformers' attention registry, by one that writes the rows' keys and
values into our cells and lets each row see its sequence's prefix and its own path. Cells of a prefix lie in order
of position; a commit moves the surviving nodes up behind it.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor

from workers.engines.base import Hinted, Limits, Outcome, Row, check_rows
from workers.engines.cells import Held, Slots, saved_under
from workers.engines.checkpoint import exit_layer, load_model
from workers.errors import Aborted, EngineError, Unsupported
from workers.shaping import Logits

EXACT_WIDTH = 8
_SPAN = 64  # exact mode attends over whole blocks of so many cells


@dataclass(frozen=True)
class TorchSettings:
    """How to run a model. ``device``: "cpu" or "cuda:0"; ``dtype``: "float32", "bfloat16" or "float16"."""

    device: str = "cpu"
    dtype: str = "float32"
    sequences: int = 4
    context: int = 2048
    rows: int = 64
    chunk: int = 256
    exact: bool = False
    guesses: int = 128  # evaluated guesses per sequence


@dataclass(frozen=True, slots=True)
class _Part:
    """One sequence's rows in a forward: which rows, their cells, and what each may see.

    ``mask`` is [rows, span], added to the scores; ``distance`` [rows, span] is how many positions back a cell lies.
    """

    slot: int
    rows: slice
    cells: Tensor
    mask: Tensor
    distance: Tensor


@dataclass(frozen=True, slots=True)
class _Forward:
    """What the attention needs of the forward in flight."""

    keys: Tensor  # [layers, slots, kv heads, cells, head size], as values
    values: Tensor
    parts: list[_Part]
    exact: bool
    aborted: threading.Event


def _tree_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: object,
    scaling: float,
    hetero: _Forward,
    sliding_window: int | None = None,
    **more: object,
) -> tuple[Tensor, None]:
    """Attention of rows [1, heads, rows, size] over the cells of their own sequences."""
    if hetero.aborted.is_set():
        raise Aborted("the forward was aborted")
    if more.get("softcap") is not None or more.get("s_aux") is not None:
        raise Unsupported("the model caps its attention scores or adds sinks, which the torch engine does not cover")
    layer = module.layer_idx
    heads, size = query.shape[1], query.shape[3]
    outputs = []
    for part in hetero.parts:
        keys, values = hetero.keys[layer, part.slot], hetero.values[layer, part.slot]
        keys[:, part.cells] = key[0, :, part.rows]
        values[:, part.cells] = value[0, :, part.rows]
        span, groups = part.mask.shape[1], keys.shape[0]
        count = part.mask.shape[0]
        # Grouped queries share keys: [groups, heads per group * rows, size] needs no repeated keys.
        grouped = query[0, :, part.rows].reshape(groups, heads // groups * count, size)
        mask = part.mask
        if sliding_window is not None:
            mask = mask.masked_fill(part.distance >= sliding_window, float("-inf"))
        mask = mask.repeat(heads // groups, 1)
        attend = _attend_in_blocks if hetero.exact else _attend
        mixed = attend(grouped * scaling, keys[:, :span], values[:, :span], mask)
        outputs.append(mixed.view(heads, count, size).transpose(0, 1))
    return torch.cat(outputs)[None].contiguous(), None


def _attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """softmax(q k + mask) v over [groups, rows, size] queries and [groups, span, size] cells."""
    scores = query @ keys.transpose(1, 2) + mask
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype) @ values


def _attend_in_blocks(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """The same in blocks of _SPAN cells of one shape, added up in order.

    A longer span then only adds blocks of exact zeros to a row that does not see them, so its bits stay.
    """
    groups, rows, size = query.shape
    blocks = keys.shape[1] // _SPAN
    cells = (groups, blocks, _SPAN, size)
    scores = query[:, None] @ keys.reshape(cells).transpose(2, 3)
    scores = scores.float() + mask.view(rows, blocks, _SPAN).transpose(0, 1)
    weights = torch.exp(scores - scores.amax(dim=(1, 3), keepdim=True))
    sums = weights.sum(dim=3, keepdim=True)
    parts = weights.to(query.dtype) @ values.reshape(cells)
    total, mixed = sums[:, 0], parts[:, 0]
    for block in range(1, blocks):
        total = total + sums[:, block]
        mixed = mixed + parts[:, block]
    return (mixed / total).to(query.dtype)


transformers.AttentionInterface.register("hetero", _tree_attention)


class TorchEngine:
    """One transformers model with its KV cache."""

    def __init__(self, path: Path, settings: TorchSettings) -> None:
        """Load. Raises ModelError for files that cannot be loaded safely, Unsupported for unfit architectures."""
        self._device = torch.device(settings.device)
        self._model = load_model(path, settings.dtype).to(self._device)
        config = self._model.config.get_text_config()
        kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._capacity = -(-(settings.context + settings.guesses) // _SPAN) * _SPAN
        shape = (config.num_hidden_layers, settings.sequences, kv_heads, self._capacity, size)
        self._keys = torch.zeros(shape, dtype=self._model.dtype, device=self._device)
        self._values = torch.zeros_like(self._keys)
        self.limits = Limits(
            vocabulary=config.vocab_size,
            context=settings.context,
            rows=EXACT_WIDTH if settings.exact else settings.rows,
            chunk=settings.chunk,
            sequences=settings.sequences,
            exact=settings.exact,
            guesses=settings.guesses,
            early_exit=exit_layer(self._model) is not None,
        )
        self._slots = Slots(settings.sequences)
        self._saved: dict[int, tuple[Tensor, ...]] = {}
        self._aborted = threading.Event()
        self.prefill(0, [0])  # an architecture that is not covered fails here, not in a request
        self.close(0)

    def prefill(self, seq: int, tokens: Sequence[int]) -> Outcome:
        held = self._slots.to_prefill(seq)
        ledger = held.ledger
        ledger.check_prefill(tokens, self.limits)
        first, count = ledger.length, len(tokens)
        positions = np.arange(first, first + count)
        span = self._span(first + count)
        allowed = np.arange(span)[None, :] <= positions[:, None]
        part = self._part(held.slot, slice(0, count), positions, allowed, positions, np.arange(span))
        logits = self._run(list(tokens), positions, [part], 1)
        self._slots.keep(seq, held)
        ledger.length += count
        return _TorchOutcome(logits)

    def extend(self, rows: Sequence[Row], hinted: Hinted | None = None) -> Outcome:
        check_rows(rows, self.limits)
        by_seq: dict[int, list[int]] = {}
        for at, row in enumerate(rows):
            by_seq.setdefault(row.seq, []).append(at)
        tokens: list[int] = []
        positions: list[NDArray[np.intp]] = []
        parts: list[_Part] = []
        order: list[int] = []
        entered: list[tuple[Held, list[Row], dict[int, int]]] = []
        try:
            for seq, places in by_seq.items():
                held = self._slots[seq]
                own = [rows[i] for i in places]
                where = held.ledger.append(own, self.limits)
                entered.append((held, own, dict(held.cells)))
                part, padded = self._enter(held, own, where, len(tokens))
                parts.append(part)
                tokens += [row.token for row in own] + [0] * (len(padded) - len(own))
                positions.append(padded)
                order += places
            place = {at: n for n, at in enumerate(order)}
            with self._early(hinted, [place[at] for at in range(len(rows))]):
                logits = self._run(tokens, np.concatenate(positions), parts, 0)
        except BaseException:
            for held, own, cells in entered:
                held.ledger.undo(own)
                held.cells = cells
            raise
        return _TorchOutcome(logits, [place[at] for at in range(len(rows))])

    def commit(self, seq: int, node: int, keep: Collection[int] = ()) -> None:
        held = self._slots[seq]
        old, new = held.commit(node, keep)
        if old != new:
            source = torch.tensor(old, device=self._device)
            for cache in (self._keys, self._values):
                cache[:, held.slot, :, new[0] : new[-1] + 1] = cache[:, held.slot, :, source]

    def close(self, seq: int) -> None:
        self._slots.close(seq)

    def save(self, seq: int, key: int, length: int) -> None:
        slot = self._slots[seq].slot
        self._saved[key] = tuple(
            cache[:, slot, :, :length].to("cpu", copy=True) for cache in (self._keys, self._values)
        )

    def load(self, seq: int, key: int, length: int) -> None:
        saved = saved_under(self._saved, key)
        slot = self._slots.open(seq, length).slot
        for cache, kept in zip((self._keys, self._values), saved, strict=True):
            cache[:, slot, :, :length] = kept[:, :, :length].to(self._device)

    def drop(self, key: int) -> None:
        self._saved.pop(key, None)

    def abort(self) -> None:
        self._aborted.set()

    def shutdown(self) -> None:
        del self._model, self._keys, self._values, self._saved

    @property
    def used_cells(self) -> int:
        return self._slots.used_cells

    @contextmanager
    def _early(self, hinted: Hinted | None, place: list[int]) -> Iterator[None]:
        """Within, a forward shows ``hinted`` the LM head's logits of half the layers (Mirror-SD, section 3)."""
        layer = exit_layer(self._model)
        if hinted is None or layer is None:
            yield
            return

        def show(module: object, inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
            hidden = output if isinstance(output, Tensor) else output[0]
            logits = self._model.get_output_embeddings()(self._model.model.norm(hidden))[0]
            hinted(_TorchOutcome(logits, place))

        handle = layer.register_forward_hook(show)
        try:
            yield
        finally:
            handle.remove()

    def _enter(self, held: Held, own: list[Row], where: list[int], first: int) -> tuple[_Part, NDArray[np.intp]]:
        """Cells and visibility of a sequence's rows; in exact mode padded to the fixed width, as a chain."""
        ledger = held.ledger
        count = EXACT_WIDTH if self.limits.exact else len(own)
        cells = held.free_cells(count, self._capacity)
        if self.limits.exact and cells[0] != where[0]:
            raise Unsupported("exact mode keeps one chain a sequence: commit before another branch")
        positions = np.array([*where, *range(where[-1] + 1, where[-1] + 1 + count - len(own))])
        span = self._span(max(cells) + 1)
        at = np.zeros(span, dtype=np.intp)  # position of each cell
        at[: ledger.length] = np.arange(ledger.length)
        for node, cell in held.cells.items():
            if cell < span:
                at[cell] = ledger.position(node)
        at[cells] = positions
        allowed = np.zeros((count, span), dtype=bool)
        index = {row.node: i for i, row in enumerate(own)}
        for i in range(count):
            self._see(allowed, i, own, index, held)
            allowed[i, cells[i]] = True
        held.enter(own, cells)
        return self._part(held.slot, slice(first, first + count), np.array(cells), allowed, positions, at), positions

    def _see(self, allowed: NDArray[np.bool_], i: int, own: list[Row], index: dict[int, int], held: Held) -> None:
        """Row i sees what its parent sees: an earlier row of the call, or the prefix and an evaluated path."""
        if i >= len(own):
            allowed[i] = allowed[i - 1]
            return
        parent = own[i].parent
        if parent in index:
            allowed[i] = allowed[index[parent]]
            return
        allowed[i, : held.ledger.length] = True
        allowed[i, held.path_cells(parent)] = True

    def _part(
        self,
        slot: int,
        rows: slice,
        cells: NDArray[np.intp],
        allowed: NDArray[np.bool_],
        positions: NDArray[np.intp],
        at: NDArray[np.intp],
    ) -> _Part:
        mask = torch.zeros(allowed.shape, dtype=self._keys.dtype)
        mask.masked_fill_(torch.from_numpy(~allowed), float("-inf"))
        distance = torch.from_numpy(positions[:, None] - at[None, :])
        return _Part(
            slot, rows, torch.from_numpy(cells).to(self._device), mask.to(self._device), distance.to(self._device)
        )

    def _span(self, cells: int) -> int:
        return -(-cells // _SPAN) * _SPAN if self.limits.exact else cells

    def _run(self, tokens: list[int], positions: NDArray[np.intp], parts: list[_Part], keep: int) -> Tensor:
        """Logits [rows, vocabulary] of a forward; ``keep``: of the last rows only, 0 means all."""
        self._aborted.clear()
        forward = _Forward(self._keys, self._values, parts, self.limits.exact, self._aborted)
        try:
            with torch.inference_mode():
                result = self._model(
                    input_ids=torch.tensor([tokens], device=self._device),
                    position_ids=torch.from_numpy(positions)[None].to(self._device),
                    use_cache=False,
                    logits_to_keep=keep,
                    hetero=forward,
                )
        except (RuntimeError, torch.OutOfMemoryError) as error:
            raise EngineError(f"the forward failed: {error}") from error
        logits: Tensor = result.logits[0]
        if self._device.type == "cuda":  # wait here, on the engine's thread
            torch.cuda.synchronize(self._device)
        return logits


class _TorchOutcome(Outcome):
    def __init__(self, logits: Tensor, place: list[int] | None = None) -> None:
        self._logits, self._place = logits, place

    def logits(self, row: int) -> Logits:
        at = self._place[row] if self._place is not None else row
        found: Logits = self._logits[at].float().cpu().numpy()
        return found
