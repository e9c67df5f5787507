"""The command line. A flag beats its HETERO_* variable, which beats the config file, which beats the default."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
from rich.console import Console
from rich.table import Table

from hetero import __version__
from hetero.bench.cli import bench
from hetero.config import Config, make_config, read_file
from hetero.distill.cli import distill, trim
from hetero.errors import ConfigError, HeteroError
from hetero.workers.runtime.trace import start_file

# What may be left out of an installation (pyproject.toml), by the modules whose lack shows it.
EXTRAS = {
    "llama": ("llama_cpp",),
    "torch": ("torch", "transformers", "accelerate", "safetensors"),
    "serve": ("fastapi", "uvicorn", "jinja2", "prometheus_client", "starlette", "pydantic", "anyio"),
}

_Command = TypeVar("_Command", bound=Callable[..., Any])


class _Group(click.Group):
    """Shows hetero's own errors, and packages that are not installed, as one line on standard error; exits with 1."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except HeteroError as error:
            line = str(error)
        except ModuleNotFoundError as error:
            extra = next((extra for extra, modules in EXTRAS.items() if error.name in modules), None)
            if extra is None:
                raise
            line = f"this needs the package {error.name}: pip install 'hetero[{extra}]'"
        Console(stderr=True).print(f"error: {line}", highlight=False, markup=False, soft_wrap=True)
        context.exit(1)
        return None


def _read_config(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value is not None:
        context.default_map = read_file(Path(value))


def settings(command: _Command, without: tuple[str, ...] = ()) -> _Command:
    """The options of Config, made from its fields."""
    hints = msgspec.inspect.type_info(Config)
    assert isinstance(hints, msgspec.inspect.StructType)
    for field in reversed(hints.fields):
        assert isinstance(field.type, msgspec.inspect.Metadata)
        if field.name in without:
            continue
        flag = "--" + field.name.replace("_", "-")
        kind = field.type.type
        more: dict[str, Any] = {}
        if isinstance(kind, msgspec.inspect.BoolType):
            flag += f"/--no-{flag[2:]}"
        elif isinstance(kind, msgspec.inspect.IntType):
            more["type"] = int
        elif isinstance(kind, msgspec.inspect.LiteralType):
            more["type"] = click.Choice([str(value) for value in kind.values])
        elif isinstance(kind, msgspec.inspect.FloatType):
            more["type"] = float
        elif isinstance(kind, msgspec.inspect.ListType):
            more["multiple"] = True
        help_text = (field.type.extra_json_schema or {}).get("description", "")
        option = click.option(
            flag,
            field.name,
            default=() if "multiple" in more else field.default,
            help=help_text,
            envvar=f"HETERO_{field.name.upper()}",
            show_envvar=True,
            show_default="multiple" not in more and bool(field.default),
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
    # No process that is started from here on imports from the folder it is started in.
    os.environ["PYTHONSAFEPATH"] = "1"


@main.command()
@settings
def serve(**values: Any) -> None:
    """Serve a model over OpenAI's HTTP API."""
    from hetero.fleet import further
    from hetero.placed import placed
    from hetero.serve import serve as run

    config = make_config(values)
    further(config)  # wrong files are told before anything is measured or loaded
    hide("--api-key", "HETERO_API_KEY", config.api_key)
    end_with_signals()
    found = placed(config)
    try:
        start_trace(config)
        sys.exit(run(config, found, Console()))
    finally:
        found.cluster.leave()


def end_with_signals() -> None:
    """Have SIGTERM, and SIGHUP unless it is ignored (nohup), end this process as an exit does: Ray is cleared away."""
    signal.signal(signal.SIGTERM, _exit)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _exit)


def hide(flag: str, variable: str, value: str) -> None:
    """Begin anew with what a flag gave in a variable: everybody on this machine may read a command line."""
    words = sys.argv[1:]
    at = next((n for n, word in enumerate(words) if word.split("=")[0] == flag), None)
    if at is not None:
        os.environ[variable] = value
        rest = words[:at] + words[at + (1 if "=" in words[at] else 2) :]
        os.execv(sys.executable, [sys.executable, "-P", "-m", "hetero.cli", *rest])


def _exit(number: int, frame: object) -> None:
    sys.exit(128 + number)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.option(
    "--cluster", "cluster_file", metavar="FILE", default="", help="Described hardware, or a NAME of the gallery."
)
@click.option("--dry-run", "dry", is_flag=True, help="Estimate from sizes; load and try nothing.")
@click.option("--models", nargs=2, metavar="TARGET DRAFTER", help="For --cluster: SIZE:BITS each, as 8b:4.")
@click.option("--agreement", type=click.FloatRange(0.01, 0.99), help="For --cluster: of the two models.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="For --cluster: draw what it hangs on.")
@partial(settings, without=("cluster",))
def plan(
    as_json: bool, dry: bool, cluster_file: str, models: tuple[str, str] | None, agreement: float | None,
    plot: Path | None, **values: Any,
) -> None:  # fmt: skip
    """What each way to run two models on this machine would do, the fastest first. Takes serve's options; those given
    are kept."""
    config = make_config(values)
    end_with_signals()
    if cluster_file:
        from hetero.planning.whatif import changed, read_hardware
        from hetero.planning.whatif import show as show_described

        hardware = changed(read_hardware(cluster_file), models, agreement, config.context)
        show_described(hardware, as_json, plot, Console())
        return
    if models or agreement or plot:
        raise ConfigError("models, agreement and plot are for hardware that --cluster describes")
    if config.address != "local":
        raise ConfigError("address: hetero plan looks at this machine alone; --cluster FILE at described ones")
    from hetero.planning.table import show

    show(config, as_json, dry, Console())


@main.command()
@click.argument("prompt")
@click.option("-n", "--max-tokens", default=128, show_default=True, type=click.IntRange(1))
@click.option("--seed", default=None, type=click.IntRange(0, (1 << 63) - 1))
@settings
def generate(prompt: str, **values: Any) -> None:
    """Complete PROMPT once, without a server."""
    from hetero.generate import run
    from hetero.placed import placed

    own = {name: values.pop(name) for name in ("max_tokens", "seed")}
    config = make_config(values)
    end_with_signals()
    found = placed(config)
    try:
        start_trace(config)
        asyncio.run(run(prompt, config, found, own, Console(stderr=True)))
    finally:
        found.cluster.leave()


@main.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def devices(as_json: bool) -> None:
    """List this machine's devices and the names they go by."""
    from hetero.cluster.devices import show

    show(as_json, Console())


@main.command()
@click.option("--address", default="auto", show_default=True, help="Ray cluster: auto (the running one) or HOST:PORT.")
def nodes(address: str) -> None:
    """List the machines of a cluster: who they are, what they have, how far away they are."""
    from hetero.cluster.cluster import Cluster
    from hetero.cluster.probe import look, table_of

    cluster = Cluster(address)
    cluster.join()
    try:
        Console().print(table_of(look(cluster)))
    finally:
        cluster.leave()


@main.command()
@click.argument("address", metavar="HOST:PORT")
@click.option(
    "--token",
    envvar="RAY_AUTH_TOKEN",
    default="",
    help="As `hetero serve --cluster` prints it. Default: Ray's own file.",
)
@click.option(
    "--role",
    type=click.Choice(["drafter", "target", "any"]),
    default=None,
    help="What this machine is for. Default: the drafter where it has a GPU, else any.",
)
@click.option("--once", is_flag=True, help="Leave when Ray stops there, instead of waiting for it.")
def join(address: str, token: str, role: str | None, once: bool) -> None:
    """Lend this machine to the hetero that runs at HOST:PORT, until Ctrl-C."""
    from hetero.cluster.inventory import take_inventory
    from hetero.cluster.join import join as run
    from hetero.cluster.token import known_token

    hide("--token", "RAY_AUTH_TOKEN", token)
    token = token or known_token()
    if not token:
        raise ConfigError("token: none is known here: copy the line that `hetero serve --cluster` prints")
    role = role or ("drafter" if take_inventory().gpus else "any")
    say = Console().print
    run(
        address,
        token,
        "" if role == "any" else role,
        once,
        lambda line: say(line, highlight=False, markup=False, soft_wrap=True),
    )


@main.command()
@click.option("--role", type=click.Choice(["drafter", "target", "any"]), default="any", show_default=True)
def marks(role: str) -> None:
    """Print what a machine declares to Ray, for `ray start --resources="$(hetero marks --role target)"`."""
    from hetero.cluster.raynode import marks as of

    click.echo(of("" if role == "any" else role))


@main.command()
@click.option(
    "--cluster", "cluster_file", metavar="FILE", default="", help="Look at a cluster.yaml's machines instead."
)
@partial(settings, without=("cluster",))
def doctor(cluster_file: str, **values: Any) -> None:
    """Look for what is missing or would go wrong, and say what mends it. Takes serve's options."""
    from hetero.cluster.doctor import run

    sys.exit(run(make_config(values), cluster_file, Console()))


@main.command()
@click.option("--clear", metavar="NAME", default="", help="Delete one of them, or all.")
def cache(clear: str) -> None:
    """List what is kept on disk, in $HETERO_CACHE or ~/.cache/hetero, or delete it."""
    from hetero import cache as kept

    if clear:
        kept.clear(clear)
    table = Table("name", "what", "files", "MiB")
    for room in kept.rooms():
        table.add_row(room.name, room.what, str(room.files), f"{room.size / 2**20:,.1f}")
    Console().print(table if table.row_count else "nothing is kept", highlight=False)


@main.command()
def version() -> None:
    """Print the version of hetero and of what it stands on."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as of

    click.echo(f"hetero {__version__}")
    for name in ("torch", "transformers", "llama-cpp-python", "ray", "pyzmq"):
        try:
            click.echo(f"{name} {of(name)}")
        except PackageNotFoundError:
            click.echo(f"{name} is not installed")


main.add_command(bench)
main.add_command(distill)
main.add_command(trim)


if __name__ == "__main__":
    main()
