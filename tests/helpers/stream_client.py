"""``stream_client.py URL TOKENS SEED ...``: seeded streams at once; prints a JSON list of what came of each. Only the
standard library: it also runs on hosts that have nothing else."""

from __future__ import annotations

import json
import sys
import threading
import time
import urllib.request


def stream(url: str, seed: int, tokens: int) -> dict[str, object]:
    """Text, timings, finish reason or error, and the longest gap between two chunks in seconds."""
    body = {
        "prompt": "def fibonacci(n):\n", "max_tokens": tokens, "temperature": 0.8, "seed": seed, "stream": True,
        "logit_bias": {"0": -100, "2": -100},
    }  # fmt: skip
    found: dict[str, object] = {"seed": seed, "text": "", "gap": 0.0, "error": None, "timings": None}
    last = time.monotonic()
    try:
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=600) as answer:
            for line in answer:
                if not line.startswith(b"data: {"):
                    continue
                now = time.monotonic()
                found["gap"], last = max(float(str(found["gap"])), now - last), now
                chunk = json.loads(line[6:])
                if "error" in chunk:
                    found["error"] = chunk["error"]["message"]
                    continue
                found["text"] = str(found["text"]) + "".join(choice["text"] for choice in chunk["choices"])
                found["timings"] = chunk.get("timings") or found["timings"]
    except OSError as error:
        found["error"] = str(error)
    return found


def main() -> None:
    url, tokens, seeds = sys.argv[1], int(sys.argv[2]), [int(seed) for seed in sys.argv[3:]]
    found: dict[int, dict[str, object]] = {}
    threads = [threading.Thread(target=lambda s=s: found.update({s: stream(url, s, tokens)})) for s in seeds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps([found[seed] for seed in seeds]))


if __name__ == "__main__":
    main()
