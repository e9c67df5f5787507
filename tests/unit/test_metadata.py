"""A model's numbers from a GGUF's header, and what becomes of damaged ones."""

from __future__ import annotations

import json

import gguf
import pytest
from helpers.builtin_pair import DRAFTER, TARGET

from hetero.workers.errors import ModelError
from hetero.workers.models.gguf_header import read_header
from hetero.workers.models.metadata import read_metadata


@pytest.mark.parametrize("path", [TARGET, DRAFTER])
def test_the_header_says_what_the_gguf_package_reads(path):
    ours, theirs = read_header(path), gguf.GGUFReader(path).fields
    assert {name for name in theirs if not name.startswith("GGUF.")} == ours.keys()
    for name, value in ours.items():
        want = theirs[name].contents()
        if isinstance(want, list) and want and isinstance(want[0], str):
            assert value == len(want)
        else:
            assert value == pytest.approx(want) if isinstance(want, list | float) else value == want


def test_a_models_numbers():
    found = read_metadata(TARGET)
    assert (found.family, found.layers, found.width, found.heads, found.kv_heads) == ("llama", 10, 256, 4, 2)
    assert (found.vocabulary, found.context, found.quantisation, found.missing) == (4096, 2048, "F16", ())
    assert found.epsilon == pytest.approx(1e-5)


def test_what_a_file_does_not_tell_is_named(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "bare.gguf", "llama")
    writer.add_block_count(2)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.close):
        write()
    found = read_metadata(tmp_path / "bare.gguf")
    assert found.layers == 2 and "attention.head_count" in found.missing and "block_count" not in found.missing


def test_damaged_headers_are_one_line(tmp_path):
    """Every prefix of a header, and 400 single changed bytes: a ModelError or a Metadata, never anything else."""
    data = TARGET.read_bytes()[:70_000]
    file = tmp_path / "damaged.gguf"
    for n in range(400):
        at = (n * 7919) % 2000
        changed = bytearray(data)
        changed[at] ^= 1 << n % 8
        for content in (data[: 5 + n * 3], bytes(changed)):
            file.write_bytes(content)
            try:
                read_metadata(file)
            except ModelError as error:
                assert "\n" not in str(error)


def test_large_rotary_bases_are_read_and_odd_values_are_told(tmp_path):
    config = {
        "model_type": "llama", "num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 2, "vocab_size": 9,
        "intermediate_size": 64, "rope_theta": 3580165449.0, "rms_norm_eps": "much",
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "a.safetensors").touch()
    found = read_metadata(tmp_path)
    assert found.theta == 3580165449.0 and found.missing == ("rms_norm_eps",)
