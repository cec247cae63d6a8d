"""How large a student and its teacher are, and how long a batch takes each, measured; trains nothing."""

from __future__ import annotations

import statistics
import time
from contextlib import suppress

import torch
from torch import nn

from student_client.footprint import Footprint
from student_client.members import Member, read_by_teachers
from student_models import Student
from task_data import Split, batches
from teaching_protocol.errors import TeachingError

__all__ = ["count_parameters", "of_student", "of_teacher"]

_ROUNDS, _ROWS = 5, 32


def of_student(student: Student, split: Split) -> Footprint:
    """A student alone, in evaluation mode where it is: the median of five batches of up to 32 rows of a split."""
    view = {name: value[:_ROWS] for name, value in student.view(split.columns).items()}
    device, rows = next(student.parameters()).device, min(_ROWS, len(split))
    inputs = {name: value.to(device) for name, value in view.items()}
    times = []
    with torch.no_grad():
        for _ in range(_ROUNDS + 1):  # the first one warms up
            began = time.perf_counter()
            student(inputs).cpu()  # waits for a device
            times.append(time.perf_counter() - began)
    return Footprint(count_parameters(student), _size_bytes(student), 1e3 * statistics.median(times[1:]), rows)


def of_teacher(member: Member, student: Student, split: Split) -> Footprint:
    """A teacher, by its card; its own seconds for one batch of up to 32 rows of a split that it was not asked about before.

    What it cannot be asked is 0: rows it has in its cache cost it nothing.
    """
    card = member.card
    seconds, rows = 0.0, min(_ROWS, len(split))
    with suppress(TeachingError, StopIteration):
        view = read_by_teachers(split, member.ports, student.view(split.columns))
        batch = next(batches({}, view, split, _ROWS, seed=0, epoch=0))
        before = member.teacher.seconds
        member.teacher.observe(member.own(batch), ["pooled"])
        seconds = member.teacher.seconds - before
    return Footprint(card.parameters, card.weight_bytes, 1e3 * seconds, rows)


def count_parameters(module: nn.Module) -> int:
    """Number of a module's parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def _size_bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensors in (module.parameters(), module.buffers()) for tensor in tensors)
