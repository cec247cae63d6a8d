from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch

from student_client.reporting.progress import Journal, Means, Progress

RECORD = {
    "step": 4,
    "loss": 1.25,
    "parts": {"task": 1.0, "interact": 0.25},
    "monitors": {"message_variance": 0.5, "teacher_latency_s": 0.012, "grad_norm": 3.0},
    "validation": {"accuracy": 0.75, "loss": 0.6},
}


def test_the_journal_rewinds(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "metrics.jsonl")
    journal.rewind(0)
    for step in (1, 2, 3):
        journal.write({"step": step})
    journal.rewind(2)
    assert journal.path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_means_are_taken_once() -> None:
    means = Means()
    means.add({"loss": torch.tensor(1.0), "norm": 2.0})
    means.add({"loss": torch.tensor(2.0)})
    assert means.take() == {"loss": 1.5, "norm": 2.0}
    assert means.take() == {}


def test_without_a_terminal_every_record_is_a_line() -> None:
    said = io.StringIO()
    progress = Progress("talking", file=said)
    progress.start(20, 0)
    progress.advance(4)
    progress.show(RECORD)
    progress.close()
    assert said.getvalue() == (
        "talking: step 4/20  loss 1.2500 (task 1.000 interact 0.250)  message_variance 0.500  teacher 12 ms  "
        "validation accuracy 0.7500\n"
    )


def test_on_a_terminal_there_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "240")
    said = io.StringIO()
    progress = Progress("talking", file=said)
    progress.start(20, 0)
    progress.advance(4)
    progress.show(RECORD)
    progress.close()
    progress.close()
    assert "4/20" in said.getvalue()
    assert "message_variance 0.500" in said.getvalue()


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress("talking", quiet=True)
    progress.start(20, 0)
    progress.show(RECORD)
    progress.say("anything")
    progress.close()
    assert capsys.readouterr() == ("", "")
