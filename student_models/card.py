"""What a saved student is, in JSON beside its weights; knows no weights."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError

from task_data.config import Level
from task_data.splits import Task, TaskKind
from teaching_protocol.errors import ModelLoadError

__all__ = ["Modality", "StudentCard"]

Modality = Literal["text", "ratings", "image"]


class StudentCard(BaseModel):
    """What must be known to build a student again before its weights are read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    modality: Modality
    """Which student it is."""
    task: str
    """Name of the task it was trained for."""
    labels: tuple[str, ...]
    """The classes in the order of its logits; empty for a regression."""
    kind: TaskKind = "single_label"
    """Whether one class is true of a row, or any number of them; cards of before say nothing, and mean one."""
    level: Level = "row"
    """What has a label: a row, or each token of it."""
    sizes: dict[str, PositiveInt]
    """Its sizes: those of the preset, and what the data fixed (users, items, the images' shape)."""
    dropout: float
    """Dropout in training."""

    def to_task(self) -> Task:
        """The task the student predicts."""
        return Task(self.task, self.labels, self.kind, self.level)

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
