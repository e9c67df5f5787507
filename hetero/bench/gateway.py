"""The gateway alone: what streams cost it, with a stand-in for the verifier that sends words at a pace.

Idle streams were asked for and hear nothing yet; busy ones get a token at a steady pace; all are HTTP clients of the
real application, over the loopback. The stand-in speaks the verifiers' wire with their keys (``gateway_parts``), and
each word it sends is the time it was sent at.
"""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from hetero.bench.gateway_parts import BUSY, Parts
from hetero.bench.report import report
from hetero.errors import ConfigError, HeteroError
from hetero.gateway.door import connections

_WARM = 3.0  # seconds before anything is counted
_AT_ONCE, _APART = 25, 0.05  # clients that come together, and seconds to the next ones


@dataclass
class _Stream:
    """A client's end. ``first``: seconds from its request to its first token; ``came``: when each token came, and how
    long it had been under way; ``whole``: it was told of its end."""

    first: float = 0.0
    came: list[tuple[float, float]] = field(default_factory=list)
    whole: bool = False
    trouble: str = ""


def run(
    idle: int, busy: list[int], pace: float, seconds: float, gateways: int, json_file: Path | None, console: Console
) -> None:
    """Print a row for each number of ``busy`` streams beside ``idle`` ones; a busy one gets ``pace`` tokens a second,
    for ``seconds``. Raises HeteroError where a stream is refused."""
    most = connections.most_connections()  # a client is a file here, too
    if idle + max(busy) > most:
        raise ConfigError(f"idle: {idle} and {max(busy)} busy streams, and {most} connections are the most here")
    rows = []
    for count in busy:
        with console.status(f"{count} busy streams beside {idle} idle ones"), Parts(pace, gateways) as parts:
            rows.append(asyncio.run(_measured(parts, idle, count, seconds)))
    report("gateway", rows, json_file, console)


async def _measured(parts: Parts, idle: int, busy: int, seconds: float) -> dict[str, Any]:
    streams = [_Stream() for _ in range(idle + busy)]
    tasks: list[asyncio.Task[None]] = []

    async def come(first: int, last: int, seed: int) -> None:
        for n in range(first, last):
            tasks.append(asyncio.create_task(_listen(streams[n], parts.ports[n % len(parts.ports)], seed)))
            if n % _AT_ONCE == 0:
                await asyncio.sleep(_APART)
        while await asyncio.to_thread(parts.open) < last:
            if trouble := next((stream.trouble for stream in streams if stream.trouble), ""):
                raise HeteroError(f"a stream was not taken: {trouble}")
            await asyncio.sleep(0.2)

    bare = parts.memory()
    await come(0, idle, 0)
    resting = parts.memory()
    cpu, began = parts.cpu(), time.monotonic()
    await asyncio.sleep(_WARM)
    at_rest = (parts.cpu() - cpu) / (time.monotonic() - began)
    await come(idle, idle + busy, BUSY)
    await asyncio.sleep(_WARM)
    cpu, began = parts.cpu(), time.monotonic()
    await asyncio.sleep(seconds)
    spent, end = parts.cpu() - cpu, time.monotonic()
    full = parts.memory()
    sent = await asyncio.to_thread(parts.end)
    await asyncio.wait(tasks, timeout=120)
    came = [lag for stream in streams for at, lag in stream.came if began <= at <= end]
    firsts = [stream.first for stream in streams[idle:]]
    return {
        "idle": idle,
        "busy": busy,
        "gateways": len(parts.ports),
        "KiB/idle stream": (resting - bare) / 1024 / idle if idle else 0.0,
        "KiB/busy stream": (full - resting) / 1024 / busy,
        "% core at rest": 100 * at_rest,
        "% core": 100 * spent / (end - began),
        "us/token": 1e6 * spent / max(1, len(came)),
        "tokens/s": len(came) / (end - began),
        "first p50 ms": 1e3 * float(np.quantile(firsts, 0.5)),
        "first p99 ms": 1e3 * float(np.quantile(firsts, 0.99)),
        "p50 ms": 1e3 * float(np.quantile(came, 0.5)) if came else 0.0,
        "p99 ms": 1e3 * float(np.quantile(came, 0.99)) if came else 0.0,
        "lost": sent - sum(len(stream.came) for stream in streams) + sum(not stream.whole for stream in streams),
    }


async def _listen(stream: _Stream, port: int, seed: int) -> None:
    """Ask for a stream, and note when its tokens come."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        body = json.dumps({"prompt": "once", "max_tokens": 2000, "seed": seed, "stream": True}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
        began = time.monotonic()
        writer.write(head.encode() + body)
        status = await reader.readline()
        if b" 200 " not in status:
            stream.trouble = (await reader.read(4096)).decode(errors="replace")[-200:] or "it was hung up on"
            return
        while line := await reader.readline():
            if line.startswith(b"data: [DONE]"):
                stream.whole = True
                break
            _, found, text = line.partition(b'"text":"')
            if found and text[:1].isdigit():
                now = time.monotonic()
                stream.first = stream.first or now - began
                stream.came += [(now, now - float(word)) for word in text.partition(b'"')[0].split()]
        writer.close()
    except OSError as error:
        stream.trouble = stream.trouble or str(error)
    finally:
        with suppress(UnboundLocalError):
            writer.transport.abort()
