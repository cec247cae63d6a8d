from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from teacher_server.engine.asks import Ask, Asking
from teacher_server.engine.merging import length_class, merge_rows, split_rows, together

sizes = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 9)), min_size=1, max_size=8)


@given(sizes, st.sampled_from([torch.float32, torch.bool, torch.bfloat16]), st.sampled_from([(), (3,)]))
def test_rows_go_in_and_come_back(sizes: list[tuple[int, int]], dtype: torch.dtype, rest: tuple[int, ...]) -> None:
    parts = [torch.randn(rows, tokens, *rest).to(dtype) for rows, tokens in sizes]
    whole = merge_rows(parts)
    longest = max(tokens for _, tokens in sizes)
    assert whole.shape == (sum(rows for rows, _ in sizes), longest, *rest)
    assert whole.dtype == dtype
    back = split_rows(whole, sizes)
    assert all(torch.equal(one, other) for one, other in zip(back, parts, strict=True))
    for part, (_, tokens) in zip(split_rows(whole, [(rows, None) for rows, _ in sizes]), sizes, strict=True):
        assert not part[:, tokens:].any(), "padding is zero: no token of a mask"


@given(sizes, st.data())
def test_a_gradient_reaches_its_owners_rows_and_no_others(sizes: list[tuple[int, int]], data: st.DataObject) -> None:
    parts = [torch.randn(rows, tokens, 2, requires_grad=True) for rows, tokens in sizes]
    back = split_rows(merge_rows(parts).clone(), sizes)
    chosen = data.draw(st.integers(0, len(sizes) - 1))
    grads = [torch.full_like(part, float("nan") if place == chosen else 1.0) for place, part in enumerate(back)]
    found = torch.autograd.grad(back, parts, grads)
    for place, grad in enumerate(found):
        assert bool(grad.isnan().all()) is (place == chosen)


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_classes_of_lengths(one: int, other: int) -> None:
    longest = length_class(one)
    assert one <= longest <= max(8, 1.5 * one)
    assert length_class(longest) == longest, "the longest of a class is of the class"
    assert (one <= other) <= (longest <= length_class(other))
    assert length_class(one, takes_padding=False) == one


@dataclass(frozen=True)
class Early(Ask):
    value: int


@dataclass(frozen=True)
class Late(Ask):
    value: int


def run(calls: Sequence[Asking[Any]]) -> tuple[list[Any], list[list[Ask]]]:
    turns: list[list[Ask]] = []

    def answer(asks: Sequence[Any]) -> list[int]:
        turns.append(list(asks))
        return [10 * ask.value for ask in asks]

    return together(calls, {Early: answer, Late: answer}), turns


def call(*asks: Ask, error: Exception | None = None) -> Asking[list[int]]:
    found = []
    for ask in asks:
        found.append((yield ask))
    if error is not None:
        raise error
    return found


def test_all_reach_the_late_ask_before_it_is_answered() -> None:
    calls = [call(Late(1)), call(Early(2), Early(3), Late(4), Early(5)), call(), call(Early(6), Late(7))]
    found, turns = run(calls)
    assert found == [[10], [20, 30, 40, 50], [], [60, 70]]
    assert turns == [[Early(2), Early(6)], [Early(3)], [Late(1), Late(4), Late(7)], [Early(5)]]


def test_a_calls_own_error_is_its_own() -> None:
    error = ValueError("mine")
    found, turns = run([call(Late(1)), call(Early(2), error=error), call(error=error)])
    assert found == [[10], error, error]
    assert turns == [[Early(2)], [Late(1)]]


def test_an_error_of_what_is_shared_and_a_device_without_room_are_everybodys() -> None:
    def refuse(_: Sequence[Any]) -> list[int]:
        raise ValueError("ours")

    with pytest.raises(ValueError, match="ours"):
        together([call(Early(1)), call()], {Early: refuse})
    with pytest.raises(torch.OutOfMemoryError):
        run([call(Early(1)), call(error=torch.OutOfMemoryError("full"))])


@given(st.lists(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=5), max_size=6))
def test_whatever_is_asked_everybody_gets_its_own_answers(plans: list[list[tuple[bool, int]]]) -> None:
    asks = [[(Late if is_late else Early)(value) for is_late, value in plan] for plan in plans]
    found, turns = run([call(*each) for each in asks])
    assert found == [[10 * ask.value for ask in each] for each in asks]
    assert sum(map(len, turns)) == sum(map(len, asks))
    assert all(len({type(ask) for ask in turn}) == 1 for turn in turns)
