"""An image classification made into a `TaskData`; knows no file and no data set."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from task_data.assembly import assemble
from task_data.config import DataConfig
from task_data.division import Part, divide
from task_data.splits import Task, TaskData

__all__ = ["image_data"]


def image_data(
    images: torch.Tensor, labels: torch.Tensor, names: Sequence[str], parts: Sequence[Part], config: DataConfig
) -> TaskData:
    """Makes an image task; student and teacher see the same pixels, and equal images are one example.

    Args:
        images: [N, channels, height, width] uint8.
        labels: [N] int64 classes.
        names: of the classes, in order.
        parts: [N], the data set's own part of each image.
        config: sizes and seed.

    Raises:
        DataError: fewer rows than asked.
    """
    keys = [image.tobytes() for image in images.numpy()]
    division = divide(keys, parts, config, labels.numpy())
    return assemble(Task(config.name, tuple(names)), "image", {"image": images}, images, labels, division)
