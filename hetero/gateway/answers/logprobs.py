"""Logprobs as OpenAI's chats have them, and others after them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hetero.gateway.answers.choice import Choice
from hetero.workers.wire.messages import Logprob


def logprob_shape(choice: Choice, found: Sequence[Logprob], ids: bool = False) -> list[dict[str, Any]]:
    """Each token with its bytes, its logprob and the likeliest ones; ``ids``: with the tokens' numbers."""

    def token(number: int, value: float) -> dict[str, Any]:
        piece = choice.vocabulary.named(number)
        own = {"id": number} if ids else {}
        return {**own, "token": piece.decode(errors="replace"), "logprob": value, "bytes": list(piece)}

    return [{**token(entry.token, entry.value), "top_logprobs": [token(*top) for top in entry.top]} for entry in found]
