"""No text crashes tokenization: llama.cpp recurses by character in the pre-tokenizers of many families."""

from __future__ import annotations

import subprocess
import sys

import pytest
from helpers.builtin_pair import TARGET
from helpers.odd_gguf import rewritten

from hetero.workers.errors import ModelError
from hetero.workers.models.deep import with_stack
from hetero.workers.models.tokenizer import LONGEST_TEXT, load_tokenizer

_CODE = """
import sys
from pathlib import Path
from hetero.workers.models.tokenizer import load_tokenizer
found = load_tokenizer(Path(sys.argv[1]))
for text in ("a" * 300_000, "\u00e4" * 100_000, " " * 100_000, "1" * 100_000, "a b" * 50_000):
    tokens = found.encode(text, False)
    assert b"".join(found.vocabulary.pieces[token] for token in tokens).decode() == text
print("well")
"""


@pytest.mark.long
@pytest.mark.parametrize("family", ["default", "tekken", "gpt-4o", "deepseek-llm", "falcon", "bloom", "llama-bpe"])
def test_long_words_of_every_kind(tmp_path, family):
    odd = rewritten(TARGET, tmp_path / "odd.gguf", tokenizer__ggml__pre=family)
    done = subprocess.run([sys.executable, "-P", "-c", _CODE, str(odd)], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "well", (done.returncode, done.stderr[-300:])


def test_a_deep_stack_changes_no_token():
    found = load_tokenizer(TARGET)
    for text in ("def f(x):\n    return x\n" * 400, "x" * 5000):
        assert found.encode(text) == found._tokens(text, True, True)


def test_texts_beyond_all_measure_are_refused():
    with pytest.raises(ModelError, match="is more than"):
        load_tokenizer(TARGET).encode("a" * (LONGEST_TEXT + 1))


def test_what_a_deep_call_raises_comes_back():
    assert with_stack(1 << 26, lambda: 5) == 5
    with pytest.raises(ZeroDivisionError):
        with_stack(1 << 26, lambda: 1 // 0)
