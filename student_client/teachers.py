"""The teachers of a run as one, the foundation first: what each reads, their steps, states and accounts; knows no method."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch

from student_client.remote import Teacher
from task_data import Batch
from teaching_protocol.errors import IncompatibleTeacher, StateMismatch
from teaching_protocol.verbs import DescribeReply

__all__ = ["Account", "Member", "Teachers", "reads"]

Tensors = Mapping[str, torch.Tensor]

_VIEWS = (("text",), ("image",), ("user", "item"))
"""The inputs a teacher may read, each a whole view of an example; the first that fits is sent."""


@dataclass(frozen=True)
class Account:
    """What teachers cost: their compute seconds, rows they were asked about, rows they were spared, bytes on the wire."""

    seconds: float = 0.0
    rows: int = 0
    rows_saved: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0

    def __add__(self, other: Account) -> Account:
        return Account(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    def __sub__(self, other: Account) -> Account:
        return Account(*(getattr(self, each.name) - getattr(other, each.name) for each in fields(self)))


class Member:
    """One teacher and the part of a batch it reads.

    Args:
        teacher: its session.
        ports: names of its own inputs among the batch's `teacher` tensors.
        place: its number among the run's teachers; 0 is the foundation.
        name: for messages and metrics.
    """

    def __init__(self, teacher: Teacher, ports: tuple[str, ...], place: int = 0, name: str = "teacher") -> None:
        self.teacher, self.ports, self.place, self.name = teacher, ports, place, name
        self.rows_saved = 0
        """Rows that a method did not send; methods count here."""
        self.observe_wait_s = 0.0

    def own(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The teacher's own view of a batch."""
        return {name: batch.teacher[name] for name in self.ports}

    def fetch(self, batch: Batch, ports: Sequence[str]) -> dict[str, torch.Tensor]:
        """Asks what the teacher knows about a batch; may run in another thread."""
        return self.teacher.observe(self.own(batch), ports)

    def observe(self, batch: Batch, ports: Sequence[str]) -> dict[str, torch.Tensor]:
        """What the teacher knows about a batch: what was fetched ahead, and the rest now; on the labels' device."""
        known = batch.known.get(self.place, {})
        missing = [port for port in ports if port not in known]
        began = time.monotonic()
        found = self.fetch(batch, missing) if missing else {}
        self.observe_wait_s += time.monotonic() - began
        device = batch.labels.device
        return {port: (known[port] if port in known else found[port]).to(device) for port in ports}


class Teachers:
    """All teachers of a run, or none.

    Args:
        members: the foundation first.
        converse: whether any method trains a codec at them, so that their steps and states matter.
    """

    def __init__(self, members: Sequence[Member] = (), converse: bool = True) -> None:
        self.members = tuple(members)
        self.converse = converse
        self.ahead_wait_s = 0.0
        """Seconds waited for what was asked ahead."""

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, place: int) -> Member:
        return self.members[place]

    @property
    def first(self) -> Member:
        """The foundation teacher."""
        assert self.members, "a run connects a teacher for methods that need one"
        return self.members[0]

    @property
    def wait_s(self) -> float:
        """Seconds this side has waited for all of them."""
        return self.ahead_wait_s + sum(member.teacher.wait_s + member.observe_wait_s for member in self.members)

    @property
    def account(self) -> Account:
        """What all of them have cost."""
        found = Account()
        for member in self.members:
            session = member.teacher.costs
            found += Account(*session[:2], member.rows_saved, *session[2:])
        return found

    def step(self, lr: float, grad_scale: float = 1.0, max_grad_norm: float = 0.0) -> dict[str, float]:
        """Steps every teacher-side codec; gives their gradient norms by name."""
        if not self.converse:
            return {}
        norms = {}
        for member in self.members:
            name = "teacher_grad_norm" if member.place == 0 else f"teacher_grad_norm.{member.place}"
            norms[name] = member.teacher.step(lr=lr, grad_scale=grad_scale, max_grad_norm=max_grad_norm)
        return norms

    def export_states(self) -> tuple[bytes, ...]:
        """The state of every session, in the order of the members; empty where no codec is trained."""
        return tuple(member.teacher.export_state() for member in self.members) if self.converse else ()

    def import_states(self, states: Sequence[bytes]) -> None:
        """Puts back what `export_states` gave.

        Raises:
            StateMismatch: states of another number of teachers, or of other sessions.
        """
        if not self.converse:
            return
        if len(states) != len(self.members):
            raise StateMismatch(
                f"received the states of {len(states)} teachers, expected {len(self.members)}; "
                "resume with the teachers the run was started with"
            )
        for member, state in zip(self.members, states, strict=True):
            member.teacher.import_state(state)


def reads(card: DescribeReply, served: Sequence[str]) -> tuple[str, ...]:
    """The inputs a teacher takes among those a data set has.

    Raises:
        IncompatibleTeacher: there is no view that both have.
    """
    for view in _VIEWS:
        if all(name in card.input_ports and name in served for name in view):
            return view
    raise IncompatibleTeacher(
        f"the teacher {card.model_name} reads {', '.join(card.input_ports)}, but this data set speaks to it in "
        f"{', '.join(served)}; serve a teacher of that modality"
    )
