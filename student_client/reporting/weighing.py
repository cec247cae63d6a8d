"""How large students and their teachers are, and how fast, measured side by side; trains nothing."""

from __future__ import annotations

import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from student_client.reporting.footprint import TEACHER, Footprint
from student_client.teachers.members import Member, read_by_teachers, reads
from student_client.teachers.remote import RemoteTeacher
from student_models import Student, Tensors
from task_data import Batch, Split, batches, teacher_ports
from teaching_protocol.errors import TeachingError

__all__ = ["count_parameters", "weigh", "weigh_at"]

_ROUNDS, _ROWS, _FEWEST = 6, 32, 3

Column = Sequence[str] | torch.Tensor

Take = Callable[[], float | None]
"""One batch; the seconds it took, or None where that cannot be known."""


def weigh(students: Mapping[str, Student], teachers: Mapping[str, Member], split: Split) -> dict[str, Footprint]:
    """Each model alone, in turns: six rounds in which each has one batch, of which the first warms up; the median counts.

    A batch has up to 32 rows of the split, fewer where it is short. A student's seconds are those of a forward in evaluation
    mode where it is, a teacher's those it says it took itself, without network and queue. Rows are changed a little before, in
    another way each time: those that a teacher has in its cache would cost it nothing.

    Args:
        students: by name; teachers that read a student's own tokens get the first one's.
        teachers: by name; what one cannot be asked is 0.
        split: rows to run, such as those that validate.
    """
    rows, split = max(1, min(_ROWS, len(split) // _FEWEST)), _unseen(split)
    with ExitStack() as stack:
        read = next(iter(students.values())).view(split.columns)
        takes: dict[str, Take] = {name: _of_student(each, split, rows) for name, each in students.items()}
        takes |= {name: _of_teacher(each, read, split, rows) for name, each in teachers.items()}
        for student in students.values():
            stack.callback(student.train, student.training)
            student.eval()
        seconds: dict[str, list[float]] = {name: [] for name in takes}
        for _ in range(_ROUNDS):
            for name, take in takes.items():
                took = take()
                seconds[name] += [] if took is None else [took]
    found = {name: _footprint_of(each) for name, each in students.items()}
    for name, member in teachers.items():
        card = member.teacher.card
        found[name] = Footprint(card.parameters, card.weight_bytes, disk_bytes=card.weight_bytes)
    return {name: _timed(size, seconds[name], rows) for name, size in found.items()}


def weigh_at(students: Mapping[str, Student], addresses: Mapping[str, str], split: Split) -> dict[str, Footprint]:
    """`weigh` with teachers at their addresses; `addresses` are by what stands behind `TEACHER` in their names.

    Raises:
        TeachingError: one cannot be reached.
    """
    with ExitStack() as stack:
        members = {}
        for name, address in addresses.items():
            own = f"weighing-{uuid.uuid4().hex[:8]}"
            teacher = stack.enter_context(RemoteTeacher(address, student=own, compression="none"))
            members[f"{TEACHER} {name}".strip()] = Member(teacher, reads(teacher.card, teacher_ports(split)))
        return weigh(students, members, split)


def count_parameters(module: nn.Module) -> int:
    """Number of a module's parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def _unseen(split: Split) -> Split:
    """The rows under a mark of their own: a word before a text, noise in the last bit of an image, numbers in another order."""
    mark = uuid.uuid4()
    draw = torch.Generator().manual_seed(mark.int % 2**63)

    def changed(column: Column) -> Column:
        if not isinstance(column, torch.Tensor):
            return [f"{mark.hex[:8]} {text}" for text in column]
        if column.dim() == 1:
            return column[torch.randperm(len(column), generator=draw)]
        return column ^ torch.randint(0, 2, column.shape, generator=draw).to(column.dtype)

    columns = {name: changed(column) for name, column in split.columns.items()}
    return replace(split, columns=columns, teacher=changed(split.teacher))


def _of_student(student: Student, split: Split, rows: int) -> Take:
    device = next(student.parameters()).device
    inputs = {name: value[:rows].to(device) for name, value in student.view(split.columns).items()}

    def take() -> float:
        began = time.perf_counter()
        with torch.no_grad():
            student(inputs).cpu()  # waits for a device
        return time.perf_counter() - began

    return take


def _of_teacher(member: Member, read: Tensors, split: Split, rows: int) -> Take:
    unasked: Iterator[Batch] = iter(())
    with suppress(TeachingError):
        unasked = batches({}, read_by_teachers(split, member.ports, read), split, rows, seed=0, epoch=0)

    def take() -> float | None:
        with suppress(TeachingError, StopIteration):
            batch = next(unasked)
            before = member.teacher.seconds
            if len(batch) == rows:
                member.teacher.observe(member.own(batch), ["pooled"])
                return member.teacher.seconds - before
        return None

    return take


def _timed(size: Footprint, seconds: list[float], rows: int) -> Footprint:
    counted = seconds[1:] or seconds
    took = statistics.median(counted) if counted else 0.0
    return Footprint(size.parameters, size.size_bytes, 1e3 * took, rows if took else 0, size.disk_bytes)


def _footprint_of(student: Student) -> Footprint:
    held = sum(tensor.nbytes for tensors in (student.parameters(), student.buffers()) for tensor in tensors)
    with tempfile.TemporaryDirectory() as folder:
        student.save(Path(folder) / "student")
        saved = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    return Footprint(count_parameters(student), held, disk_bytes=saved)
