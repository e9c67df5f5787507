"""What the verifier is told of an answer's reasoning: where a grammar begins, and when it must end."""

from __future__ import annotations

from collections.abc import Callable

from hetero.gateway.chat.formats import Format
from hetero.workers.wire.messages import Thinking


def thinking_of(form: Format, opened: bool, budget: int | None, encode: Callable[[str], list[int]]) -> Thinking | None:
    """None for a model that does not reason. ``opened``: the prompt ends within reasoning; ``budget``: most tokens of
    it."""
    end = form.end_of_thinking()
    if not end:
        return None
    closing = encode(form.closing())[:64] if budget is not None else []
    limit = -1 if budget is None or not closing else budget
    return Thinking(end, form.begin, opened or form.harmony, limit, closing)
