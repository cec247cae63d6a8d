"""A head for the labels of words: read where students have them, trained, served, and heard by a student."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as hf

from student_client.config import load_run_config
from student_client.training.runs import train
from task_data import IGNORED, Split, Task, load_data
from teacher_server.finetuning.finetune import finetune
from teacher_server.finetuning.finetune_config import load_finetune_config
from teacher_server.finetuning.heads import TOKEN_HEADS, with_head
from teacher_server.finetuning.learners import BodyLearner, HeadLearner
from teacher_server.finetuning.tokens import words_of
from teacher_server.local import local_teacher
from teacher_server.models.loading import load_teacher
from teacher_server.models.split import FrozenTeacher
from teaching_protocol.errors import ConfigError
from tests.unit.student_client.run_setup import quiet
from tests.unit.teacher_server.tiny_models import TEXT_TYPES, tiny_inputs, tiny_model, tiny_tokenizer

TASK = Task("words", ("B-name", "O"), level="token")
WORDS = ("good", "bad", "film", "über")


def token_split(texts: list[str], labels: list[list[int]]) -> Split:
    longest = max(map(len, labels))
    known = torch.tensor([row + [IGNORED] * (longest - len(row)) for row in labels])
    return Split({"text": texts}, texts, known, torch.ones(len(texts), dtype=torch.bool))


def write_words(folder: Path) -> Path:
    """120 rows of five words; `film` is a name."""
    draw = torch.Generator().manual_seed(0)
    rows = [[WORDS[n] for n in torch.randint(4, (5,), generator=draw).tolist()] for _ in range(120)]
    tagged = [{"tokens": row, "tags": ["B-name" if word == "film" else "O" for word in row]} for row in rows]
    path = folder / "words.jsonl"
    path.write_text("\n".join(map(json.dumps, tagged)))
    return path


def test_every_text_family_but_t5_can_get_one() -> None:
    assert set(TOKEN_HEADS) == set(TEXT_TYPES) - {"t5"}


@pytest.mark.parametrize("model_type", TOKEN_HEADS)
def test_what_is_kept_of_the_body_gives_the_models_own_outputs(model_type: str) -> None:
    """At the words with a label, whatever the order of the rows; nothing is kept of the others."""
    teacher = with_head(FrozenTeacher(tiny_model(model_type, head=False)), TASK, seed=0)
    view, rows = tiny_inputs(model_type, 5, 7), torch.tensor([3, 0, 4, 1, 2])
    places = torch.tensor([[0, 2], [1, 0], [3, 4], [2, 0], [1, 2]])
    targets = torch.tensor([[0, 1], [1, IGNORED], [0, 0], [1, IGNORED], [IGNORED, 1]])
    found = []
    for kind in (HeadLearner, BodyLearner):
        learner = kind(teacher, 512)
        learner.module.eval()
        with torch.no_grad():
            examples = learner.examples(view, targets, places)
            found.append(examples.outputs(rows)[targets[rows] != IGNORED])
    logits = teacher.states(teacher.prepare(view), [], with_logits=True)["logits"]
    expected = logits[torch.arange(5)[:, None], places][rows][targets[rows] != IGNORED]
    assert expected.std() > 1e-4
    for each in found:
        torch.testing.assert_close(each, expected, atol=1e-5, rtol=1e-5)


def test_words_behind_the_cut_of_a_text_have_no_label() -> None:
    teacher = FrozenTeacher(tiny_model("bert"), tokenizer=tiny_tokenizer())
    split = token_split(["good film über", "bad"], [[0, 1, 0], [1]])
    whole, cut = words_of(teacher, split, 512), words_of(teacher, split, 2)
    assert whole.labels.tolist() == [[0, 1, 0], [1, IGNORED, IGNORED]]
    assert whole.places.tolist() == [[0, 1, 2], [0, 0, 0]]
    assert cut.labels.tolist() == [[0, 1, IGNORED], [1, IGNORED, IGNORED]]


def test_it_learns_is_a_normal_folder_and_teaches(tmp_path: Path, model_folder: Callable[[str], Path]) -> None:
    path, out = write_words(tmp_path), tmp_path / "taught"
    data = {
        "data.name": "file",
        "data.path": path,
        "data.level": "token",
        "data.labelled": 60,
        "data.unlabelled": 20,
        "data.validation": 15,
        "data.test": 15,
    }
    flags = {
        "model": str(model_folder("bert")),
        "output": out,
        "train": "body",
        "epochs": 10,
        "learning_rates": (0.003,),
        "device": "cpu",
    }
    result = finetune(load_finetune_config(data | flags))
    assert (result.metric, result.labelled, result.validation) == ("span_f1", 60, 15)
    assert result.best.validation > 0.9
    model = hf.AutoModelForTokenClassification.from_pretrained(out)
    assert model.config.id2label == {0: "B-name", 1: "O"}
    teacher = load_teacher(out)
    assert (teacher.heads, teacher.labels) == (("token_classification",), ("B-name", "O"))
    run = {
        "method.names": "soft_labels",
        "student.pretrained": str(out),
        "student.keep_every": 2,
        "training.max_steps": 4,
        "training.tensorboard": False,
        "training.device": "cpu",
        "output": tmp_path / "run",
    }
    heard = train(load_run_config(None, data | run), progress=quiet(), teachers=[local_teacher(str(out), device="cpu")])
    assert heard is not None
    assert heard.metric == "span_f1"
    with pytest.raises(ConfigError, match="a language model has its head"):
        finetune(load_finetune_config(data | flags | {"data.level": "next_token", "output": tmp_path / "other"}))
    assert load_data(load_run_config(None, data).data).task.has_spans
