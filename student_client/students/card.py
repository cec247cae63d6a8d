"""What a saved student is, in JSON beside its weights; knows no weights."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from student_client.config import StudentConfig
from student_client.data.splits import Task
from teaching_protocol.errors import ConfigError, ModelLoadError

__all__ = ["PRESETS", "Modality", "StudentCard", "sizes_of"]

Modality = Literal["text", "ratings", "image"]

PRESETS: dict[str, dict[str, dict[str, int]]] = {
    "text": {
        "tiny": {"width": 32, "layers": 2, "heads": 2, "vocabulary_size": 512, "max_tokens": 32},
        "small": {"width": 128, "layers": 4, "heads": 4, "vocabulary_size": 8192, "max_tokens": 128},
        "complementary": {"width": 256, "layers": 6, "heads": 8, "vocabulary_size": 16384, "max_tokens": 128},
    },
    "ratings": {
        "tiny": {"width": 16, "layers": 2},
        "small": {"width": 64, "layers": 4},
        "complementary": {"width": 128, "layers": 6},
    },
    "image": {
        "tiny": {"width": 16, "layers": 2},
        "small": {"width": 32, "layers": 4},
        "complementary": {"width": 96, "layers": 6},
    },
}
"""Sizes of a student by modality and preset; a setting that is missing there does not exist for that modality."""


class StudentCard(BaseModel):
    """What must be known to build a student again before its weights are read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    modality: Modality
    """Which student it is."""
    task: str
    """Name of the task it was trained for."""
    labels: tuple[str, ...]
    """The classes in the order of its logits; empty for a regression."""
    sizes: dict[str, int]
    """Its sizes: those of the preset, and what the data fixed (users, items, the images' shape)."""
    dropout: float
    """Dropout in training."""

    def to_task(self) -> Task:
        """The task the student predicts."""
        return Task(name=self.task, labels=self.labels)

    def write(self, folder: Path) -> None:
        """Writes `student.json`."""
        (folder / "student.json").write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> StudentCard:
        """Reads `student.json`.

        Raises:
            ModelLoadError: the file is missing or is no such card.
        """
        path = folder / "student.json"
        if not path.is_file():
            raise ModelLoadError(f"no student in {folder}: student.json is missing; give a folder that a student saved")
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (ValidationError, UnicodeDecodeError) as error:
            raise ModelLoadError(f"{path} is no student's card: {error}; save the student again") from error


def sizes_of(config: StudentConfig, modality: str) -> dict[str, int]:
    """The preset's sizes with the overrides of `config` in their place.

    Raises:
        ConfigError: an override that this modality's student does not have, a width its heads do not divide, or
            a modality without a student.
    """
    if modality not in PRESETS:
        raise ConfigError(
            f"modality: received {modality!r}, but students exist for {', '.join(PRESETS)}; use one of them"
        )
    sizes = dict(PRESETS[modality][config.size])
    for name in ("width", "layers", "heads", "vocabulary_size", "max_tokens"):
        value = getattr(config, name)
        if value is not None and name not in sizes:
            raise ConfigError(f"student.{name}: received {value}, but a student of {modality} has none; leave it out")
        if value is not None:
            sizes[name] = value
    if sizes["width"] % sizes.get("heads", 1):
        raise ConfigError(f"student.width: received {sizes['width']}, expected a multiple of heads = {sizes['heads']}")
    return sizes
