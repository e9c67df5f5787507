"""The forms models come in."""

from __future__ import annotations

GGUF, SAFETENSORS, HEAD = "GGUF", "safetensors", "head"
