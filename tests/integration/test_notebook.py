"""The notebook is one that was really run, names only what exists, and runs to its end."""

from __future__ import annotations

import ast
import importlib
import re
import runpy
import subprocess
import sys
from typing import Any

import nbformat
import pytest

from command_config import fields_of
from student_client.config import RunConfig
from tests.test_architecture import PACKAGES, ROOT

PATH = ROOT / "examples" / "talking_models.ipynb"


@pytest.fixture(scope="module")
def notebook() -> Any:
    return nbformat.read(PATH, as_version=4)


def code_of(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs_of(notebook: Any) -> str:
    """All text and the kinds of all outputs."""
    found = [output for cell in code_of(notebook) for output in cell.outputs]
    return "\n".join(str(output.get("text", "")) + " ".join(output.get("data", {})) for output in found)


def check_results(notebook: Any) -> None:
    """Both students were trained, the plot was drawn, and the student that is left reads sentences."""
    said = outputs_of(notebook)
    scores = {name: float(test) for name, test in re.findall(r"^(task_only|talking) +(0\.\d+)", said, re.MULTILINE)}
    assert scores.keys() == {"task_only", "talking"}
    assert min(scores.values()) > 0.55, "two moods: better than guessing"
    assert said.count("image/png") == 1
    assert len(re.findall(r"^\{.*\} +\w.*\.$", said, re.MULTILINE)) == 4
    assert re.search(r"gradient of the message \(2, 4, 32\) of norm 0\.\d*[1-9]", said)


def test_it_is_valid_and_was_run_from_top_to_bottom(notebook: Any) -> None:
    nbformat.validate(notebook)
    counts = [cell.execution_count for cell in code_of(notebook)]
    assert counts == list(range(1, len(counts) + 1)), "make notebook"
    assert all(output.output_type != "error" for cell in code_of(notebook) for output in cell.outputs)
    check_results(notebook)
    assert not any(output.get("name") == "stderr" for cell in code_of(notebook) for output in cell.outputs)
    assert "/tmp/" not in outputs_of(notebook)


def test_its_cells_name_only_what_exists(notebook: Any) -> None:
    """Imports of ours, fields of configurations, links, and every variable before it is used."""
    for node in ast.walk(ast.parse("\n".join(cell.source for cell in code_of(notebook)))):
        if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] in PACKAGES:
            module = importlib.import_module(str(node.module))
            assert all(hasattr(module, alias.name) for alias in node.names), node.module
        if isinstance(node, ast.Dict):
            keys = {str(key.value) for key in node.keys if isinstance(key, ast.Constant)}
            assert {key for key in keys if "." in key} <= set(fields_of(RunConfig)), keys
    for cell in notebook.cells:
        for target in re.findall(r"\]\(([^)#:]+)\)", cell.source if cell.cell_type == "markdown" else ""):
            assert (PATH.parent / target).exists(), target
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--select", "F", str(PATH)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_it_runs() -> None:
    check_results(runpy.run_path(str(ROOT / "deploy" / "notebook.py"))["executed"](PATH))
