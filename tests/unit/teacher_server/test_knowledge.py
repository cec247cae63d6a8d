from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from teacher_server.engine.knowledge import Knowledge, stack_rows
from teacher_server.engine.knowledge_cache import KnowledgeCache
from teacher_server.engine.transfers import Transfers
from teacher_server.families import masked_mean
from teacher_server.metrics.metrics import Metrics
from teacher_server.models.split import FrozenTeacher
from tests.unit.teacher_server.tiny_models import text_bytes, tiny_inputs, tiny_model

PORTS = ["hidden.2", "logits", "pooled", "attention_mask"]


class Runs:
    """Counts how often, and with how many rows, the model's first block runs."""

    def __init__(self, teacher: FrozenTeacher) -> None:
        self.rows: list[int] = []
        self._hook = teacher.family.blocks[0].register_forward_pre_hook(
            lambda _, arguments: self.rows.append(len(arguments[0]))
        )

    def __enter__(self) -> list[int]:
        return self.rows

    def __exit__(self, *_: object) -> None:
        self._hook.remove()


def knowledge(teacher: FrozenTeacher, batch_rows: int = 2, budget: int = 10**6) -> Knowledge:
    cache = KnowledgeCache(budget, Metrics())
    return Knowledge(teacher, cache, Transfers(teacher.device), batch_rows=batch_rows, max_tokens=32)


def test_rows_are_the_teachers_own_view(bert: FrozenTeacher) -> None:
    inputs = tiny_inputs("bert", 3, 6)
    exact = bert.states(bert.prepare(inputs), [2], with_logits=True, with_pooled=True)
    found = knowledge(bert).rows(inputs, PORTS)
    for port in ("logits", "pooled"):
        torch.testing.assert_close(stack_rows(found, port), exact[port], atol=1e-5, rtol=1e-5)
    for row, length in enumerate((6, 5, 4)):
        assert found[row]["hidden.2"].shape == (length, 32)  # padding is not kept
        torch.testing.assert_close(found[row]["hidden.2"], exact["hidden.2"][row, :length], atol=1e-5, rtol=1e-5)
        assert found[row]["attention_mask"].tolist() == [True] * length


def test_the_second_time_no_model_runs(bert: FrozenTeacher) -> None:
    known, inputs = knowledge(bert), tiny_inputs("bert", 3, 6)
    assert known.find(inputs, PORTS) is None
    with Runs(bert) as rows:
        first = known.rows(inputs, PORTS)
        assert rows == [2, 1]
        longer = {name: torch.nn.functional.pad(value, (0, 5)) for name, value in inputs.items()}
        for again in (known.rows(inputs, PORTS), known.rows(longer, PORTS), known.find(longer, PORTS)):
            assert again is not None
            assert all(
                torch.equal(one[port], other[port]) for one, other in zip(first, again, strict=True) for port in PORTS
            )
        assert known.find(inputs, ["hidden.3"]) is None
        assert rows == [2, 1]


def test_what_is_small_comes_with_the_same_pass(bert: FrozenTeacher) -> None:
    inputs, known = tiny_inputs("bert", 3, 6), knowledge(bert)
    exact = bert.states(bert.prepare(inputs), [1, 4], with_logits=True, with_pooled=True)
    with Runs(bert) as runs:
        known.rows(inputs, ["hidden.4.mean1"])
        passes = len(runs)
        found = known.rows(inputs, ["hidden.0.mean1", "hidden.1.mean1", "pooled", "logits"])
        assert len(runs) == passes, "one pass over the layers gave them all"
        known.rows(inputs, ["hidden.1"])
        assert len(runs) > passes, "whole states are only kept when they are asked for"
    for port in ("pooled", "logits"):
        torch.testing.assert_close(stack_rows(found, port), exact[port], atol=1e-5, rtol=1e-5)
    mean = masked_mean(exact["hidden.1"], inputs["attention_mask"].bool())
    torch.testing.assert_close(stack_rows(found, "hidden.1.mean1")[:, 0], mean, atol=1e-5, rtol=1e-5)


def test_no_layer_above_the_ports_is_run(bert: FrozenTeacher) -> None:
    ran: list[int] = []
    hooks = [
        block.register_forward_pre_hook(lambda *_, number=number: ran.append(number))
        for number, block in enumerate(bert.family.blocks)
    ]
    knowledge(bert).rows(tiny_inputs("bert", 2, 6), ["hidden.2.mean1"])
    for hook in hooks:
        hook.remove()
    assert set(ran) == {0, 1}


def test_only_the_missing_rows_are_computed(bert: FrozenTeacher) -> None:
    known, inputs = knowledge(bert), tiny_inputs("bert", 3, 6)
    known.rows({name: value[1:2] for name, value in inputs.items()}, ["pooled"])
    with Runs(bert) as rows:
        known.rows(inputs, ["pooled"])
    assert rows == [2]


def test_one_row_at_a_time_gives_the_same_bits_in_any_company(bert: FrozenTeacher) -> None:
    inputs = tiny_inputs("bert", 3, 6)
    together = knowledge(bert, batch_rows=1).rows(inputs, PORTS)
    last = {name: value[2:] for name, value in inputs.items()}
    alone = knowledge(bert, batch_rows=1).rows(last, PORTS)[0]
    assert all(torch.equal(alone[port], together[2][port]) for port in PORTS)


def test_without_room_it_still_answers(bert: FrozenTeacher) -> None:
    known, inputs = knowledge(bert, budget=0), tiny_inputs("bert", 2, 4)
    assert len(known.rows(inputs, ["pooled"])) == 2
    assert known.find(inputs, ["pooled"]) is None


def test_text_and_images(bert: FrozenTeacher) -> None:
    words = {"text": text_bytes("good film", "bad")}
    found = knowledge(bert).rows(words, ["hidden.1", "attention_mask"])
    assert [len(row["hidden.1"]) for row in found] == [2, 1]
    vit = FrozenTeacher(tiny_model("vit"))
    states = knowledge(vit).rows(tiny_inputs("vit", 3, 0), ["hidden.1"])
    assert stack_rows(states, "hidden.1").shape == (3, 17, 32)


def test_stacking_pads_with_zeros_to_the_tokens_asked_for() -> None:
    rows = [{"hidden.1": torch.ones(2, 3)}, {"hidden.1": torch.ones(4, 3)}]
    batch = stack_rows(rows, "hidden.1", 6)
    assert batch.shape == (2, 6, 3)
    assert batch.sum((1, 2)).tolist() == [6, 12]
    assert stack_rows(rows, "hidden.1").shape == (2, 4, 3)


class Door:
    """The model's first block waits behind it, and may fail there."""

    def __init__(self, teacher: FrozenTeacher) -> None:
        self.entered, self.opened, self.fails, self.runs = threading.Event(), threading.Event(), False, 0
        self._hook = teacher.family.blocks[0].register_forward_pre_hook(self._enter)  # type: ignore[attr-defined]

    def _enter(self, *_: Any) -> None:
        self.runs += 1
        if self.runs > 1:
            return
        self.entered.set()
        assert self.opened.wait(20)
        if self.fails:
            raise ZeroDivisionError

    def __enter__(self) -> Door:
        return self

    def __exit__(self, *_: object) -> None:
        self.opened.set()
        self._hook.remove()


def test_what_another_thread_computes_just_now_is_waited_for(bert: FrozenTeacher) -> None:
    known, inputs = knowledge(bert, batch_rows=4), tiny_inputs("bert", 3, 6)
    with ThreadPoolExecutor(2) as pool, Door(bert) as door:
        first = pool.submit(known.rows, inputs, PORTS)
        assert door.entered.wait(20)
        some = {name: value[1:] for name, value in inputs.items()}
        look = known.look_up(some, PORTS)
        second = pool.submit(known.complete, [look])
        with pytest.raises(TimeoutError):
            second.result(0.1)
        door.opened.set()
        rows = first.result(20)
        assert [row is other for row, other in zip(rows[1:], second.result(20)[0], strict=True)] == [True, True]
        assert door.runs == 1
    assert not known._under_way


def test_what_another_thread_failed_to_compute_is_computed(bert: FrozenTeacher) -> None:
    known, inputs = knowledge(bert, batch_rows=4), tiny_inputs("bert", 3, 6)
    wanted = knowledge(bert, batch_rows=4).rows(inputs, PORTS)
    with ThreadPoolExecutor(2) as pool, Door(bert) as door:
        first = pool.submit(known.rows, inputs, PORTS)
        assert door.entered.wait(20)
        second = pool.submit(known.rows, inputs, PORTS)
        door.fails = True
        with pytest.raises(TimeoutError):
            second.result(0.1)
        door.opened.set()
        with pytest.raises(ZeroDivisionError):
            first.result(20)
        for row, other in zip(second.result(20), wanted, strict=True):
            for port in PORTS:
                torch.testing.assert_close(row[port], other[port])
        assert door.runs == 2
    assert not known._under_way
