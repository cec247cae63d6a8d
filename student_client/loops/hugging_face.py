"""transformers' Trainer with teachers: its loss is a method's, and their step follows its own; all else is left to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback

from student_client.loops.collating import TeacherColumns, student_inputs
from student_client.loops.distillation import Distillation, distillation_config
from student_client.loops.trainer_ranks import check_start
from student_client.ranks import Ranks, in_group
from student_client.teachers.recovery import LOST
from student_client.training.conversation import overflow
from student_client.training.moments import parameters_of
from student_models import TappedStudent
from student_models.auto_models import task_of
from teaching_protocol.errors import NonFiniteError

__all__ = ["DistillationTrainer"]


class DistillationTrainer(Trainer):  # type: ignore[misc]  # transformers is not typed
    """A `Trainer` whose student also learns from a served teacher.

    Everything of `TrainingArguments` is as it was. The data set keeps a column of what the teacher reads (`text`). Codecs
    learn at the student's learning rate, are clipped at its `max_grad_norm`, and lie in every checkpoint as
    `distillation/`. Evaluation and prediction ask no teacher. Processes of DDP, FSDP and DeepSpeed share one session.

    Args:
        args, kwargs: as of `Trainer`. `model` is a classifier, or the `model` of `student`.
        teacher: `HOST:PORT` of a teacher server, or several with commas; or fields of `TeacherConfig`.
        method: name of a method, several with commas, or fields of `MethodConfig`.
        complementary: further teachers, of a committee.
        teacher_columns: columns of the data set that teachers read.
        student: the model with taps of its own; None taps a transformer's layers.

    Raises:
        ConfigError: what was asked for cannot be done in these processes, or with these arguments.
    """

    def __init__(
        self,
        *args: Any,
        teacher: str | Mapping[str, Any] | None = None,
        method: str | Mapping[str, Any] = "talking",
        complementary: Sequence[str | Mapping[str, Any]] = (),
        teacher_columns: Sequence[str] = ("text",),
        student: TappedStudent | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        name = Path(self.args.output_dir).name or "student"
        training = {"lr": self.args.learning_rate, "weight_decay": self.args.weight_decay}
        self.distillation: Distillation | None = None
        self.loss_is_scaled_for_ga = False  # a microbatch's loss is a mean: Trainer divides it
        self._config = distillation_config(teacher, method, complementary, training, name)
        self._columns, self._student = tuple(teacher_columns), student
        self._ranks: Ranks | None = None
        task = task_of(self.model) if student is None else student.task
        check_start(self.accelerator, self.args, self._config, task.level)
        self.data_collator: Any = TeacherColumns(vars(self)["data_collator"], self._columns)
        self.add_callback(_TeachersStep(self))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """In training the method's loss; elsewhere `Trainer`'s own. `compute_loss_func` and label smoothing are the task's."""
        if self.distillation is None or not model.training:
            return super().compute_loss(model, self._own(inputs), return_outputs, num_items_in_batch)
        task = None
        if self.label_smoother is not None or self.compute_loss_func is not None:
            task, outputs = super().compute_loss(model, self._own(inputs), return_outputs=True)
        else:
            outputs = model(**student_inputs(inputs))
        with self._autocast():
            loss = self.distillation.loss(inputs, outputs, task)
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """As `Trainer`'s; a gradient that overflowed on its way to the teacher is an overflow like any other."""
        try:
            loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        except NonFiniteError:
            if self.accelerator.scaler is None:
                raise
            loss = torch.full((), torch.nan, device=self.args.device)
        if self.accelerator.scaler is not None and self.distillation is not None:
            is_finite = bool(torch.isfinite(loss)) and not self.distillation.conversation.has_overflowed()
            if not is_finite:
                overflow(parameters_of(self.optimizer))
        return loss

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As `Trainer`'s, of the student alone."""
        return super().prediction_step(model, self._own(inputs), *args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As `Trainer`'s; the parts of the loss stand beside it, of several processes those of the first."""
        if self.distillation is not None and "loss" in logs:
            logs = {**logs, **self.distillation.means.take()}
        super().log(logs, *args, **kwargs)

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        """The sessions are open while it trains."""
        with self._opened() as self.distillation:
            try:
                return super()._inner_training_loop(*args, **kwargs)
            except LOST as error:
                if self.accelerator.num_processes > 1:
                    error.add_note(
                        "start all processes again, with resume_from_checkpoint; `torchrun --max-restarts` does so"
                    )
                raise
            finally:
                self.distillation = None

    def _opened(self) -> Distillation:
        if self._ranks is None:
            self._ranks = in_group(self.args.ddp_timeout)
        model = self.model if self._student is None else self._student
        opened = Distillation(model, self._config, self._columns, self.args.device, _say, self._ranks)
        if opened.student.tokenizer is None:
            opened.student.tokenizer = self.processing_class
        return opened

    def _autocast(self) -> torch.autocast:
        """What the model computes in, for the codec beside it."""
        precision = self.accelerator.mixed_precision
        dtype = torch.float16 if precision == "fp16" else torch.bfloat16
        return torch.autocast(self.args.device.type, dtype, enabled=precision in ("bf16", "fp16"))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.distillation is not None:
            self.distillation.save(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.distillation is not None and checkpoint is not None:
            self.distillation.load(checkpoint)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns += [name for name in self._columns if name not in self._signature_columns]

    def _own(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        own = student_inputs(inputs)
        return own | {"labels": inputs["labels"]} if "labels" in inputs else own


class _TeachersStep(TrainerCallback):  # type: ignore[misc]
    """The step of the codecs behind each step of the student's optimizer."""

    def __init__(self, trainer: DistillationTrainer) -> None:
        self._trainer = trainer
        self._scale = 1.0

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """The loss scale that the gradients were made with; the scaler changes it in its step."""
        scaler = self._trainer.accelerator.scaler
        self._scale = 1.0 if scaler is None else float(scaler.get_scale())

    def on_optimizer_step(self, args: Any, *_: Any, **found: Any) -> None:
        """The student has stepped, or its scaler has skipped."""
        if self._trainer.distillation is not None:
            self._trainer.distillation.step(
                lr=found["optimizer"].param_groups[0]["lr"],
                grad_scale=1.0 / self._scale,
                max_grad_norm=args.max_grad_norm,
                is_skipped=self._trainer.accelerator.optimizer_step_was_skipped,
            )


def _say(sentence: str) -> None:
    print(sentence, flush=True)  # noqa: T201
