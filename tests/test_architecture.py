"""The house rules that a machine can check: ceilings, `__all__`, docstrings, what may import what."""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("command_config", "teaching_protocol", "task_data", "student_models", "teacher_server", "student_client")
FILES = [path for name in PACKAGES for path in sorted((ROOT / name).rglob("*.py")) if "v1" not in path.parts]
FILE_LINES, FUNCTION_LINES, MEDIAN_LINES, P90_LINES, CONSTRUCTOR_PARAMETERS = 350, 60, 10, 35, 8


def functions(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def size(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file_keeps_the_ceilings(path: Path) -> None:
    source = path.read_text()
    tree = ast.parse(source)
    assert source.count("\n") <= FILE_LINES
    assert ast.get_docstring(tree), "a module says in its docstring what it is"
    for node in functions(tree):
        assert size(node) <= FUNCTION_LINES, f"{node.name} has {size(node)} lines"
        if node.name == "__init__":
            parameters = [*node.args.args[1:], *node.args.kwonlyargs]
            assert len(parameters) <= CONSTRUCTOR_PARAMETERS, (
                f"constructor at {node.lineno}: {len(parameters)} parameters"
            )


def test_functions_are_short_on_the_whole() -> None:
    sizes = sorted(size(node) for path in FILES for node in functions(ast.parse(path.read_text())))
    assert statistics.median(sizes) <= MEDIAN_LINES
    assert sizes[int(len(sizes) * 0.9)] <= P90_LINES


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_public_names_are_listed(path: Path) -> None:
    tree = ast.parse(path.read_text())
    defined = [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    listed = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets)
    ]
    if not defined and not listed:
        return
    assert len(listed) == 1, "the module has no __all__"
    assert len(set(listed[0])) == len(listed[0])


def test_no_module_is_a_cellar() -> None:
    names = {path.stem for path in FILES}
    assert not names & {"common", "utils", "util", "helpers", "misc"}


def test_importing_does_nothing_but_define() -> None:
    """Importing every module prints nothing, opens nothing, starts no thread, and moves no random state."""
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in FILES if path.stem not in ("__main__",)
    ]
    script = (
        "import threading, importlib, torch\n"
        "before, threads = torch.get_rng_state(), threading.active_count()\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "assert torch.equal(before, torch.get_rng_state())\n"
        "assert threading.active_count() == threads, threading.enumerate()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


def test_the_two_sides_share_only_the_protocol() -> None:
    for side, other in (("teacher_server", "student_client"), ("student_client", "teacher_server")):
        for path in (ROOT / side).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                assert not any(name.partition(".")[0] == other for name in names), f"{path} imports {other}"


DOCS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "benchmarks/LOG.md",
]


def named_tests(text: str) -> list[tuple[str, str]]:
    """The tests a page names, as `tests/file.py::test_a`, and as `::test_b` after it for another one of that file."""
    found, file = [], ""
    for path, test in re.findall(r"`(tests/[^`: ]+\.py)?(?:::(\w+))?[^`]*`", text):
        file = path or file
        if test:
            found.append((file, test))
    return found


@pytest.mark.parametrize("path", DOCS, ids=lambda path: str(path.relative_to(ROOT)))
def test_docs_name_only_what_exists(path: Path) -> None:
    text = path.read_text()
    named = re.findall(
        r"`((?:tests|benchmarks|examples|docs|protos|teacher_server|student_client|student_models|task_data|teaching_protocol)/[^`\s]*)",
        text,
    )
    for name in (name.partition("::")[0] for name in named):
        if not any(sign in name for sign in "*<N"):
            assert (ROOT / name.rstrip(".,")).exists(), name
    for file, test in named_tests(text):
        assert re.search(rf"^def {test}\(", (ROOT / file).read_text(), re.MULTILINE), f"{file} has no {test}"
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (path.parent / target).exists(), target
    assert "@TABLE@" not in text


def test_the_architecture_lists_every_room() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    for side in ("teacher_server", "student_client"):
        for path in (ROOT / side).glob("*.py"):
            assert path.name.startswith("__") or path.name in text, path.name
