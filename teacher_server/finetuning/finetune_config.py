"""Every setting of a fine-tuning as one frozen value read at the edge; knows nothing that uses it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from command_config import expected, setting
from task_data.config import DataConfig
from teaching_protocol.errors import ConfigError

__all__ = ["FinetuneConfig", "load_finetune_config"]


class FinetuneConfig(BaseModel):
    """Everything a fine-tuning can be told; what is None comes from what is trained."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    model: str = Field(
        description="Model to start from: whatever `teacher-server serve` takes, but no trained student."
    )
    data: DataConfig = Field(description="The data set; the labelled training rows are those that students get.")
    output: Path = Field(description="Folder of the new model.")
    train: Literal["head", "body", "lora"] = Field(
        "head", description="What learns: the head, all weights, or the head and LoRA matrices in the blocks."
    )
    learning_rates: tuple[Annotated[float, Field(gt=0.0)], ...] | None = Field(
        None,
        min_length=1,
        description="Peak learning rates to try; the validation rows choose. None is what suits `train`.",
    )
    epochs: int | None = Field(
        None,
        ge=1,
        description="Most passes over the labelled rows with each learning rate; None is what suits `train`.",
    )
    batch_size: int = Field(16, ge=1, description="Rows of one optimizer step.")
    patience: int = Field(5, ge=1, description="Epochs without a new best after which a learning rate is left.")
    weight_decay: float = Field(0.01, ge=0.0, description="Weight decay of AdamW.")
    warmup: float = Field(0.1, ge=0.0, lt=1.0, description="Part of all steps over which the learning rate rises.")
    max_grad_norm: float = Field(1.0, gt=0.0, description="Largest gradient norm.")
    image_size: int | None = Field(
        None, ge=1, description="Side of a convolutional model's images in pixels; None is its own."
    )
    max_tokens: int = Field(512, ge=1, description="Tokens a text may have; longer ones are cut, as the server does.")
    lora_rank: int = Field(8, ge=1, description="Rank of the LoRA matrices.")
    lora_alpha: int = Field(16, ge=1, description="Scale of the LoRA matrices, before it is divided by the rank.")
    lora_dropout: float = Field(0.1, ge=0.0, lt=1.0, description="Dropout before the LoRA matrices.")
    seed: int = Field(0, ge=0, description="Seed of new weights, order and dropout; the rows keep data.seed.")
    device: Literal["auto", "cpu"] = Field("auto", description="Where it trains; auto takes a GPU if there is one.")


def load_finetune_config(flags: Mapping[str, Any], settings: Sequence[str] = ()) -> FinetuneConfig:
    """Makes a configuration of dotted fields, such as {"data.labelled": 300}; None counts as not given.

    Args:
        flags: values by field.
        settings: more of them as `field=value`, the value in YAML; they win.

    Raises:
        ConfigError: an unknown field, a value out of range, or a setting that is no `field=value`.
    """
    values: dict[str, Any] = {"data": {}}
    given = [(field, value) for field, value in flags.items() if value is not None]
    for field, value in [*given, *(setting(each, "data.validation=200") for each in settings)]:
        place, _, name = field.rpartition(".")
        if field == "data":
            raise ConfigError(f"data: received {value!r}, expected one of its fields, such as data.validation=200")
        (values.setdefault(place, {}) if place else values)[name] = value
    try:
        return FinetuneConfig.model_validate(values)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc']))}: received {fault['input']!r}, expected {expected(fault)}"
            for fault in error.errors()
        )
        raise ConfigError(f"fine-tuning: {faults}") from error
