"""How good a served teacher is on a task by itself, from the logits it serves; knows no student and no method."""

from __future__ import annotations

import uuid

import torch

from student_client.methods.served import MULTI_LABEL_HEAD
from student_client.teachers.remote import RemoteTeacher
from student_client.teachers.teachers import Member, reads
from task_data import Split, Task, TaskData, load_data, teacher_ports, teacher_view
from task_data.config import DataConfig
from task_data.metrics import measured

__all__ = ["score_teacher"]

_ROWS = 64


def score_teacher(address: str, config: DataConfig) -> dict[str, float | str | None]:
    """The teacher's metric on the validation and the test rows; None where it has no head for this task.

    Raises:
        DataError: data that cannot be had.
        TeachingError: the teacher cannot be asked.
    """
    data = load_data(config)
    nothing: dict[str, float | str | None] = {"metric": data.task.metric, "validation": None, "test": None}
    with RemoteTeacher(address, student=f"scores-{uuid.uuid4().hex[:8]}", compression="none") as teacher:
        card = teacher.card
        if "logits" not in card.output_ports or not _fits(card.heads, card.labels, data):
            return nothing
        member = Member(teacher, reads(card, teacher_ports(data.train)))
        order = [card.labels.index(label) for label in data.task.labels]
        return nothing | {
            "validation": _score(member, data.validation, data.task, order),
            "test": _score(member, data.test, data.task, order),
        }


def _fits(heads: tuple[str, ...], labels: tuple[str, ...], data: TaskData) -> bool:
    if "causal_lm" in heads or data.task.level != "row" or (MULTI_LABEL_HEAD in heads) != data.task.is_multi_label:
        return False
    return len(labels) <= 1 if data.task.is_regression else sorted(labels) == sorted(data.task.labels)


def _score(member: Member, split: Split, task: Task, order: list[int]) -> float:
    """The task's metric; `order` is the teacher's column of each class, of which a regression has none."""
    view = teacher_view(split, member.ports)
    parts = []
    for rows in torch.split(torch.arange(len(split)), _ROWS):
        inputs = {name: tensor[rows] for name, tensor in view.items()}
        parts.append(member.teacher.observe(inputs, ["logits"])["logits"].double())
    logits = torch.cat(parts)
    outputs = logits[:, order] if order else logits.squeeze(-1)
    return measured(task.kind, outputs[split.labelled], split.labels[split.labelled])[task.metric]
