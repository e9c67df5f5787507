"""Transformers models (safetensors or GGUF) on CPU and CUDA, with a tree-shaped KV cache of our own.

Cells of a prefix lie in order of position; a commit moves the surviving nodes up behind it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hetero.workers.engines.base import EngineLimits, Features, Lesson, OnEarlyExit, Outcome, Row, as_features
from hetero.workers.engines.kv_slots import Slots, SlotSequence, saved_under
from hetero.workers.engines.ledger import Entry, entered, row_order
from hetero.workers.engines.torch.attention import BLOCK, Forward, Part, Seen
from hetero.workers.engines.torch.checkpoint import exit_layer, load_model
from hetero.workers.engines.torch.collectives import Team
from hetero.workers.engines.torch.graphs import Record, Replays
from hetero.workers.engines.torch.layer_parallel import check, guessing, shared
from hetero.workers.engines.torch.states import States
from hetero.workers.engines.torch.studies import Studies
from hetero.workers.errors import EngineError, Unsupported
from hetero.workers.sampling.logits_processors import Logits

EXACT_WIDTH = 8


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
    draft_nodes: int = 128  # evaluated draft tokens per sequence
    group: int = 1  # layers whose attentions run at once for draft tokens (``layer_parallel``)
    features: tuple[int, ...] = ()  # layers whose input is handed out; the number of layers: what the last one gives
    learns: bool = False  # whether it can be taught while it serves


@dataclass
class Course:
    """One way through the layers: a model, and recorded forwards of it."""

    model: Any
    replays: Replays | None = None


class TorchEngine:
    """One transformers model with its KV cache."""

    def __init__(
        self, path: Path, settings: TorchSettings, record: Record | None = None, team: Team | None = None
    ) -> None:
        """Load. Raises ModelError for files that cannot be loaded safely, Unsupported for unfit architectures.

        ``record`` makes ``extend`` replay forwards of fixed shapes (not in exact mode); ``team``: who else runs a part
        of this engine, and makes the same calls.
        """
        self._device = torch.device(team.device(settings.device) if team is not None else settings.device)
        self._model = self._load(path, settings, team.size if team is not None and team.tensor else 1).to(self._device)
        config = self._model.config.get_text_config()
        kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        if team is not None and team.tensor:
            if kv_heads % team.size or config.num_attention_heads % team.size:
                raise Unsupported(f"{path.name} has {kv_heads} heads of keys: they cannot be shared among {team.size}")
            kv_heads //= team.size
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._capacity = -(-(settings.context + settings.draft_nodes) // BLOCK) * BLOCK
        shape = (settings.sequences, config.num_hidden_layers, kv_heads, self._capacity + 1, size)
        self._keys = torch.zeros(shape, dtype=self._model.dtype, device=self._device)
        self._values = torch.zeros_like(self._keys)
        self.limits = EngineLimits(
            vocabulary=config.vocab_size,
            context=settings.context,
            rows=EXACT_WIDTH if settings.exact else settings.rows,
            chunk=settings.chunk,
            sequences=settings.sequences,
            exact=settings.exact,
            draft_nodes=settings.draft_nodes,
            early_exit=settings.group == 1 and team is None and exit_layer(self._model) is not None,
            lasting=settings.group == 1,
            features=len(settings.features) * config.hidden_size,
            learns=settings.learns,
        )
        self._slots = Slots(settings.sequences)
        self._saved: dict[int, tuple[Tensor, ...]] = {}
        self._aborted = threading.Event()
        self.announce: Callable[[], None] | None = None  # is called when a forward is about to begin
        self._true = self._guess = Course(self._model)
        if team is not None and not team.tensor:
            check(self._model, self._tried)
            self._true = self._guess = Course(shared(self._model, 1, team))
            if settings.group > 1:
                self._guess = Course(shared(self._model, settings.group, team))
        elif settings.group > 1:
            self._guess = Course(guessing(self._model, settings.group, self._tried))
        self._states = States(self._model, settings.features)
        self._studies: Studies | None = None
        if settings.learns and (team is not None or settings.group > 1 or settings.exact):
            raise Unsupported(f"{path.name}: one rank learns, with no layers in parallel and not in exact mode")
        if settings.features and (team is not None or settings.group > 1):
            raise Unsupported(f"{path.name}: features are handed out by one rank with no layers in parallel")
        if record is not None and not settings.exact and not settings.features:
            weights = sum(p.numel() * p.element_size() for p in self._model.parameters())
            for course in (self._true, self._guess):
                course.replays = Replays(partial(self._logits, course), record, self._keys, weights)
        try:
            self._tried(self._true.model)  # an architecture that is not covered fails here, not in a request
        except EngineError as error:
            if team is None or not team.tensor:
                raise
            why = f"{path.name}: its tensor-parallel plan in transformers is none that fits this engine ({error})"
            raise Unsupported(why) from error

    def _load(self, path: Path, settings: TorchSettings, parts_of: int) -> Any:
        return load_model(path, settings.dtype, parts_of)

    def prefill(self, seq: int, tokens: Sequence[int], every: bool = False) -> Outcome:
        held = self._slots.to_prefill(seq)
        ledger = held.ledger
        ledger.check_prefill(tokens, self.limits)
        if not ledger.length:
            self._clear(held.slot)
        first, count = ledger.length, len(tokens)
        positions = np.arange(first, first + count)
        span = self._span(first + count)
        allowed = np.arange(span)[None, :] <= positions[:, None]
        seen = Seen(held.slot, positions, positions, allowed, np.arange(span))
        logits = self._run(self._true, [list(tokens)], [seen], 0 if every else 1)
        self._slots.keep(seq, held)
        ledger.length += count
        return TorchOutcome(logits, features=self._states.taken())

    def extend(self, rows: Sequence[Row], on_early_exit: OnEarlyExit | None = None) -> Outcome:
        with entered(rows, self.limits, self._slots.__getitem__) as entries:
            if self._guess is self._true:
                order = row_order(entries)
                with self._early(on_early_exit, order):
                    logits = self._forward(self._true, entries, replay=on_early_exit is None)
                return TorchOutcome(logits, order, self._states.taken())
            # Calibration: what is committed becomes exact before anything is guessed below it.
            exact = [part for entry in entries if (part := entry.committed()).rows]
            guessed = [part for entry in entries if (part := entry.committed(False)).rows]
            found = [self._forward(self._true, exact)] if exact else []
            found += [self._forward(self._guess, guessed)] if guessed else []
        return TorchOutcome(torch.cat(found), row_order([*exact, *guessed]))

    def study(self, lessons: Sequence[Lesson]) -> None:
        """``engines.base.Learner``."""
        try:
            if self._studies is None:
                self._studies = Studies(self._model)
            self._aborted.clear()
            self._studies.step(lessons, self._aborted.is_set)
        except (RuntimeError, IndexError, torch.OutOfMemoryError) as error:
            raise EngineError(f"it could not learn: {error}") from error

    def commit(self, seq: int, node: int, keep: Collection[int] = ()) -> None:
        held = self._slots[seq]
        old, new = held.commit(node, keep)
        if old != new:
            source = torch.tensor(old, device=self._device)
            for cache in (self._keys, self._values):
                cache[held.slot, :, :, new[0] : new[-1] + 1] = cache[held.slot][:, :, source]

    def close(self, seq: int) -> None:
        self._slots.close(seq)

    def save_prefix(self, seq: int, key: int, length: int) -> None:
        slot = self._slots[seq].slot
        self._saved[key] = tuple(
            cache[slot, :, :, :length].to("cpu", copy=True) for cache in (self._keys, self._values)
        )

    def load_prefix(self, seq: int, key: int, length: int) -> None:
        saved = saved_under(self._saved, key)
        slot = self._slots.open(seq, length).slot
        self._clear(slot)
        for cache, kept in zip((self._keys, self._values), saved, strict=True):
            cache[slot, :, :, :length] = kept[:, :, :length].to(self._device)

    def drop_prefix(self, key: int) -> None:
        self._saved.pop(key, None)

    def abort(self) -> None:
        self._aborted.set()

    def shutdown(self) -> None:
        del self._studies, self._model, self._true, self._guess, self._keys, self._values, self._saved

    @property
    def used_cells(self) -> int:
        return self._slots.used_cells

    @property
    def replays(self) -> bool:
        """Whether forwards are replayed."""
        return self._true.replays is not None and not self._true.replays.off

    def length(self, seq: int) -> int:
        """Tokens of a sequence that are committed."""
        return self._slots[seq].ledger.length

    def _clear(self, slot: int) -> None:
        """Replays read cells that nobody sees, too, and no mask hides a NaN that a sequence before left there."""
        if self._true.replays is not None:
            self._keys[slot] = 0
            self._values[slot] = 0

    @contextmanager
    def _early(self, on_early_exit: OnEarlyExit | None, place: list[int]) -> Iterator[None]:
        """Within, a forward shows ``on_early_exit`` the LM head's logits of half the layers (Mirror-SD, section 3)."""
        layer = exit_layer(self._model)
        if on_early_exit is None or layer is None:
            yield
            return

        def show(module: object, inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
            hidden = output if isinstance(output, Tensor) else output[0]
            logits = self._model.get_output_embeddings()(self._model.model.norm(hidden))[0]
            on_early_exit(TorchOutcome(logits, place))

        handle = layer.register_forward_hook(show)
        try:
            yield
        finally:
            handle.remove()

    def _enter(self, held: SlotSequence, own: list[Row], where: list[int]) -> Seen:
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
        return Seen(held.slot, positions, np.array(cells), allowed, at)

    def _see(
        self, allowed: NDArray[np.bool_], i: int, own: list[Row], index: dict[int, int], held: SlotSequence
    ) -> None:
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

    def _forward(self, course: Course, entries: Sequence[Entry[SlotSequence]], replay: bool = True) -> Tensor:
        """Logits of the rows of some sequences, one sequence after another."""
        parts = [self._enter(entry.sequence, entry.rows, entry.positions) for entry in entries]
        tokens = []
        for entry, part in zip(entries, parts, strict=True):
            padding = [0] * (len(part.cells) - len(entry.rows))
            tokens.append([*(row.token for row in entry.rows), *padding])
        return self._run(course, tokens, parts, 0, replay)

    def _tried(self, model: Any) -> Tensor:
        """Logits [rows, vocabulary] that a model of this one's shape gives a few tokens."""
        count = min(5, self.limits.context)
        positions = np.arange(count)
        span = self._span(count)
        seen = Seen(0, positions, positions, np.arange(span)[None, :] <= positions[:, None], np.arange(span))
        return self._run(Course(model), [[n % self.limits.vocabulary for n in range(1, count + 1)]], [seen], 0)

    def _span(self, cells: int) -> int:
        return -(-cells // BLOCK) * BLOCK if self.limits.exact else cells

    def _run(
        self, course: Course, tokens: list[list[int]], seen: list[Seen], keep: int, replay: bool = False
    ) -> Tensor:
        """Logits [rows, vocabulary] of a forward; ``keep``: of the last rows only, 0 means all."""
        self._aborted.clear()
        if self.announce is not None:
            self.announce()
        try:
            with torch.inference_mode():
                logits = course.replays(tokens, seen) if course.replays is not None and replay else None
                if logits is None:
                    starts = np.cumsum([0, *(len(one.cells) for one in seen)])
                    where = np.concatenate([one.positions for one in seen])
                    parts = [
                        one.part(int(first), self._keys.dtype, self._device)
                        for one, first in zip(seen, starts, strict=False)
                    ]
                    ids = torch.tensor([list(chain(*tokens))], device=self._device)
                    logits = self._logits(course, ids, torch.from_numpy(where)[None].to(self._device), parts, keep)
                if self._device.type == "cuda":  # wait here, on the engine's thread
                    torch.cuda.synchronize(self._device)
        except (RuntimeError, torch.OutOfMemoryError) as error:
            raise EngineError(f"the forward failed: {error}") from error
        return logits

    def _logits(self, course: Course, tokens: Tensor, positions: Tensor, parts: list[Part], keep: int = 0) -> Tensor:
        forward = Forward(self._keys, self._values, parts, self.limits.exact, self._aborted)
        found: Tensor = course.model(
            input_ids=tokens, position_ids=positions, use_cache=False, logits_to_keep=keep, hetero=forward
        ).logits[0]
        return found


class TorchOutcome(Outcome):
    """``place``: of each row of the call its row in the tensors; ``features``: [rows, numbers], where they are kept."""

    def __init__(self, logits: Tensor, place: list[int] | None = None, features: Tensor | None = None) -> None:
        self._logits, self._place, self._features = logits, place, features

    def logits(self, row: int) -> Logits:
        at = self._place[row] if self._place is not None else row
        found: Logits = self._logits[at].float().cpu().numpy()
        return found

    def features(self, rows: Sequence[int]) -> Features:
        if self._features is None:
            return super().features(rows)
        own = [self._place[row] if self._place is not None else row for row in rows]
        return as_features(self._features[own].float().cpu().numpy())
