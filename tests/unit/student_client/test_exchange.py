"""Several calls of several sessions as one autograd function, on real teachers in this process."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from safetensors.torch import load

from student_client import InProcessTeacher
from student_client.teachers.exchange import Exchange, exchange, exchange_many, settled
from student_client.teachers.pausing import Overlap
from teacher_server.actor import TeacherActor
from teacher_server.local import local_teacher
from teacher_server.models.split import FrozenTeacher
from teaching_protocol.errors import InvalidTensor, SessionNotFound, TeachingError, UnknownPort
from tests.unit.teacher_server.tiny_models import tiny_inputs, tiny_model

WIDTH = 8
Inputs = dict[str, torch.Tensor]


def teacher(model_type: str = "bert", **config: Any) -> TeacherActor:
    return local_teacher(FrozenTeacher(tiny_model(model_type)), **config)


@contextmanager
def sessions(*actors: TeacherActor) -> Iterator[list[InProcessTeacher]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(InProcessTeacher(actor, student=f"s{place}", message_width=WIDTH, entry=1, seed=place))
            for place, actor in enumerate(actors)
        ]


def message(seed: int, rows: int = 2) -> torch.Tensor:
    return torch.randn(rows, 3, WIDTH, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def gathered(found: InProcessTeacher) -> dict[str, torch.Tensor]:
    return {name: value for name, value in load(found.export_state()).items() if name.startswith("gathered.")}


def answered(replies: Sequence[Any]) -> list[torch.Tensor]:
    return [reply["answer"] for reply in replies]


def loss_of(answers: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack([answer.pow(3).sum() for answer in answers]).sum()


def test_two_at_once_are_two_separate_exchanges() -> None:
    """Outputs, message gradients and codec gradients bit for bit, for families and inputs that differ."""

    def inputs(messages: Sequence[torch.Tensor]) -> list[Inputs]:
        own = [tiny_inputs("bert", 2, 4), tiny_inputs("llama", 3, 5)]
        return [{"message": each, **mine} for each, mine in zip(messages, own, strict=True)]

    outputs = ["answer", "state_consistency", "pooled"]
    together, apart = ([message(1), message(2, rows=3)] for _ in range(2))
    results = []
    for messages in (together, apart):
        with sessions(teacher(), teacher("llama")) as both:
            questions = [each.question(given, outputs) for each, given in zip(both, inputs(messages), strict=True)]
            replies: list[Any] = (
                exchange_many(questions) if messages is together else [exchange(each) for each in questions]
            )
            assert not any(reply["pooled"].requires_grad for reply in replies)
            (loss_of(answered(replies)) + sum(reply["state_consistency"] for reply in replies)).backward()
            results.append((replies, [gathered(each) for each in both]))
    (ours, our_codecs), (theirs, their_codecs) = results
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == set(outputs)
        assert all(torch.equal(one[name], other[name]) for name in outputs)
    for one, other in zip(together, apart, strict=True):
        assert one.grad is not None
        assert one.grad.abs().sum() > 0
        assert torch.equal(one.grad, other.grad)
    for one, other in zip(our_codecs, their_codecs, strict=True):
        assert one
        assert all(torch.equal(one[name], other[name]) for name in other)


def test_all_forwards_are_in_flight_together_and_so_are_all_backwards() -> None:
    """Both models wait until the other one is entered, too: in Forward, and in Backward, which runs it again."""
    meeting = threading.Barrier(2, timeout=20)

    def meet(*_: Any) -> None:
        meeting.wait()

    actors = [teacher(graph_cache_bytes=0), teacher(graph_cache_bytes=0)]
    for actor in actors:
        actor._engine.teacher.family.blocks[-1].register_forward_pre_hook(meet)
    with sessions(*actors) as both:
        messages = [message(1), message(2)]
        questions = [each.question({"message": said}, ["answer"]) for each, said in zip(both, messages, strict=True)]
        loss_of(answered(exchange_many(questions))).backward()
    assert all(said.grad is not None for said in messages)


def test_one_call_runs_in_the_callers_thread() -> None:
    threads = []
    actor = teacher(graph_cache_bytes=0)
    actor._engine.teacher.family.blocks[-1].register_forward_pre_hook(
        lambda *_: threads.append(threading.current_thread())
    )
    with sessions(actor) as (alone,):
        exchange(alone.question({"message": message(1)}, ["answer"]))["answer"].sum().backward()
    assert threads == [threading.current_thread()] * 2


def test_without_gradients_nothing_is_kept() -> None:
    actors = [teacher(), teacher()]
    with sessions(*actors) as both, torch.no_grad():
        replies = exchange_many([each.question({"message": message(1)}, ["answer"]) for each in both])
        assert not any(answer.requires_grad for answer in answered(replies))
        assert not any(actor.sessions.live()[0].calls for actor in actors)


def test_an_answer_no_loss_uses_sends_no_backward() -> None:
    actors = [teacher(), teacher()]
    with sessions(*actors) as both:
        messages = [message(1), message(2)]
        questions = [each.question({"message": said}, ["answer"]) for each, said in zip(both, messages, strict=True)]
        answered(exchange_many(questions))[1].sum().backward()
        assert [next(iter(actor.sessions.live()[0].calls.values())).finished for actor in actors] == [False, True]
    assert messages[0].grad is None
    assert messages[1].grad is not None


def test_answers_are_freed_without_the_garbage_collector() -> None:
    with sessions(teacher(), teacher()) as both:
        gc.disable()
        try:
            replies: list[Any] = exchange_many([each.question({"message": message(1)}, ["answer"]) for each in both])
            held = [weakref.ref(answer) for answer in answered(replies)]
            del replies
            assert [each() for each in held] == [None, None]
        finally:
            gc.enable()


def test_the_error_of_one_is_raised_after_the_others_are_through() -> None:
    actors = [teacher(), teacher()]
    with sessions(*actors) as both:
        questions = [
            both[0].question({"message": message(1)}, ["mood"]),
            both[1].question({"message": message(2)}, ["answer"]),
        ]
        with pytest.raises(UnknownPort, match="'mood' is not served"):
            exchange_many(questions)
        assert actors[1].sessions.live()[0].calls, "the good call was made"


def test_no_error_is_lost_when_several_fail() -> None:
    with sessions(teacher(), teacher()) as both:
        bad = torch.zeros(2, 3, WIDTH + 1)
        with pytest.raises(UnknownPort) as failure:
            exchange_many(
                [both[0].question({"message": message(1)}, ["mood"]), both[1].question({"message": bad}, ["answer"])]
            )
    assert "another teacher failed, too: InvalidTensor: message: width 9" in failure.value.__notes__[0]


def test_an_error_has_its_place_and_the_others_answer() -> None:
    actors = [teacher(), teacher(), teacher()]
    heard: list[tuple[int, TeachingError]] = []

    def gives_up(place: int, error: TeachingError) -> bool:
        heard.append((place, error))
        return False

    with sessions(*actors) as three:
        messages = [message(seed) for seed in range(3)]
        actors[1].end(actors[1].sessions.live()[0], "leave")
        questions = [each.question({"message": said}, ["answer"]) for each, said in zip(three, messages, strict=True)]
        replies = exchange_many(questions, gives_up)
        assert [(place, type(error)) for place, error in heard] == [(1, SessionNotFound)]
        assert [reply is None for reply in replies] == [False, True, False]
        loss_of([reply["answer"] for reply in replies if reply is not None]).backward()
    assert [said.grad is None for said in messages] == [False, True, False]


def test_a_backward_given_up_has_gradients_of_zero_and_the_other_its_own() -> None:
    actors = [teacher(), teacher()]
    heard: list[int] = []
    messages, alone = [message(1), message(2)], message(2)
    with sessions(*actors) as both:
        questions = [each.question({"message": said}, ["answer"]) for each, said in zip(both, messages, strict=True)]
        loss = loss_of(answered(exchange_many(questions, lambda place, _: bool(heard.append(place)))))
        actors[0].end(actors[0].sessions.live()[0], "lease")
        loss.backward()
        both[1].step(lr=0.0)
        loss_of([exchange(both[1].question({"message": alone}, ["answer"]))["answer"]]).backward()
    assert heard == [0]
    assert messages[0].grad is not None
    assert not messages[0].grad.any()
    assert messages[1].grad is not None
    assert alone.grad is not None
    assert torch.equal(messages[1].grad, alone.grad)


@pytest.mark.parametrize("lost_in", ["forward", "backward"])
def test_a_call_sent_again_ends_as_if_it_was_never_lost(lost_in: str) -> None:
    """The session is lost and opened anew from its seed: the same codec, so the same gradients."""
    results = []
    for breaks in (True, False):
        actors, messages = [teacher(), teacher()], [message(1), message(2)]
        with sessions(*actors) as both:
            heard: list[int] = []

            def opens_again(place: int, error: TeachingError, both: Any = both, heard: list[int] = heard) -> bool:
                assert isinstance(error, SessionNotFound)
                heard.append(place)
                both[place].enroll()
                return True

            def lose(when: str, breaks: bool = breaks, actors: Any = actors) -> None:
                if breaks and when == lost_in:
                    actors[1].end(actors[1].sessions.live()[0], "lease")

            questions = [
                each.question({"message": said}, ["answer"]) for each, said in zip(both, messages, strict=True)
            ]
            lose("forward")
            loss = loss_of(answered(exchange_many(questions, opens_again)))
            lose("backward")
            loss.backward()
            assert heard == ([1] if breaks else [])
            results.append(([said.grad for said in messages], gathered(both[1])))
    (grads, codec), (exact, exact_codec) = results
    assert all(one is not None and torch.equal(one, other) for one, other in zip(grads, exact, strict=True))
    assert codec
    assert all(torch.equal(codec[name], exact_codec[name]) for name in exact_codec)


@pytest.mark.parametrize("is_answered", [True, False])
def test_a_forward_under_way_when_its_session_is_opened_anew_is_made_again(is_answered: bool) -> None:
    """Whether the lost session has answered it or not, and nobody hears of it: the session was lost before, and is back."""
    results = []
    for breaks in (True, False):
        actor, said = teacher(), message(1)
        with sessions(actor) as (alone,), ThreadPoolExecutor(1) as threads:
            held = threading.Event()
            if breaks and not is_answered:
                threads.submit(held.wait, 20)  # the thread is taken until the session is gone
            heard: list[int] = []
            asked = Exchange(
                [alone.question({"message": said}, ["answer"])],
                lambda place, _, heard=heard: bool(heard.append(place)),
                overlap=Overlap(threads, lambda: None),
            )
            if breaks:
                if is_answered:
                    threads.submit(int).result(20)  # behind the Forward
                actor.end(actor.sessions.live()[0], "lease")
                held.set()
                threads.submit(int).result(20)
                alone.enroll()
            reply = asked.result()[0]
            assert reply is not None
            loss_of([reply["answer"]]).backward()
            assert heard == []
            assert [call.finished for call in actor.sessions.live()[0].calls.values()] == [True]
            results.append((reply["answer"].detach(), said.grad, gathered(alone)))
    (answer, grad, codec), (exact_answer, exact_grad, exact_codec) = results
    assert torch.equal(answer, exact_answer)
    assert grad is not None
    assert torch.equal(grad, exact_grad)
    assert codec
    assert all(torch.equal(codec[name], exact_codec[name]) for name in exact_codec)


def test_while_a_backward_is_under_way_other_work_is_done() -> None:
    """The model waits in Backward, which runs it again, until that work is done."""
    actor = teacher(graph_cache_bytes=0)
    done = threading.Event()
    done.set()

    def wait(*_: Any) -> None:
        assert done.wait(20)

    actor._engine.teacher.family.blocks[-1].register_forward_pre_hook(wait)
    with sessions(actor) as (alone,), ThreadPoolExecutor(1) as threads:
        said, grad_mode = message(1), list[bool]()

        def work() -> None:
            grad_mode.append(torch.is_grad_enabled())
            done.set()

        asked = Exchange([alone.question({"message": said}, ["answer"])], overlap=Overlap(threads, work))
        reply = asked.result()[0]
        assert reply is not None
        done.clear()
        reply["answer"].sum().backward()
        assert grad_mode == [False], "work that needs gradients says so"
    assert said.grad is not None


def test_a_handler_that_refuses_is_heard() -> None:
    def refuses(place: int, error: TeachingError) -> bool:
        raise InvalidTensor(f"place {place} is needed") from error

    with sessions(teacher(), teacher()) as both, pytest.raises(InvalidTensor, match="place 0 is needed") as failure:
        exchange_many([each.question({"message": message(1)}, ["mood"]) for each in both], refuses)
    assert "place 1 is needed" in failure.value.__notes__[0]


def test_an_error_outside_the_tree_is_not_swallowed() -> None:
    def breaks() -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        settled([lambda: 1, breaks], lambda place, error: False)
