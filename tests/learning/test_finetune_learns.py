"""A fine-tuned MiniLM on sentences it has not seen; a minute or two each."""

from __future__ import annotations

from pathlib import Path

import pytest

from task_data import load_data, teacher_view
from teacher_server.finetuning.finetune import finetune
from teacher_server.finetuning.finetune_config import load_finetune_config
from teacher_server.models.loading import load_teacher

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize(("train", "least"), [("head", 0.75), ("lora", 0.84)])
def test_minilm_learns_300_sentences(tmp_path: Path, train: str, least: float) -> None:
    flags = {"model": "minilm", "data.name": "uci_sentiment", "output": tmp_path / "out", "train": train}
    config = load_finetune_config({**flags, "device": "cpu", "epochs": 30 if train == "head" else 3})
    assert finetune(config).labelled == 300
    test = load_data(config.data).test
    teacher, text = load_teacher(tmp_path / "out", device="cpu"), teacher_view(test)["text"]
    rows = [teacher.prepare({"text": part}) for part in text.split(64)]
    hits = [teacher.states(each, [], with_logits=True)["logits"].argmax(-1) for each in rows]
    scored = sum(int((found == labels).sum()) for found, labels in zip(hits, test.labels.split(64), strict=True))
    assert scored / len(test) > least
