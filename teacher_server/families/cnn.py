"""Convolutional image teachers, their feature maps shown as tokens; knows no transformer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from teacher_server.families.family import LayerSpan
from teacher_server.families.image import ImageFamily
from teacher_server.families.masks import hides_tokens
from teaching_protocol.errors import InvalidTensor

__all__ = ["EfficientNet", "GridFamily", "ResNet"]


class GridFamily(ImageFamily):
    """A state [batch, channels, side, side] is presented as tokens [batch, side * side, channels], row by row.

    Blocks with a stride give fewer tokens than they take. Only square grids without masked tokens have a layout.
    Pooled by the mean over the whole grid.
    """

    takes_padding = False

    def pool(self, finished: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Global average, [batch, width]."""
        return finished.mean(dim=1)

    def _arguments(
        self, states: torch.Tensor, mask: torch.Tensor | None, span: LayerSpan
    ) -> Sequence[Mapping[str, Any]]:
        if hides_tokens(mask):
            raise InvalidTensor("the mask hides tokens, and a convolution sees all; send messages without padding")
        return [{}] * len(span)

    def _lay_out(self, states: torch.Tensor) -> torch.Tensor:
        tokens = states.shape[1]
        side = math.isqrt(tokens)
        if side == 0 or side * side != tokens:
            near = max(1, side) ** 2, (side + 1) ** 2
            raise InvalidTensor(
                f"the states have {tokens} tokens, expected a square grid; send {near[0]} or {near[1]} tokens a row"
            )
        return states.transpose(1, 2).reshape(len(states), -1, side, side)

    def _flatten(self, raw: torch.Tensor) -> torch.Tensor:
        return raw.flatten(2).transpose(1, 2)


class EfficientNet(GridFamily):
    """Stem, inverted residual blocks, top convolution."""

    model_types = ("efficientnet",)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels at every cut 0 .. layers."""
        stem = self.base.embeddings.out_dim
        return (int(stem), *(int(block.projection.project_conv.out_channels) for block in self._chain))

    @property
    def _chain(self) -> Sequence[Any]:
        return self.blocks

    def embed(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The stem's map of `pixel_values` [batch, channels, height, width]."""
        return self._flatten(self.base.embeddings(inputs["pixel_values"]))

    def finish(self, states: torch.Tensor) -> torch.Tensor:
        """The top convolution, its norm and activation: wider than any cut."""
        encoder = self.base.encoder
        return self._flatten(encoder.top_activation(encoder.top_bn(encoder.top_conv(self._lay_out(states)))))

    def run(self, states: torch.Tensor, mask: torch.Tensor | None, span: LayerSpan) -> torch.Tensor:
        """Runs the blocks of `span`; see `Family.run`.

        Raises:
            InvalidTensor: no square grid, masked tokens, or a grid too small for the span's strides.
        """
        side = self._lay_out(states).shape[-1]
        for block in self._chain[span.start : span.stop]:
            side = _side_after(block.depthwise_conv, side)
            if side < 1:
                raise InvalidTensor(
                    f"the states have {states.shape[1]} tokens, too small a grid for the strides of blocks "
                    f"{span.start} to {span.stop - 1}; send more tokens a row or a shorter span"
                )
        return super().run(states, mask, span)

    def _blocks(self) -> Sequence[nn.Module]:
        blocks: Sequence[nn.Module] = self.base.encoder.blocks
        return blocks


class ResNet(GridFamily):
    """Stem, residual layers of all stages in order."""

    model_types = ("resnet",)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels at every cut 0 .. layers."""
        sizes = zip(self.config.hidden_sizes, self.config.depths, strict=True)
        return (int(self.config.embedding_size), *(int(size) for size, depth in sizes for _ in range(depth)))

    def embed(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The stem's map of `pixel_values` [batch, channels, height, width]."""
        return self._flatten(self.base.embedder(inputs["pixel_values"]))

    def _blocks(self) -> Sequence[nn.Module]:
        return [layer for stage in self.base.encoder.stages for layer in stage.layers]


def _side_after(depthwise: Any, side: int) -> int:
    """Side of the grid behind an EfficientNet depthwise layer; below 1 where its kernel does not fit."""
    if depthwise.stride == 1:
        return side
    left, right, *_ = depthwise.depthwise_conv_pad.padding
    return int((side + left + right - depthwise.depthwise_conv.kernel_size[0]) // 2 + 1)
