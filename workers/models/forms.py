"""The forms models come in."""

from __future__ import annotations

GGUF, SAFETENSORS, HEAD, NEXT_TOKEN = "GGUF", "safetensors", "head", "next-token layers"
HEADS = (HEAD, NEXT_TOKEN)  # of a target, from whose states they draft
