"""What models cost on this machine's devices, measured once: kept by model, engine, device and settings."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path

import msgspec

from hetero import __version__
from hetero.placement.agreement import RANKS, Agreement
from hetero.placement.profile import Profile
from hetero.planning.keeping import alone, drop_old, keep, library_version, model_facts, processor
from hetero.planning.plan import Placement
from hetero.planning.trials import NotThisModel, running, tried
from hetero.workers.engines.registry import find_engine
from hetero.workers.models.cache import cache_root
from hetero.workers.runtime.trial import DEPTH, Company, Request, Trial

_ROOM = "profiles"
_FORMAT = 3  # of what is kept: one of before knows less
_COMPANY = {"beside": "beside", "turns": "in turns with"}
_TARGET_WIDTHS, _DRAFTER_WIDTHS = [1, 2, 3, 4, 6, 8, 12, 16], [1, 2, 4, 8, 16]
_MOST_STATES = 20  # files of texts' states
_CONTEXT = 2048  # tokens of a trial's context


class Profiles:
    """``target``: whose text it is; ``say`` is told what takes its time; ``text``: tokens of what the two models should
    agree on; ``gpus``: what those of this machine are, by device."""

    def __init__(self, target: Placement, text: list[int], gpus: Mapping[str, str], say: Callable[[str], None]) -> None:
        self._text, self._gpus, self._say = text, gpus, say
        what = [model_facts(target.model.path), target.spec.features, text]
        self._states = cache_root() / _ROOM / f"{_digest(what)}.npy"  # of the text, for heads
        self._known: dict[str, Trial | None] = {}

    def of(self, placement: Placement, other: Placement | None = None, company: Company = "") -> Trial | None:
        """Of one role on its device, alone or in the ``company`` of the other one; None: it cannot be tried."""
        key = self._key(placement, other, company)
        if key not in self._known:
            self._known[key] = self._kept_or_tried(key, placement, other, company)
        return self._known[key]

    def _kept_or_tried(self, key: str, placement: Placement, other: Placement | None, company: Company) -> Trial | None:
        file = cache_root() / _ROOM / f"{key}.json"
        leaves = bool(placement.spec.features) and not company
        if (found := _kept(file)) is not None and (not leaves or self._states.is_file()):
            return found
        with alone(file.parent):  # two that begin at once would time each other
            if (found := _kept(file)) is not None and (not leaves or self._states.is_file()):
                return found
            near = f" {_COMPANY[company]} the {other.spec.role}" if other is not None else ""
            spec, name = placement.spec, placement.model.name
            self._say(f"measuring the {spec.role}, {name}, on {placement.device} with {spec.engine}{near} (once)")
            request = self._request(placement, company)
            try:
                with running(self._request(other, company)) if other is not None else nullcontext() as partner:
                    found = tried(request, partner) if partner is None or partner.begun else None
            except NotThisModel:
                return None
            if found is not None:
                keep(file, msgspec.json.encode(found))
                drop_old(file.parent, "*.npy", _MOST_STATES)
            return found

    def _request(self, placement: Placement, company: Company) -> Request:
        drafts = placement.spec.role == "drafter"
        context = min(_CONTEXT, placement.model.context)
        spec = msgspec.structs.replace(placement.spec, sequences=1, context=context, cached=0, trace="")
        widths = _DRAFTER_WIDTHS if drafts else _TARGET_WIDTHS
        text = self._text[: context - 64] if not company else []
        told = bool(placement.spec.features) or (placement.model.head is not None and self._states.is_file())
        states = str(self._states) if told and not company else ""
        return Request(spec, widths, text, states, thorough=not company, company=company)

    def _key(self, placement: Placement, other: Placement | None, company: Company) -> str:
        what = [_FORMAT, __version__, processor(), self._facts(placement), company]
        what += [self._facts(other)] if other is not None else [self._text, *self._heard(placement)]
        return _digest(what)

    def _heard(self, placement: Placement) -> list[object]:
        """What a head's guesses hang on beside its file."""
        return [self._states.name, self._states.is_file()] if placement.model.head is not None else []

    def _facts(self, placement: Placement) -> list[object]:
        """All that a trial hangs on."""
        spec = placement.spec
        where = [spec.cores, spec.kind, [self._gpus.get(str(gpu)) for gpu in placement.device.gpus], spec.gpu_layers]
        how = [spec.role, spec.engine, library_version(find_engine(spec.engine).package), spec.dtype, spec.weights]
        return [
            model_facts(placement.model.path),
            *where,
            *how,
            spec.kv_cache,
            spec.group,
            spec.ranks,
            spec.exact,
            spec.features,
            model_facts(Path(spec.vocabulary)) if spec.vocabulary else None,
        ]


def profile_of(trial: Trial, spared: float) -> Profile:
    """Of a trial; ``spared``: seconds that each forward costs in a worker beside what was timed."""
    forward = {rows: seconds + spared for rows, seconds in trial.forward.items()}
    return Profile(forward, trial.look, trial.prefill, DEPTH, trial.deeper)


def agreement_of(target: Trial, drafter: Trial) -> Agreement | None:
    """How the two fared on the text; None where they were not asked of one."""
    ranks, confidences = [], []
    for sample, (tokens, told) in zip(target.samples, drafter.candidates, strict=False):
        ranks.append(tokens.index(sample) if sample in tokens else RANKS)
        confidences.append(tuple(told))
    return Agreement(tuple(ranks), tuple(confidences)) if ranks else None


def _digest(what: list[object]) -> str:
    return hashlib.blake2b(msgspec.json.encode(what), digest_size=12).hexdigest()


def _kept(file: Path) -> Trial | None:
    with suppress(OSError, msgspec.DecodeError):
        return msgspec.json.decode(file.read_bytes(), type=Trial)
    return None
