"""The engine on a CUDA device: the same numbers as elsewhere, no wait on the hot path, nothing left behind."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from student_client import InProcessTeacher, RemoteTeacher
from teacher_server.app import TeacherApp
from teacher_server.config import ServerConfig
from teacher_server.jobs import Batch
from teacher_server.local import local_teacher
from teacher_server.models.split import FrozenTeacher
from teaching_protocol import verbs
from teaching_protocol.errors import NonFiniteError, OutOfMemory
from tests.integration.test_among_strangers import at_once, one_by_one, serving
from tests.integration.test_remote_equals_local import PORTS, WIDTH, assert_same, conversation, message_inputs
from tests.unit.teacher_server.rooms import Room, Wish
from tests.unit.teacher_server.rooms import assert_same as assert_near
from tests.unit.teacher_server.test_batches import assert_alone_and_together, mixed, other_lengths
from tests.unit.teacher_server.tiny_models import MODEL_TYPES, tiny_inputs, tiny_model

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore::UserWarning:torch")]

GRIDS = ("efficientnet", "resnet")
Teachers = Callable[..., FrozenTeacher]


@contextmanager
def no_wait() -> Iterator[None]:
    """Any wait for the device that torch knows of is an error; waits for an event are not among them."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def run_without_wait(room: Room, requests: list[Any]) -> list[Any]:
    jobs = [room.job(request) for request in requests]
    with no_wait():
        room.actor._engine.run(Batch(tuple(jobs)))
    return [job.future.result(0) for job in jobs]


def allocated() -> int:
    gc.collect()
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated()


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_remote_equals_local_equals_cpu(model_type: str, cuda_teacher: Teachers) -> None:
    tokens = 16 if model_type in GRIDS else 6
    inputs, outputs = message_inputs(model_type, tokens), [*PORTS, "hidden.2", "pooled"]
    teacher, options = cuda_teacher(model_type), {"message_width": WIDTH}
    with TeacherApp(ServerConfig(model="tiny", port=0, metrics_port=-1), teacher) as app:
        address = f"127.0.0.1:{app.port}"
        remote = conversation(RemoteTeacher(address, student="a", compression="none", **options), inputs, outputs)
    here = conversation(InProcessTeacher(local_teacher(teacher), student="a", **options), inputs, outputs)
    cpu = local_teacher(FrozenTeacher(tiny_model(model_type), model_type))
    there = conversation(InProcessTeacher(cpu, student="a", **options), inputs, outputs)
    assert_same(remote, here, 1e-4)
    assert_near(remote, there, 1e-4)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_among_strangers_equals_alone(model_type: str, cuda_teacher: Teachers) -> None:
    assert_alone_and_together(cuda_teacher(model_type), other_lengths(model_type), 1e-4)


@pytest.mark.parametrize("model_type", ["bert", "llama", "mistral", "t5"])
def test_mixed_ways_into_the_body(model_type: str, cuda_teacher: Teachers) -> None:
    assert_alone_and_together(cuda_teacher(model_type), mixed(model_type), 1e-4)


def test_sixteen_equal_codecs_are_stacked(cuda_teacher: Teachers) -> None:
    generator = torch.Generator().manual_seed(0)
    wishes = [Wish({"message": torch.randn(2, 3 + place % 3, 8, generator=generator)}) for place in range(16)]
    assert_alone_and_together(cuda_teacher("llama"), wishes, 1e-4)


def test_bfloat16_is_near_float32(cuda_teacher: Teachers) -> None:
    wishes = other_lengths("llama")
    with Room(cuda_teacher("llama", torch.bfloat16), wishes) as half, Room(cuda_teacher("llama"), wishes) as whole:
        for one, other in zip(half.exchange(), whole.exchange(), strict=True):
            for name in ("answer", "grad message"):
                assert (one[name] - other[name]).norm() <= 0.2 * other[name].norm(), name


def test_sixteen_students_at_once_to_the_bit(model_folder: Callable[[str], Path]) -> None:
    """Deterministic mode, over the network, on the device that `auto` finds."""
    with serving(model_folder("bert"), deterministic=True) as app:
        assert app.actor._engine.teacher.device.type == "cuda"
        together = at_once(app, "adamw")
    with serving(model_folder("bert"), deterministic=True) as app:
        alone = one_by_one(app, "adamw")
    for found, wanted in zip(together, alone, strict=True):
        assert all(torch.equal(found[name], value) for name, value in wanted.items())


@pytest.mark.parametrize("model_type", [name for name in MODEL_TYPES if name not in GRIDS])
def test_the_hot_path_does_not_wait(model_type: str, cuda_teacher: Teachers) -> None:
    """Forward, Backward and Step of five students: messages alone, with a mask, and with inputs of their own."""
    generator = torch.Generator().manual_seed(0)
    masked = {"message_mask": torch.arange(4).expand(2, -1) < 3}
    own = tiny_inputs(model_type, 2, 4)
    ways: list[tuple[dict[str, torch.Tensor], dict[str, Any]]] = [
        ({}, {}),
        (masked, {}),
        (own, {"inject": "add"}),
        (own, {"inject": "prefix"}),
        (own, {"answer_from": "message_and_input", "message_tokens": 4, "pooling": "attention"}),
    ]
    wishes = [Wish({"message": torch.randn(2, 4, 8, generator=generator), **more}, options) for more, options in ways]
    if model_type == "vit":
        wishes.pop(2)  # it has 17 tokens: a message of 4 cannot be added
    with Room(cuda_teacher(model_type), wishes) as room:
        for step in (1, 2):
            forwards = room.forwards()
            answers = run_without_wait(room, forwards)
            pairs = zip(wishes, forwards, answers, strict=True)
            grads = run_without_wait(room, [wish.backward(forward, answer) for wish, forward, answer in pairs])
            assert all(each.grads["message"].abs().sum() > 0 for each in grads)
            steps = [verbs.StepRequest(caller.session, step, 1e-3, 1.0, 0.5) for caller in room.callers]
            assert all(each.grad_norm > 0 for each in run_without_wait(room, steps))


def test_one_students_nan_is_its_own(cuda_teacher: Teachers) -> None:
    wishes = other_lengths("llama")
    teacher = cuda_teacher("llama")
    with Room(teacher, wishes) as room:
        session = room.actor.sessions.get(room.callers[1].session)
        with torch.no_grad():
            next(iter(session.codec.decoders.values()))[-1].bias.fill_(float("nan"))
        answers = room.run(room.forwards())
        assert [isinstance(each, NonFiniteError) for each in answers] == [False, True, False]
        assert room.metric("teacher_batch_retries_total") == 0


def test_one_that_does_not_fit_is_its_own_fault(cuda_teacher: Teachers) -> None:
    """A real lack of memory: the batch is run again job by job, and the others' numbers are what they are alone."""
    teacher = cuda_teacher("bert")
    generator = torch.Generator().manual_seed(0)
    sizes = ((2, 3), (4096, 256), (2, 3))
    wishes = [Wish({"message": torch.randn(*size, 8, generator=generator)}) for size in sizes]
    with Room(teacher, wishes[:1]) as room:
        wanted = room.exchange()[0]
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    try:
        with Room(teacher, wishes, max_tokens=256, graph_cache_bytes=2**34) as room:
            torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**29) / total)
            forwards = room.forwards()
            answers = room.run(forwards)
            assert [isinstance(each, OutOfMemory) for each in answers] == [False, True, False]
            grads = room.run([wishes[place].backward(forwards[place], answers[place]) for place in (0, 2)])
            assert_near(room.facts(0, answers[0], grads[0]), wanted, 1e-4)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def test_memory_is_back_after_leave(cuda_teacher: Teachers) -> None:
    teacher, wishes = cuda_teacher("llama"), other_lengths("llama")
    with Room(teacher, wishes, knowledge_cache_bytes=0) as room:
        room.exchange()  # whatever torch keeps for itself from the first time on
    del room
    before = allocated()
    for _ in range(3):
        with Room(teacher, wishes, knowledge_cache_bytes=0) as room:
            room.exchange()
            room.run(room.forwards())  # graphs whose Backward never comes
            assert allocated() > before
        assert room.graph_bytes == 0
        del room
        assert allocated() == before


def test_kernels_of_inductor_give_the_same(cuda_teacher: Teachers) -> None:
    torch._dynamo.reset()
    wishes = other_lengths("llama")
    compiled = cuda_teacher("llama")
    compiled.compile()
    with Room(compiled, wishes) as one, Room(cuda_teacher("llama"), wishes) as other:
        for found, wanted in zip(one.exchange(), other.exchange(), strict=True):
            assert_near(found, wanted, 1e-4)
        for found, wanted in zip(one.exchange(), other.exchange(), strict=True):
            assert_near(found, wanted, 1e-4)
