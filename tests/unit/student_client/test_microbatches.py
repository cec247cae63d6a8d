"""The order in which microbatches work, what they draw, and where their errors come up; plain generators, no teacher."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from student_client.methods import Outcome
from student_client.teachers.pausing import Pausing
from student_client.training.acceleration import RandomNumbers
from student_client.training.microbatches import Line, Microbatch

NOTHING = Outcome(torch.zeros(()), {}, {})


def line(count: int, ahead: bool, work: Callable[[int], Pausing[Outcome]], seeded: bool = False) -> Line:
    numbers = [RandomNumbers(place) if seeded else None for place in range(count)]
    return Line([Microbatch(work(place), nullcontext, numbers[place]) for place in range(count)], ahead)


def order_of(count: int, ahead: bool, pauses: int = 1) -> list[str]:
    """What happens in which order; a backward looks ahead as a teacher's does."""
    done: list[str] = []

    def work(place: int) -> Pausing[Outcome]:
        for part in range(pauses):
            done.append(f"{place}{'abc'[part]}")
            yield
        done.append(f"{place}z")
        return NOTHING

    with line(count, ahead, work) as microbatches:
        for place, each in enumerate(microbatches):
            each.finish()
            if ahead:
                microbatches.look_ahead()
            done.append(f"{place}<")
    return done


def test_the_next_begins_while_this_one_waits_and_one_more_while_its_gradient_does() -> None:
    assert order_of(4, ahead=True) == ["0a", "1a", "0z", "2a", "0<", "1z", "3a", "1<", "2z", "2<", "3z", "3<"]
    assert order_of(2, ahead=True, pauses=2) == ["0a", "1a", "0b", "0z", "0<", "1b", "1z", "1<"]


def test_without_it_one_follows_the_other() -> None:
    assert order_of(3, ahead=False) == ["0a", "0z", "0<", "1a", "1z", "1<", "2a", "2z", "2<"]


def test_what_asks_nobody_does_not_begin_early() -> None:
    done: list[int] = []

    def work(place: int) -> Pausing[Outcome]:
        done.append(place)
        yield from ()
        return NOTHING

    with line(3, True, work) as microbatches:
        for place, each in enumerate(microbatches):
            each.finish()
            assert done == list(range(place + 1))


@given(st.integers(1, 5), st.lists(st.integers(0, 3), min_size=5, max_size=5), st.integers(0, 2**62))
def test_the_numbers_drawn_are_the_same_ahead_and_not(count: int, pauses: list[int], outside: int) -> None:
    """Also where some microbatches pause more often than others, and none of it moves the generators outside."""

    def drawn(ahead: bool) -> list[list[float]]:
        found: list[list[float]] = [[] for _ in range(count)]

        def work(place: int) -> Pausing[Outcome]:
            for _ in range(pauses[place]):
                found[place] += torch.rand(2).tolist()
                yield
            found[place] += torch.rand(1).tolist()
            return NOTHING

        torch.manual_seed(outside)
        before = torch.get_rng_state()
        with line(count, ahead, work, seeded=True) as microbatches:
            for each in microbatches:
                each.finish()
                if ahead:
                    microbatches.look_ahead()
        assert torch.equal(torch.get_rng_state(), before)
        return found

    plain = drawn(ahead=False)
    assert drawn(ahead=True) == plain
    assert len({tuple(each[:1]) for each in plain}) == count, "each draws numbers of its own"


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("early", [True, False])
def test_an_error_comes_up_in_its_turn_and_the_rest_is_closed(ahead: bool, early: bool) -> None:
    finished: list[int] = []
    closed: list[int] = []

    def work(place: int) -> Pausing[Outcome]:
        try:
            if place == 1 and early:
                raise KeyError("one")
            yield
            if place == 1:
                raise KeyError("one")
            return NOTHING
        finally:
            closed.append(place)

    def go_through() -> None:
        with line(3, ahead, work) as microbatches:
            for place, each in enumerate(microbatches):
                each.finish()
                finished.append(place)
                if ahead:
                    microbatches.look_ahead()

    with pytest.raises(KeyError, match="one"):
        go_through()
    assert finished == [0]
    assert sorted(closed) == ([0, 1, 2] if ahead else [0, 1])


def test_a_forward_inside_a_backward_has_its_gradients() -> None:
    weight = torch.ones((), requires_grad=True)

    def work(place: int) -> Pausing[Outcome]:
        loss = weight * (place + 1)
        yield
        return Outcome(loss, {}, {})

    with line(3, True, work) as microbatches:
        for each in microbatches:
            loss = each.finish().loss
            with torch.no_grad():
                microbatches.look_ahead()
            loss.backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    assert weight.grad.item() == 6.0
