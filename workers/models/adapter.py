"""What of a drafter is not its target's, and the drafter made whole again beside the target's file.

A drafter by early exit has its target's first layers and embeddings, byte for byte: only the others need to travel.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import gguf

from hetero.workers.errors import ModelError
from hetero.workers.models.cache import cache_root, made_aside
from hetero.workers.models.gguf_writing import as_it_is, header_of, write_gguf
from hetero.workers.models.trimming import trimmed_header

_KEPT, _FIRST, _SIZE = "hetero.adapter.tokens", "hetero.adapter.first", "hetero.adapter.target_bytes"
_EMBEDDING = "token_embd.weight"
_SHARED = ("tokenizer.", "GGUF.")  # of the header


def write_adapter(drafter: Path, target: Path, kept: list[int], first: int, out: Path) -> None:
    """``drafter`` without ``first`` layers and the embedding, which ``target`` has. Raises ModelError where it has
    others."""
    reader, whole = gguf.GGUFReader(drafter), {tensor.name: tensor for tensor in gguf.GGUFReader(target).tensors}
    theirs = [tensor for tensor in reader.tensors if _shared(tensor.name, first)]
    for tensor in theirs:
        rows = kept if tensor.name == _EMBEDDING else None
        if bytes(as_it_is(whole[tensor.name], rows).make()) != bytes(as_it_is(tensor, None).make()):
            raise ModelError(f"{drafter}: {tensor.name} is not that of {target}")
    writer = gguf.GGUFWriter(out, _value(reader, "general.architecture"))
    for name, field in reader.fields.items():
        if not name.startswith(_SHARED) and name != "general.architecture":
            writer.add_key_value(name, field.contents(), field.types[0])
    writer.add_array(_KEPT, kept)
    writer.add_uint32(_FIRST, first)
    writer.add_uint64(_SIZE, target.stat().st_size)
    own = [as_it_is(tensor, None) for tensor in reader.tensors if not _shared(tensor.name, first)]
    for tensor in own:
        data = tensor.make()
        writer.add_tensor(tensor.name, data, raw_dtype=tensor.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def restored(adapter: Path, target: Path) -> Path:
    """The whole drafter's file, made at the first call and kept in the cache. Raises ModelError for a target that is
    another, or where the disk refuses."""
    facts = [(file.stat().st_size, file.stat().st_mtime_ns) for file in (adapter, target)]
    digest = hashlib.blake2b(repr(facts).encode(), digest_size=8).hexdigest()
    folder = cache_root() / "drafters" / f"{adapter.parent.name}-{digest}"
    file = folder / "drafter.gguf"
    if not file.is_file():
        with made_aside(folder) as aside:
            _restore(adapter, target, aside / file.name)
    return file


def _restore(adapter: Path, target: Path, out: Path) -> None:
    own, whole = gguf.GGUFReader(adapter), gguf.GGUFReader(target)
    if _value(own, _SIZE) != target.stat().st_size:
        raise ModelError(f"{target}: not the file that {adapter.name} was made of ({_value(own, _SIZE)} bytes)")
    kept, first = _value(own, _KEPT), _value(own, _FIRST)
    header = header_of(whole)
    changed = trimmed_header(header, kept) if len(kept) < len(header["tokenizer.ggml.tokens"]) else {}
    changed |= {name: field.contents() for name, field in own.fields.items() if name in header and name not in changed}
    tensors = [
        as_it_is(tensor, kept if tensor.name == _EMBEDDING else None)
        for tensor in whole.tensors
        if _shared(tensor.name, first)
    ]
    write_gguf(out, whole, changed, "", [*tensors, *(as_it_is(tensor, None) for tensor in own.tensors)])


def _shared(name: str, first: int) -> bool:
    """Whether a tensor is the target's own."""
    layer = name.removeprefix("blk.").partition(".")[0]
    return name == _EMBEDDING or (name.startswith("blk.") and int(layer) < first)


def _value(reader: gguf.GGUFReader, name: str) -> Any:
    field = reader.fields.get(name)
    if field is None:
        raise ModelError(f"{name} is missing: no drafter's adapter")
    return field.contents()
