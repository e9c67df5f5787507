"""What a model's files say of templates, ends and sampling, and how a server takes it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import gguf
import pytest
from helpers.builtin_pair import TARGET
from helpers.small_tokenizer import save_tokenizer

from hetero.workers.models.generation import SamplingDefaults, sampling_defaults
from hetero.workers.models.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    """A tokenizer's files, with a list of named templates."""
    path = tmp_path_factory.mktemp("named")
    save_tokenizer(path, 280, ("<|eot|>",))
    config = json.loads((path / "tokenizer_config.json").read_text())
    config["chat_template"] = [
        {"name": "default", "template": "plain {{ messages[0].content }}"},
        {"name": "tool_use", "template": "tools {{ messages[0].content }}"},
    ]
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


def test_a_list_of_named_templates(directory):
    found = load_tokenizer(directory).chat_templates
    assert found["default"].startswith("plain") and found["tool_use"].startswith("tools")


@pytest.mark.parametrize(
    "file, said, ends",
    [("config.json", [2, 3], {2, 3}), ("generation_config.json", 3, {2, 3}), ("config.json", "x", {2})],
)
def test_every_end_there_is_ends_a_text(directory, tmp_path, file, said, ends):
    there = shutil.copytree(directory, tmp_path / "copy")
    (there / file).write_text(json.dumps({"eos_token_id": said}))
    assert load_tokenizer(there).vocabulary.ends == ends


@pytest.mark.parametrize(
    "said, found",
    [
        (None, SamplingDefaults()),
        ({}, SamplingDefaults()),
        ({"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0}, SamplingDefaults(0.6, 20, 0.95, 0.0)),
        ({"temperature": 1, "repetition_penalty": 1.05, "do_sample": True}, SamplingDefaults(1.0, repetition=1.05)),
        ({"temperature": -1, "top_k": "many", "top_p": 7, "repetition_penalty": 0}, SamplingDefaults()),
        ([1], SamplingDefaults()),
    ],
)
def test_sampling_as_a_directory_says(tmp_path, said, found):
    if said is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(said))
    assert sampling_defaults(tmp_path) == found


def test_sampling_as_a_gguf_file_says(tmp_path):
    assert sampling_defaults(TARGET) == SamplingDefaults()
    writer = gguf.GGUFWriter(tmp_path / "own.gguf", "llama")
    writer.add_float32("general.sampling.temp", 0.25)
    writer.add_int32("general.sampling.top_k", 7)
    writer.add_float32("general.sampling.penalty_repeat", 1.5)
    writer.add_int32("general.sampling.penalty_last_n", 32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    own = sampling_defaults(tmp_path / "own.gguf")
    assert own == SamplingDefaults(0.25, 7, repetition=1.5, repetition_last=32)
