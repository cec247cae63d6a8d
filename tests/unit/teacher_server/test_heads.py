from __future__ import annotations

import pytest
import torch

from task_data import Task
from teacher_server.families.pretrained import PretrainedFamily
from teacher_server.finetuning.heads import HEADS, head_features, head_modules, last_linear, with_head
from teacher_server.models.split import FrozenTeacher
from teaching_protocol.errors import UnsupportedFamily
from tests.unit.teacher_server.tiny_models import MODEL_TYPES, tiny_inputs, tiny_model

LABELS = ("no", "perhaps", "yes", "never")


def headed(model_type: str, labels: tuple[str, ...] = LABELS, head: bool = False) -> FrozenTeacher:
    return with_head(FrozenTeacher(tiny_model(model_type, head)), Task("t", labels), seed=0)


def test_every_family_but_the_t5_encoder_can_get_a_head() -> None:
    assert set(HEADS) == set(MODEL_TYPES) - {"t5"}
    with pytest.raises(UnsupportedFamily, match=r"received a t5, expected a model that can get a new head: bert, "):
        headed("t5")


@pytest.mark.parametrize("head", [False, True], ids=["base", "headed"])
@pytest.mark.parametrize("model_type", HEADS)
def test_a_new_head_stands_on_the_same_body(model_type: str, head: bool) -> None:
    before = torch.random.get_rng_state()
    source = FrozenTeacher(tiny_model(model_type, head))
    assert isinstance(source.family, PretrainedFamily)
    teacher, again = (with_head(source, Task("t", LABELS), seed=0) for _ in range(2))
    assert teacher.labels == LABELS
    assert teacher.heads[0] in ("sequence_classification", "image_classification")
    assert teacher.model_hash == again.model_hash != with_head(source, Task("t", LABELS), seed=1).model_hash
    own = teacher.model.base_model.state_dict()
    for name, tensor in source.family.base.state_dict().items():
        assert name.startswith("pooler.") or torch.equal(own[name], tensor), name
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("model_type", HEADS)
def test_the_head_gives_the_models_logits_of_what_it_reads(model_type: str) -> None:
    teacher = headed(model_type)
    head = head_modules(teacher)
    inputs = teacher.prepare(tiny_inputs(model_type, 4, 7))
    features = head_features(teacher, head, inputs)
    expected = teacher.states(inputs, [], with_logits=True)["logits"]
    assert expected.shape == (4, 4)
    assert expected.std() > 1e-4
    torch.testing.assert_close(head(features), expected, atol=1e-6, rtol=1e-5)
    assert features.numel() // 4 <= 1280, "one vector a row is kept, whatever the number of tokens"
    names = {id(weight): name for name, weight in teacher.model.named_parameters()}
    learned = {names[id(weight)] for weight in head.parameters()}
    base = {f"{teacher.model.base_model_prefix}.{name}" for name, _ in teacher.model.base_model.named_parameters()}
    assert set(names.values()) - base <= learned
    assert all(".pooler." in name for name in learned & base), "of the body no more than a pooler belongs to the head"


def test_a_pooler_that_the_body_brings_is_kept_and_one_it_lacks_is_drawn() -> None:
    source = FrozenTeacher(tiny_model("bert", head=False))
    assert isinstance(source.family, PretrainedFamily)
    brought = source.family.base.pooler.dense.weight
    assert torch.equal(with_head(source, Task("t", LABELS), 0).model.bert.pooler.dense.weight, brought)
    source.family.base.pooler = None
    drawn = with_head(source, Task("t", LABELS), 0).model.bert.pooler.dense.weight
    assert drawn.std() > 0
    assert not torch.equal(drawn, brought)


def test_a_regression_has_one_logit_and_says_so() -> None:
    teacher = headed("mpnet", labels=())
    assert (last_linear(head_modules(teacher)).out_features, teacher.model.config.problem_type) == (1, "regression")


def test_a_head_that_is_built_in_another_way_is_noticed() -> None:
    teacher = headed("bert")
    with torch.no_grad():
        teacher.model.classifier.weight.normal_()
    teacher.model.classifier.register_forward_hook(lambda module, arguments, output: output + 1)
    head = torch.nn.Sequential(teacher.model.bert.pooler, teacher.model.classifier, torch.nn.Tanh())
    with pytest.raises(UnsupportedFamily, match="BertForSequenceClassification is not built as expected"):
        head_features(teacher, head, teacher.prepare(tiny_inputs("bert", 2, 5)))
