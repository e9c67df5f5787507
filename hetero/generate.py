"""``hetero generate``: one completion on the very path of ``serve``, printed as it comes."""

from __future__ import annotations

import secrets
import sys
from contextlib import aclosing
from typing import Any

from rich.console import Console

from hetero.config import Config
from hetero.errors import RequestError
from hetero.gateway.answers.stats import timings
from hetero.gateway.verifiers.sequences import ask
from hetero.placed import Placed
from hetero.serve import announcement, defaults_of
from hetero.session import Session
from hetero.workers.wire.messages import Sampling


async def run(
    prompt: str,
    config: Config,
    found: Placed,
    asked: dict[str, Any],
    console: Console,
) -> None:
    """Print the text to standard output, what it cost to ``console``. Raises HeteroError."""
    plan = found.plan
    tokens = plan.target.model.tokenizer.encode(prompt)
    if not 0 < len(tokens) < plan.context:
        raise RequestError(f"the prompt has {len(tokens)} tokens and the context holds {plan.context}", "prompt")
    seed = asked["seed"] if asked["seed"] is not None else secrets.randbits(63)
    own = defaults_of(config, plan)
    sampling = Sampling(
        own.temperature, own.top_k, own.top_p, own.min_p, seed,
        repetition=own.repetition, repetition_last=own.repetition_last,
    )  # fmt: skip
    for line in announcement(plan):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    session = Session(found, lambda line: console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True))
    try:
        await session.start()
        async with aclosing(session.verifiers.generate(ask(tokens, sampling, asked["max_tokens"]))) as deltas:
            async for delta in deltas:
                sys.stdout.write(delta.text)
                sys.stdout.flush()
                if delta.stats is not None:
                    cost = timings(delta.stats)
                    sys.stdout.write("\n")
                    console.print(
                        f"{cost['predicted_n']} tokens, {cost['predicted_per_second']:.1f} a second, "
                        f"{cost['draft_n_accepted']} of {cost['draft_n']} drafts accepted, "
                        f"{cost['target_forwards_n']} target forwards, seed {seed}",
                        highlight=False,
                    )
    finally:
        await session.stop()
