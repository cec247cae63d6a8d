"""Several students' calls as one batch on one engine, and the same calls each alone; what a test compares."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import load

from teacher_server.families.pretrained import PretrainedFamily
from teacher_server.jobs import Batch, Job
from teacher_server.local import local_teacher
from teacher_server.models.split import FrozenTeacher
from teaching_protocol import verbs
from teaching_protocol.errors import TeachingError
from tests.calls import Caller, forward_request, in_s

__all__ = ["Facts", "Room", "Wish", "assert_same", "bodies_run", "facts_of"]

Facts = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Wish:
    """One student: its settings, what it sends and what it asks for."""

    inputs: dict[str, torch.Tensor]
    settings: dict[str, Any] = field(default_factory=dict)
    outputs: tuple[str, ...] = ("answer",)

    def request(self, session: verbs.SessionRef, **changes: Any) -> verbs.ForwardRequest:
        wanted = tuple(name for name in ("message", "message_exit", "message_gate") if name in self.inputs)
        good = {"outputs": self.outputs, "inputs": self.inputs, "grad_inputs": wanted}
        return forward_request(session, **good | changes)

    def backward(
        self, forward: verbs.ForwardRequest, reply: verbs.ForwardReply, seed: int = 0
    ) -> verbs.BackwardRequest:
        generator = torch.Generator().manual_seed(seed)
        grads = {
            name: torch.randn(value.shape, generator=generator)
            for name, value in reply.outputs.items()
            if verbs.has_gradient(name)
        }
        return verbs.BackwardRequest(forward.session, f"back-{forward.call_id}", forward.call_id, grads)


class Room:
    """One engine and the sessions of some students, a batch in one part unless `threads` say otherwise. Use as a context manager."""

    def __init__(self, teacher: FrozenTeacher, wishes: Sequence[Wish], **config: Any) -> None:
        self.actor = local_teacher(teacher, **{"max_tokens": 32, "threads": 1} | config)
        self.wishes = wishes
        self.callers = [
            Caller(self.actor, f"student-{place}", seed=place, **wish.settings) for place, wish in enumerate(wishes)
        ]

    def __enter__(self) -> Room:
        for caller in self.callers:
            caller.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        live = {session.id for session in self.actor.sessions.live()}
        for caller in self.callers:
            if caller.session.session_id in live:
                caller.__exit__()

    @property
    def graph_bytes(self) -> int:
        return self.actor._engine.graphs.size_bytes

    def metric(self, name: str, **labels: str) -> float:
        return self.actor._metrics.registry.get_sample_value(name, labels) or 0.0

    def job(self, request: Any) -> Job:
        session = next(each for each in self.actor.sessions.live() if each.id == request.session.session_id)
        extent = self.actor._buckets.extent(session, request)
        method = type(request).__name__.removesuffix("Request")
        return Job(method, session, request, in_s(20), extent.rows, extent.tokens, bucket=extent.bucket)

    def run(self, requests: Sequence[Any]) -> list[Any]:
        """One batch: its replies, or the errors in their places."""
        jobs = [self.job(request) for request in requests]
        self.actor._engine.run(Batch(tuple(jobs)))
        return [job.future.exception(0) or job.future.result(0) for job in jobs]

    def forwards(self, places: Sequence[int] | None = None) -> list[verbs.ForwardRequest]:
        chosen = range(len(self.callers)) if places is None else places
        return [self.wishes[place].request(self.callers[place].session) for place in chosen]

    def exchange(self) -> list[Facts]:
        """One Forward and one Backward of everybody, each as one batch: what each student gets and gathers."""
        forwards = self.forwards()
        answers = self.run(forwards)
        assert not [each for each in answers if isinstance(each, TeachingError)], answers
        backwards = [
            wish.backward(forward, answer, seed)
            for seed, (wish, forward, answer) in enumerate(zip(self.wishes, forwards, answers, strict=True))
        ]
        grads = self.run(backwards)
        assert not [each for each in grads if isinstance(each, TeachingError)], grads
        return [self.facts(place, answers[place], grads[place]) for place in range(len(self.callers))]

    def facts(self, place: int, answer: verbs.ForwardReply, grads: verbs.BackwardReply) -> Facts:
        return facts_of(self.callers[place], answer, grads)

    def alone(self, place: int) -> Facts:
        """What a student gets when nobody else is there: the same calls, one job a batch."""
        forward = self.wishes[place].request(self.callers[place].session)
        (answer,) = self.run([forward])
        (grads,) = self.run([self.wishes[place].backward(forward, answer, place)])
        return self.facts(place, answer, grads)


def facts_of(caller: Caller, answer: verbs.ForwardReply, grads: verbs.BackwardReply) -> Facts:
    """What a student got by a step, and what its session has gathered."""
    gathered = {name: value for name, value in load(caller.export()).items() if name.startswith("gathered.")}
    return {**answer.outputs, **{f"grad {name}": value for name, value in grads.grads.items()}, **gathered}


@contextmanager
def bodies_run(teacher: FrozenTeacher, block: int = -1) -> Iterator[list[tuple[int, ...]]]:
    """The shape of the states each time a block runs."""
    shapes: list[tuple[int, ...]] = []
    assert isinstance(teacher.family, PretrainedFamily)

    def note(_: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        shapes.append(tuple(arguments[0].shape))

    hook = teacher.family.blocks[block].register_forward_pre_hook(note)
    try:
        yield shapes
    finally:
        hook.remove()


def assert_same(found: Facts, wanted: Facts, tolerance: float = 1e-5) -> None:
    """Equal names, and numbers within the tolerance of the largest number of each tensor (at least of 1)."""
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        scale = max(1.0, float(value.abs().max())) if value.is_floating_point() and value.numel() else 1.0
        torch.testing.assert_close(
            found[name], value, atol=tolerance * scale, rtol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )
