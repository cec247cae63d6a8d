"""EfficientNet-Lite0 as a transformers EfficientNet: its weights under other names; knows no file and no server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import EfficientNetConfig, EfficientNetForImageClassification

from teaching_protocol.errors import ModelLoadError

__all__ = ["PREPROCESSOR", "convert"]

_SIZE = 224
_OPEN_GATE = 100.0  # sigmoid(100) is 1.0 in every dtype that is served

PREPROCESSOR: dict[str, Any] = {
    "image_processor_type": "EfficientNetImageProcessor",
    "do_resize": True,
    "size": {"height": _SIZE, "width": _SIZE},
    "resample": 3,
    "do_center_crop": False,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "rescale_offset": False,
    "do_normalize": True,
    "image_mean": [127 / 255] * 3,
    "image_std": [128 / 255] * 3,
    "include_top": False,
}
"""What `preprocessor_config.json` says: (byte - 127) / 128, as EfficientNet-Lite was trained."""

_STEM = {"_conv_stem": "embeddings.convolution", "_bn0": "embeddings.batchnorm"}
_TOP = {"_conv_head": "encoder.top_conv", "_bn1": "encoder.top_bn"}
_BLOCK = {
    "_expand_conv": "expansion.expand_conv",
    "_bn0": "expansion.expand_bn",
    "_depthwise_conv": "depthwise_conv.depthwise_conv",
    "_bn1": "depthwise_conv.depthwise_norm",
    "_project_conv": "projection.project_conv",
    "_bn2": "projection.project_bn",
}


def convert(weights: Mapping[str, torch.Tensor]) -> EfficientNetForImageClassification:
    """Makes the transformers model of EfficientNet-Lite0's weights, ImageNet head included.

    Lite0 (Tan and Le, arXiv 1905.11946; its Lite variant) is B0 with ReLU6 and without squeeze-and-excitation.
    transformers has no switch for the latter, so each of its gates has one hidden unit, zero weights and a bias that
    opens it fully: it multiplies by exactly 1. Both pad alike where a grid's side is even before each stride, that is
    at image sizes that are multiples of 32.

    Args:
        weights: the state dict of the `efficientnet_lite_pytorch` package's model.

    Raises:
        ModelLoadError: weights that are missing, left over, or of another shape.
    """
    with torch.random.fork_rng(devices=[]):
        model = EfficientNetForImageClassification(_config())
    own = {name: tensor for name, tensor in model.state_dict().items() if ".squeeze_excite." in name}
    for name, tensor in own.items():
        tensor.fill_(_OPEN_GATE if name.endswith("expand.bias") else 0.0)
    try:
        model.load_state_dict(own | {_renamed(name): tensor for name, tensor in weights.items()})
    except (KeyError, RuntimeError) as error:
        raise ModelLoadError(f"these are not the weights of EfficientNet-Lite0: {error}") from error
    return model


def _config() -> EfficientNetConfig:
    return EfficientNetConfig(
        image_size=_SIZE, width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280, hidden_act="relu6",
        squeeze_expansion_ratio=0.0, batch_norm_eps=1e-3, dropout_rate=0.2, drop_connect_rate=0.2, num_labels=1000,
    )  # fmt: skip


def _renamed(name: str) -> str:
    head, _, rest = name.partition(".")
    if head == "_fc":
        return f"classifier.{rest}"
    if head == "_blocks":
        number, layer, kind = rest.split(".")
        return f"efficientnet.encoder.blocks.{number}.{_BLOCK[layer]}.{kind}"
    return f"efficientnet.{(_STEM | _TOP)[head]}.{rest}"
