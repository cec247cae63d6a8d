"""What the head of a transformers model makes of hidden states of any origin, by model type; knows no tap."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from student_models.student import States
from task_data.config import Level
from teaching_protocol.errors import ConfigError

__all__ = ["HEADS", "TOKEN_HEADS", "Head", "head_named"]

Head = Callable[[Any, States], torch.Tensor]
"""From the model and the states [batch, tokens, width] of its last layer to its outputs [batch, outputs].

Of tokens [batch, tokens, outputs].
"""


def _bert(model: Any, states: States) -> torch.Tensor:
    outputs: torch.Tensor = model.classifier(model.dropout(model.bert.pooler(states.hidden)))
    return outputs


def _distilbert(model: Any, states: States) -> torch.Tensor:
    pooled = functional.relu(model.pre_classifier(states.hidden[:, 0]))
    outputs: torch.Tensor = model.classifier(model.dropout(pooled))
    return outputs


def _first_token(model: Any, states: States) -> torch.Tensor:
    """A head that takes the first token by itself."""
    outputs: torch.Tensor = model.classifier(states.hidden)
    return outputs


def _vit(model: Any, states: States) -> torch.Tensor:
    outputs: torch.Tensor = model.classifier(model.vit.layernorm(states.hidden)[:, 0])
    return outputs


def _decoder(model: Any, states: States) -> torch.Tensor:
    """The last real token of a decoder, behind its last norm."""
    last = (states.mask * torch.arange(states.mask.shape[1], device=states.mask.device)).argmax(1)
    norm = model.transformer.ln_f if hasattr(model, "transformer") else model.model.norm
    rows = torch.arange(len(last), device=last.device)
    outputs: torch.Tensor = model.score(norm(states.hidden[rows, last]))
    return outputs


HEADS: dict[str, Head] = {
    "bert": _bert,
    "distilbert": _distilbert,
    "electra": _first_token,
    "gpt2": _decoder,
    "llama": _decoder,
    "mistral": _decoder,
    "mpnet": _first_token,
    "qwen2": _decoder,
    "roberta": _first_token,
    "vit": _vit,
    "xlm-roberta": _first_token,
}
"""Heads by `config.model_type`."""


def _each_token(model: Any, states: States) -> torch.Tensor:
    """Dropout and one linear layer, token by token."""
    outputs: torch.Tensor = model.classifier(model.dropout(states.hidden))
    return outputs


def _each_token_of_decoder(model: Any, states: States) -> torch.Tensor:
    """The same of a decoder, behind its last norm."""
    outputs: torch.Tensor = model.score(model.dropout(model.model.norm(states.hidden)))
    return outputs


TOKEN_HEADS: dict[str, Head] = {
    **dict.fromkeys(("bert", "distilbert", "electra", "mpnet", "roberta", "xlm-roberta"), _each_token),
    **dict.fromkeys(("llama", "mistral", "qwen2"), _each_token_of_decoder),
}
"""Heads of models for token classification, by `config.model_type`."""


def head_named(model: Any, level: Level) -> Head:
    """The head of a model for a task of this level.

    Raises:
        ConfigError: it is not known for this model.
    """
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    known = {"row": HEADS, "token": TOKEN_HEADS}.get(level, {})
    if kind not in known:
        raise ConfigError(
            f"the head of {kind} is not known; give it by TappedStudent(model, head=...), or set w_answer_task and "
            "w_answer_labels to 0"
        )
    return known[kind]
