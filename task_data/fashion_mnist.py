"""Fashion-MNIST from the Debian package that ships it; draws no splits."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import torch

from task_data.config import DataConfig
from task_data.division import Part
from task_data.images import image_data
from task_data.packages import debian_package
from task_data.splits import TaskData
from teaching_protocol.errors import DataError

__all__ = ["load_fashion_mnist"]

_CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


def load_fashion_mnist(config: DataConfig) -> TaskData:
    """Loads 60,000 training and 10,000 test images [1, 28, 28]; `config.path` may name a folder of the four files.

    Xiao, Rasul and Vollgraf (arXiv 1708.07747).

    Raises:
        DataError: the package cannot be had, or a file is not as expected.
    """
    folder = config.path or debian_package("dataset-fashion-mnist", "usr/share/datasets/fashion-mnist")
    train, test = (_read_part(folder, part) for part in ("train", "t10k"))
    parts: list[Part] = ["train"] * len(train[1])
    parts += ["test"] * len(test[1])
    return image_data(torch.cat([train[0], test[0]]), torch.cat([train[1], test[1]]), _CLASSES, parts, config)


def _read_part(folder: Path, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    images = _read_idx(folder / f"{part}-images-idx3-ubyte.gz", dimensions=3)
    labels = _read_idx(folder / f"{part}-labels-idx1-ubyte.gz", dimensions=1).long()
    if len(images) != len(labels) or bool((labels >= len(_CLASSES)).any()):
        raise DataError(
            f"{folder}: {len(images)} {part} images and {len(labels)} labels up to {int(labels.max())}; "
            f"one label under {len(_CLASSES)} was expected for each image"
        )
    return images.unsqueeze(1), labels


def _read_idx(path: Path, dimensions: int) -> torch.Tensor:
    """Reads an IDX file of bytes: two zeros, the type, the number of dimensions, each size, the values."""
    try:
        data = gzip.decompress(path.read_bytes())
        magic, *shape = struct.unpack_from(f">{1 + dimensions}I", data)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise DataError(f"{path}: cannot be read as a gzipped IDX file: {error}") from error
    start = 4 + 4 * dimensions
    if magic != 0x0800 + dimensions or math.prod(shape) != len(data) - start or not math.prod(shape):
        raise DataError(
            f"{path}: {len(data)} bytes, type {magic:#x} and sizes {shape} do not make an IDX file of "
            f"{dimensions} dimensions of bytes; fetch the file again"
        )
    return torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=start).reshape(shape)
