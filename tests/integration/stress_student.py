"""Random students, each beside a twin: the same calls to a teacher in this process, whose every number must agree.

As a process: argv is address, name, seed; runs until its standard input is closed, then prints how many replies it checked.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import grpc
import torch

from student_client import InProcessTeacher, RemoteTeacher
from teacher_server.actor import TeacherActor
from teacher_server.local import local_teacher
from teacher_server.models.split import FrozenTeacher
from teaching_protocol.errors import (
    CallCancelled,
    DeadlineExceeded,
    NonFiniteError,
    Overloaded,
    Quarantined,
    SessionNotFound,
)
from teaching_protocol.verbs import Call, RenewRequest
from teaching_protocol.wire import write
from tests.calls import Caller, backward_request, forward_request
from tests.unit.teacher_server.tiny_models import tiny_model, tiny_tokenizer

__all__ = ["Student", "poison", "twin_teacher"]


def twin_teacher() -> TeacherActor:
    """The teacher that the server serves, in this process."""
    return local_teacher(FrozenTeacher(tiny_model("bert"), "tiny-bert", tokenizer=tiny_tokenizer()))


class Student:
    """Lives one session after another until `over`; `checked` counts the replies that agreed, `lost` the lost leases."""

    def __init__(self, address: str, name: str, seed: int, local: TeacherActor, over: Callable[[], bool]) -> None:
        self.checked = self.lost = 0
        self._address = address
        self._name = name
        self._local = local
        self._over = over
        self._random = random.Random(seed)
        self._numbers = torch.Generator().manual_seed(seed)

    def run(self) -> Student:
        number = 0
        while not self._over():
            number += 1
            try:
                self._live(f"{self._name}-{number}")
            except SessionNotFound:  # its process was stopped for longer than the lease
                self.lost += 1
        return self

    def _live(self, name: str) -> None:
        choose = self._random
        settings: dict[str, Any] = {
            "message_width": choose.choice((4, 8, 16)),
            "codec_depth": choose.choice((1, 2)),
            "entry": choose.choice((0, 1, 2)),
            "exit": choose.choice((3, 4)),
            "seed": choose.randrange(100),
        }
        remote = RemoteTeacher(self._address, student=name, compression="none", deadline_s=60.0, **settings)
        twin = InProcessTeacher(self._local, student=name, **settings)
        with twin, remote:
            for _ in range(choose.randint(1, 10)):
                if self._over():
                    return
                for _ in range(choose.choice((1, 1, 1, 2))):
                    self._exchange(remote, twin, settings["message_width"])
                if choose.random() < 0.2:
                    self._give_up_a_call(remote, settings["message_width"])
                if choose.random() < 0.9:
                    self._agree(torch.tensor(remote.step(lr=0.01)), torch.tensor(twin.step(lr=0.01)))
                if choose.random() < 0.1:
                    time.sleep(choose.uniform(0.0, 0.5))  # stalls, between two calls

    def _exchange(self, remote: RemoteTeacher, twin: InProcessTeacher, width: int) -> None:
        shape = (self._random.randint(1, 4), self._random.randint(2, 8), width)
        values = torch.randn(shape, generator=self._numbers)
        weights = torch.randn(shape, generator=self._numbers)
        found = []
        for teacher in (remote, twin):
            message = values.clone().requires_grad_()
            answer = teacher(message)
            (answer * weights).sum().backward()
            found.append((answer.detach(), message.grad))
        for one, other in zip(*found, strict=True):
            assert one is not None
            assert other is not None
            self._agree(one, other)

    def _give_up_a_call(self, remote: RemoteTeacher, width: int) -> None:
        """A Forward that is cancelled, or whose deadline is too short; it must leave no trace."""
        request = forward_request(remote.session, inputs={"message": torch.zeros(2, 4, width)})
        if self._random.random() < 0.5:
            with suppress(DeadlineExceeded, CallCancelled, Overloaded):
                remote._session.transport.forward(request, Call(time.monotonic() + 0.003))
            return
        with grpc.insecure_channel(self._address) as channel:
            call: Any = channel.unary_unary("/teaching_protocol.v1.Teacher/Forward").future(write(request), timeout=20)
            time.sleep(self._random.uniform(0.0, 0.01))
            call.cancel()

    def _agree(self, one: torch.Tensor, other: torch.Tensor) -> None:
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
        self.checked += 1


def poison(address: str, over: Callable[[], bool]) -> int:
    """A student whose every gradient overflows in the teacher; gives how often it was told so."""
    told = 0
    with Caller(address, "poison") as caller:
        while not over():
            try:
                forward = forward_request(caller.session)
                caller.teacher.forward(forward, Call(time.monotonic() + 20))
                grads = {"answer": torch.full((2, 3, 8), 3e38)}
                caller.teacher.backward(backward_request(forward, grads=grads), Call(time.monotonic() + 20))
            except (NonFiniteError, Quarantined):
                told += 1
            caller.teacher.renew(RenewRequest(caller.session), Call(time.monotonic() + 20))
            time.sleep(0.01)
    return told


def main() -> None:
    torch.set_num_threads(1)
    ending = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ending.set()), daemon=True).start()
    student = Student(sys.argv[1], sys.argv[2], int(sys.argv[3]), twin_teacher(), ending.is_set)
    print("ready", flush=True)  # noqa: T201
    student.run()
    print(student.checked, student.lost, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
