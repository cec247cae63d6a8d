"""What tests of methods share: tiny students and data, tiny real teachers in this process, enrolled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch

from student_client.method_config import MethodConfig
from student_client.methods import Context, Methods, build_methods, named, session_options
from student_client.teachers.remote import InProcessTeacher
from student_client.teachers.teachers import Member, Teachers, reads
from student_models import Student
from task_data import Batch, TaskData, batches, teacher_ports, teacher_view
from teacher_server.actor import TeacherActor
from teacher_server.models.split import FrozenTeacher
from tests.unit.student_client.student_data import tiny
from tests.unit.teacher_server.tiny_models import tiny_model, tiny_tokenizer

MODALITIES = ("text", "ratings", "image")


def settings(**overrides: Any) -> MethodConfig:
    return MethodConfig(**({"names": ("talking",), "message_width": 16, "message_tokens": 2} | overrides))


def frozen(modality: str) -> FrozenTeacher:
    """A teacher that can read the modality's view for it: BERT, or ViT for images."""
    if modality == "image":
        return FrozenTeacher(tiny_model("vit"))
    return FrozenTeacher(tiny_model("bert"), tokenizer=tiny_tokenizer())


def student_and_data(modality: str) -> tuple[Student, TaskData]:
    """A tiny student; half of its training rows have no label."""
    student, data = tiny(modality)
    if modality == "ratings":
        said = replace(data.train, teacher=[f"film {row}" for row in range(len(data.train))])
        data = replace(data, train=said)
    labelled = torch.arange(len(data.train)) % 2 == 0
    hidden = data.train.labels.masked_fill(~labelled, -1)
    return student, replace(data, train=replace(data.train, labelled=labelled, labels=hidden))


def one_batch(student: Student, data: TaskData, rows: int = 8, epoch: int = 0) -> Batch:
    split = data.train
    views = student.view(split.columns), teacher_view(split, teacher_ports(split))
    return next(batches(*views, split, rows, seed=0, epoch=epoch))


@contextmanager
def enrolled(
    actors: Sequence[TeacherActor] | TeacherActor, config: MethodConfig, student: Student, data: TaskData, seed: int = 0
) -> Iterator[tuple[Methods, Teachers]]:
    """The methods of a configuration, and their teachers with open sessions, the foundation first."""
    actors = [actors] if isinstance(actors, TeacherActor) else list(actors)
    with ExitStack() as stack:
        members = []
        for place, actor in enumerate(actors):
            teacher = InProcessTeacher(actor, student=f"tiny{place}", **session_options(config, "task", seed + place))
            stack.callback(teacher.leave)
            members.append(Member(teacher, reads(teacher.card, teacher_ports(data.train)), place))
        cards = tuple(member.teacher.card for member in members)
        methods = build_methods(Context(config, student, cards, seed))
        for member in members:
            member.teacher.enroll()
        converse = any(method.converses_under(config) for method in named(config).values())
        yield methods, Teachers(members, converse)
