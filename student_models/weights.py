"""A module's tensors in a safetensors file; knows no student."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from teaching_protocol.errors import ModelLoadError

__all__ = ["read_weights", "write_weights"]


def write_weights(module: nn.Module, path: Path) -> None:
    """Writes every parameter and buffer of a module."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    save_file(tensors, path, metadata={"format": "pt"})


def read_weights(module: nn.Module, path: Path) -> None:
    """Fills a module of the same shape with what `write_weights` wrote.

    Raises:
        ModelLoadError: the file is missing, broken, or of another module.
    """
    try:
        module.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ModelLoadError(f"{path} cannot be loaded: {error}; save the student again") from error
