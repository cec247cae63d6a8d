"""A student as one file that runs without this package: ONNX, or a program of `torch.export`; trains nothing."""

from __future__ import annotations

import copy
import importlib.util
import io
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from student_models.image import ImageStudent
from student_models.student import Columns, Student, Tensors
from teaching_protocol.errors import ConfigError

__all__ = ["FORMATS", "example_columns", "export_student", "exported_program"]

FORMATS = (".onnx", ".pt2")
"""ONNX, and `torch.export`. TorchScript is left out: torch has deprecated it in favour of `torch.export`."""

_ROWS = 3  # of the example: a size of one would be taken for a constant


class _ByName(nn.Module):
    """The student alone, its input tensors as arguments."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student

    def forward(self, inputs: Tensors) -> torch.Tensor:
        outputs: torch.Tensor = self.student(inputs)
        return outputs


def export_student(student: Student, path: Path, columns: Columns) -> None:
    """Writes the student as a file that takes the tensors of `Student.view`, any number of rows and tokens.

    Args:
        student: as it is; a copy is exported, in evaluation mode and on the CPU.
        path: ends with one of `FORMATS`.
        columns: a few rows as the student reads them, to be run once.

    Raises:
        ConfigError: another ending, or a library that is not installed.
    """
    if path.suffix not in FORMATS:
        raise ConfigError(f"{path}: received the ending {path.suffix!r}, expected one of {', '.join(FORMATS)}")
    program = exported_program(student, columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".pt2":
        written = io.BytesIO()  # torch's own writer ends the process where the disk is full
        torch.export.save(program, written)
        try:
            path.write_bytes(written.getbuffer())
        except OSError:
            path.unlink(missing_ok=True)  # half of it would not load
            raise
        return
    if importlib.util.find_spec("onnxscript") is None:
        raise ConfigError("ONNX needs the extra [onnx]: pip install 'talking-models[onnx]'")
    names = list(program.example_inputs[0][0] if program.example_inputs else {})
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(
        logging.ERROR
    )  # that torchvision is missing
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own parts about each other
        torch.onnx.export(
            program,
            f=path,
            dynamo=True,
            input_names=names,
            output_names=["outputs"],
            external_data=False,
            verbose=False,
        )


def exported_program(student: Student, columns: Columns) -> ExportedProgram:
    """The student's forward as a graph: takes one mapping of input tensors, gives its outputs; arguments as `export_student`."""
    alone = _ByName(_copied(student)).eval()
    inputs = _example(alone.student.view(columns))
    rows, tokens = Dim("rows"), Dim("tokens", min=2, max=_longest(student))
    is_text = "attention_mask" in inputs
    shapes = {name: {0: rows, 1: tokens} if is_text else {0: rows} for name in inputs}
    with torch.no_grad():
        return torch.export.export(alone, (inputs,), dynamic_shapes=(shapes,))


def example_columns(student: Student) -> dict[str, Sequence[str] | torch.Tensor]:
    """Made-up rows of a student of text, ratings or images, to be run once by an export."""
    if isinstance(student, ImageStudent):
        sizes = student.card.sizes
        shape = (_ROWS, sizes["channels"], sizes["image_height"], sizes["image_width"])
        return {"image": torch.zeros(shape, dtype=torch.uint8)}
    if student.inputs == ("text",):
        return {"text": ["a text of a few words", "another one"]}
    return {name: torch.arange(_ROWS) for name in student.inputs}


def _copied(student: Student) -> Student:
    return copy.deepcopy(student).cpu()


def _example(view: Tensors) -> dict[str, torch.Tensor]:
    """The first rows again and again, so that there are some."""
    return {name: tensor[torch.arange(_ROWS) % len(tensor)] for name, tensor in view.items()}


def _longest(student: Student) -> int:
    """Tokens that positions are known for."""
    config = getattr(getattr(student, "model", getattr(student, "body", None)), "config", None)
    longest = getattr(config, "max_position_embeddings", None)
    return 512 if longest is None else int(longest)
