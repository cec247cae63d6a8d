"""Distillation in a training loop of anybody's: a model, teachers at their addresses, a loss and a step; knows no library."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist
from pydantic import ValidationError
from torch import nn

from command_config import expected
from student_client.config import RunConfig
from student_client.loops.collating import PREFIX, batch_of
from student_client.loops.continuity import Continuity
from student_client.methods import Context, build_methods, check_suits, reads_student_tokens
from student_client.ranks import Ranks
from student_client.reporting.progress import Means
from student_client.teachers.members import STUDENT_TOKENS
from student_client.teachers.recovery import Losses
from student_client.training.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from student_client.training.connecting import connected
from student_client.training.conversation import Conversation
from student_client.training.division import check_divisible
from student_models import TappedStudent
from teaching_protocol.errors import ConfigError, DataError, StateMismatch

__all__ = ["Distillation", "distillation_config"]

_FOLDER = "distillation"


class Distillation:
    """A model learns from teachers by a method. Use once, as a context manager: inside it, sessions are open.

    The loop runs the model, calls `loss` on what came out, goes backward, steps its own optimizer, and calls `step`. Lost
    teachers are waited for inside these calls (`teacher.patience_s`); with several ranks they are an error of those calls.

    Args:
        model: a transformers classifier or causal language model, or a `TappedStudent` around any module; wrapped for training or not.
        config: as `distillation_config` makes it.
        columns: names of the teachers' input ports that batches bring along as `teacher_<name>`.
        device: of the student-side codec; None is the model's.
        say: is told of lost teachers.
        ranks: the processes that train this student, each with as many rows of a batch, whose loop averages the gradients of
            the model; `ranks.in_group` finds them. They share one session, and every method here is called by all of them.

    Attributes:
        means: parts of the loss and numbers to watch, since they were last taken.
    """

    def __init__(
        self,
        model: nn.Module,
        config: RunConfig,
        columns: Sequence[str] = ("text",),
        device: torch.device | None = None,
        say: Callable[[str], None] = print,
        ranks: Ranks | None = None,
    ) -> None:
        self._ranks = ranks or Ranks()
        self._is_ours = not isinstance(model, TappedStudent)
        self.student = model if isinstance(model, TappedStudent) else TappedStudent(model)
        self.means = Means()
        self._config, self._columns, self._say = config, tuple(columns), say
        self._device = next(model.parameters()).device if device is None else device
        self._opened = ExitStack()
        self._conversation: Conversation | None = None
        self._continuity: Continuity | None = None
        self._done = 0

    @property
    def conversation(self) -> Conversation:
        """Student, method and teachers together.

        Raises:
            ConfigError: outside the context.
        """
        if self._conversation is None:
            raise ConfigError("no session is open; use `with Distillation(...) as distillation:` around the loop")
        return self._conversation

    @property
    def losses(self) -> Losses:
        """How often teachers were lost and came back, and seconds waited."""
        return Losses() if self._continuity is None else self._continuity.losses

    def __enter__(self) -> Self:
        config, student, ranks = self._config, self.student, self._ranks
        check_suits(config.method, student.task)
        check_divisible(config, ranks.count, student.task.level)
        _check_alone(ranks)
        served = STUDENT_TOKENS if reads_student_tokens(config.method, student.task) else self._columns
        with self._opened:  # closes what was opened if anything goes wrong
            if self._is_ours:
                self._opened.callback(student.taps.close)
            opening = connected(config, student.task.name, served, (), self._say, ranks=ranks)
            teachers = self._opened.enter_context(opening)
            method = build_methods(Context(config.method, student, teachers.cards, config.method.seed))
            method.to(self._device).train()
            ranks.align([method])
            self._conversation = Conversation(student, method, teachers, config.training.weight_decay)
            if ranks.count == 1:
                self._continuity = Continuity(teachers, config.training.rewind_steps)
                self._continuity.begin()
            teachers.winds_back = ranks.count > 1  # a rank that waited here would leave the others in a collective
            self._opened = self._opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()
        self._conversation = None

    def loss(self, batch: Mapping[str, Any], outputs: Any, task: torch.Tensor | None = None) -> torch.Tensor:
        """The loss of a batch: the task's on its labelled rows, and the method's terms.

        Args:
            batch: `labels` [batch], or of tokens [batch, tokens], -100 or NaN where there is none, and `teacher_text` or whatever the teachers read
                (`collating.TeacherColumns`).
            outputs: what the model has just made of it.
            task: a task loss of your own; None takes cross-entropy, or the squared error.

        Raises:
            DataError: a teacher's inputs are missing.
            TeachingError: a teacher refuses, or stays away.
        """
        conversation = self.conversation
        for member in conversation.teachers.members:
            missing = [port for port in member.ports if PREFIX + port not in batch and port not in STUDENT_TOKENS]
            if missing:
                raise DataError(
                    f"the batch holds {', '.join(batch)}, expected {', '.join(PREFIX + port for port in missing)} for the "
                    f"teacher; keep the column {missing[0]!r} in the data set, and collate it with TeacherColumns"
                )
        trace = self.student.traced(outputs)
        found = batch_of(batch, len(trace.outputs), trace.outputs.device, self.student.task.level)
        outcome = conversation.loss(found, trace, task)
        self.means.add({f"loss_{name}": value for name, value in outcome.parts.items()})
        self.means.add(outcome.monitors)
        return outcome.loss

    def step(self, lr: float, grad_scale: float = 1.0, max_grad_norm: float = 1.0, is_skipped: bool = False) -> None:
        """Steps the codecs of both sides, behind the student's step; arguments and errors as of `Conversation.step`."""
        conversation = self.conversation
        own = self._config.teacher.lr if self._config.teacher is not None else None
        teacher_lr = None if own is None else own * lr / self._config.training.lr
        conversation.average((), 1.0 / self._ranks.count)
        norms = conversation.step(
            lr,
            teacher_lr=teacher_lr,
            grad_scale=grad_scale,
            max_grad_norm=max_grad_norm,
            rows=1,  # of every rank alike
            is_skipped=is_skipped,
        )
        self.means.add(norms)
        self._done += 1
        if self._continuity is not None:
            self._continuity.stepped()

    def state_dict(self) -> dict[str, Any]:
        """Both codecs, their optimizers and what the method counts, between two steps: tensors, numbers and text.

        The teachers' states are rank 0's.

        What would be told again to a teacher that is lost from now on begins here.
        """
        conversation = self.conversation
        return {
            "step": self._done,
            "teachers": conversation.teachers.hashes,
            "method": dict(conversation.method.state_dict()),
            "optimizer": conversation.moments(),
            "sessions": [torch.frombuffer(bytearray(state), dtype=torch.uint8) for state in self._states()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was called, in this session or a later one.

        Raises:
            StateMismatch: it does not fit this student or these teachers.
        """
        conversation = self.conversation
        conversation.teachers.check_weights(state["teachers"])
        try:
            conversation.method.load_state_dict(state["method"])
        except RuntimeError as error:
            raise StateMismatch(f"the state does not fit this student and method: {error}") from error
        conversation.load_moments(state["optimizer"])
        sessions = tuple(session.numpy().tobytes() for session in state["sessions"])
        if self._continuity is not None:
            self._continuity.put_back(sessions)
        else:
            self._ranks.only_first(lambda: conversation.teachers.import_states(sessions), None)
            conversation.teachers.share()
        self._done = int(state["step"])

    def save(self, folder: Path | str) -> None:
        """Writes `state_dict` to `distillation/` of a folder, with a hash of every file, beside a saved model; rank 0 writes.

        Raises:
            ConfigError: the folder cannot be written.
        """
        state = self.state_dict()
        tensors = {name: state[name] for name in ("method", "optimizer")}
        sessions = tuple(session.numpy().tobytes() for session in state["sessions"])
        facts = {"teachers": state["teachers"]}
        found = Checkpoint(self._done, self._identity, facts, tensors, sessions)
        self._ranks.only_first(lambda: save_checkpoint(Path(folder) / _FOLDER, found), None)

    def load(self, folder: Path | str) -> None:
        """Goes on where `save` was called, in this session or a later one; every rank reads the folder.

        Raises:
            ConfigError: there is nothing, or it is of another method.
            StateMismatch: it does not fit this student or these teachers, or is damaged.
        """
        found = load_checkpoint(Path(folder) / _FOLDER, self._identity)
        sessions = [torch.frombuffer(bytearray(state), dtype=torch.uint8) for state in found.sessions]
        self.load_state_dict({"step": found.step, **found.facts, **found.tensors, "sessions": sessions})

    @property
    def _identity(self) -> dict[str, Any]:
        """What must be the same to go on."""
        return {"method": self._config.identity()["method"]}

    def _states(self) -> tuple[bytes, ...]:
        if self._continuity is not None:
            return self._continuity.take()
        return self._ranks.only_first(self.conversation.teachers.export_states, ())


def distillation_config(
    teacher: str | Mapping[str, Any] | None,
    method: str | Mapping[str, Any] = "talking",
    complementary: Sequence[str | Mapping[str, Any]] = (),
    training: Mapping[str, Any] | None = None,
    name: str = "student",
) -> RunConfig:
    """The configuration of teachers and method alone: docs/configuration.md has their fields.

    Args:
        teacher: `HOST:PORT`, with others after commas where the same teacher serves; or fields of `TeacherConfig`.
        method: a method's name, or several with commas; or fields of `MethodConfig`.
        complementary: further teachers, of a committee.
        training: fields of `TrainingConfig` that a conversation reads: `lr`, `weight_decay`, `rewind_steps`.
        name: what the session is called at the teacher begins with it.

    Raises:
        ConfigError: an unknown field or a value out of range.
    """
    fields = {
        "teacher": None if teacher is None else _teacher(teacher),
        "method": {"names": method} if isinstance(method, str) else dict(method),
        "complementary": [_teacher(each) for each in complementary],
        "training": dict(training or {}),
        "output": name,
    }
    try:
        return RunConfig.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(
            f"{'.'.join(map(str, first['loc']))}: received {first['input']!r}, expected {expected(first)}"
        ) from error


def _check_alone(ranks: Ranks) -> None:
    """Refuses processes of one group that know nothing of each other here: each would learn another codec."""
    count = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if ranks.count != count:
        raise ConfigError(
            f"received {ranks.count} ranks in a process group of {count}, expected as many; give `ranks=in_group(seconds)` of "
            "student_client.ranks in every process"
        )


def _teacher(given: str | Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(given, str):
        return dict(given)
    first, *others = [each.strip() for each in given.split(",")]
    return {"address": first, "addresses": others}
