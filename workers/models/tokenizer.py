"""A model's tokenizer: text to ids, ids to bytes, the tokens that end a text. From GGUF or a transformers directory."""

from __future__ import annotations

import ctypes
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from hetero.workers.errors import ModelError
from hetero.workers.models.deep import with_stack
from hetero.workers.models.vocabulary import Vocabulary

LONGEST_TEXT = 2_000_000  # characters
_SHALLOW = 2_000  # characters that any thread's stack bears
_LEAST_STACK, _CHARACTER = 8 << 20, 512  # bytes of stack, and for each character (some 310 are used)


class Tokenizer(Protocol):
    """What both the gateway and the verifier need of a tokenizer."""

    vocabulary: Vocabulary
    chat_templates: dict[str, str]  # by name: "default", "tool_use", ...
    bos: str
    eos: str

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Ids of a text. ``special``: begin as the model wants a text begun (its BOS token)."""


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a model. Raises ModelError."""
    return HfTokenizer(path) if path.is_dir() else GgufTokenizer(path)


class GgufTokenizer:
    """The tokenizer inside a GGUF file, as llama.cpp runs it; only the vocabulary is loaded."""

    def __init__(self, path: Path) -> None:
        import llama_cpp

        from hetero.workers.models.gguf import open_gguf

        self._lib = llama_cpp
        self._model = open_gguf(path, vocabulary_only=True)
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        count = llama_cpp.llama_vocab_n_tokens(self._vocab)
        ends = frozenset(i for i in range(count) if llama_cpp.llama_vocab_is_eog(self._vocab, i))
        pieces = [self._piece(i, False) for i in range(count)]
        names = {i: name for i, piece in enumerate(pieces) if not piece and (name := self._piece(i, True))}
        self.vocabulary = Vocabulary(pieces, ends, self._plain, names)
        self.chat_templates = _templates(self.meta("tokenizer.chat_template"))
        if (own := self.meta("tokenizer.chat_template.tool_use")) is not None:
            self.chat_templates["tool_use"] = own
        self.bos = self._text(llama_cpp.llama_vocab_bos(self._vocab))
        self.eos = self._text(llama_cpp.llama_vocab_eos(self._vocab))

    def encode(self, text: str, special: bool = True) -> list[int]:
        return self._deeply(text, special, True)

    def _deeply(self, text: str, special: bool, control: bool) -> list[int]:
        """``control``: the names of control tokens are those, not text."""
        if len(text) <= _SHALLOW:
            return self._tokens(text, special, control)
        if len(text) > LONGEST_TEXT:
            raise ModelError(
                f"a text of {len(text)} characters is more than {LONGEST_TEXT}, the most that is tokenized"
            )
        return with_stack(_LEAST_STACK + len(text) * _CHARACTER, lambda: self._tokens(text, special, control))

    def _tokens(self, text: str, special: bool, control: bool) -> list[int]:
        data = text.encode()
        room = 3 * len(data) + 8  # a space may be spelt in three bytes
        buffer = (ctypes.c_int32 * room)()
        count = self._lib.llama_tokenize(self._vocab, data, len(data), buffer, room, special, control)
        if count < 0:
            raise ModelError(f"the tokenizer made {-count} tokens of {len(data)} bytes of text")
        return list(buffer[:count])

    def _plain(self, text: str) -> list[int]:
        return self._deeply(text, False, False)

    def meta(self, key: str) -> str | None:
        """A metadata value of the file, or None."""
        size = 256
        while True:
            buffer = ctypes.create_string_buffer(size)
            length = self._lib.llama_model_meta_val_str(self._model, key.encode(), buffer, size)
            if length < 0:
                return None
            if length < size:
                return buffer.value.decode(errors="replace")
            size = length + 1

    def _piece(self, token: int, special: bool) -> bytes:
        buffer = ctypes.create_string_buffer(256)
        length = self._lib.llama_token_to_piece(self._vocab, token, buffer, 256, 0, special)
        if length < 0:
            buffer = ctypes.create_string_buffer(-length)
            length = self._lib.llama_token_to_piece(self._vocab, token, buffer, -length, 0, special)
        return buffer.raw[:length]

    def _text(self, token: int) -> str:
        return self._piece(token, True).decode(errors="replace") if token >= 0 else ""


class HfTokenizer:
    """A fast tokenizer of a transformers directory (tokenizer.json)."""

    def __init__(self, path: Path) -> None:
        from transformers import AutoTokenizer

        if not (path / "tokenizer.json").is_file():
            raise ModelError(f"{path}: no tokenizer.json; save the model with its fast tokenizer")
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"{path}: the tokenizer cannot be loaded: {error}") from error
        count = len(self._tokenizer)
        kind = json.dumps(json.loads((path / "tokenizer.json").read_text()).get("decoder"))
        special = set(self._tokenizer.all_special_ids)
        tokens: Sequence[str | None] = self._tokenizer.convert_ids_to_tokens(list(range(count)))
        pieces = [b"" if i in special or t is None else _piece_bytes(t, kind) for i, t in enumerate(tokens)]
        names = {i: token.encode() for i in special if i < count and (token := tokens[i])}
        self.vocabulary = Vocabulary(pieces, _ends(path, self._tokenizer.eos_token_id), self._plain, names)
        self.chat_templates = _templates(self._tokenizer.chat_template)
        self.bos = self._tokenizer.bos_token or ""
        self.eos = self._tokenizer.eos_token or ""

    def encode(self, text: str, special: bool = True) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=special)
        return ids

    def _plain(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        return ids


def _ends(path: Path, eos: int | None) -> frozenset[int]:
    """End tokens: the tokenizer's, and those of generation_config.json and config.json."""
    ends = {eos} if eos is not None else set()
    for config in (path / "generation_config.json", path / "config.json"):
        if config.is_file():
            more = json.loads(config.read_text()).get("eos_token_id")
            ends.update(more if isinstance(more, list) else [more])
    return frozenset(end for end in ends if type(end) is int and end >= 0)


def _templates(found: Any) -> dict[str, str]:
    """Chat templates by name, of one text, or of many as transformers reads them."""
    if isinstance(found, str):
        return {"default": found}
    return {str(k): v for k, v in found.items() if isinstance(v, str)} if isinstance(found, dict) else {}


def _byte_table() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes, inverted."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(b): b for b in plain}
    others = (b for b in range(256) if b not in plain)
    table.update({chr(256 + n): b for n, b in enumerate(others)})
    return table


_BYTES = _byte_table()


def _piece_bytes(token: str, decoder: str) -> bytes:
    """Bytes a token stands for, by the kind of its tokenizer's decoder."""
    if "ByteLevel" in decoder:
        if all(c in _BYTES for c in token):
            return bytes(_BYTES[c] for c in token)
        return token.encode()
    if re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", token):
        return bytes([int(token[3:5], 16)])
    return token.replace("▁", " ").encode()
