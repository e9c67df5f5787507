"""A small fast tokenizer, as transformers saves it."""

from __future__ import annotations

from pathlib import Path

import tokenizers
import transformers


def save_tokenizer(path: Path, size: int = 300, more: tuple[str, ...] = (), **fields: object) -> int:
    """Write one of some ``size`` tokens, ``more`` special ones among them; returns how many it has."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<unk>", "<s>", "</s>", *more],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    )  # fmt: skip
    made.train_from_iterator(["the cat and the hat and the mat"], trainer)
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made, **names, **fields)
    fast.save_pretrained(path)
    return len(fast)
