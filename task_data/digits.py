"""Handwritten digits of 8x8 pixels from scikit-learn; draws no splits."""

from __future__ import annotations

import torch

from task_data.config import DataConfig
from task_data.images import image_data
from task_data.splits import TaskData

__all__ = ["load_digits"]


def load_digits(config: DataConfig) -> TaskData:
    """Loads 1,797 images [1, 8, 8] of the ten digits, their 17 grey levels spread over uint8.

    Raises:
        DataError: fewer rows than asked.
    """
    from sklearn import datasets  # a second to import, which the other data sets need not pay

    digits = datasets.load_digits()
    images = torch.from_numpy(digits.images).mul(255 / 16).round().to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(digits.target).long()
    return image_data(images, labels, [str(digit) for digit in range(10)], ["train"] * len(labels), config)
