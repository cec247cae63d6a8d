"""Several labels a row, from a file to a tested student: a fine-tuned teacher, every method, and transformers' Trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from student_client.config import RunConfig, load_run_config
from student_client.loops.hugging_face import DistillationTrainer
from student_client.methods import METHODS
from student_client.selection.episodes import train_selector
from student_client.training.evaluate import evaluate_run
from student_client.training.runs import train
from student_models import TappedStudent, load_student
from task_data import load_data
from task_data.splits import Task
from teacher_server.app import TeacherApp
from teacher_server.config import ServerConfig
from teacher_server.finetuning.finetune import finetune
from teacher_server.finetuning.finetune_config import load_finetune_config
from teaching_protocol.errors import ConfigError, IncompatibleTeacher
from tests.integration.loops import arguments, student_folder
from tests.unit.student_client.run_setup import quiet, write_csv
from tests.unit.task_data.multi_label_files import CLASSES, SMALL, sample, write_form

STEPS = 6
Configure = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def configure(tmp_path_factory: pytest.TempPathFactory) -> Configure:
    root = tmp_path_factory.mktemp("moods")
    data = {"name": "file", "path": write_form(root / "lists.jsonl", sample()), "label_column": "moods"} | SMALL

    def config(output: str, method: str, **fields: Any) -> RunConfig:
        values = {
            "data": data, "student.size": "tiny", "method.names": method, "method.message_width": 16,
            "training.max_steps": STEPS, "training.batch_size": 8, "training.lr": 3e-3, "training.warmup_steps": 1,
            "training.tensorboard": False, "training.device": "cpu", "output": root / output,
        }  # fmt: skip
        return load_run_config(None, values | {name.replace("__", "."): value for name, value in fields.items()})

    return config


@pytest.fixture(scope="module")
def addresses(
    configure: Configure, model_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[str]]:
    """A BERT whose head was fine-tuned on the file, and a student that was trained on it, served as it is."""
    config = configure("served", "task_only", training__max_steps=80)
    out = tmp_path_factory.mktemp("taught") / "model"
    flags = {"model": str(model_folder("bert")), "output": out, "epochs": 3, "learning_rates": [0.01]}
    done = finetune(load_finetune_config(flags | {f"data.{name}": value for name, value in config.data}))
    assert (done.metric, len(done.epochs)) == ("micro_f1", 3)
    result = train(config, progress=quiet())
    assert result is not None
    assert result.test > 0.9
    served = []
    for model in (out, config.output):
        served.append(TeacherApp(ServerConfig(model=str(model), port=0, metrics_port=-1, threads=1, handoff_s=0.0)))
    with served[0], served[1]:
        yield [f"127.0.0.1:{app.port}" for app in served]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_teaches_it(method: str, configure: Configure, addresses: list[str]) -> None:
    asked: dict[str, Any] = {"teacher__address": addresses[0], "complementary": [{"address": addresses[1]}]}
    asked |= {"method__committee__w_labels": 1.0}
    if method == "selection":
        selector = configure("selector", method, **asked, method__selection__learning__phase_steps=2)
        assert train_selector(selector, 1, progress=quiet()).episodes == 1
        asked["method__selection__selector"] = selector.output
    config = configure(method, method, **asked)
    result = train(config, progress=quiet())
    assert result is not None
    assert result.metric == "micro_f1"
    assert result.test_subset_accuracy is not None
    assert result.test_macro_f1 is not None
    assert (result.teacher_rows > 0) == (method != "task_only")
    assert load_student(config.output / "student").task == Task("file", CLASSES, "multi_label")
    assert evaluate_run(config.output).value == pytest.approx(result.test)


def test_a_teacher_of_several_labels_is_refused_for_a_task_of_one(
    configure: Configure, addresses: list[str], tmp_path: Path
) -> None:
    fields = {"data__path": write_csv(tmp_path), "data__label_column": "label"}
    config = configure("refused", "soft_labels", teacher__address=addresses[0], **fields)
    with pytest.raises(
        IncompatibleTeacher, match=r"angry, calm, sad, any number of which may be true, expected the labels"
    ):
        train(config, progress=quiet())


def moods_folder(folder: Path) -> Path:
    """A classifier of three independent labels with its tokenizer."""
    student_folder(folder)
    config = hf.AutoConfig.from_pretrained(folder)
    config.id2label, config.problem_type = dict(enumerate(CLASSES)), "multi_label_classification"
    config.label2id = {name: place for place, name in config.id2label.items()}
    hf.BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def test_a_pretrained_student_learns_it_and_says_so_in_its_config(configure: Configure, tmp_path: Path) -> None:
    folder = student_folder(tmp_path / "plain")
    config = configure("pretrained", "task_only", student__pretrained=str(folder), student__size="small")
    result = train(config, progress=quiet())
    assert result is not None
    saved = hf.AutoConfig.from_pretrained(config.output / "student")
    assert saved.problem_type == "multi_label_classification"
    assert TappedStudent.from_pretrained(config.output / "student").task == Task(
        "classification", CLASSES, "multi_label"
    )


@pytest.mark.parametrize("method", ["soft_labels", "talking"])
def test_distillation_trainer_of_a_multi_label_model(
    method: str, configure: Configure, addresses: list[str], tmp_path: Path
) -> None:
    """Without any weight of the method the losses are those of `Trainer` itself."""
    folder = moods_folder(tmp_path / "student")
    data = load_data(configure("-", method).data.model_copy(update={"labelled": None}))

    def trained(output: str, **given: Any) -> hf.Trainer:
        tokenizer = hf.AutoTokenizer.from_pretrained(folder)
        rows = [
            {**tokenizer(text), "text": text, "labels": labels.tolist()}
            for text, labels in zip(data.train.teacher, data.train.labels, strict=True)
        ]
        model = hf.AutoModelForSequenceClassification.from_pretrained(folder)
        kind = DistillationTrainer if given else hf.Trainer
        trainer = kind(
            model=model, args=arguments(tmp_path / output, max_steps=4, logging_steps=1),
            train_dataset=rows, processing_class=tokenizer, **given,
        )  # fmt: skip
        trainer.train()
        return trainer

    taught = trained("taught", teacher=addresses[0], method={"names": method, "message_width": 16})
    assert all(line["loss_task"] > 0 for line in taught.state.log_history[:4])
    assert any(name.startswith("loss_") and name != "loss_task" for name in taught.state.log_history[0])
    if method == "soft_labels":
        silent = trained("silent", teacher=addresses[0], method={"names": method, "soft_labels": {"weight": 0.0}})
        plain = trained("plain")
        losses = [[line["loss"] for line in each.state.log_history[:4]] for each in (silent, plain)]
        assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_one_label_that_is_true_or_not_is_refused(tmp_path: Path) -> None:
    config = hf.BertConfig(
        num_labels=1, problem_type="multi_label_classification", hidden_size=16, num_attention_heads=2
    )
    config.num_hidden_layers, config.vocab_size = 1, 20
    with torch.device("meta"), pytest.raises(ConfigError, match="expected two classes"):
        TappedStudent(hf.BertForSequenceClassification(config))
