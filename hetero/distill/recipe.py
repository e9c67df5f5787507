"""What is to be made, and how far that is: a folder that can be gone on with after any end."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec

from hetero.distill.examination import Marks
from hetero.errors import ConfigError, ModelError


class Recipe(msgspec.Struct, frozen=True):
    """``kind`` of drafter: of ``students.KINDS``; ``layers`` that learn; ``exit``: so many of the target's first ones
    stand before them as they are (0: none); ``vocabulary``: tokens that stay (0: all); ``loss``: a divergence; ``type``
    of a GGUF file's numbers; ``data``: files of prompts or texts, none: what the target asks itself."""

    target: str
    data: list[str] = []
    kind: str = "small"
    layers: int = 3
    exit: int = 0
    vocabulary: int = 12288
    loss: str = "mixed"
    type: str = "q8_0"
    seed: int = 0


class Progress(msgspec.Struct):
    """Minutes so far: ``wrote``, in which ``asked`` texts were made, ``read``: of running the target over them,
    ``learned``. ``best``: the mean agreement of the best student; ``history``: minutes of learning, and agreement by
    temperature."""

    wrote: float = 0.0
    asked: int = 0
    read: float = 0.0
    learned: float = 0.0
    best: float = 0.0
    history: list[tuple[float, dict[float, float]]] = []


class Workshop:
    """The folder where a drafter is made, within the one where it will lie."""

    def __init__(self, out: Path, recipe: Recipe) -> None:
        """Begun, or found as it was left. Raises ConfigError where another recipe was begun here, OSError."""
        self.out, self.folder = out, out / "work"
        file = self.folder / "recipe.json"
        try:
            if out.is_dir() and not file.is_file() and any(path.name != "work" for path in out.iterdir()):
                raise ConfigError(f"out: {out} is not empty, and nothing to go on with: take another folder")
            self.folder.mkdir(parents=True, exist_ok=True)
            if file.is_file():
                if "type" not in msgspec.json.decode(file.read_bytes(), type=dict[str, Any]):
                    raise ConfigError(f"out: {out} was begun by an older hetero: take another folder")
                was = msgspec.json.decode(file.read_bytes(), type=Recipe)
                for name in Recipe.__struct_fields__:
                    if getattr(was, name) != getattr(recipe, name):
                        raise ConfigError(
                            f"{name}: {out} was begun with {getattr(was, name)!r}, not {getattr(recipe, name)!r}: "
                            "take that, or another folder"
                        )
        except msgspec.DecodeError as error:
            raise ConfigError(f"out: {file}: damaged ({error}): delete {out}") from None
        self._recipe = recipe
        self.progress = self._progress()

    @property
    def corpus(self) -> Path:
        """Texts of the target's."""
        return self.folder / "corpus"

    @property
    def held_out(self) -> Path:
        """The target's answers to prompts that are kept apart."""
        return self.folder / "held-out.json"

    @property
    def checkpoints(self) -> Path:
        """Of the trainer."""
        return self.folder / "checkpoints"

    @property
    def vocabulary(self) -> Path:
        """The tokens that stay; once it is there, learning has begun and nothing more is written."""
        return self.folder / "vocabulary.json"

    @property
    def states(self) -> Path:
        """What the student begins from, of each token of the lessons."""
        return self.folder / "states.npy"

    @property
    def best(self) -> Path:
        """The weights of the best student so far."""
        return self.folder / "best.safetensors"

    def save(self) -> None:
        """Keep the progress, and first of all whose it is. Raises OSError."""
        if not (self.folder / "recipe.json").is_file():
            self._write("recipe.json", self._recipe)
        self._write("progress.json", self.progress)

    def _write(self, name: str, what: Recipe | Progress) -> None:
        """Whole, or not at all."""
        part = self.folder / f"{name}.part"
        part.write_bytes(msgspec.json.format(msgspec.json.encode(what)))
        part.rename(self.folder / name)

    def learned(self, minutes: float, marks: Marks) -> bool:
        """Take down an examination; whether it was the best."""
        self.progress.learned = minutes
        self.progress.history.append((round(minutes, 3), {t: round(s, 4) for t, s in marks.agreement.items()}))
        better = marks.mean > self.progress.best
        self.progress.best = max(marks.mean, self.progress.best)
        return better

    def check_room(self, needed: int) -> None:
        """Raises ModelError where the disk has not ``needed`` bytes, what lies here already among them."""
        free = shutil.disk_usage(self.folder).free + sum(f.stat().st_size for f in self.out.rglob("*") if f.is_file())
        if free < needed:
            raise ModelError(
                f"out: {self.out} needs {needed >> 20} MiB while it is made, and its disk has {free >> 20} left"
            )

    def _progress(self) -> Progress:
        file = self.folder / "progress.json"
        try:
            found: Any = msgspec.json.decode(file.read_bytes(), type=Progress) if file.is_file() else Progress()
        except (OSError, msgspec.DecodeError) as error:
            raise ModelError(f"{file}: damaged ({error}): delete it, and learn anew from what was written") from None
        return found  # type: ignore[no-any-return]
