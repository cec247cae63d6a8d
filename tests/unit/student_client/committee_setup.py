"""What tests of a committee share: teachers of different families and widths, a committee of them, a training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers as hf

from student_client.methods import Context, Methods, build_methods, session_options
from student_client.methods.committee import Committee
from student_client.teachers.remote import InProcessTeacher
from student_client.teachers.teachers import Absence, Member, Teachers
from student_models import Student
from task_data import TaskData, teacher_ports
from teacher_server.actor import TeacherActor
from teacher_server.local import local_teacher
from teacher_server.models.split import FrozenTeacher
from tests.unit.student_client.method_setup import frozen, one_batch, settings
from tests.unit.teacher_server.served_students import run_folder
from tests.unit.teacher_server.tiny_models import VOCABULARY, tiny_model, tiny_tokenizer

__all__ = ["committee", "committee_config", "module_of", "rows_run", "teachers_of", "train", "wide_bert"]


def wide_bert() -> FrozenTeacher:
    """A BERT of width 48 and another number of labels than any data set here has."""
    size = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = hf.BertConfig(vocab_size=VOCABULARY, max_position_embeddings=40, pad_token_id=1, num_labels=5, **size)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = hf.BertForSequenceClassification(config).eval()
    return FrozenTeacher(model, "wide", tokenizer=tiny_tokenizer())


def teachers_of(modality: str, folder: Path, **config: Any) -> list[TeacherActor]:
    """A foundation and a complementary teacher that differ in family, width, labels or what they read."""
    models: dict[str, Callable[[], list[FrozenTeacher | str]]] = {
        "text": lambda: [wide_bert(), FrozenTeacher(tiny_model("llama"), tokenizer=tiny_tokenizer())],
        "image": lambda: [frozen("image"), FrozenTeacher(tiny_model("resnet"))],
        "ratings": lambda: [frozen("ratings"), str(run_folder(folder, "ratings"))],
    }
    return [local_teacher(model, **config) for model in models[modality]()]


def committee_config(**overrides: Any) -> Any:
    """Settings of the method; those of `committee` in a mapping of their own."""
    return settings(names=("committee",), **overrides)


@contextmanager
def committee(
    actors: Sequence[TeacherActor],
    student: Student,
    data: TaskData,
    config: Any = None,
    absence: Absence | None = None,
) -> Iterator[tuple[Methods, Teachers]]:
    """The method and its teachers with open sessions, as a run puts them together."""
    config = config or committee_config()
    served = teacher_ports(data.train)
    members = []
    for place, actor in enumerate(actors):
        teacher = InProcessTeacher(actor, student=f"s{place}", **session_options(config, "task", place))
        members.append(Member(teacher, served, place, f"teacher {place}"))
    teachers = Teachers(members, absence=absence)
    try:
        teachers.enroll()
        yield build_methods(Context(config, student, teachers.cards, 0)), teachers
    finally:
        teachers.leave()


def module_of(methods: Methods) -> Committee:
    found = methods.methods["committee"]
    assert isinstance(found, Committee)
    return found


def rows_run(actor: TeacherActor) -> float:
    """Rows that the teacher's engine has run, in Forwards and Backwards."""
    return actor._metrics.registry.get_sample_value("teacher_batch_rows_sum") or 0.0


def train(
    student: Student, data: TaskData, methods: Methods, teachers: Teachers, steps: int = 6
) -> list[dict[str, float]]:
    """Trains all sides for some steps; gives what each step had to watch."""
    torch.manual_seed(7)  # dropout
    parameters = [*student.parameters(), *methods.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3)
    watched = []
    for step in range(steps):
        outcome = methods.loss(student, one_batch(student, data, epoch=step), teachers)
        optimizer.zero_grad()
        outcome.loss.backward()
        optimizer.step()
        watched.append({**outcome.monitors, **teachers.step(lr=3e-3), "loss": outcome.loss.item()})
    return watched
