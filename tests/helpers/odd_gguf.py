"""GGUF files that say something else than the one they were made of."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import gguf


def other_vocabulary(source: Path, target: Path, order: Sequence[int], renamed: Collection[int] = ()) -> Path:
    """A copy whose token n is ``order[n]`` of the source (of tied embeddings), those ``renamed`` under another text."""
    fields = gguf.GGUFReader(source).fields
    tokens, kinds = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "token_type"))
    ends = {
        f"tokenizer__ggml__{name}_token_id": order.index(fields[f"tokenizer.ggml.{name}_token_id"].contents())
        for name in ("bos", "eos")
    }
    return rewritten(
        source,
        target,
        {"token_embd.weight": order},
        tokenizer__ggml__tokens=[f"~{old}~" if old in renamed else tokens[old] for old in order],
        tokenizer__ggml__token_type=[kinds[old] for old in order],
        **ends,
    )


def rewritten(
    source: Path,
    target: Path,
    rows: Mapping[str, Sequence[int]] | None = None,
    left_out: Collection[str] = (),
    /,
    **changes: object,
) -> Path:
    """A copy with other metadata. Keys with ``__`` for dots (``tokenizer__ggml__pre``); new ones are written as int.
    ``rows``: of tensors by their names, which of the source's, in which order; some are ``left_out``."""
    wanted = {key.replace("__", "."): value for key, value in changes.items()}
    reader = gguf.GGUFReader(source)
    architecture = wanted.pop("general.architecture", reader.fields["general.architecture"].contents())
    writer = gguf.GGUFWriter(target, str(architecture))
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value = wanted.pop(name) if name in wanted else field.contents()
        writer.add_key_value(name, value, field.types[0], field.types[-1] if len(field.types) > 1 else None)
    for name, value in wanted.items():
        writer.add_key_value(name, value, gguf.GGUFValueType.UINT32)
    for tensor in reader.tensors:
        if tensor.name in left_out:
            continue
        data = tensor.data[list(rows[tensor.name])] if rows and tensor.name in rows else tensor.data
        writer.add_tensor(tensor.name, data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
