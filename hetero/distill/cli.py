"""``hetero distill`` as a command."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from pathlib import Path

import click
from rich.console import Console


@click.command()
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--target", required=True, metavar="MODEL", help="A GGUF file, or 'builtin'.")
@click.option("--data", multiple=True, metavar="FILE|DIR", help="Prompts (.jsonl) or texts; repeatable. "
              "Default: what the target asks itself.")  # fmt: skip
@click.option(
    "--minutes",
    default=90.0,
    show_default=True,
    type=click.FloatRange(0.1, 100_000),
    help="Of writing and of learning.",
)
@click.option(
    "--kind",
    "student",
    default="",
    help="small: some of the target's layers; exit: the last behind "
    "first; eagle, dgf: a head that drafts from the target's states. Default: small, with --exit: exit.",
)
@click.option("--layers", default=0, type=click.IntRange(0, 1024),
              help="Of the target's that learn. Default: 3, of a head 1.")  # fmt: skip
@click.option("--exit", "exit_", default=0, show_default=True, type=click.IntRange(0, 1024),
              help="So many of the target's first layers stand before them as they are.")  # fmt: skip
@click.option("--vocabulary", default=12288, show_default=True, type=click.IntRange(0, 1 << 22),
              help="Tokens it can propose, the most used; 0: all.")  # fmt: skip
@click.option("--loss", default="mixed", show_default=True, help="mixed, kl, reverse, js or tv.")
@click.option("--type", "kind", default="q8_0", show_default=True,
              type=click.Choice(["f16", "q8_0", "q5_1", "q4_1", "q4_0"]),
              help="Of a GGUF file's numbers; a head is a directory of safetensors, in f16.")  # fmt: skip
@click.option("--engine", default="", help="That runs the target. Default: as in serve.")
@click.option("--threads", default=0, type=click.IntRange(0, 1024), help="Default: as many as there are cores.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, (1 << 31) - 1))
@click.option("--foresee/--no-foresee", default=True, show_default=True, help="Say what the pair would do here.")
def distill(
    out: Path, target: str, data: tuple[str, ...], minutes: float, student: str, layers: int, exit_: int,
    vocabulary: int, loss: str, kind: str, engine: str, threads: int, seed: int, foresee: bool,
) -> None:  # fmt: skip
    """Make a drafter for a target, in OUT. Ctrl-C ends it early, with the best so far; the same line goes on."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # transformers' own bars: ours says it all
    from hetero.distill.distill import run
    from hetero.distill.making import Order
    from hetero.distill.recipe import Recipe

    of = student or ("exit" if exit_ else "small")
    recipe = Recipe(target, list(data), of, layers, exit_, vocabulary, loss, kind, seed)
    command = shlex.join(["hetero", *sys.argv[1:]])
    asked: list[int] = []

    def stop(number: int, frame: object) -> None:
        if asked:  # a second time: at once
            signal.default_int_handler(number, None)
        asked.append(number)

    before = signal.signal(signal.SIGINT, stop)
    try:
        run(
            Order(recipe, minutes, threads or os.cpu_count() or 1, engine, command, foresee),
            out,
            Console(),
            lambda: bool(asked),
        )
    finally:
        signal.signal(signal.SIGINT, before)


@click.command()
@click.argument("source", metavar="DRAFTER")
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--vocabulary", default=16384, show_default=True, type=click.IntRange(1024, 1 << 22),
              help="Tokens that stay, about.")  # fmt: skip
@click.option("--minutes", default=2.0, show_default=True, type=click.FloatRange(0.05, 1000),
              help="It writes, to see which those are.")  # fmt: skip
@click.option("--threads", default=0, type=click.IntRange(0, 1024), help="Default: as many as there are cores.")
def trim(source: str, out: Path, vocabulary: int, minutes: float, threads: int) -> None:
    """Cut a drafter (a GGUF file) to the tokens it uses most, in OUT: less to read for each draft token."""
    from hetero.distill.trim import run

    run(source, out, vocabulary, minutes, threads or os.cpu_count() or 1, Console())
