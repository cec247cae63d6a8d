"""The command `teacher-server finetune`, and what it writes served by a real process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as hf

from student_client import RemoteTeacher
from teacher_server import cli
from tests.integration.processes import ROOT, ServerProcess
from tests.unit.teacher_server.test_finetune import reviews, write
from tests.unit.teacher_server.tiny_models import text_bytes

TEXTS = ("good film", "bad", "film über good", "bad film film")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data"), train=reviews("film über"))


def test_a_finetuned_folder_is_served(tmp_path: Path, data: Path, model_folder: Callable[[str], Path]) -> None:
    out = tmp_path / "taught"
    words = ["--model", str(model_folder("bert")), "--data", str(data / "train.csv"), "--out", str(out)]
    words += ["--labelled", "24", "--epochs", "6", "--lr", "0.003", "--lr", "0.01"]
    words += ["--set", "data.validation=12", "--set", "device=cpu"]
    done = subprocess.run(
        [sys.executable, "-m", "teacher_server", "finetune", *words],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    *epochs, last = done.stdout.splitlines()
    assert [line.split()[:4] for line in epochs[:2]] == [["learning", "rate", "0.003", "epoch"]] * 2
    assert {line.split()[2] for line in epochs} == {"0.003", "0.01"}
    assert last.startswith("validation accuracy 1.0000 (epoch ")
    assert last.endswith(f"24 labelled rows, 12 that chose); serve it: teacher-server serve --model {out}")
    process = ServerProcess({"taught": {"model": str(out), "metrics_port": -1}})
    try:
        with RemoteTeacher(
            process.addresses["taught"].name, student="a", message_width=8, compression="none"
        ) as teacher:
            assert (teacher.card.model_name, teacher.card.heads) == ("taught", ("sequence_classification",))
            assert teacher.card.labels == ("bad", "good")
            served = teacher.observe({"text": text_bytes(*TEXTS)}, ["logits"])["logits"]
    finally:
        assert process.close() == 0
    model = hf.AutoModelForSequenceClassification.from_pretrained(out).eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(out)
    with torch.no_grad():
        rows = tokenizer(list(TEXTS), padding=True, return_tensors="pt", return_token_type_ids=False)
        torch.testing.assert_close(served, model(**rows).logits, atol=1e-5, rtol=1e-5)
    assert served.argmax(-1).tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--out", "DATA"], "which holds something else; give a folder that is new or empty"),
        (["--data", "nothing.csv"], "--data: there is no file or folder nothing.csv; check the path"),
        (["--train", "all"], "train: received 'all', expected 'head', 'body' or 'lora'"),
        (["--text-column", "body"], "there is no column 'body'"),
        (["--model", "DATA", "--set", "data.validation=12"], "has no config.json"),
        (["--set", "mood"], "--set: received 'mood', expected field=value"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str],
    sentence: str,
    tmp_path: Path,
    data: Path,
    model_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    good = ["--model", str(model_folder("bert")), "--data", str(data), "--out", str(tmp_path / "out")]
    changed = [word.replace("DATA", str(data)) for word in words]
    monkeypatch.setattr(sys, "argv", ["teacher-server", "finetune", *good, "--labelled", "24", *changed])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines()[-1].startswith("teacher-server: ")
    assert sentence in said.err
    assert "Traceback" not in said.err
    assert not (tmp_path / "out").exists()
