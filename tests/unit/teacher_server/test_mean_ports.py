"""`hidden.<layer>.mean<M>` of a served teacher: the plain port pooled by its mask, small, cached under its own name."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from student_client import InProcessTeacher
from teacher_server.actor import TeacherActor
from teacher_server.local import local_teacher
from teacher_server.models.split import FrozenTeacher
from teaching_protocol.errors import UnknownPort
from tests.unit.teacher_server.tiny_models import text_bytes, tiny_inputs, tiny_model

ROWS = 5


def observed(actor: TeacherActor, inputs: dict[str, torch.Tensor], *ports: str) -> dict[str, torch.Tensor]:
    with InProcessTeacher(actor, student="a", message_width=4) as teacher:
        return teacher.observe(inputs, list(ports))


def ragged() -> dict[str, torch.Tensor]:
    """Rows of 9, 8, 7, 6 and 1 real tokens, the last with a gap."""
    inputs = tiny_inputs("bert", ROWS, 9)
    inputs["attention_mask"][4] = torch.tensor([1, 0, 1, 0, 0, 0, 0, 0, 0])
    return inputs


def pooled_plainly(states: torch.Tensor, mask: torch.Tensor, count: int) -> torch.Tensor:
    """Segment j of n real tokens is floor(j n / M) to ceil((j + 1) n / M); float64."""
    rows = []
    for row, real in zip(states.double(), mask, strict=True):
        tokens = [token for token, is_real in zip(row, real, strict=True) if is_real]
        n = len(tokens)
        ends = [(math.floor(j * n / count), math.ceil((j + 1) * n / count)) for j in range(count)]
        rows.append(torch.stack([sum(tokens[a:b], torch.zeros_like(tokens[0])) / (b - a) for a, b in ends]))
    return torch.stack(rows)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 12])
def test_of_text_with_rows_of_every_length(bert: FrozenTeacher, count: int) -> None:
    actor, inputs = local_teacher(bert, max_tokens=32), ragged()
    found = observed(actor, inputs, "hidden.2", "attention_mask", f"hidden.2.mean{count}", f"hidden.0.mean{count}")
    means = found[f"hidden.2.mean{count}"]
    assert means.shape == (ROWS, count, 32)
    expected = pooled_plainly(found["hidden.2"], found["attention_mask"], count)
    torch.testing.assert_close(means.double(), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found[f"hidden.0.mean{count}"], means)
    alone = observed(local_teacher(bert, max_tokens=32), inputs, f"hidden.2.mean{count}")
    torch.testing.assert_close(alone[f"hidden.2.mean{count}"], means, atol=1e-6, rtol=1e-6)


def test_one_segment_is_the_masked_mean(bert: FrozenTeacher) -> None:
    found = observed(local_teacher(bert, max_tokens=32), ragged(), "hidden.4.mean1", "pooled")
    torch.testing.assert_close(found["hidden.4.mean1"][:, 0], found["pooled"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("model_type", "tokens"), [("resnet", (64, 64, 16, 16)), ("vit", (17,) * 5)])
def test_of_images_all_tokens_are_real(model_type: str, tokens: tuple[int, ...]) -> None:
    actor, inputs = local_teacher(FrozenTeacher(tiny_model(model_type))), tiny_inputs(model_type, 3, 0)
    for layer, cells in enumerate(tokens):
        found = observed(actor, inputs, f"hidden.{layer}", f"hidden.{layer}.mean1", f"hidden.{layer}.mean5")
        states = found[f"hidden.{layer}"]
        mask = torch.ones(3, cells, dtype=torch.bool)
        for count in (1, 5):
            expected = pooled_plainly(states, mask, count)
            torch.testing.assert_close(found[f"hidden.{layer}.mean{count}"].double(), expected, atol=1e-5, rtol=1e-5)


def test_of_texts_the_server_tokenizes(bert: FrozenTeacher) -> None:
    found = observed(local_teacher(bert), {"text": text_bytes("good film", "bad")}, "hidden.3", "hidden.3.mean2")
    means, states = found["hidden.3.mean2"], found["hidden.3"]
    torch.testing.assert_close(means[0], states[0], atol=1e-6, rtol=1e-6)  # two tokens, a segment each
    torch.testing.assert_close(means[1], states[1, :1].expand(2, -1), atol=1e-6, rtol=1e-6)  # one token, in both


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_second_time_no_model_runs_and_little_is_kept(bert: FrozenTeacher, deterministic: bool) -> None:
    actor, inputs = local_teacher(bert, max_tokens=32, deterministic=deterministic), ragged()
    runs: list[Any] = []
    hook = bert.family.blocks[0].register_forward_pre_hook(lambda *arguments: runs.append(arguments))
    try:
        first = observed(actor, inputs, "hidden.2.mean2")
        ran = len(runs)
        again = observed(actor, inputs, "hidden.2.mean2")
        last = observed(actor, {name: value[4:] for name, value in inputs.items()}, "hidden.2.mean2")
        assert ran == (ROWS if deterministic else 1)
        assert len(runs) == ran
        observed(actor, inputs, "hidden.2.mean3")
        assert len(runs) == 2 * ran, "another number of segments is another port"
    finally:
        hook.remove()
    assert torch.equal(again["hidden.2.mean2"], first["hidden.2.mean2"])
    assert torch.equal(last["hidden.2.mean2"], first["hidden.2.mean2"][4:])
    kept = actor._metrics.registry.get_sample_value("teacher_knowledge_cache_bytes")
    companions = 0 if deterministic else 3  # the means of cuts 0, 1 and 2 lie on the way
    assert kept == ROWS * (2 + 3 + companions) * 32 * 4


def test_it_is_on_the_card_and_its_number_has_a_limit(bert: FrozenTeacher) -> None:
    actor = local_teacher(bert, max_tokens=32)
    assert "hidden.<layer>.mean<tokens>" in actor.card.output_ports
    assert observed(actor, ragged(), "hidden.1.mean32")["hidden.1.mean32"].shape == (ROWS, 32, 32)
    for port in ("hidden.1.mean33", "hidden.1.mean0", "hidden.5.mean1", "hidden.1.mean"):
        with pytest.raises(UnknownPort, match=r"is not served; this teacher serves .*mean<tokens>"):
            observed(actor, ragged(), port)


def test_half_precision_is_summed_in_full() -> None:
    actor = local_teacher(FrozenTeacher(tiny_model("bert").bfloat16()))
    found = observed(actor, ragged(), "hidden.2", "attention_mask", "hidden.2.mean2")
    expected = pooled_plainly(found["hidden.2"], found["attention_mask"], 2)
    torch.testing.assert_close(found["hidden.2.mean2"].double(), expected, atol=1e-2, rtol=2**-8)
