"""Files that come with hetero: the pair of toy models, a drafter for SmolLM2, the texts that benchmarks measure on,
hardware and models that are only described."""

from __future__ import annotations

from pathlib import Path

PAIR = Path(__file__).parent / "pair"
ADAPTER = Path(__file__).parent / "smollm2" / "adapter.gguf"  # of a drafter of SmolLM2-135M-Instruct: what is not its
HELD_OUT = Path(__file__).parent / "held_out.txt"
PROMPTS = Path(__file__).parent / "prompts.jsonl"  # of several kinds, as Spec-Bench writes them
GALLERY = Path(__file__).parent / "gallery"  # described hardware
SHAPES = Path(__file__).parent / "shapes.yaml"  # models by their sizes
