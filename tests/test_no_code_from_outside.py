"""Nothing that came over the network or lies in a model folder becomes code: no pickle, no eval, no import by a name given."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from teacher_server.config import ServerConfig
from tests.test_architecture import FILES, ROOT

FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
KNOWN_IMPORTS = {
    "task_data/hub.py": ["datasets", "huggingface_hub"],
    "teacher_server/models/packaged.py": [],
    "student_client/compare/command.py": [],
}


def calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    """Every call by its dotted name."""
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_turns_no_data_into_code(path: Path) -> None:
    tree, name = ast.parse(path.read_text()), str(path.relative_to(ROOT))
    for node in ast.walk(tree):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not {module.partition(".")[0] for module in modules} & FORBIDDEN_MODULES, f"{name}: {modules}"
    for called, node in calls(tree):
        assert called not in FORBIDDEN_CALLS, f"{name}:{node.lineno}: {called}"
        if called in ("torch.load", "yaml.load", "np.load", "numpy.load"):
            safe = [each.value for each in node.keywords if each.arg == "weights_only"]
            assert called == "torch.load", f"{name}:{node.lineno}: {called}"
            assert [ast.unparse(each) for each in safe] == ["True"], (
                f"{name}:{node.lineno}: torch.load without weights_only"
            )
        if called == "importlib.import_module":
            assert {ast.unparse(each).strip("'\"") for each in node.args} <= set(KNOWN_IMPORTS[name])


def test_code_that_a_model_brings_runs_only_on_demand() -> None:
    assert ServerConfig(model="m").trust_remote_code is False
    for path in FILES:
        for called, node in calls(ast.parse(path.read_text())):
            for keyword in node.keywords:
                if keyword.arg == "trust_remote_code":
                    assert ast.unparse(keyword.value) == "trust_remote_code", f"{path}: {called}"
