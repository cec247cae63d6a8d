"""Which transformers class a task's model has, and which task a model's class tells; loads nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
)

from task_data.config import Level
from task_data.splits import Task
from teaching_protocol.errors import ConfigError

__all__ = ["auto_model", "level_of", "task_of"]

_CLASSES: dict[Level, Any] = {
    "row": AutoModelForSequenceClassification,
    "token": AutoModelForTokenClassification,
    "next_token": AutoModelForCausalLM,
}

_ENDINGS: dict[str, Level] = {
    "ForSequenceClassification": "row",
    "ForTokenClassification": "token",
    "ForCausalLM": "next_token",
    "LMHeadModel": "next_token",
}
"""What the class names of models with a head end with."""


def level_of(architecture: str) -> Level | None:
    """What a model of this class name has labels for; None of one without such a head."""
    return next((level for ending, level in _ENDINGS.items() if architecture.endswith(ending)), None)


def auto_model(name: str | Path, task: Task | None) -> Any:
    """The class that loads a model for a task; without one, for the task that its saved config tells.

    Raises:
        OSError: there is no config.
    """
    if task is not None:
        return _CLASSES[task.level]
    names = PreTrainedConfig.get_config_dict(str(name))[0].get("architectures") or [""]
    return _CLASSES[level_of(names[0]) or "row"]


def task_of(model: nn.Module) -> Task:
    """What a transformers model predicts, by its class and config.

    Raises:
        ConfigError: there is none, or one label only that is no number.
    """
    config: Any = getattr(model, "config", None)
    if config is None:
        raise ConfigError(
            f"task: {type(model).__name__} does not say what it predicts; give TappedStudent(model, task=Task(...))"
        )
    level = level_of(type(model).__name__) or "row"
    if level == "next_token":
        return Task("next_token", level=level)
    labels = tuple(str(config.id2label[place]) for place in range(config.num_labels))
    if level == "token":
        return Task("token_classification", labels, level=level)
    several = getattr(config, "problem_type", None) == "multi_label_classification"
    if config.num_labels == 1:
        if several:
            raise ConfigError(
                "task: received one label that is true or not, expected two classes; give the model num_labels=2"
            )
        return Task("regression")
    return Task("classification", labels, "multi_label" if several else "single_label")
