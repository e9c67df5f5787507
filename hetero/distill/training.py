"""Learning, by transformers' Trainer: on what there is (CPU, CUDA, several of them), for as long as there is time."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from hetero.distill.examination import Marks
from hetero.distill.lessons import Lessons, batch
from hetero.distill.students.student import Student
from hetero.workers.engines.torch.divergence import Divergence, shares

_LATER = 0.8  # what a step of a draft counts beside the one before it
_WARM = 0.03  # of the time, until the rate is whole
_FOREVER = 1_000_000  # steps
_CHECKPOINT = "checkpoint-"


@dataclass(frozen=True)
class Course:
    """``minutes`` it lasts, of which ``spent`` are over; ``often``: seconds between two examinations; ``texts`` a step;
    ``rate`` at its highest."""

    minutes: float
    spent: float
    often: float
    texts: int
    rate: float
    divergence: Divergence
    seed: int


class Clock:
    """How much of a course is over. It stands still while nobody trains, across restarts."""

    def __init__(self, course: Course) -> None:
        self._course, self._began = course, monotonic()

    def minutes(self) -> float:
        """Of the course."""
        return self._course.spent + (monotonic() - self._began) / 60

    def share(self) -> float:
        """From 0 to 1."""
        return min(1.0, self.minutes() / max(1e-6, self._course.minutes))


class _Trainer(Trainer):  # type: ignore[misc]
    """Its loss is a divergence from the target, its pace that of the clock."""

    def __init__(self, student: Student, divergence: Divergence, clock: Clock, **more: Any) -> None:
        super().__init__(model=student.model, **more)
        self._student, self._divergence, self._clock = student, divergence, clock

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        told = inputs["ids"], inputs["shares"]
        steps = self._student.say(model, inputs)
        losses = [self._divergence(*shares(rows[inputs["places"]].float(), *told)).mean() for rows in steps]
        weights = [_LATER**step for step in range(len(losses))]
        loss = sum(w * each for w, each in zip(weights, losses, strict=True)) / sum(weights)
        return (loss, {"loss": loss}) if return_outputs else loss

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, lambda step: self._pace())
        return self.lr_scheduler

    def _pace(self) -> float:
        """Up, and down like a cosine to a twentieth."""
        share = self._clock.share()
        return max(0.02, share / _WARM) if share < _WARM else 0.525 + 0.475 * math.cos(math.pi * share)


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Examines the student now and then, and ends when time is over."""

    def __init__(self, clock: Clock, often: float, look: Callable[[float], None], stopped: Callable[[], bool]) -> None:
        self._clock, self._often, self._look, self._stopped = clock, often, look, stopped
        self._last = clock.minutes()

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        now = self._clock.minutes()
        if self._clock.share() >= 1.0 or self._stopped():
            control.should_training_stop = control.should_save = True
        elif now - self._last >= self._often / 60:
            self._look(now)
            self._last = self._clock.minutes()
            control.should_save = True


def train(
    student: Student, lessons: Lessons, course: Course, folder: Path, examine: Callable[[], Marks],
    told: Callable[[float, Marks], None], stopped: Callable[[], bool],
) -> None:  # fmt: skip
    """Teach ``student`` in place, from the last whole checkpoint in ``folder`` on; ``told``: minutes and marks, also at
    the end."""
    clock = Clock(course)
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=course.texts,
        learning_rate=course.rate,
        weight_decay=0.01,
        adam_beta2=0.98,
        max_steps=_FOREVER,
        train_sampling_strategy="random",
        save_strategy="no",
        save_total_limit=2,
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        seed=course.seed,
        data_seed=course.seed,
    )

    def look(minutes: float) -> None:
        told(minutes, examine())

    trainer = _Trainer(
        student,
        course.divergence,
        clock,
        args=arguments,
        train_dataset=lessons,
        data_collator=batch,
        callbacks=[_Watch(clock, course.often, look, stopped)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    look(clock.minutes())


def last_checkpoint(folder: Path) -> str | None:
    """The newest that was written to its end; what was not is deleted."""
    found = sorted(folder.glob(f"{_CHECKPOINT}*"), key=lambda path: int(path.name.removeprefix(_CHECKPOINT)))
    for path in reversed(found):
        if _whole(path):
            return str(path)
        shutil.rmtree(path)
    return None


def _whole(checkpoint: Path) -> bool:
    """Its state is written last."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text())
    except (OSError, ValueError):
        return False
    return (checkpoint / "model.safetensors").is_file()
