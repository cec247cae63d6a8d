from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from task_data import Task
from teacher_server.finetuning.heads import HEADS, with_head
from teacher_server.finetuning.learners import BodyLearner, HeadLearner, Learner, LoraLearner, LoraSettings
from teacher_server.finetuning.tuning import Objective
from teacher_server.models.split import FrozenTeacher
from teaching_protocol.errors import ConfigError
from tests.unit.teacher_server.tiny_models import tiny_inputs, tiny_model

LABELS = ("a", "b", "c")
WITH_LINEAR_BLOCKS = tuple(name for name in HEADS if name not in ("efficientnet", "resnet"))


def headed(model_type: str, labels: tuple[str, ...] = LABELS) -> FrozenTeacher:
    return with_head(FrozenTeacher(tiny_model(model_type, head=False)), Task("t", labels), seed=0)


def lora(model_type: str, labels: tuple[str, ...] = LABELS) -> LoraLearner:
    return LoraLearner(headed(model_type, labels), 512, LoraSettings(rank=2, alpha=8), seed=0)


def outputs_of(learner: Learner, model_type: str) -> torch.Tensor:
    """[5, outputs] by the learner's own examples, in evaluation mode, out of order."""
    learner.module.eval()
    with torch.no_grad():
        examples = learner.examples(tiny_inputs(model_type, 5, 7), torch.zeros(5))
        return examples.outputs(torch.tensor([3, 0, 4, 1, 2]))


def plain_outputs(learner: Learner, model_type: str) -> torch.Tensor:
    """The same of the whole model, asked directly."""
    inputs = tiny_inputs(model_type, 5, 7)
    with torch.no_grad():
        logits: torch.Tensor = learner.teacher.model(**learner.teacher.prepare(inputs)).logits
    return logits[torch.tensor([3, 0, 4, 1, 2])]


def learning(learner: Learner) -> set[str]:
    return {name for name, weight in learner.teacher.model.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize("model_type", HEADS)
def test_what_is_kept_of_the_body_gives_the_models_own_outputs(model_type: str) -> None:
    learner = HeadLearner(headed(model_type), 512)
    torch.testing.assert_close(
        outputs_of(learner, model_type), plain_outputs(learner, model_type), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("model_type", HEADS)
def test_what_learns(model_type: str) -> None:
    every = {name for name, _ in headed(model_type).model.named_parameters()}
    body = {f"{headed(model_type).model.base_model_prefix}.{name}" for name, _ in _base(model_type)}
    head = learning(HeadLearner(headed(model_type), 512))
    assert head & body <= {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    assert every - body <= head
    assert learning(BodyLearner(headed(model_type), 512)) == every
    if model_type in WITH_LINEAR_BLOCKS:
        found = learning(lora(model_type))
        assert head <= found
        assert all("lora_" in name for name in found - head)
        assert len(found - head) >= 2 * 4, "of every block some linear layer"


def _base(model_type: str) -> Any:
    return headed(model_type).model.base_model.named_parameters()


@pytest.mark.parametrize("model_type", WITH_LINEAR_BLOCKS)
def test_merged_lora_is_the_model_that_was_trained(model_type: str) -> None:
    learner = lora(model_type)
    names = set(headed(model_type).model.state_dict())
    untouched = outputs_of(HeadLearner(headed(model_type), 512), model_type)
    torch.testing.assert_close(outputs_of(learner, model_type), untouched, atol=1e-6, rtol=1e-5)  # B starts as zero
    with torch.no_grad():
        for name, weight in learner.module.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.3)
    trained = outputs_of(learner, model_type)
    assert (trained - untouched).abs().max() > 1e-3
    learner.finish(Objective("single_label"))
    assert set(learner.teacher.model.state_dict()) == names
    torch.testing.assert_close(plain_outputs(learner, model_type), trained, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("model_type", [*HEADS])
def test_the_logit_of_a_finished_regression_is_the_number_itself(model_type: str) -> None:
    learner = HeadLearner(headed(model_type, labels=()), 512)
    has_bias = model_type not in ("gpt2", "llama", "mistral", "qwen2")
    objective = Objective("regression", shift=50.0 if has_bias else 0.0, scale=12.5)
    expected = outputs_of(learner, model_type).double() * objective.scale + objective.shift
    learner.finish(objective)
    torch.testing.assert_close(plain_outputs(learner, model_type).double(), expected, atol=1e-3, rtol=1e-5)


def test_lora_needs_peft_and_linear_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="the blocks of a resnet have none; train the head or the body"):
        lora("resnet")
    monkeypatch.setitem(sys.modules, "peft", None)  # as if it were not installed
    with pytest.raises(ConfigError, match=r"LoRA needs the package peft.*talking-models\[finetune\]"):
        lora("bert")
