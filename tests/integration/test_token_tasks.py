"""Tasks with labels for tokens, and next tokens, through real servers: what learns, what is refused, what is left."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertForTokenClassification,
    DataCollatorForLanguageModeling,
    TrainingArguments,
)

from student_client import RemoteTeacher
from student_client.config import RunConfig, load_run_config
from student_client.loops.distillation import Distillation, distillation_config
from student_client.loops.hugging_face import DistillationTrainer
from student_client.losses import top_kl
from student_client.reporting.result import Result
from student_client.training.evaluate import evaluate_run
from student_client.training.runs import open_run, train
from student_models import TappedStudent, load_student
from student_models.language_head import read_head
from student_models.layer_drop import drop_layers
from teaching_protocol.errors import ConfigError, IncompatibleTeacher, TeachingError
from tests.integration.processes import Address, ServerProcess
from tests.unit.student_client.run_setup import quiet
from tests.unit.teacher_server.tiny_models import tiny_inputs, tiny_model, tiny_tokenizer

WITHOUT_ANSWER_LABELS = {"method.w_answer_task": 0, "method.w_answer_labels": 0}
WORDS = ("good", "bad", "film", "Anna", "Paris", "U.S.")


def write_files(folder: Path) -> None:
    """Rows of words, `B-name` where one begins with a large letter, as token data and as plain text."""
    draw = torch.Generator().manual_seed(0)
    rows = [[WORDS[n] for n in torch.randint(6, (5,), generator=draw).tolist()] for _ in range(160)]
    tagged = [{"tokens": row, "tags": ["B-name" if word[0].isupper() else "O" for word in row]} for row in rows]
    (folder / "words.jsonl").write_text("\n".join(map(json.dumps, tagged)))
    (folder / "story.txt").write_text("\n".join(" ".join(row) for row in rows))


def write_bert(folder: Path) -> None:
    """A model for token classification, with the labels of `words.jsonl`."""
    base, labels = tiny_model("bert").config, ("B-name", "O")
    base.id2label, base.label2id = dict(enumerate(labels)), {label: place for place, label in enumerate(labels)}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertForTokenClassification(base).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


class Room:
    """The folder of all runs, and the teachers' addresses."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.addresses: dict[str, Address] = {}

    def train(self, output: str, method: str, level: str, teacher: str = "", **fields: Any) -> Result:
        """A run of a few steps of a tiny student."""
        found = train(self.config(output, method, level, teacher, **fields), progress=quiet(), overwrite=True)
        assert found is not None
        return found

    def config(self, output: str, method: str, level: str, teacher: str = "", **fields: Any) -> RunConfig:
        file = {"token": "words.jsonl", "next_token": "story.txt"}[level]
        values = {
            "data.name": "file",
            "data.path": self.folder / file,
            "data.level": level,
            "data.block_bytes": 60,
            "data.labelled": 30,
            "data.unlabelled": 10,
            "data.validation": 15,
            "data.test": 15,
            "student.size": "tiny",
            "method.names": method,
            "method.message_width": 8,
            "training.max_steps": 4,
            "training.batch_size": 8,
            "training.evaluate_every": 4,
            "training.lr": 3e-3,
            "training.tensorboard": False,
            "training.device": "cpu",
            "output": self.folder / output,
        }
        if teacher:
            values["teacher.address"] = self.addresses[teacher].name
        return load_run_config(None, values | fields)


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    """Teachers: a student that has learned the labels, a tiny Llama, and a tiny BERT of transformers with a head for tokens."""
    room = Room(tmp_path_factory.mktemp("tokens"))
    write_files(room.folder)
    tiny_model("llama").save_pretrained(room.folder / "llama")
    tiny_tokenizer().save_pretrained(room.folder / "llama")
    write_bert(room.folder / "bert")
    room.train("tagger", "task_only", "token", **{"training.max_steps": 80, "data.labelled": 90, "data.unlabelled": 0})
    process = ServerProcess(
        {name: {"model": str(room.folder / name), "metrics_port": -1} for name in ("tagger", "llama", "bert")}
    )
    room.addresses = process.addresses
    yield room
    assert process.close() == 0


def test_a_student_of_tokens_alone(room: Room) -> None:
    """The scores of the run that the other tests take their teacher from: it has learned, and is loaded alone."""
    result = Result.read(room.folder / "tagger")
    assert result.metric == "span_f1"
    assert result.test > 0.9
    assert evaluate_run(room.folder / "tagger").value == pytest.approx(result.test)
    assert load_student(room.folder / "tagger/student").task.level == "token"


FOLDERS = ("student.tokenizer", "student.pretrained", "method.soft_labels.head")
SAME_TOKENS = {"student.tokenizer": "tagger/student"}
OF_TOKENS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "a few message tokens": ("talking", "llama", WITHOUT_ANSWER_LABELS),
    "the message alone": (
        "talking",
        "llama",
        {"method.message_tokens": 0, "method.answer_from": "message"}
        | {"method.w_message_consistency": 0, "method.w_state_consistency": 0},
    ),
    "a message for each token": ("talking", "tagger", {"method.message_tokens": 0, **SAME_TOKENS}),
    "unasked": ("one_way", "llama", WITHOUT_ANSWER_LABELS),
    "features": ("fitnets,pkd,rkd", "llama", {}),
    "responses": ("soft_labels", "tagger", SAME_TOKENS),
    "a pretrained pair": (
        "soft_labels,talking",
        "bert",
        {"student.pretrained": "bert", "student.keep_every": 2, "method.message_tokens": 0},
    ),
}


@pytest.mark.parametrize("case", OF_TOKENS)
def test_methods_for_labels_of_tokens(room: Room, case: str) -> None:
    method, teacher, fields = OF_TOKENS[case]
    fields = {name: str(room.folder / value) if name in FOLDERS else value for name, value in fields.items()}
    result = room.train(f"token {case}", method, "token", teacher, **fields)
    assert result.metric == "span_f1"
    assert result.teacher_rows > 0
    assert result.bytes_received > 0


OF_NEXT: dict[str, tuple[str, dict[str, Any]]] = {
    "likeliest": ("soft_labels", {"student.tokenizer": "llama", "method.soft_labels.top": 5}),
    "all by the head": ("soft_labels", {"student.tokenizer": "llama", "method.soft_labels.head": "llama"}),
    "layers of the teacher": (
        "soft_labels,fitnets",
        {"student.pretrained": "llama", "student.keep_every": 2, "student.size": "small"},
    ),
    "other tokens": ("talking", WITHOUT_ANSWER_LABELS),
}


@pytest.mark.parametrize("case", OF_NEXT)
def test_methods_for_next_tokens(room: Room, case: str) -> None:
    method, fields = OF_NEXT[case]
    fields = {name: str(room.folder / value) if name in FOLDERS else value for name, value in fields.items()}
    result = room.train(f"next {case}", method, "next_token", "llama", **fields)
    assert result.metric == "perplexity"
    assert result.teacher_rows > 0
    scores = evaluate_run(room.folder / f"next {case}")
    assert scores.value == pytest.approx(result.test, rel=1e-4)
    assert scores.accuracy is not None
    model = AutoModelForCausalLM.from_pretrained(room.folder / f"next {case}" / "student")  # by transformers alone
    tokenizer = AutoTokenizer.from_pretrained(room.folder / f"next {case}" / "student")
    with torch.no_grad():
        assert model(**tokenizer("good film", return_tensors="pt")).logits.isfinite().all()


REFUSED: dict[str, tuple[str, str, dict[str, Any], type[TeachingError], str]] = {
    "one prediction a row": ("fixed_mix", "token", {}, ConfigError, "it reads one prediction a row; use soft_labels"),
    "no answer for each token": ("talking", "token", {}, ConfigError, "set method.message_tokens to 0"),
    "nothing of tokens in one answer": ("one_way", "token", {}, ConfigError, "method.w_answer_labels to 0"),
    "the answer has seen it": ("talking", "next_token", {}, ConfigError, "predicts what comes next: an answer"),
    "another tokenizer": ("soft_labels", "next_token", {}, IncompatibleTeacher, "set student.tokenizer to the name or"),
    "no labels of tokens": ("soft_labels", "token", {}, IncompatibleTeacher, "serve a model for token classification"),
    "another head": (
        "soft_labels",
        "next_token",
        {"student.tokenizer": "llama", "method.soft_labels.head": "other"},
        IncompatibleTeacher,
        "give the name or folder of the model that is served",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_is_refused_at_once(room: Room, case: str) -> None:
    method, level, fields, error, said = REFUSED[case]
    other = tiny_model("llama")
    other.lm_head.weight.data += 1
    other.save_pretrained(room.folder / "other")
    fields = {name: str(room.folder / value) if name in FOLDERS else value for name, value in fields.items()}
    with pytest.raises(error, match=said):
        room.train("refused", method, level, "llama", **fields)
    assert not (room.folder / "refused" / "metrics.jsonl").exists()


def test_the_served_likeliest_are_a_lower_bound_of_the_whole_divergence(room: Room) -> None:
    """What a student gets over the wire against the teacher's model here: more of the likeliest, more of the truth."""
    model = AutoModelForCausalLM.from_pretrained(room.folder / "llama")
    inputs = tiny_inputs("llama", 3, 7)
    mask = inputs["attention_mask"].bool()
    student = torch.randn(3, 7, 60, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        target = model(**inputs).logits.log_softmax(-1)
    whole = (target.exp() * (target - student.log_softmax(-1))).sum(-1)[mask].mean()
    bounds = []
    with RemoteTeacher(room.addresses["llama"].name, student="bound", compression="none") as teacher:
        for k in (1, 4, 16, 59):
            logprobs, tokens = (f"logprobs.top{k}", f"tokens.top{k}")
            found = teacher.observe(inputs, [logprobs, tokens])
            assert found[tokens].dtype == torch.int32
            bounds.append(top_kl(student, found[logprobs], found[tokens], mask).item())
        hidden = teacher.observe(inputs, ["last_hidden_state"])["last_hidden_state"]
    assert bounds == sorted(bounds)
    assert bounds[0] < bounds[2] < whole
    assert bounds[-1] == pytest.approx(whole.item(), abs=1e-5)
    logits = hidden @ read_head(room.folder / "llama").T
    torch.testing.assert_close(logits.log_softmax(-1)[mask], target[mask], atol=1e-5, rtol=1e-5)


def test_a_loop_of_others_shifts_once_and_sends_its_own_tokens(room: Room) -> None:
    """Labels as transformers has them: our task loss is its own, and a Trainer learns from the likeliest."""
    folder = room.folder / "llama"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    batch = dict(tokenizer(["good film bad", "bad"], padding=True, return_tensors="pt"))
    batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    config = distillation_config(
        room.addresses["llama"].name, {"names": "soft_labels", "soft_labels": {"temperature": 1}}
    )
    with Distillation(TappedStudent(model, tokenizer=tokenizer), config, columns=()) as distillation:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        loss = distillation.loss(batch, model(**inputs))
        loss.backward()
        distillation.step(lr=1e-3)
        parts = distillation.means.take()
    assert parts["loss_task"] == pytest.approx(model(**batch).loss.item(), rel=1e-5)
    assert parts["loss_soft_labels"] < 1e-3  # the student is the teacher; bfloat16 travels


def test_a_trainer_of_next_tokens(room: Room) -> None:
    folder = room.folder / "llama"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = [dict(tokenizer(" ".join(WORDS[row % 3 :]))) for row in range(8)]
    trainer = DistillationTrainer(
        drop_layers(AutoModelForCausalLM.from_pretrained(folder), [0, 2]),
        TrainingArguments(str(room.folder / "trainer"), max_steps=2, report_to="none", use_cpu=True, logging_steps=1),
        DataCollatorForLanguageModeling(tokenizer, mlm=False),
        rows,
        processing_class=tokenizer,
        teacher=room.addresses["llama"].name,
        method="soft_labels",
    )
    trainer.train()
    assert all("loss_soft_labels" in each for each in trainer.state.log_history[:2])


def test_a_loop_of_others_learns_labels_of_tokens(room: Room) -> None:
    """Labels [rows, tokens] with -100 as transformers has them, a message for each token, and a response for each."""
    folder = room.folder / "bert"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), BertForTokenClassification.from_pretrained(folder).eval()
    batch = dict(tokenizer(["good film bad", "bad"], padding=True, return_tensors="pt"))
    batch["labels"] = torch.tensor([[1, -100, 0], [-100, -100, -100]])
    method = {"names": "soft_labels,talking", "message_tokens": 0, "message_width": 8, "w_message_consistency": 0}
    config = distillation_config(room.addresses["bert"].name, method)
    with Distillation(TappedStudent(model, tokenizer=tokenizer), config, columns=()) as distillation:
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        distillation.loss(batch, model(**inputs)).backward()
        distillation.step(lr=1e-3)
        parts = distillation.means.take()
        theirs = model(**batch).loss.item()
    assert parts["loss_task"] == pytest.approx(theirs, rel=1e-5)
    assert parts["loss_answer_task"] > 0


def test_a_causal_student_goes_on_where_it_was(room: Room) -> None:
    """A head that is tied to the table of tokens is in the checkpoint: a resumed run ends as an unbroken one, to the bit."""
    broken, whole = (room.config(name, "task_only", "next_token") for name in ("broken", "whole"))
    with open_run(broken, progress=quiet()) as trainer:
        assert trainer.run(2) is None
    train(broken, resume=True, progress=quiet())
    train(whole, progress=quiet())
    students = [load_student(config.output / "student").state_dict() for config in (broken, whole)]
    assert "model.lm_head.weight" in students[0]
    assert all(torch.equal(value, students[1][name]) for name, value in students[0].items())
