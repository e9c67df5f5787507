"""What an answer cost, as clients are told: OpenAI's usage, llama.cpp's timings, our own words on speculation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hetero.gateway.answers.choice import Choice
from hetero.workers.wire.messages import Round, Stats


def usage(prompts: Sequence[int], stats: Sequence[Stats], choices: Sequence[Choice]) -> dict[str, Any]:
    """OpenAI's token counts: a prompt counts once, however many choices it has."""
    completion = sum(choice.tokens for choice in choices)
    return {
        "prompt_tokens": sum(prompts),
        "completion_tokens": completion,
        "total_tokens": sum(prompts) + completion,
        "prompt_tokens_details": {"cached_tokens": min(sum(one.cached_n for one in stats), sum(prompts))},
        "completion_tokens_details": {"reasoning_tokens": sum(choice.reasoning_tokens for choice in choices)},
    }


def merged(stats: Sequence[Stats]) -> Stats:
    """The counts of several choices together; they ran side by side, so times are the longest one's."""
    if len(stats) == 1:
        return stats[0]
    longest = max((len(one.accepted_at) for one in stats), default=0)
    counts = {
        name: sum(getattr(one, name) for one in stats)
        for name in Stats.__struct_fields__
        if name.endswith("_n") or name == "draft_n_accepted"
    }
    times = {name: max(getattr(one, name) for one in stats) for name in Stats.__struct_fields__ if name.endswith("_ms")}
    places = [sum(one.accepted_at[n] for one in stats if n < len(one.accepted_at)) for n in range(longest)]
    names = {name for one in stats for name in one.sources}
    both = [{name: sum(one.sources.get(name, (0, 0))[n] for one in stats) for name in names} for n in (0, 1)]
    sources = {name: (both[0][name], both[1][name]) for name in names}
    return Stats(**counts, **times, accepted_at=places, sources=sources)


def timings(stats: Stats) -> dict[str, Any]:
    """llama.cpp's timings, and the number of target forwards."""

    def rate(count: int, milliseconds: float) -> float:
        return round(1e3 * count / milliseconds, 3) if milliseconds > 0 else 0.0

    evaluated = stats.prompt_n - stats.cached_n
    return {
        "cache_n": stats.cached_n,
        "prompt_n": evaluated,
        "prompt_ms": round(stats.prompt_ms, 3),
        "prompt_per_second": rate(evaluated, stats.prompt_ms),
        "predicted_n": stats.predicted_n,
        "predicted_ms": round(stats.predicted_ms, 3),
        "predicted_per_second": rate(stats.predicted_n - stats.resumed_n, stats.predicted_ms),
        "plain_per_second": rate(1, stats.plain_token_ms),
        "draft_n": stats.draft_n,
        "draft_n_accepted": stats.draft_n_accepted,
        "draft_sources": {name: {"n": n, "accepted": hits} for name, (n, hits) in sorted(stats.sources.items())},
        "draft_wait_ms": round(stats.waited_ms, 3),
        "target_forwards_n": stats.forwards_n,
        "speculation": _speculation(stats),
    }


def window(found: Round, tokens: int) -> dict[str, Any]:
    """What a chunk tells of the window that brought its ``tokens``."""
    return {
        "tokens": tokens,
        "drafted": found.drafted,
        "accepted": found.accepted,
        "forward_ms": round(found.forward_ms, 3),
        "waited_ms": round(found.waited_ms, 3),
        "draft_ms": round(found.draft_ms, 3),
    }


def _speculation(stats: Stats) -> str:
    """One line on whether drafts were used, and why not where they were not."""
    decided = stats.predicted_n - stats.resumed_n
    if stats.alone_n and stats.alone_n >= decided:
        return "off: no drafter"
    why = []
    if stats.alone_n:
        why.append(f"off for {stats.alone_n} of {stats.predicted_n} tokens: no drafter")
    if stats.plain_n:
        why.append(f"off for {stats.plain_n} of {stats.predicted_n} tokens: it was slower than plain decoding")
    return "; ".join(why) or ("on" if stats.draft_n else "off")
