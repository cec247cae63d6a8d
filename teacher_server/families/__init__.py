"""The model families a teacher may come from, one small adapter each; knows no session, no codec, no network."""

from __future__ import annotations

from typing import Any

from torch import nn

from student_models import ImageStudent, RatingsStudent, TextStudent
from teacher_server.families.bert import Bert, DistilBert, Electra, MPNet, Roberta
from teacher_server.families.cnn import EfficientNet, ResNet
from teacher_server.families.family import Family, LayerSpan
from teacher_server.families.gpt2 import GPT2
from teacher_server.families.inputs import ImageSettings, Inputs
from teacher_server.families.llama import Llama
from teacher_server.families.pooling import masked_mean, segment_means, segments
from teacher_server.families.pretrained import PretrainedFamily, head_of
from teacher_server.families.student import ImageStudentFamily, RatingsStudentFamily, TextStudentFamily
from teacher_server.families.t5 import T5
from teacher_server.families.vit import ViT
from teaching_protocol.errors import UnsupportedFamily

__all__ = [
    "FAMILIES",
    "Family",
    "ImageSettings",
    "Inputs",
    "LayerSpan",
    "family_class",
    "family_for",
    "head_of",
    "masked_mean",
    "segment_means",
    "segments",
]

FAMILIES: dict[str, type[PretrainedFamily]] = {
    "bert": Bert,
    "distilbert": DistilBert,
    "efficientnet": EfficientNet,
    "electra": Electra,
    "gpt2": GPT2,
    "llama": Llama,
    "mistral": Llama,
    "mpnet": MPNet,
    "qwen2": Llama,
    "resnet": ResNet,
    "roberta": Roberta,
    "t5": T5,
    "vit": ViT,
}


def family_class(model_type: str) -> type[PretrainedFamily]:
    """The family of a transformers config's `model_type`.

    Raises:
        UnsupportedFamily: no adapter; the text names those there are.
    """
    if model_type not in FAMILIES:
        raise UnsupportedFamily(
            f"model type {model_type!r} has no adapter; serve a model of one of these types: "
            f"{', '.join(sorted(FAMILIES))}, or add one under teacher_server/families"
        )
    return FAMILIES[model_type]


def family_for(model: nn.Module, tokenizer: Any | None = None, image: ImageSettings | None = None) -> Family:
    """The adapter of a loaded model: a trained student, or a transformers model with or without a head.

    Of T5 only the encoder is used. A student brings its own tokenizer and image size.

    Raises:
        UnsupportedFamily: no adapter for its `model_type`.
    """
    match model:
        case TextStudent():
            return TextStudentFamily(model)
        case RatingsStudent():
            return RatingsStudentFamily(model)
        case ImageStudent():
            return ImageStudentFamily(model)
    config: Any = model.config
    return family_class(str(config.model_type))(model, tokenizer, image)
