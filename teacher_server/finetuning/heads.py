"""A teacher's model under a new head: what the head reads and which modules it is; knows no data and no training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from task_data.splits import Task
from teacher_server.families.cnn import GridFamily
from teacher_server.families.pretrained import PretrainedFamily
from teacher_server.models.split import FrozenTeacher
from teaching_protocol.errors import ModelLoadError, UnsupportedFamily

__all__ = ["HEADS", "TOKEN_HEADS", "head_features", "head_modules", "last_linear", "with_head"]

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

TOKEN_HEADS: dict[str, Callable[[Any], tuple[nn.Module, ...]]] = {
    **dict.fromkeys(
        ("bert", "distilbert", "electra", "gpt2", "mpnet", "roberta"), lambda model: (model.dropout, model.classifier)
    ),
    **dict.fromkeys(("llama", "mistral", "qwen2"), lambda model: (model.dropout, model.score)),
}
"""The same of a head that reads each token by itself."""

_READS_LAST_TOKEN = ("gpt2", "llama", "mistral", "qwen2")


def with_head(teacher: FrozenTeacher, task: Task, seed: int) -> FrozenTeacher:
    """The same body, tokenizer and image settings under a new head, drawn from `seed`; a head it had is dropped.

    The head is that of transformers' own class for the family. A pooler that the body brings is kept, one that it
    lacks is drawn like the head.

    Args:
        teacher: a transformers model of any head, or none; float32.
        task: with the classes in order; of a regression the one logit is the predicted number.
        seed: of the new weights.

    Raises:
        UnsupportedFamily: a trained student, or a model type without such a head.
        ModelLoadError: a body whose weights are not those of its family.
    """
    family = teacher.family
    known = TOKEN_HEADS if task.level == "token" else HEADS
    if not isinstance(family, PretrainedFamily) or family.name not in known:
        raise UnsupportedFamily(
            f"{teacher.name}: received a {family.name}, expected a model that can get a new head: "
            f"{', '.join(known)}; give one of these (a trained student has its head already: serve it as it is)"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _loader(family, task).from_config(_config(family, task), dtype=torch.float32)
    missing, unexpected = model.base_model.load_state_dict(family.base.state_dict(), strict=False)
    strange = [name for name in (*missing, *unexpected) if not name.startswith("pooler.")]
    if strange:
        raise ModelLoadError(
            f"{teacher.name}: {len(strange)} weights of its body are not those of a {family.name}, first {strange[0]}; "
            "give a model whose weights fit its config.json"
        )
    return FrozenTeacher(model.to(teacher.device), teacher.name, family.tokenizer, family.image)


def head_modules(teacher: FrozenTeacher) -> nn.Sequential:
    """The head's own modules as one: from `head_features` [rows, ...] to logits [rows, outputs], or of tokens from
    [rows, tokens, width] to [rows, tokens, outputs]."""
    known = TOKEN_HEADS if _reads_tokens(teacher) else HEADS
    return nn.Sequential(*known[teacher.family.name](teacher.model))


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


def _loader(family: PretrainedFamily, task: Task) -> Any:
    if task.level == "token":
        return AutoModelForTokenClassification
    return AutoModelForSequenceClassification if family.modality == "text" else AutoModelForImageClassification


def _reads_tokens(teacher: FrozenTeacher) -> bool:
    return "token_classification" in teacher.heads


def _config(family: PretrainedFamily, task: Task) -> Any:
    config = copy.deepcopy(family.model.config)
    config.id2label = dict(enumerate(task.labels)) or {0: "LABEL_0"}
    config.label2id = {name: number for number, name in config.id2label.items()}
    config.problem_type = f"{task.kind}_classification" if task.labels else "regression"
    if isinstance(family, GridFamily) and family.image is not None:
        config.image_size = family.image.size  # it may not be the model's own
    config._name_or_path = ""  # a folder of this machine, which is nobody's business
    return config


def _of_the_row(teacher: FrozenTeacher, seen: torch.Tensor, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Of [rows, tokens, width] the token that the model's class reads; all of them, or what is pooled already, as it is."""
    if seen.dim() != 3 or _reads_tokens(teacher):
        return seen
    if teacher.family.name not in _READS_LAST_TOKEN:
        return seen[:, :1]
    ids = inputs["input_ids"]
    config: Any = teacher.model.config
    places = torch.arange(ids.shape[1], device=ids.device)
    last = (places * (ids != config.pad_token_id)).argmax(-1)  # as transformers finds it
    return seen[torch.arange(len(ids), device=ids.device), last]
