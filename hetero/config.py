"""Every setting once: its name is a flag, a HETERO_* variable and a key of the YAML file (in that order of rank)."""

from __future__ import annotations

import ipaddress
import ssl
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import yaml
from msgspec import Meta

from hetero.errors import ConfigError
from hetero.placement.memory import F16, KvCache
from hetero.workers.decoding.policy.strategy import NAMES
from hetero.workers.engines.registry import ENGINES, default_engine
from hetero.workers.models.forms import GGUF, SAFETENSORS

_ENGINES = "; ".join(f"{entry.name}: {entry.summary}" for entry in ENGINES.values())
_DEFAULTS = ", ".join(f"{default_engine(form, 'cpu').name} for {form}" for form in (GGUF, SAFETENSORS))


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The settings of ``hetero serve`` and ``hetero generate``. Descriptions are the flags' help."""

    target: Annotated[
        str, Meta(description="Target model: a GGUF file, a transformers directory (safetensors) or 'builtin'.")
    ] = "builtin"
    draft: Annotated[
        str,
        Meta(
            description="Drafter model, likewise, 'mtp' (the target's own next-token layers), or 'none'. "
            "Default: 'builtin' for the built-in target."
        ),
    ] = ""
    also_draft: Annotated[
        list[Annotated[str, Meta(max_length=4096)]],
        Meta(max_length=15, description="A further drafter, MODEL@DEVICE, on this machine; repeatable."),
    ] = []
    also_serve: Annotated[
        list[Annotated[str, Meta(max_length=4096)]],
        Meta(max_length=63, description="A further model that is loaded when a request names it: a YAML file of its "
             "settings (target, draft, alias, ...) or a model's path; repeatable."),
    ] = []  # fmt: skip
    keep_alive: Annotated[
        float,
        Meta(ge=-1, le=1e9, description="Seconds such a model stays loaded while nobody asks for it (-1: always, from "
             "the start on). Where memory is short the one that rested longest goes first."),
    ] = 300.0  # fmt: skip
    target_device: Annotated[
        str,
        Meta(description="Where the target runs: cpu, cpu:0-3, cuda:0, cuda:0-3 (several as one), rocm:0, "
             "vulkan:0, mps, NODE/cpu:0."),
    ] = ""  # fmt: skip
    draft_device: Annotated[str, Meta(description="Where the drafter runs, likewise.")] = ""
    gpu_layers: Annotated[
        int,
        Meta(ge=-1, le=10_000, description="Layers of the target that its GPUs hold, the CPU has the rest (llama_cpp). "
             "-1: all."),
    ] = -1  # fmt: skip
    draft_group: Annotated[
        int,
        Meta(ge=1, le=64, description="Layers of the drafter whose attentions run at once for draft tokens: "
             "layer-parallel drafting as in EasySpec (torch). 1: none."),
    ] = 1  # fmt: skip
    target_ranks: Annotated[
        int,
        Meta(ge=1, le=16, description="Processes that share the target, tensor-parallel, each with a part of the cores "
             "or a GPU (torch; given several GPUs: as many)."),
    ] = 1  # fmt: skip
    draft_ranks: Annotated[
        int,
        Meta(
            ge=1,
            le=16,
            description="Processes that share the drafter's layers; with --draft-group they work at once (torch).",
        ),
    ] = 1
    target_engine: Annotated[str, Meta(description=f"{_ENGINES}. Default: {_DEFAULTS}.")] = ""
    draft_engine: Annotated[str, Meta(description="The drafter's engine, likewise.")] = ""
    strategy: Annotated[
        str,
        Meta(description=f"{', '.join(NAMES)}, or auto: what is foreseen to be the fastest, as `hetero plan` has it. "
             "Default: ahead with a drafter, off without."),
    ] = ""  # fmt: skip
    gamma: Annotated[
        int,
        Meta(
            ge=0,
            le=63,
            description="Most draft tokens checked in one target forward. 0: as measured speeds have it (4 for serial "
            "and mirror, which do not measure).",
        ),
    ] = 0
    exact: Annotated[
        bool, Meta(description="Bit-equal output with and without a drafter, at one fixed forward width.")
    ] = False
    weights: Annotated[
        Literal["as-is", "int8", "int4"],
        Meta(description="octet's, of files with 16-bit numbers: as-is (int8 with a scale for 32), int8 or int4. Files "
             "that are quantised keep their own values."),
    ] = "as-is"  # fmt: skip
    kv_cache: Annotated[
        KvCache,
        Meta(description="How keys and values are kept: f16, or q8_0 in half the memory (llama_cpp and octet)."),
    ] = F16
    parallel: Annotated[int, Meta(ge=1, le=64, description="Sequences a verifier decodes at once; more wait.")] = 4
    verifiers: Annotated[
        int,
        Meta(ge=1, le=64, description="Workers that have the target, each with its own copy: a machine each in a "
             "cluster, else equal shares of the target's cores or as many GPUs. All drafters serve them all."),
    ] = 1  # fmt: skip
    lookup: Annotated[
        bool, Meta(description="Draft what stood behind the same words before, in the prompt or in answers.")
    ] = True
    lookup_past: Annotated[
        int,
        Meta(ge=0, le=1 << 24, description="Tokens of finished answers that are looked up, too, for whoever brings the "
             "API key they were for (0: none)."),
    ] = 65536  # fmt: skip
    adapt: Annotated[
        bool,
        Meta(
            description="The drafter learns from what the target said otherwise, in memory, while nobody asks (torch)."
        ),
    ] = False
    share_lookup: Annotated[
        bool, Meta(description="Look up finished answers for everybody, whoever's API key they were for.")
    ] = False
    context: Annotated[
        int,
        Meta(ge=0, le=1 << 20, description="Tokens of prompt and output a sequence may have (0: the model's)."),
    ] = 0
    trace: Annotated[str, Meta(description="File for a trace of all forwards, for ui.perfetto.dev.")] = ""
    prefix_cache: Annotated[
        int,
        Meta(ge=0, le=1 << 20, description="MiB each role may keep of finished sequences, so that a chat's next turn "
             "evaluates only what is new."),
    ] = 512  # fmt: skip
    max_waiting: Annotated[
        int, Meta(ge=0, le=1 << 20, description="Sequences that may wait beside the --parallel ones; more get a 429.")
    ] = 256
    max_pending_tokens: Annotated[
        int,
        Meta(ge=0, le=1 << 40, description="Tokens of prompt and output that all requests together may ask for (0: "
             "any number)."),
    ] = 0  # fmt: skip
    max_body: Annotated[float, Meta(gt=0, le=1024, description="MiB a request's body may have.")] = 8.0
    timeout: Annotated[
        float, Meta(ge=0, le=1e6, description="Seconds a request may take, waiting included (0: any time).")
    ] = 3600.0
    alias: Annotated[str, Meta(description="The model's name in the API. Default: the file's name.")] = ""
    temperature: Annotated[
        float, Meta(ge=-1, le=100, description="Sampling where a request says nothing of it. -1, here and below: the "
             "model's own, else 0.8."),
    ] = -1.0  # fmt: skip
    top_k: Annotated[int, Meta(ge=-1, le=(1 << 31) - 1, description="Likewise; 0: all tokens. Else 40.")] = -1
    top_p: Annotated[float, Meta(ge=-1, le=1, description="Likewise. Else 0.95.")] = -1.0
    min_p: Annotated[float, Meta(ge=-1, le=1, description="Likewise. Else 0.05.")] = -1.0
    strict: Annotated[
        bool, Meta(description="Refuse fields that are not known and models of another name, instead of ignoring them.")
    ] = False
    cors_origin: Annotated[
        str,
        Meta(description="Pages that may ask this server, besides this machine's: origins, separated by commas, or *."),
    ] = ""
    host: Annotated[
        str, Meta(description="Address the HTTP server listens on; localhost: the loopback, by IPv4 and IPv6.")
    ] = "localhost"
    port: Annotated[int, Meta(ge=0, le=65535, description="Port the HTTP server listens on (0: any free one).")] = 8000
    api_key: Annotated[str, Meta(description="A key that requests must bring (Authorization: Bearer KEY).")] = ""
    api_key_file: Annotated[str, Meta(description="File of such keys, one a line.")] = ""
    ssl_cert_file: Annotated[str, Meta(description="Serve HTTPS with this certificate (PEM).")] = ""
    ssl_key_file: Annotated[str, Meta(description="The certificate's private key (PEM).")] = ""
    address: Annotated[
        str, Meta(description="Ray cluster: local (start one), auto (the running one) or HOST:PORT.")
    ] = "local"
    cluster: Annotated[
        bool, Meta(description="Start a cluster that other machines may join; the line to type there is printed.")
    ] = False
    cluster_host: Annotated[
        str, Meta(description="This machine's address for them. Default: the one of its way out.")
    ] = ""
    require_nodes: Annotated[
        int, Meta(ge=1, le=1024, description="Do not start with fewer machines in the cluster than these.")
    ] = 1
    worker_ports: Annotated[
        str,
        Meta(description="Ports to listen on for other machines of a cluster. Default: 20000-20009."),
    ] = ""
    drain: Annotated[float, Meta(ge=0, le=3600, description="Seconds running requests get to finish at a stop.")] = 30.0


def api_keys(config: Config) -> tuple[str, ...]:
    """The keys that open the server. Raises ConfigError: a server that others can reach needs one."""
    keys = [config.api_key] if config.api_key else []
    if config.api_key_file:
        try:
            keys += Path(config.api_key_file).read_text().split()
        except (OSError, ValueError) as error:
            raise ConfigError(f"api_key_file: {config.api_key_file}: {error}") from None
        if not keys:
            raise ConfigError(f"api_key_file: {config.api_key_file} holds no key")
    if not keys and not _is_loopback(config.host):
        raise ConfigError(f"host: {config.host} can be reached by others: give a key with --api-key or --api-key-file")
    if config.adapt and len(keys) > 1 and not config.share_lookup:
        raise ConfigError("adapt: what one API key's texts taught a drafter it proposes to the others: with "
                          "--share-lookup that is agreed to, else leave out --adapt")  # fmt: skip
    return tuple(keys)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_certificate(config: Config) -> None:
    """Raise ConfigError unless both TLS files can be used, or none is named."""
    if not (config.ssl_cert_file or config.ssl_key_file):
        return
    if not (config.ssl_cert_file and config.ssl_key_file):
        raise ConfigError("ssl_cert_file and ssl_key_file belong together: give both")
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(config.ssl_cert_file, config.ssl_key_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"ssl_cert_file, ssl_key_file: they cannot be used: {error}") from None


def make_config(values: dict[str, Any], where: str = "") -> Config:
    """A checked Config. Raises ConfigError naming the key."""
    known = Config.__struct_fields__
    for key in values:
        if key not in known:
            raise ConfigError(f"{where}unknown key {key!r}: keys are {', '.join(known)}")
    try:
        return msgspec.convert(values, Config)
    except msgspec.ValidationError as error:
        what, _, path = str(error).partition(" - at `$.")
        raise ConfigError(f"{where}{path.rstrip('`') or 'settings'}: {what}") from None


def read_file(path: Path) -> dict[str, Any]:
    """The settings of a YAML file, checked. Raises ConfigError."""
    try:
        found = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"config file {path}: {error.strerror or error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"config file {path}: not YAML ({str(error).splitlines()[0]})") from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ConfigError(f"config file {path}: expected 'key: value' lines")
    make_config(found, f"config file {path}: ")
    return found


def port_range(text: str) -> list[int]:
    """First and last of ``worker_ports``; [] without. Raises ConfigError."""
    first, dash, last = text.partition("-")
    if not text:
        return []
    if not (first.isdecimal() and last.isdecimal() and dash) or not 1024 <= int(first) <= int(last) <= 65535:
        raise ConfigError(f"worker_ports: {text!r} is not a range within 1024-65535, like 20000-20009")
    return [int(first), int(last)]
