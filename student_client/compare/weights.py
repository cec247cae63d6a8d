"""Teachers that know nothing: the same architecture with random weights; the control of every method."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig

from student_client.config import RunConfig
from student_client.students import build_student
from task_data import load_data
from teaching_protocol.errors import ConfigError

__all__ = ["randomise"]

_WEIGHTS = (".safetensors", ".bin", ".pth", ".gguf", ".index.json")


def randomise(source: Path | None, student: Mapping[str, Any] | None, seed: int, output: Path) -> None:
    """Writes a teacher of the same architecture, with weights drawn anew as before any training.

    Args:
        source: folder of a Hugging Face model; its tokenizer and preprocessor are taken over.
        student: or the configuration of the run that trains a student.
        seed: of the weights.
        output: folder to write.

    Raises:
        ConfigError: no such folder, or a model that transformers does not know.
        DataError: data of the student that cannot be had.
    """
    if student is not None:
        run = RunConfig.model_validate(student)
        build_student(run.student.model_copy(update={"seed": seed}), load_data(run.data)).save(output)
        return
    assert source is not None, "a model or a student"
    model = _model(source, seed)
    output.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.is_file() and not path.name.endswith(_WEIGHTS):
            shutil.copy(path, output / path.name)
    model.save_pretrained(output)


def _model(source: Path, seed: int) -> Any:
    try:
        config = AutoConfig.from_pretrained(source)
        kind = getattr(transformers, config.architectures[0])
    except (OSError, ValueError, AttributeError, TypeError, IndexError) as error:
        raise ConfigError(
            f"no random-weight control can be made from {source}: {error}; give the folder of a transformers model"
        ) from error
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return kind(config)
