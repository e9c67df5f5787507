"""GGUF files that say something else than the one they were made of."""

from __future__ import annotations

from pathlib import Path

import gguf


def rewritten(source: Path, target: Path, **changes: object) -> Path:
    """A copy with other metadata. Keys with ``__`` for dots (``tokenizer__ggml__pre``); new ones are written as int."""
    wanted = {key.replace("__", "."): value for key, value in changes.items()}
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, str(reader.fields["general.architecture"].contents()))
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value = wanted.pop(name) if name in wanted else field.contents()
        writer.add_key_value(name, value, field.types[0], field.types[-1] if len(field.types) > 1 else None)
    for name, value in wanted.items():
        writer.add_key_value(name, value, gguf.GGUFValueType.UINT32)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
