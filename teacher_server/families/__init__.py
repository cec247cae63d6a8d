"""The model families a teacher may come from, one small adapter each; knows no session, no codec, no network."""

from __future__ import annotations

from transformers import PreTrainedModel

from teacher_server.families.bert import Bert, DistilBert, Electra, MPNet, Roberta
from teacher_server.families.cnn import EfficientNet, ResNet
from teacher_server.families.family import Family, LayerSpan, masked_mean
from teacher_server.families.gpt2 import GPT2
from teacher_server.families.inputs import ImageInputs, ImageSettings, TextInputs
from teacher_server.families.llama import Llama
from teacher_server.families.t5 import T5
from teacher_server.families.vit import ViT
from teaching_protocol.errors import UnsupportedFamily

__all__ = [
    "FAMILIES",
    "Family",
    "ImageInputs",
    "ImageSettings",
    "LayerSpan",
    "TextInputs",
    "family_class",
    "family_for",
    "masked_mean",
]

FAMILIES: dict[str, type[Family]] = {
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


def family_class(model_type: str) -> type[Family]:
    """The family of a config's `model_type`.

    Raises:
        UnsupportedFamily: no adapter; the text names those there are.
    """
    if model_type not in FAMILIES:
        raise UnsupportedFamily(
            f"model type {model_type!r} has no adapter; serve a model of one of these types: "
            f"{', '.join(sorted(FAMILIES))}, or add one under teacher_server/families"
        )
    return FAMILIES[model_type]


def family_for(model: PreTrainedModel) -> Family:
    """The adapter of a loaded model, a base model or one with a head; of T5 only the encoder is used.

    Raises:
        UnsupportedFamily: no adapter for its `model_type`.
    """
    return family_class(str(model.config.model_type))(model)
