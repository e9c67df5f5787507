"""``hetero bench``: one command a benchmark."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from hetero.workers.decoding.policy.strategy import NAMES


@click.group()
def bench() -> None:
    """Measure. Each command prints a table, takes --json FILE, and ends with the machine it ran on."""


@bench.command()
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures here.")
@click.option("--rounds", default=400, show_default=True, type=click.IntRange(20), help="Rounds per cell.")
def overhead(json_file: Path | None, rounds: int) -> None:
    """Time a round spends outside the engines, with engines of zero latency."""
    from hetero.bench.overhead import run

    run(rounds, json_file, Console())


@bench.command()
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures here.")
@click.option("--size", "sizes", multiple=True, help="9M, 240M or 1B, inflated; repeatable. Default: 240M.")
@click.option("--model", "models", multiple=True, type=click.Path(exists=True, dir_okay=False),
              help="A GGUF file as it is, by every engine that runs it; repeatable.")  # fmt: skip
@click.option("--threads", multiple=True, type=click.IntRange(1), default=(1, 2), show_default=True)
@click.option("--depth", "depths", multiple=True, type=click.IntRange(1), default=(256,), show_default=True,
              help="Tokens in the cache while rows are checked.")  # fmt: skip
@click.option(
    "--kv-cache", "caches", multiple=True, type=click.Choice(["f16", "q8_0"]), default=("f16",), show_default=True
)
@click.option("--busy", default=0, show_default=True, type=click.IntRange(0, 256),
              help="Other processes that want the cores meanwhile.")  # fmt: skip
@click.option("--repeats", default=9, show_default=True, type=click.IntRange(1))
def engines(
    json_file: Path | None, sizes: tuple[str, ...], models: tuple[str, ...], threads: tuple[int, ...],
    depths: tuple[int, ...], caches: tuple[str, ...], busy: int, repeats: int,
) -> None:  # fmt: skip
    """T(n), the time to check n rows, prefill, perplexity and memory: octet against llama.cpp on the same file, with
    the floor."""
    from hetero.bench.engines import run

    asked = sizes or (() if models else ("240M",))
    run([*asked, *models], list(threads), list(depths), list(caches), busy, repeats, json_file, Console())


@bench.command()
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures here.")
@click.option("--draft", default="draft-50M", show_default=True, help="A model, or draft-1M or draft-50M.")
@click.option("--device", default="cpu:0", show_default=True, help="As in serve, on this machine.")
@click.option("--repeats", default=30, show_default=True, type=click.IntRange(1))
def drafter(json_file: Path | None, draft: str, device: str, repeats: int) -> None:
    """A drafter's forwards of n rows on a device, by engine; on an NVIDIA or AMD GPU with CUDA graphs and without."""
    from hetero.bench.drafter import run

    run(draft, device, repeats, json_file, Console())


@bench.command()
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures here.")
@click.option("--size", default="240M", show_default=True, help="Target: 9M, 240M or 1B, as Q8_0 and Q4_0.")
@click.option("--target", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="A GGUF file as the target instead; then --draft is one, too.")  # fmt: skip
@click.option("--draft", default="draft-50M", show_default=True, help="Drafter: draft-1M, draft-50M or a GGUF file.")
@click.option("--server", "servers", multiple=True, metavar="NAME=COMMAND",
              help="A llama-server to measure beside; {draft} in it: the drafter's file. Repeatable.")  # fmt: skip
@click.option("--cores", default=2, show_default=True, type=click.IntRange(1), help="Cores all contenders have.")
@click.option("--gamma", "gammas", multiple=True, type=click.IntRange(1, 63), default=(4, 7), show_default=True)
@click.option("--prompts", default=6, show_default=True, type=click.IntRange(1))
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(1))
def pair(
    json_file: Path | None, size: str, target: Path | None, draft: str, servers: tuple[str, ...], cores: int,
    gammas: tuple[int, ...], prompts: int, repeats: int,
) -> None:  # fmt: skip
    """End to end: hetero against llama.cpp alone and with its draft loop, same target, same cores, one run."""
    from hetero.bench.pair import files_of, run

    commands = {name: shlex.split(command) for name, _, command in (server.partition("=") for server in servers)}
    for name, command in commands.items():
        if not command or not Path(command[0]).is_file():
            raise click.UsageError(f"--server {name}: write NAME=COMMAND, which begins with a llama-server's file")
    files = files_of(size, target, draft)
    run(files, commands, list(range(cores)), list(gammas), prompts, repeats, json_file, Console())


@bench.command()
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures here.")
@click.option("--pair", type=click.Choice(["smollm2", "smollm2-1B"]),
              help="SmolLM2 (as it is, or inflated) and the drafter that comes with hetero.")  # fmt: skip
@click.option("--target", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="A GGUF file with a chat template.")  # fmt: skip
@click.option("--draft", type=click.Path(exists=True, path_type=Path),
              help="A drafter's file, a head, or next-token layers; of a --pair: of its smaller target.")  # fmt: skip
@click.option("--engine", default="octet", show_default=True)
@click.option("--strategy", "strategies", multiple=True, default=("ahead",), show_default=True,
              type=click.Choice([n for n in NAMES if n != "off"]), help="Of the drafter; repeatable.")  # fmt: skip
@click.option("--gamma", default=0, show_default=True, type=click.IntRange(0, 63))
@click.option("--cores", default=2, show_default=True, type=click.IntRange(1), help="Cores all contenders have.")
@click.option("--temperature", "temperatures", multiple=True, type=float, default=(0.0, 0.8), show_default=True)
@click.option("--prompts", default=10, show_default=True, type=click.IntRange(1), help="Of each kind.")
@click.option("--repeats", default=1, show_default=True, type=click.IntRange(1))
@click.option("--peers/--no-peers", default=True, help="llama.cpp takes part (it does).")
def drafts(
    json_file: Path | None, pair: str | None, target: Path | None, draft: Path | None, engine: str,
    strategies: tuple[str, ...], gamma: int, cores: int, temperatures: tuple[float, ...], prompts: int, repeats: int,
    peers: bool,
) -> None:  # fmt: skip
    """Where drafts come from: lookup, a drafter, both, llama.cpp's ways; on chats, edits, summaries, extractions."""
    from hetero.bench.drafts import run
    from hetero.bench.sizes import PAIRS, head_for, sized
    from hetero.workers.models.head import is_head

    if (pair is None) == (target is None):
        raise click.UsageError("name either a --pair or a --target")
    if pair is not None:
        size, usual = PAIRS[pair]
        target = sized(size, "q4_1")
        if draft is None:
            draft = sized(usual, "q4_1")
        elif is_head(draft):
            draft = head_for(draft, size)
    assert target is not None
    run(
        target, draft, engine, strategies, gamma, list(range(cores)), temperatures, prompts, repeats, peers, json_file,
        Console(),
    )  # fmt: skip


@bench.command()
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures here.")
def box(json_file: Path | None) -> None:
    """A box of eight GPUs, simulated: layer-parallel drafts beside a drafter on a GPU of its own."""
    from hetero.bench.box import run

    run(json_file, Console())


@bench.command("layer-parallel")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures here.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Draw the agreement here (.svg or .png).")
@click.option("--model", "models", multiple=True, default=("builtin",), show_default=True,
              help="A model, as serve's --draft; repeatable.")  # fmt: skip
@click.option("--group", "sizes", multiple=True, type=click.IntRange(1, 64), default=(2, 3, 4, 5), show_default=True,
              help="Layers whose attentions run at once; repeatable.")  # fmt: skip
@click.option("--tokens", default=600, show_default=True, type=click.IntRange(80, 8192), help="Of the text.")
@click.option("--repeats", default=20, show_default=True, type=click.IntRange(3))
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1))
def layer_parallel(
    json_file: Path | None, plot: Path | None, models: tuple[str, ...], sizes: tuple[int, ...], tokens: int,
    repeats: int, threads: int,
) -> None:  # fmt: skip
    """Layer-parallel guesses (EasySpec): how often they are right, and what they cost, by the size of a group."""
    from hetero.bench.layer_parallel import run

    run(models, sizes, tokens, repeats, threads, json_file, plot, Console())


@bench.command()
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures here.")
@click.option("--pair", "pairs", multiple=True, nargs=2, default=(("builtin", "builtin"),), show_default=True,
              metavar="TARGET DRAFTER", help="Models, as in serve; repeatable.")  # fmt: skip
@click.option("--tokens", default=128, show_default=True, type=click.IntRange(8))
@click.option("--prompts", default=4, show_default=True, type=click.IntRange(1))
@click.option("--repeats", default=2, show_default=True, type=click.IntRange(1))
@click.option("--streams", default=2, show_default=True, type=click.IntRange(1, 64), help="Also so many at once.")
@click.option("--most", default=12, show_default=True, type=click.IntRange(1), help="Plans to run, the best first.")
def plans(
    json_file: Path | None, pairs: tuple[tuple[str, str], ...], tokens: int, prompts: int, repeats: int, streams: int,
    most: int,
) -> None:  # fmt: skip
    """What `hetero plan` foresees of each plan, against what it does."""
    from hetero.bench.plans import Settings, run

    run(pairs, Settings(tokens, prompts, repeats, streams, most), json_file, Console())


@bench.command()
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures here.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Draw them here (.svg or .png).")
@click.option("--target", default="1B", show_default=True, help="A model, or an inflated one: 9M, 240M, 1B.")
@click.option("--draft", default="draft-50M", show_default=True, help="A model, or draft-1M or draft-50M.")
@click.option("--engine", default="octet", show_default=True, help="Engine of both roles.")
@click.option(
    "--strategy", "strategies", multiple=True, default=("serial", "pearl", "mirror", "ahead"), show_default=True
)
@click.option("--gamma", default=0, type=click.IntRange(0, 63), help="As in serve.")
@click.option("--prompts", "source", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="Spec-Bench's question.jsonl, or text in paragraphs. Default: built-in.")  # fmt: skip
@click.option("--count", default=6, show_default=True, type=click.IntRange(1), help="Prompts per category.")
@click.option("--tokens", default=160, show_default=True, type=click.IntRange(8), help="Output tokens per prompt.")
@click.option("--temperature", default=0.8, show_default=True, type=click.FloatRange(0, 100))
@click.option("--streams", default=1, show_default=True, type=click.IntRange(1, 64), help="Sequences at once.")
@click.option("--repeats", default=2, show_default=True, type=click.IntRange(1))
@click.option("--cores", default=2, show_default=True, type=click.IntRange(1), help="Cores the pair has.")
def speed(
    json_file: Path | None, plot: Path | None, source: Path | None, count: int, strategies: tuple[str, ...], cores: int,
    **values: Any,
) -> None:  # fmt: skip
    """Strategies for real: plain decoding and each strategy over the same prompts, interleaved."""
    from hetero.bench.speed import Settings, run

    run(Settings(strategies=strategies, cores=list(range(cores)), **values), source, count, json_file, plot, Console())


@bench.command()
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures here.")
@click.option("--target", default="240M", show_default=True, help="A model, or an inflated one: 9M, 240M, 1B.")
@click.option("--draft", default="draft-50M", show_default=True, help="A model, or draft-1M or draft-50M.")
@click.option("--engine", default="octet", show_default=True, help="Engine of both roles.")
@click.option("--turns", default=10, show_default=True, type=click.IntRange(2))
@click.option("--message", default=60, show_default=True, type=click.IntRange(1), help="Tokens a user says a turn.")
@click.option("--answer", default=80, show_default=True, type=click.IntRange(2), help="Tokens of an answer.")
@click.option("--cores", default=2, show_default=True, type=click.IntRange(1), help="Cores the pair has.")
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(1))
def chat(json_file: Path | None, target: str, draft: str, engine: str, turns: int, message: int, answer: int,
         cores: int, repeats: int) -> None:  # fmt: skip
    """A chat's prompts with finished turns kept in the KV cache, and without."""
    from hetero.bench.chat import run

    run(target, draft, engine, turns, message, answer, list(range(cores)), repeats, json_file, Console())


@bench.command()
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures here.")
@click.option("--tokens", default=50_000, show_default=True, type=click.IntRange(1000), help="Tokens per cell.")
@click.option("--strategy", "strategies", multiple=True, default=NAMES, show_default=True)
@click.option("--regime", "names", multiple=True, help="Regimes whose name starts so: A, B, C, D. Default: all.")
@click.option("--streams", default=1, show_default=True, type=click.IntRange(1, 16), help="Also so many at once.")
def regimes(
    json_file: Path | None, tokens: int, strategies: tuple[str, ...], names: tuple[str, ...], streams: int
) -> None:
    """Strategies on the simulator, in percent of the verifier bound."""
    from hetero.bench.regimes import run

    run(tokens, strategies, names, streams, json_file, Console())


@bench.command()
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures here.")
@click.option("--tokens", default=150, show_default=True, type=click.IntRange(20), help="Tokens of each answer.")
@click.option("--targets", default=8, show_default=True, type=click.IntRange(1, 8), help="CPU targets at most.")
def capacity(json_file: Path | None, tokens: int, targets: int) -> None:
    """Readers that CPU targets serve, with a shared GPU drafter and without (simulated)."""
    from hetero.bench.capacity import run

    run(tokens, targets, json_file, Console())


@bench.command()
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures here.")
@click.option("--verifiers", default=100, show_default=True, type=click.IntRange(1, 200))
@click.option("--drafters", default=30, show_default=True, type=click.IntRange(3, 200))
@click.option("--tokens", default=100, show_default=True, type=click.IntRange(20), help="Tokens of each answer.")
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1))
def internet(json_file: Path | None, verifiers: int, drafters: int, tokens: int, seeds: int) -> None:
    """What users of many machines over the internet see while those come and go (simulated)."""
    from hetero.bench.internet import run

    run(verifiers, drafters, tokens, seeds, json_file, Console())


@bench.command()
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures here.")
@click.option("--pair", type=click.Choice(["smollm2", "smollm2-1B"]), default="smollm2-1B", show_default=True)
@click.option("--engine", default="octet", show_default=True)
@click.option("--streams", multiple=True, default=(1, 2, 4, 8, 16), show_default=True, type=click.IntRange(1, 64))
@click.option("--cores", default=2, show_default=True, type=click.IntRange(1), help="Cores all contenders have.")
@click.option("--tokens", default=96, show_default=True, type=click.IntRange(8, 512), help="Of each answer.")
@click.option("--temperature", default=0.8, show_default=True, type=click.FloatRange(0, 100))
@click.option("--repeats", default=2, show_default=True, type=click.IntRange(0))
def streams(
    json_file: Path | None, pair: str, engine: str, streams: tuple[int, ...], cores: int, tokens: int,
    temperature: float, repeats: int,
) -> None:  # fmt: skip
    """Several streams at once on a real model, with drafts and without: tokens a second, and whether texts stay."""
    from hetero.bench.sizes import PAIRS, sized
    from hetero.bench.streams import run

    target, draft = (sized(size, "q4_1") for size in PAIRS[pair])
    own = list(range(cores))
    run(target, draft, engine, sorted(set(streams)), own, tokens, temperature, repeats, json_file, Console())


@bench.command()
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures here.")
@click.option("--idle", default=10_000, show_default=True, type=click.IntRange(0, 30_000), help="Streams that wait.")
@click.option("--busy", multiple=True, default=(100, 1000), show_default=True, type=click.IntRange(1, 10_000))
@click.option("--pace", default=10.0, show_default=True, type=click.FloatRange(0.1, 1000), help="Tokens/s of each.")
@click.option("--seconds", default=15.0, show_default=True, type=click.FloatRange(1, 600))
@click.option("--gateways", default=1, show_default=True, type=click.IntRange(1, 16))
def gateway(
    json_file: Path | None, idle: int, busy: tuple[int, ...], pace: float, seconds: float, gateways: int
) -> None:
    """The gateway alone: memory and time of streams, with a stand-in for the verifier."""
    from hetero.bench.gateway import run

    run(idle, list(busy), pace, seconds, gateways, json_file, Console())


@bench.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def lanes(file: Path) -> None:
    """Draw to FILE (.svg, .png) what drafter and verifier do at the same time, for each strategy (simulated)."""
    from hetero.bench.regimes import draw

    draw(file)


@bench.command("page")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path), default="docs/benchmarks")
def page_(folder: Path) -> None:
    """Write FOLDER.md from the figures in FOLDER: JSON files as the other commands write them."""
    from hetero.bench.page import page

    target = folder.with_suffix(".md")
    target.write_text(page(folder))
    click.echo(f"wrote {target}")


@bench.command()
@click.argument("source")
@click.argument("target", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--width", type=click.IntRange(1), help="Embedding width, a multiple of the source's.")
@click.option("--layers", type=click.IntRange(1))
@click.option("--ffn", type=click.IntRange(1), help="Width of the feed-forward layers.")
@click.option("--type", "kind", default="f16", show_default=True, help="f32, f16, bf16, q8_0, q4_1 or q4_0.")
@click.option("--noise", default=0.0, show_default=True, type=click.FloatRange(0, 10),
              help="Added to each matrix, in its root mean square: a drafter that agrees less.")  # fmt: skip
def inflate(
    source: str, target: Path, width: int | None, layers: int | None, ffn: int | None, kind: str, noise: float
) -> None:
    """Write to TARGET a GGUF with the function of SOURCE and the cost of a larger model (without a size: its own).

    SOURCE is a GGUF file, 'builtin' (the built-in target) or 'builtin-drafter'.
    """
    from hetero.data import PAIR
    from hetero.models import builtin, is_builtin
    from hetero.workers.models.inflate import Size
    from hetero.workers.models.inflate import inflate as run

    own = {"builtin-drafter": PAIR / "drafter.gguf"}
    if is_builtin(source):
        own[source] = builtin(source, "target")
    sizes = [size for size in (width, layers, ffn) if size is not None]
    if len(sizes) not in (0, 3):
        raise click.UsageError("--width, --layers and --ffn belong together")
    size = Size(*sizes) if sizes else None
    weights = run(own.get(source, Path(source)), target, size, kind, noise=noise)
    click.echo(f"{target}: {weights / 1e6:.0f}M weights, {target.stat().st_size / 2**20:.0f} MiB, {kind}")
