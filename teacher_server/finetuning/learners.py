"""What of a teacher learns: its head alone, its body too, or a low-rank change of it; knows no epoch and no optimizer."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from task_data import IGNORED
from teacher_server.families.pretrained import PretrainedFamily
from teacher_server.finetuning.heads import head_features, head_modules, last_linear
from teacher_server.finetuning.tokens import at
from teacher_server.finetuning.tuning import Examples, Objective
from teacher_server.models.split import FrozenTeacher
from teaching_protocol.errors import ConfigError

__all__ = ["BodyLearner", "HeadLearner", "Learner", "LoraLearner", "LoraSettings"]

_BATCH = 32


@dataclass(frozen=True)
class LoraSettings:
    """Rank, scale and dropout of the low-rank matrices (Hu et al., arXiv 2106.09685)."""

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.1


class Learner(ABC):
    """A teacher under a new head, of which a part learns.

    Args:
        teacher: as `with_head` gives it.
        max_tokens: a longer text is cut, as the server does.
    """

    def __init__(self, teacher: FrozenTeacher, max_tokens: int) -> None:
        assert isinstance(teacher.family, PretrainedFamily), "`with_head` gives no other"
        self.teacher, self.family = teacher, teacher.family
        self.head = head_modules(teacher)
        self.max_tokens = max_tokens

    @property
    @abstractmethod
    def module(self) -> nn.Module:
        """What is switched between training and evaluation; its parameters that learn require a gradient."""

    def examples(
        self, view: Mapping[str, torch.Tensor], targets: torch.Tensor, places: torch.Tensor | None = None
    ) -> Examples:
        """The examples of a teacher's view [N, ...]: here every output is one forward of the whole model.

        Args:
            view: of the rows.
            targets: their labels [N], or those of their words [N, words].
            places: the token where each word is read [N, words], of a head for tokens.
        """

        def outputs(rows: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.teacher.model(**self._inputs(view, rows)).logits
            return logits if places is None else at(logits, places[rows])

        return Examples(outputs, targets.to(self.teacher.device))

    def finish(self, objective: Objective) -> None:
        """Leaves a model that its class can save, whose one logit of a regression is the predicted number itself."""
        layer = last_linear(self.head)
        with torch.no_grad():
            layer.weight.mul_(objective.scale)
            if layer.bias is not None:
                layer.bias.mul_(objective.scale).add_(objective.shift)

    def _inputs(self, view: Mapping[str, torch.Tensor], rows: torch.Tensor) -> dict[str, torch.Tensor]:
        inputs = self.teacher.prepare({name: tensor[rows] for name, tensor in view.items()}, self.max_tokens)
        return {name: tensor.to(self.teacher.device) for name, tensor in inputs.items()}


class HeadLearner(Learner):
    """The head learns; the frozen body is run once a row, whatever the number of epochs."""

    def __init__(self, teacher: FrozenTeacher, max_tokens: int) -> None:
        super().__init__(teacher, max_tokens)
        self.head.requires_grad_(True)

    @property
    def module(self) -> nn.Module:
        """The head, and a pooler that belongs to it."""
        return self.head

    def examples(
        self, view: Mapping[str, torch.Tensor], targets: torch.Tensor, places: torch.Tensor | None = None
    ) -> Examples:
        """The examples of a teacher's view [N, ...], of which what the head reads is kept: one vector a row, or a word."""
        if places is not None:
            return self._of_words(view, targets, places)
        order = _by_length(view)
        parts = [
            head_features(self.teacher, self.head, self._inputs(view, rows)) for rows in torch.split(order, _BATCH)
        ]
        features = torch.cat(parts)[order.argsort().to(self.teacher.device)]
        return Examples(lambda rows: self.head(features[rows.to(features.device)]), targets.to(features.device))

    def _of_words(self, view: Mapping[str, torch.Tensor], targets: torch.Tensor, places: torch.Tensor) -> Examples:
        """Of words without a label nothing is kept."""
        known, numbers = targets != IGNORED, torch.zeros_like(places)
        parts: list[torch.Tensor] = []
        for rows in torch.split(_by_length(view), _BATCH):
            read = at(head_features(self.teacher, self.head, self._inputs(view, rows)), places[rows])
            parts.append(read[known[rows].to(read.device)])
            first = int(numbers.max()) + 1
            following = torch.arange(first, first + len(parts[-1]))
            numbers[rows] = numbers[rows].masked_scatter(known[rows], following)
        some = next(part for part in parts if len(part))[:1]
        features = torch.cat([some, *parts])  # [1 + words, width]; the first is read where there is no label
        numbers = numbers.to(features.device)
        return Examples(
            lambda rows: self.head(features[numbers[rows.to(features.device)]]), targets.to(features.device)
        )


class BodyLearner(Learner):
    """Every weight learns."""

    def __init__(self, teacher: FrozenTeacher, max_tokens: int) -> None:
        super().__init__(teacher, max_tokens)
        teacher.model.requires_grad_(True)

    @property
    def module(self) -> nn.Module:
        """The whole model."""
        return self.teacher.model


class LoraLearner(Learner):
    """The head learns, and low-rank matrices beside every linear layer of the blocks; merged in when done.

    Raises:
        ConfigError: the package peft is not installed, or the blocks have no linear layer (convolutional teachers).
    """

    def __init__(self, teacher: FrozenTeacher, max_tokens: int, settings: LoraSettings, seed: int) -> None:
        super().__init__(teacher, max_tokens)
        self._model = _with_lora(self.family, settings, seed)
        self.head.requires_grad_(True)

    @property
    def module(self) -> nn.Module:
        """The whole model in peft's wrapper."""
        module: nn.Module = self._model
        return module

    def finish(self, objective: Objective) -> None:
        """Adds the matrices to the weights they stand beside, and takes peft's wrappers away."""
        self._model.merge_and_unload()
        super().finish(objective)


def _with_lora(family: PretrainedFamily, settings: LoraSettings, seed: int) -> Any:
    try:
        import peft
    except ImportError as error:
        raise ConfigError(
            f"LoRA needs the package peft, which cannot be imported ({error}); "
            "install it with: pip install 'talking-models[finetune]', or train the head or the body"
        ) from error
    names, is_conv1d = _linear_layers(family)
    wanted = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=names,
        fan_in_fan_out=is_conv1d,
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers in a way that is going to end
        torch.manual_seed(seed)
        return peft.get_peft_model(family.model, wanted)


def _linear_layers(family: PretrainedFamily) -> tuple[list[str], bool]:
    """The names of all linear layers inside the blocks, and whether they are GPT-2's transposed ones."""
    inside = {module for block in family.blocks for module in block.modules()}
    linear = {
        name: module
        for name, module in family.model.named_modules()
        if module in inside and isinstance(module, nn.Linear | Conv1D)
    }
    if not linear:
        raise ConfigError(
            f"LoRA needs linear layers, and the blocks of a {family.name} have none; train the head or the body"
        )
    return list(linear), any(isinstance(module, Conv1D) for module in linear.values())


def _by_length(view: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The rows [N], texts of like length together, so that little is padded."""
    if "text" in view:
        return view["text"].ne(0).sum(1).argsort(stable=True)
    return torch.arange(len(next(iter(view.values()))))
