"""Exported students give the same outputs in a process that has none of our packages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from student_client.cli import build_app
from student_client.config import StudentConfig
from student_client.students import build_student
from student_models import Student, TappedStudent
from student_models.export import export_student
from teaching_protocol.errors import ConfigError
from tests.integration.loops import student_folder
from tests.unit.student_client.student_data import image_data, text_data

TEXTS = ["good film", "bad", "a good film and a bad film", "über"]

ALONE = """
import sys
from pathlib import Path
from safetensors.numpy import load_file
folder = Path(sys.argv[1])
inputs, expected = load_file(folder / "inputs.safetensors"), load_file(folder / "expected.safetensors")["outputs"]
if sys.argv[2] == "onnx":
    import onnxruntime
    found = onnxruntime.InferenceSession(folder / "student.onnx").run(None, inputs)[0]
else:
    import torch
    program = torch.export.load(folder / "student.pt2").module()
    found = program({name: torch.from_numpy(value) for name, value in inputs.items()}).detach().numpy()
assert abs(found - expected).max() < 1e-5, abs(found - expected).max()
ours = ("teaching_protocol", "student_models", "student_client", "teacher_server", "task_data", "command_config")
assert not [name for name in sys.modules if name.startswith((*ours, "transformers", "grpc"))]
"""


def written(
    student: Student, columns: dict[str, object], folder: Path, ending: str, saved: Path | None = None
) -> bytes:
    """The file that the command has exported, after it was run alone on other rows than it was exported with."""
    student.eval()
    if saved is None:
        student.save(saved := folder / "saved")
    done = CliRunner().invoke(build_app(), ["export", str(saved), str(folder / f"student.{ending}")])
    assert done.exit_code == 0, done.output
    assert "takes input_ids, attention_mask" in done.output or "takes image" in done.output
    view = {name: value.contiguous() for name, value in student.view(columns).items()}  # type: ignore[arg-type]
    with torch.no_grad():
        save_file({"outputs": student(view)}, folder / "expected.safetensors")
    save_file(view, folder / "inputs.safetensors")
    command = [sys.executable, "-I", "-W", "ignore", "-c", ALONE, str(folder), ending]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return (folder / f"student.{ending}").read_bytes()


@pytest.mark.parametrize("ending", ["onnx", "pt2"])
def test_a_transformers_student_runs_alone(tmp_path: Path, ending: str) -> None:
    folder = student_folder(tmp_path / "student")
    found = written(TappedStudent.from_pretrained(folder), {"text": TEXTS}, tmp_path, ending, folder)
    assert not any(word in found for word in (b"codec", b"teaching_protocol", b"teacher"))


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["onnx", "pt2"])
@pytest.mark.parametrize("modality", ["text", "image"])
def test_a_student_of_ours_runs_alone(tmp_path: Path, modality: str, ending: str) -> None:
    data = text_data() if modality == "text" else image_data()
    student = build_student(StudentConfig(size="tiny"), data)
    written(student, dict(data.validation.columns), tmp_path, ending)


def test_another_ending_is_refused(tmp_path: Path) -> None:
    student = TappedStudent.from_pretrained(student_folder(tmp_path / "student"))
    with pytest.raises(ConfigError, match=r"\.pth"):
        export_student(student, tmp_path / "student.pth", {"text": TEXTS})
