"""The image student: a small residual CNN cut in the middle; knows no teacher."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from student_client.config import StudentConfig
from student_client.data.splits import Split, TaskData
from student_client.students.blocks import ConvBlock
from student_client.students.card import StudentCard, sizes_of
from student_client.students.columns import tensor_column
from student_client.students.head import PooledHead, target_centre
from student_client.students.student import States, Student, Tensors
from student_client.students.weights import read_weights, write_weights
from teaching_protocol.errors import InvalidTensor

__all__ = ["ImageStudent"]


class ImageStudent(Student):
    """Convolutions down to a grid of at most 8x8, whose cells are the tokens, then residual blocks at one width.

    Both taps have the same grid and width: 16 tokens for 8x8 pixels, 49 for 28x28. Pixels are standardised
    by the training split's mean and deviation of each channel.

    Args:
        card: sizes (`channels`, `image_height`, `image_width` among them) and task.
    """

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
        blocks = [ConvBlock(self.width, card.dropout) for _ in range(sizes["layers"])]
        half = sizes["layers"] // 2
        self.lower_blocks = nn.Sequential(*_stem(sizes["channels"], self.width, halvings), *blocks[:half])
        self.upper_blocks = nn.Sequential(*blocks[half:])
        self.output = PooledHead(self.width, self.task, card.dropout)

    @classmethod
    def build(cls, config: StudentConfig, data: TaskData) -> ImageStudent:
        """A new student for images of the training split's shape.

        Raises:
            ConfigError: sizes that do not fit together.
            DataError: the data set has no column of images.
        """
        images = tensor_column(data.train, "image")  # [N, channels, height, width] uint8
        shape = dict(zip(("channels", "image_height", "image_width"), images.shape[1:], strict=True))
        card = StudentCard(
            modality="image",
            task=data.task.name,
            labels=data.task.labels,
            sizes=sizes_of(config, "image") | shape,
            dropout=config.dropout,
        )
        student = cls(card)
        mean, std = _pixel_statistics(images)
        student.pixel_mean.copy_(mean)
        student.pixel_std.copy_(std)
        student.output.centre.copy_(target_centre(data.task, data.train))
        return student

    @classmethod
    def load(cls, folder: Path, card: StudentCard) -> ImageStudent:
        """The student that `save` wrote.

        Raises:
            ModelLoadError: a file is missing or broken.
        """
        student = cls(card)
        read_weights(student, folder / "model.safetensors")
        return student

    def view(self, split: Split) -> Tensors:
        """`image` [N, channels, height, width] uint8."""
        return {"image": tensor_column(split, "image")}

    def lower(self, inputs: Tensors) -> States:
        """Stem and the first half of the blocks; states [batch, cells of the grid, width]."""
        pixels = (inputs["image"].to(self.pixel_mean.dtype) - self.pixel_mean) / self.pixel_std
        hidden = self.lower_blocks(pixels).flatten(2).transpose(1, 2)
        return States(hidden, torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device))

    def upper(self, states: States) -> States:
        """The second half of the blocks.

        Raises:
            InvalidTensor: states with another number of tokens than the grid has cells.
        """
        if states.hidden.shape[1] != self.grid[0] * self.grid[1]:
            raise InvalidTensor(
                f"states: received {list(states.hidden.shape)}, expected {self.grid[0]}x{self.grid[1]} tokens; "
                "give the upper layers states as the lower ones make them, not pooled ones"
            )
        grid = self.upper_blocks(torch.unflatten(states.hidden.transpose(1, 2), 2, self.grid))
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


def _pixel_statistics(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation [channels, 1, 1], in one pass and without a float copy of all images."""
    counts = torch.stack([torch.bincount(channel.flatten().long(), minlength=256) for channel in images.unbind(1)])
    values = torch.arange(256, dtype=torch.float64)
    share = counts / counts.sum(1, keepdim=True)
    mean = (share * values).sum(1)
    std = (share * (values - mean[:, None]) ** 2).sum(1).sqrt().clamp(min=1e-3)
    return mean.float()[:, None, None], std.float()[:, None, None]
