from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from student_client.cli import main


def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *flags: object) -> str:
    """The one line that `student-client compare FLAGS` ends with."""
    monkeypatch.setattr(sys, "argv", ["student-client", "compare", *map(str, flags)])
    with pytest.raises(SystemExit) as ended:
        main()
    errors = capsys.readouterr().err
    assert ended.value.code == 1
    assert errors.count("\n") == 1
    return errors


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            ("--suite", "everything"),
            "--suite: received 'everything', expected one of smoke, text, ratings, vision, all",
        ),
        (("--suite", "none.yaml"), "suite none.yaml cannot be read"),
        (("--suite", "smoke", "--trials", 9), "--trials: received 9, expected 1 to 1"),
        (("--suite", "smoke", "--tasks", "cats"), "--tasks: received cats, expected some of digits"),
        (("--suite", "smoke", "--only", "talking,shouting"), "--only: received shouting, expected some of task_only"),
    ],
)
def test_a_wrong_flag_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: tuple[object, ...],
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert said(monkeypatch, capsys, *flags).startswith(f"student-client: {expected}")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_folder_with_other_files_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    errors = said(monkeypatch, capsys, "--suite", "smoke", "--output", tmp_path)
    assert "holds files that no comparison has written; give another folder" in errors
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_two_comparisons_do_not_write_to_one_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with FileLock(tmp_path / ".compare"):
        errors = said(monkeypatch, capsys, "--suite", "smoke", "--output", tmp_path)
    assert "another comparison is writing to" in errors
