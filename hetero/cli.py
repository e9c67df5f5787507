"""The command line. A flag beats its HETERO_* variable, which beats the config file, which beats the default."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec
from rich.console import Console
from rich.table import Table

from hetero import __version__
from hetero.config import Config, make_config, read_file
from hetero.errors import ConfigError, HeteroError
from workers.strategy import NAMES
from workers.trace import start_file

if TYPE_CHECKING:
    from hetero.cluster import Cluster
    from hetero.plan import Plan

_Command = TypeVar("_Command", bound=Callable[..., Any])


class _Group(click.Group):
    """Shows hetero's own errors as one line on standard error, and exits with 1."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except HeteroError as error:
            Console(stderr=True).print(f"error: {error}", highlight=False, markup=False, soft_wrap=True)
            context.exit(1)


def _read_config(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value is not None:
        context.default_map = read_file(Path(value))


def settings(command: _Command) -> _Command:
    """The options of Config, made from its fields."""
    hints = msgspec.inspect.type_info(Config)
    assert isinstance(hints, msgspec.inspect.StructType)
    for field in reversed(hints.fields):
        assert isinstance(field.type, msgspec.inspect.Metadata)
        flag = "--" + field.name.replace("_", "-")
        kind = field.type.type
        more: dict[str, Any] = {}
        if isinstance(kind, msgspec.inspect.BoolType):
            flag += f"/--no-{flag[2:]}"
        elif isinstance(kind, msgspec.inspect.IntType):
            more["type"] = int
        elif isinstance(kind, msgspec.inspect.FloatType):
            more["type"] = float
        help_text = (field.type.extra_json_schema or {}).get("description", "")
        option = click.option(
            flag,
            field.name,
            default=field.default,
            help=help_text,
            envvar=f"HETERO_{field.name.upper()}",
            show_envvar=True,
            show_default=bool(field.default),
            **more,
        )
        command = option(command)
    config = click.option(
        "--config",
        is_eager=True,
        expose_value=False,
        callback=_read_config,
        envvar="HETERO_CONFIG",
        metavar="FILE",
        help="YAML file of settings.",
    )
    return config(command)


def start_trace(config: Config) -> None:
    """Begin the trace file, if one is asked for. Raises ConfigError."""
    if config.trace:
        try:
            start_file(Path(config.trace))
        except OSError as error:
            raise ConfigError(f"trace: {config.trace}: {error.strerror or error}") from None


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Speculative decoding over unlike devices: a drafter here, a verifier there, one exact answer."""


@main.command()
@settings
def serve(**values: Any) -> None:
    """Serve a model over OpenAI's HTTP API."""
    from hetero.server import serve as run

    config = make_config(values)
    cluster, plan = _placed(config)
    start_trace(config)
    sys.exit(run(config, plan, cluster, Console()))


def _placed(config: Config) -> tuple[Cluster, Plan]:
    """The cluster of a Config, joined if it is a running one, and the plan on it. Raises HeteroError."""
    from hetero.cluster import Cluster
    from hetero.inventory import take_inventory
    from hetero.plan import make_plan

    cluster = Cluster(config.address)
    if cluster.shared:
        cluster.join()
    return cluster, make_plan(config, take_inventory(), cluster.nodes() if cluster.shared else [])


@main.command()
@click.argument("prompt")
@click.option("-n", "--max-tokens", default=128, show_default=True, type=click.IntRange(1))
@click.option("--temperature", default=0.8, show_default=True, type=click.FloatRange(0, 100))
@click.option("--top-k", default=0, type=click.IntRange(0), help="Sample among the k likeliest tokens (0: all).")
@click.option("--top-p", default=1.0, type=click.FloatRange(0, 1, min_open=True))
@click.option("--min-p", default=0.0, type=click.FloatRange(0, 1))
@click.option("--seed", default=None, type=click.IntRange(0, (1 << 63) - 1))
@settings
def generate(prompt: str, **values: Any) -> None:
    """Complete PROMPT once, without a server."""
    from hetero.generate import run

    own = {name: values.pop(name) for name in ("max_tokens", "temperature", "top_k", "top_p", "min_p", "seed")}
    config = make_config(values)
    cluster, plan = _placed(config)
    start_trace(config)
    asyncio.run(run(prompt, plan, cluster, own, Console(stderr=True)))


@main.command()
def devices() -> None:
    """List this machine's devices and the names they go by."""
    from hetero.inventory import cpu_name, take_inventory
    from placement.device import Device

    found = take_inventory()
    table = Table("device", "what", "free memory")
    table.add_row(str(Device("cpu", found.cores)), cpu_name(), f"{found.memory / 2**30:.1f} GiB")
    for gpu in found.gpus:
        table.add_row(str(gpu.device), gpu.name, f"{gpu.free / 2**30:.1f} GiB")
    Console().print(table)


@main.command()
@settings
def doctor(**values: Any) -> None:
    """Look for what is missing or would go wrong, and say what mends it. Takes serve's options."""
    from hetero.doctor import run

    sys.exit(run(make_config(values), Console()))


@main.command()
def version() -> None:
    """Print the version of hetero and of what it stands on."""
    from importlib.metadata import version as of

    click.echo(f"hetero {__version__}")
    for name in ("torch", "transformers", "llama-cpp-python", "ray", "pyzmq"):
        click.echo(f"{name} {of(name)}")


@main.group()
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
@click.option(
    "--size", "sizes", multiple=True, default=("240M",), show_default=True, help="9M, 240M or 1B; repeatable."
)
@click.option("--threads", multiple=True, type=click.IntRange(1), default=(1, 2), show_default=True)
@click.option("--repeats", default=9, show_default=True, type=click.IntRange(1))
def engines(json_file: Path | None, sizes: tuple[str, ...], threads: tuple[int, ...], repeats: int) -> None:
    """T(n), the time to check n rows: octet against llama.cpp on the same inflated models, with the floor."""
    from hetero.bench.engines import run

    run(list(sizes), list(threads), repeats, json_file, Console())


@bench.command()
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures here.")
@click.option("--size", default="240M", show_default=True, help="Target: 9M, 240M or 1B.")
@click.option("--draft", default="draft-50M", show_default=True, help="Drafter: draft-1M or draft-50M.")
@click.option("--cores", default=2, show_default=True, type=click.IntRange(1), help="Cores all contenders have.")
@click.option("--gamma", "gammas", multiple=True, type=click.IntRange(1, 63), default=(4, 7), show_default=True)
@click.option("--prompts", default=6, show_default=True, type=click.IntRange(1))
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(1))
def pair(
    json_file: Path | None, size: str, draft: str, cores: int, gammas: tuple[int, ...], prompts: int, repeats: int
) -> None:
    """End to end: hetero against llama.cpp alone and with its draft loop, same target, same cores, one run."""
    from hetero.bench.pair import run

    run(size, draft, list(range(cores)), list(gammas), prompts, repeats, json_file, Console())


@bench.command()
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures here.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Draw them here (.svg or .png).")
@click.option("--target", default="1B", show_default=True, help="A model, or an inflated one: 9M, 240M, 1B.")
@click.option("--draft", default="draft-50M", show_default=True, help="A model, or draft-1M or draft-50M.")
@click.option("--engine", default="octet4", show_default=True, help="Engine of both roles.")
@click.option("--strategy", "plans", multiple=True, default=("serial", "pearl", "mirror", "ahead"), show_default=True)
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
    json_file: Path | None, plot: Path | None, source: Path | None, count: int, plans: tuple[str, ...], cores: int,
    **values: Any,
) -> None:  # fmt: skip
    """Strategies for real: plain decoding and each strategy over the same prompts, interleaved."""
    from hetero.bench.speed import Settings, run

    run(Settings(plans=plans, cores=list(range(cores)), **values), source, count, json_file, plot, Console())


@bench.command()
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures here.")
@click.option("--tokens", default=50_000, show_default=True, type=click.IntRange(1000), help="Tokens per cell.")
@click.option("--strategy", "plans", multiple=True, default=NAMES, show_default=True)
@click.option("--regime", "names", multiple=True, help="Regimes whose name starts so: A, B, C, D. Default: all.")
def regimes(json_file: Path | None, tokens: int, plans: tuple[str, ...], names: tuple[str, ...]) -> None:
    """Strategies on the simulator, in percent of the verifier bound."""
    from hetero.bench.regimes import run

    run(tokens, plans, names, json_file, Console())


@bench.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def lanes(file: Path) -> None:
    """Draw to FILE (.svg, .png) what drafter and verifier do at the same time, for each strategy (simulated)."""
    from hetero.bench.regimes import draw

    draw(file)


@bench.command()
@click.argument("source")
@click.argument("target", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--width", type=click.IntRange(1), required=True, help="Embedding width, a multiple of the source's.")
@click.option("--layers", type=click.IntRange(1), required=True)
@click.option("--ffn", type=click.IntRange(1), required=True, help="Width of the feed-forward layers.")
@click.option("--type", "kind", default="f16", show_default=True, help="f32, f16, bf16, q8_0 or q4_0.")
def inflate(source: str, target: Path, width: int, layers: int, ffn: int, kind: str) -> None:
    """Write to TARGET a GGUF with the function of SOURCE and the cost of a larger model.

    SOURCE is a GGUF file, 'builtin' (the built-in target) or 'builtin-drafter'.
    """
    from hetero.bench.inflate import Size
    from hetero.bench.inflate import inflate as run
    from hetero.models import PAIR

    own = {"builtin": PAIR / "target.gguf", "builtin-drafter": PAIR / "drafter.gguf"}
    weights = run(own.get(source, Path(source)), target, Size(width, layers, ffn), kind)
    click.echo(f"{target}: {weights / 1e6:.0f}M weights, {target.stat().st_size / 2**20:.0f} MiB, {kind}")


if __name__ == "__main__":
    main()
