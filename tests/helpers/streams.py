"""Several streams at once, and what happens while they run."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx

from helpers.builtin_pair import PROMPTS
from helpers.running_server import RunningServer


def from_drafter(timings: dict) -> int:
    """Draft tokens of the drafter that were accepted; what was looked up does not count."""
    return timings["draft_sources"].get("drafter", {"accepted": 0})["accepted"]


def streams(
    server: RunningServer,
    max_tokens: int,
    seeds: list[int],
    meanwhile=None,
    headers: dict[str, str] | None = None,
    **fields: object,
) -> list[tuple[str, dict]]:
    """All prompts at once, streamed; texts and last chunks. ``meanwhile`` runs when all have begun."""
    begun = [threading.Event() for _ in seeds]

    def one(n: int) -> tuple[str, dict]:
        text, last = "", {}
        body = {
            "prompt": PROMPTS[n % 4],
            "max_tokens": max_tokens,
            "seed": seeds[n],
            "temperature": 0.8,
            "stream": True,
            **fields,
        }
        url = f"{server.url}/v1/completions"
        with httpx.stream("POST", url, json=body, headers=headers, timeout=120) as answer:
            for line in answer.iter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line[6:])
                assert "error" not in chunk, chunk
                text += chunk["choices"][0]["text"]
                last = chunk
                if len(text) > 40:
                    begun[n].set()
        begun[n].set()
        return text, last

    with ThreadPoolExecutor(len(seeds)) as pool:
        found = [pool.submit(one, n) for n in range(len(seeds))]
        if meanwhile is not None:
            for event in begun:
                assert event.wait(60)
            meanwhile()
        return [future.result() for future in found]
