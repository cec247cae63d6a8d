"""What is observed of the next batch while the current step runs: right, in order, resumable, and its errors kept."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from student_client.students import build_student
from student_client.teachers.remote import InProcessTeacher
from student_client.teachers.teachers import Member, Teachers
from student_client.training.ahead import Ahead
from student_client.training.stream import Place, Stream
from task_data import Batch, load_data
from teacher_server.actor import TeacherActor
from teacher_server.local import local_teacher
from teaching_protocol.errors import UnknownPort
from tests.unit.student_client.method_setup import frozen
from tests.unit.student_client.run_setup import run_config

PORTS = {0: ("pooled", "hidden.2")}


class Slow(Member):
    """A member whose answers wait for `open`; tells when it is asked."""

    def __init__(self, member: Member) -> None:
        super().__init__(member.teacher, member.ports)
        self.asked, self.open = threading.Semaphore(0), threading.Semaphore(0)

    def fetch(self, batch: Batch, ports: Sequence[str]) -> dict[str, torch.Tensor]:
        self.asked.release()
        assert self.open.acquire(timeout=20)
        return super().fetch(batch, ports)


@pytest.fixture(scope="module")
def actor() -> TeacherActor:
    return local_teacher(frozen("text"))


@pytest.fixture
def member(actor: TeacherActor) -> Iterator[Member]:
    with InProcessTeacher(actor, student="ahead", message_width=8) as teacher:
        yield Member(teacher, ("text",))


def stream(folder: Path) -> Stream:
    config = run_config(folder)
    data = load_data(config.data)
    return Stream(data.train, build_student(config.student, data), config.training, ["text"], torch.device("cpu"))


def test_known_is_what_the_teacher_says_of_the_batch(tmp_path: Path, member: Member) -> None:
    batches = Ahead(stream(tmp_path), Teachers([member]), PORTS)
    plain = stream(tmp_path)
    for _ in range(3):
        batch, same = batches.next(), plain.next()
        assert torch.equal(batch.rows, same.rows)
        assert batches.place == plain.place
        expected = member.teacher.observe(member.own(same), PORTS[0])
        rows = member.teacher.costs[1]
        for port, value in member.observe(batch, PORTS[0]).items():
            torch.testing.assert_close(value, expected[port])
        assert member.teacher.costs[1] == rows, "what is known is not asked again"
    batches.close()


def test_the_next_batch_is_asked_about_before_it_is_needed(tmp_path: Path, member: Member) -> None:
    slow = Slow(member)
    batches = Ahead(stream(tmp_path), Teachers([slow]), PORTS)
    slow.open.release()
    batches.next()
    assert slow.asked.acquire(timeout=20)
    assert slow.asked.acquire(timeout=20), "the second batch is asked about while the first is in use"
    slow.open.release()
    batches.next(last=True)
    assert not slow.asked.acquire(timeout=0.2), "nothing is asked behind the last batch"
    batches.close()


def test_it_goes_on_behind_a_place(tmp_path: Path, member: Member) -> None:
    batches, plain = Ahead(stream(tmp_path), Teachers([member]), PORTS), stream(tmp_path)
    first = [batches.next().rows for _ in range(3)]
    batches.go_to(Place(0, 1))
    assert torch.equal(batches.next().rows, first[1])
    assert batches.place == Place(0, 2)
    plain.go_to(Place(0, 2))
    assert torch.equal(batches.next().rows, plain.next().rows)
    batches.close()


def test_an_error_reaches_whoever_needs_the_batch(tmp_path: Path, member: Member) -> None:
    batches = Ahead(stream(tmp_path), Teachers([member]), {0: ("mood",)})
    with pytest.raises(UnknownPort, match="mood"):
        batches.next()
    batches.close()


def test_without_wishes_nobody_is_asked(tmp_path: Path, member: Member) -> None:
    batches = Ahead(stream(tmp_path), Teachers([member]), {})
    before = member.teacher.costs
    assert batches.next().known == {}
    assert member.teacher.costs == before
    batches.close()
