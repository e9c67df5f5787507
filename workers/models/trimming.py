"""A model's vocabulary cut to the tokens that are used: less to read for each draft token.

The others are spelt with what is left, by the same merges (VocabTrim, Goel et al. 2025, cuts a drafter's head; here the
embedding goes with it, since small models are mostly embedding).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hetero.workers.errors import ModelError

_TOKENS, _KINDS, _MERGES = (f"tokenizer.ggml.{name}" for name in ("tokens", "token_type", "merges"))
_NORMAL = 1  # of llama.cpp's kinds of tokens; the others (control, unknown, byte, ...) always stay


def kept_tokens(header: Mapping[str, Any], counts: NDArray[np.int64], size: int) -> list[int]:
    """Ids, ascending, of about ``size`` tokens of a GGUF file's vocabulary: the most used, all that those are merged
    from, single bytes, and what is no text. ``counts`` [vocabulary]: how often each is used. Raises ModelError for a
    vocabulary that is not of merges."""
    if header.get("tokenizer.ggml.model") != "gpt2" or not header.get(_MERGES):
        raise ModelError("its vocabulary is not of byte-level merges (BPE): it cannot be trimmed")
    tokens, kinds = header[_TOKENS], header.get(_KINDS) or [_NORMAL] * len(header[_TOKENS])
    ids = {token: n for n, token in enumerate(tokens)}
    made_of = {ids[a + b]: (ids[a], ids[b]) for a, b in _merges(header[_MERGES]) if {a, b, a + b} <= ids.keys()}
    kept = {n for n, token in enumerate(tokens) if kinds[n] != _NORMAL or len(token) == 1}
    kept |= {token for token in _named(header).values() if token < len(tokens)}
    for token in np.argsort(-counts, kind="stable").tolist():
        if len(kept) >= size or not counts[token]:
            break
        whole = [token]
        while whole:
            part = whole.pop()
            if part not in kept:
                kept.add(part)
                whole += made_of.get(part, ())
    return sorted(kept)


def trimmed_header(header: Mapping[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """What changes in a GGUF file's header where only ``kept`` tokens stay; None: that key goes."""
    place = {old: new for new, old in enumerate(kept)}
    tokens = [header[_TOKENS][n] for n in kept]
    known = set(tokens)
    changed: dict[str, Any] = {
        _TOKENS: tokens,
        _MERGES: [f"{a} {b}" for a, b in _merges(header[_MERGES]) if {a, b, a + b} <= known],
        f"{header['general.architecture']}.vocab_size": len(kept),
    }
    if header.get(_KINDS):
        changed[_KINDS] = [header[_KINDS][n] for n in kept]
    return changed | {key: place.get(value) for key, value in _named(header).items()}


def _named(header: Mapping[str, Any]) -> dict[str, int]:
    """Tokens with a part of their own: what begins a text, ends it, ..."""
    return {
        key: value
        for key, value in header.items()
        if key.startswith("tokenizer.ggml.") and key.endswith("_token_id") and type(value) is int and value >= 0
    }


def _merges(merges: Sequence[str]) -> list[tuple[str, str]]:
    pairs = (merge.split(" ") for merge in merges)
    return [(pair[0], pair[1]) for pair in pairs if len(pair) == 2]
