"""What every teacher family can do: embed, run a span of blocks, finish, pool; knows no session and no codec."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from teaching_protocol.errors import InvalidSetting, InvalidTensor

__all__ = ["Family", "LayerSpan", "masked_mean"]


@dataclass(frozen=True)
class LayerSpan:
    """The blocks `start` .. `stop - 1` of a teacher; cut `l` lies before block `l`, cut `layers` after the last.

    Raises:
        InvalidSetting: not 0 <= start <= stop.
    """

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.stop:
            raise InvalidSetting(f"span {self.start}:{self.stop}, expected 0 <= entry <= exit; set entry and exit anew")

    def __len__(self) -> int:
        return self.stop - self.start


class Family(ABC):
    """One loaded transformers model, cut at its blocks. Nothing in here switches gradients off.

    Hidden states are [batch, tokens, width] at every cut; a mask [batch, tokens] bool is True on real tokens.

    Args:
        model: a base model or a model with a head; its base is used.
    """

    model_types: ClassVar[tuple[str, ...]]
    """The config's `model_type`s this family reads."""
    modality: ClassVar[Literal["text", "image"]] = "text"

    def __init__(self, model: PreTrainedModel) -> None:
        self.base = self._base(model)
        self.config = self.base.config
        self.blocks: Sequence[nn.Module] = self._blocks()

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of the hidden states at every cut 0 .. layers."""
        return (int(self.config.hidden_size),) * (self.layers + 1)

    @property
    def max_tokens(self) -> int | None:
        """The most tokens the teacher's own input may have; None where positions have no end."""
        return None

    @abstractmethod
    def embed(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The teacher's own states at cut 0, [batch, tokens, width], from its own inputs."""

    def run(self, states: torch.Tensor, mask: torch.Tensor | None, span: LayerSpan) -> torch.Tensor:
        """Runs the blocks of `span` on the states [batch, tokens, width] at cut `span.start`; differentiable.

        The states may come from anywhere and have any number of tokens: token t stands at position t.

        Raises:
            InvalidTensor: states that this family cannot lay out (see the family).
        """
        raw = self._lay_out(states)
        for block, arguments in zip(
            self.blocks[span.start : span.stop], self._arguments(states, mask, span), strict=True
        ):
            raw = _first(block(raw, **arguments))
        return self._flatten(raw)

    def finish(self, states: torch.Tensor) -> torch.Tensor:
        """From the states at the last cut to the base model's `last_hidden_state`, [batch, tokens, width]."""
        return states

    def pool(self, finished: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """One vector a row, [batch, width], from finished states: the mean over real tokens, unless the family says."""
        return masked_mean(finished, mask)

    @abstractmethod
    def own_mask(self, inputs: Mapping[str, torch.Tensor], states: torch.Tensor) -> torch.Tensor:
        """The mask [batch, tokens] bool of the teacher's own `states`, embedded from `inputs`."""

    @contextmanager
    def captured(self, layers: Sequence[int]) -> Iterator[dict[int, torch.Tensor]]:
        """While open, a forward of the whole model leaves its states at the cuts `layers` in the dict.

        Hooks the model itself: one thread at a time.
        """
        found: dict[int, torch.Tensor] = {}
        with ExitStack() as stack:
            for layer in set(layers):
                stack.callback(self._capture(layer, found).remove)
            yield found

    def _capture(self, layer: int, found: dict[int, torch.Tensor]) -> Any:
        def before(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            found[layer] = self._flatten(arguments[0])

        def after(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            found[layer] = self._flatten(_first(output))

        if layer < self.layers:
            return self.blocks[layer].register_forward_pre_hook(before)
        return self.blocks[-1].register_forward_hook(after)

    def _base(self, model: PreTrainedModel) -> Any:
        return model.base_model

    @abstractmethod
    def _blocks(self) -> Sequence[nn.Module]:
        """The blocks in order."""

    @abstractmethod
    def _arguments(
        self, states: torch.Tensor, mask: torch.Tensor | None, span: LayerSpan
    ) -> Sequence[Mapping[str, Any]]:
        """What each block of the span takes besides the states, one mapping a block."""

    def _lay_out(self, states: torch.Tensor) -> torch.Tensor:
        """[batch, tokens, width] -> what a block takes."""
        return states

    def _flatten(self, raw: torch.Tensor) -> torch.Tensor:
        """What a block gives -> [batch, tokens, width]."""
        return raw


def masked_mean(states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Mean of [batch, tokens, width] over the tokens that `mask` [batch, tokens] calls real: [batch, width].

    Summed in float32, given in the states' own dtype.

    Raises:
        InvalidTensor: a mask of another shape.
    """
    if mask is None:
        return states.mean(dim=1)
    if mask.shape != states.shape[:2]:
        raise InvalidTensor(
            f"mask is {list(mask.shape)}, expected {list(states.shape[:2])}; send one mask value a token"
        )
    weights = mask.to(states.device, torch.float32).unsqueeze(-1)  # [batch, tokens, 1]
    mean = (states.float() * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)
    return mean.to(states.dtype)


def _first(output: Any) -> torch.Tensor:
    first: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return first
