"""A teacher's model under a new head: what the head reads and which modules it is; knows no data and no training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

from task_data.splits import TaskKind
from teacher_server.families.cnn import GridFamily
from teacher_server.families.pretrained import PretrainedFamily
from teacher_server.split import FrozenTeacher
from teaching_protocol.errors import ModelLoadError, UnsupportedFamily

__all__ = ["HEADS", "head_features", "head_modules", "last_linear", "with_head"]

HEADS: dict[str, Callable[[Any], tuple[nn.Module, ...]]] = {
    "bert": lambda model: (model.bert.pooler, model.dropout, model.classifier),
    "distilbert": lambda model: (model.pre_classifier, nn.ReLU(), model.dropout, model.classifier),
    "efficientnet": lambda model: (model.dropout, model.classifier),
    "electra": lambda model: (model.classifier,),
    "gpt2": lambda model: (model.score,),
    "llama": lambda model: (model.score,),
    "mistral": lambda model: (model.score,),
    "mpnet": lambda model: (model.classifier,),
    "qwen2": lambda model: (model.score,),
    "resnet": lambda model: (model.classifier,),
    "roberta": lambda model: (model.classifier,),
    "vit": lambda model: (model.classifier,),
}
"""By model type, the modules from what the head reads of a row to its logits, in the order they run."""

_READS_LAST_TOKEN = ("gpt2", "llama", "mistral", "qwen2")


def with_head(
    teacher: FrozenTeacher, labels: Sequence[str], seed: int, kind: TaskKind = "single_label"
) -> FrozenTeacher:
    """The same body, tokenizer and image settings under a new head, drawn from `seed`; a head it had is dropped.

    The head is that of transformers' own class for the family. A pooler that the body brings is kept, one that it
    lacks is drawn like the head.

    Args:
        teacher: a transformers model of any head, or none; float32.
        labels: the classes in order; empty for a regression, whose one logit is the predicted number.
        seed: of the new weights.
        kind: of the task; whether one class is true of a row, or any number of them.

    Raises:
        UnsupportedFamily: a trained student, or a model type without such a head.
        ModelLoadError: a body whose weights are not those of its family.
    """
    family = teacher.family
    if not isinstance(family, PretrainedFamily) or family.name not in HEADS:
        raise UnsupportedFamily(
            f"{teacher.name}: received a {family.name}, expected a model that can get a new head: "
            f"{', '.join(HEADS)}; give one of these (a trained student has its head already: serve it as it is)"
        )
    loader = AutoModelForSequenceClassification if family.modality == "text" else AutoModelForImageClassification
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = loader.from_config(_config(family, labels, kind), dtype=torch.float32)
    missing, unexpected = model.base_model.load_state_dict(family.base.state_dict(), strict=False)
    strange = [name for name in (*missing, *unexpected) if not name.startswith("pooler.")]
    if strange:
        raise ModelLoadError(
            f"{teacher.name}: {len(strange)} weights of its body are not those of a {family.name}, first {strange[0]}; "
            "give a model whose weights fit its config.json"
        )
    return FrozenTeacher(model.to(teacher.device), teacher.name, family.tokenizer, family.image)


def head_modules(teacher: FrozenTeacher) -> nn.Sequential:
    """The head's own modules as one: from `head_features` [rows, ...] to logits [rows, outputs]."""
    return nn.Sequential(*HEADS[teacher.family.name](teacher.model))


def head_features(teacher: FrozenTeacher, head: nn.Sequential, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """What the head reads of each row, [rows, ...]: the frozen body's part of the logits, without gradients.

    Args:
        teacher: with a head, in evaluation mode.
        head: its `head_modules`, likewise.
        inputs: prepared inputs of the rows.

    Raises:
        UnsupportedFamily: the head does not give the model's own logits from them, as with a version of transformers
            that builds the family in another way.
    """
    seen: list[torch.Tensor] = []
    hook = head[0].register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    try:
        with torch.no_grad():
            logits = teacher.model(**inputs).logits
    finally:
        hook.remove()
    with torch.no_grad():
        features = _of_the_row(teacher, seen[0], inputs)
        if not torch.allclose(head(features), logits, atol=1e-3, rtol=1e-3):
            raise UnsupportedFamily(
                f"{teacher.name}: the head of {type(teacher.model).__name__} is not built as expected; "
                "train with the body (`--train body`), which does not take the model apart"
            )
    return features


def last_linear(head: nn.Module) -> nn.Linear:
    """The layer of a head that gives the logits; of a decoder it has no bias."""
    return [module for module in head.modules() if isinstance(module, nn.Linear)][-1]


def _config(family: PretrainedFamily, labels: Sequence[str], kind: TaskKind) -> Any:
    config = copy.deepcopy(family.model.config)
    config.id2label = dict(enumerate(labels)) or {0: "LABEL_0"}
    config.label2id = {name: number for number, name in config.id2label.items()}
    config.problem_type = f"{kind}_classification" if labels else "regression"
    if isinstance(family, GridFamily) and family.image is not None:
        config.image_size = family.image.size  # it may not be the model's own
    config._name_or_path = ""  # a folder of this machine, which is nobody's business
    return config


def _of_the_row(teacher: FrozenTeacher, seen: torch.Tensor, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Of [rows, tokens, width] the token that the model's class reads; anything else is pooled already."""
    if seen.dim() != 3:
        return seen
    if teacher.family.name not in _READS_LAST_TOKEN:
        return seen[:, :1]
    ids = inputs["input_ids"]
    config: Any = teacher.model.config
    places = torch.arange(ids.shape[1], device=ids.device)
    last = (places * (ids != config.pad_token_id)).argmax(-1)  # as transformers finds it
    return seen[torch.arange(len(ids), device=ids.device), last]
