"""The image student: a small residual CNN cut in the middle; knows no teacher."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from student_models.blocks import ConvBlock
from student_models.card import StudentCard
from student_models.columns import tensor_column
from student_models.head import PooledHead
from student_models.student import Columns, LayeredStudent, States, Tensors
from student_models.weights import read_weights, write_weights
from teaching_protocol.errors import InvalidTensor

__all__ = ["ImageStudent"]


class ImageStudent(LayeredStudent):
    """Convolutions down to a grid of at most 8x8, whose cells are the tokens, then residual blocks at one width.

    Both taps have the same grid and width: 16 tokens for 8x8 pixels, 49 for 28x28. Pixels are standardised
    by the training split's mean and deviation of each channel.

    Args:
        card: sizes (`channels`, `image_height`, `image_width` among them) and task.
    """

    inputs = ("image",)
    pixel_mean: torch.Tensor
    pixel_std: torch.Tensor

    def __init__(self, card: StudentCard) -> None:
        super().__init__()
        sizes = card.sizes
        self.card, self.task, self.width = card, card.to_task(), sizes["width"]
        self.register_buffer("pixel_mean", torch.zeros(sizes["channels"], 1, 1))
        self.register_buffer("pixel_std", torch.ones(sizes["channels"], 1, 1))
        height, width, halvings = _grid(sizes["image_height"], sizes["image_width"])
        self.grid = (height, width)
        self.layers = sizes["layers"]
        self.stem = nn.Sequential(*_stem(sizes["channels"], self.width, halvings))
        self.blocks = nn.ModuleList(ConvBlock(self.width, card.dropout) for _ in range(self.layers))
        self.output = PooledHead(self.width, self.task, card.dropout)

    @classmethod
    def load(cls, folder: Path, card: StudentCard) -> ImageStudent:
        """The student that `save` wrote.

        Raises:
            ModelLoadError: a file is missing or broken.
        """
        student = cls(card)
        read_weights(student, folder / "model.safetensors")
        return student

    def view(self, columns: Columns) -> Tensors:
        """`image` [N, channels, height, width] uint8."""
        return {"image": tensor_column(columns, "image")}

    def embed(self, inputs: Tensors) -> States:
        """Standardised pixels through the stem; states [batch, cells of the grid, width]."""
        pixels = (inputs["image"].to(self.pixel_mean.dtype) - self.pixel_mean) / self.pixel_std
        hidden = self.stem(pixels).flatten(2).transpose(1, 2)
        return States(hidden, torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device))

    def run(self, states: States, start: int, stop: int) -> States:
        """Residual blocks `start` to `stop` - 1.

        Raises:
            InvalidTensor: states with another number of tokens than the grid has cells.
        """
        if states.hidden.shape[1] != self.grid[0] * self.grid[1]:
            raise InvalidTensor(
                f"states: received {list(states.hidden.shape)}, expected {self.grid[0]}x{self.grid[1]} tokens; "
                "give the layers states as the embedding makes them, not pooled ones"
            )
        grid = torch.unflatten(states.hidden.transpose(1, 2), 2, self.grid)
        for block in self.blocks[start:stop]:
            grid = block(grid)
        return States(grid.flatten(2).transpose(1, 2), states.mask)

    def head(self, states: States) -> torch.Tensor:
        """[batch, outputs] logits, or [batch] predicted targets."""
        outputs: torch.Tensor = self.output(states)
        return outputs

    def save(self, folder: Path) -> None:
        """Writes the weights and the card."""
        folder.mkdir(parents=True, exist_ok=True)
        write_weights(self, folder / "model.safetensors")
        self.card.write(folder)


def _grid(height: int, width: int) -> tuple[int, int, int]:
    """Rows and columns of the grid, and how often the image is halved to get there (once at least)."""
    halvings = 0
    while halvings == 0 or max(height, width) > 8:
        height, width, halvings = (height + 1) // 2, (width + 1) // 2, halvings + 1
    return height, width, halvings


def _stem(channels: int, width: int, halvings: int) -> list[nn.Module]:
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1)]
    for _ in range(halvings):
        layers += [nn.GELU(), nn.Conv2d(width, width, 3, stride=2, padding=1)]
    return layers
