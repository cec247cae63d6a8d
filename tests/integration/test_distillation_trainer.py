"""`DistillationTrainer` against real servers: resumed, killed, accumulated, evaluated, saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file

from student_client.loops.distillation import Distillation, distillation_config
from teaching_protocol.errors import ConfigError, DataError, StateMismatch, TeacherUnavailable
from tests.integration.loops import student_folder, trainer_of, weights_of
from tests.integration.processes import ServerProcess
from tests.integration.school import School
from tests.unit.student_client.run_setup import write_csv

METHOD = {"names": "talking", "message_width": 16, "message_dropout": 0.5}


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return student_folder(tmp_path_factory.mktemp("student"), dropout=0.1)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_csv(tmp_path_factory.mktemp("rows"), rows=64)


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


class Stop(hf.TrainerCallback):
    """Ends the training after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


@pytest.mark.parametrize("method", [METHOD, {"names": "fitnets,rkd"}], ids=["talking", "observing"])
def test_resumed_equals_unbroken(school: School, student: Path, rows: Path, tmp_path: Path, method: Any) -> None:
    """Student, codecs, optimizers of both sides: to the bit, with dropout, shuffled rows and a falling learning rate."""
    fields = {
        "save_strategy": "steps",
        "save_steps": 3,
        "train_sampling_strategy": "random",
        "lr_scheduler_type": "linear",
    }

    def trained(output: str, resume: bool = False, **more: Any) -> Any:
        trainer = trainer_of(student, rows, school.address, tmp_path / output, method=method, **fields, **more)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = trained("whole")
    trained("broken", callbacks=[Stop(5)])
    resumed = trained("broken", resume=True)
    assert resumed.state.global_step == whole.state.global_step == 8
    assert same(weights_of(whole.model), weights_of(resumed.model))
    found = [tmp_path / output / "checkpoint-8" / "distillation" / "step-00000008" for output in ("whole", "broken")]
    for name in ("method.safetensors", "optimizer.safetensors", "session-0.safetensors"):
        if (found[0] / name).exists():
            assert (found[0] / name).read_bytes() == (found[1] / name).read_bytes(), name
    assert (found[0] / "session-0.safetensors").exists() == (method is METHOD)


def test_what_is_saved_knows_no_teacher(school: School, student: Path, rows: Path, tmp_path: Path) -> None:
    trainer = trainer_of(student, rows, school.address, tmp_path, method=METHOD)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    again = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert same(weights_of(trainer.model), weights_of(again))
    plain = load_file(student / "model.safetensors")
    assert load_file(tmp_path / "saved" / "model.safetensors").keys() == plain.keys()
    assert trainer.model._forward_hooks == {}, "the taps are gone"


def test_evaluation_asks_no_teacher(school: School, student: Path, rows: Path, tmp_path: Path) -> None:
    trainer = trainer_of(student, rows, "127.0.0.1:1", tmp_path, method=METHOD)
    scores = trainer.evaluate()
    plain = hf.Trainer(model=trainer.model, args=trainer.args, eval_dataset=trainer.eval_dataset,
                       processing_class=trainer.processing_class).evaluate()  # fmt: skip
    assert scores["eval_loss"] == plain["eval_loss"]
    assert trainer.predict(trainer.eval_dataset).predictions.shape == (12, 2)


def test_evaluates_logs_and_keeps_the_best_while_it_trains(
    school: School, student: Path, rows: Path, tmp_path: Path
) -> None:
    every = {"eval_strategy": "steps", "eval_steps": 4, "save_strategy": "steps", "save_steps": 4, "logging_steps": 4}
    trainer = trainer_of(
        student, rows, school.address, tmp_path, method=METHOD, **every, load_best_model_at_end=True, save_total_limit=1
    )
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == 2
    assert all(entry["loss_interact"] > 0 and entry["teacher_grad_norm"] > 0 for entry in logged)
    assert sum("eval_loss" in entry for entry in trainer.state.log_history) == 2


def test_accumulated_microbatches_are_one_step_at_the_teacher(
    school: School, student: Path, rows: Path, tmp_path: Path
) -> None:
    """The teacher's step number is the student's, and not that of microbatches."""
    trainer = trainer_of(
        student, rows, school.address, tmp_path, method=METHOD, gradient_accumulation_steps=2, per_device_train_batch_size=4,
        save_strategy="epoch",
    )  # fmt: skip
    trainer.train()
    assert trainer.state.global_step == 8
    manifest = next((tmp_path / "checkpoint-8" / "distillation").glob("step-*")) / "checkpoint.json"
    assert json.loads(manifest.read_text())["step"] == 8


def task_only(student: Path, rows: Path, output: Path, **fields: Any) -> Any:
    """A run without a teacher; by SGD, for Adam would make much of a last bit."""
    trainer = trainer_of(student, rows, None, output, method="task_only", **fields)  # type: ignore[arg-type]
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.1)
    trainer.train()
    return trainer


def close(first: torch.nn.Module, second: torch.nn.Module) -> None:
    for name, value in weights_of(first).items():
        torch.testing.assert_close(weights_of(second)[name], value, atol=1e-5, rtol=1e-4)


def test_task_only_is_the_plain_trainer(student: Path, rows: Path, tmp_path: Path) -> None:
    """The loss, clipping and random numbers are as without us, to rounding, and no teacher is named."""
    ours = task_only(student, rows, tmp_path)
    model = hf.AutoModelForSequenceClassification.from_pretrained(student)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plain = hf.Trainer(
        model=model,
        args=ours.args,
        train_dataset=ours.train_dataset,
        optimizers=(optimizer, None),
        processing_class=ours.processing_class,
    )
    plain.train()
    close(plain.model, ours.model)


def test_accumulated_halves_are_one_batch(rows: Path, tmp_path: Path) -> None:
    student = student_folder(tmp_path / "student")  # without dropout, which halves would draw otherwise
    whole = task_only(student, rows, tmp_path)
    halves = task_only(student, rows, tmp_path, gradient_accumulation_steps=2, per_device_train_batch_size=4)
    assert whole.state.global_step == halves.state.global_step == 8
    close(whole.model, halves.model)


def test_bf16_autocast_trains_both_sides(school: School, student: Path, rows: Path, tmp_path: Path) -> None:
    trainer = trainer_of(student, rows, school.address, tmp_path, method=METHOD, bf16=True, logging_steps=8)
    trainer.train()
    logged = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert logged["loss_interact"] > 0
    assert all(value.dtype == torch.float32 for value in trainer.model.parameters())


@pytest.mark.parametrize(
    "flags",
    [
        {"activation_checkpointing": True},
        {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}},
        pytest.param({"torch_compile": True, "torch_compile_backend": "eager"}, marks=pytest.mark.slow),
    ],
    ids=["checkpointed", "reentrant", "compiled"],
)
def test_flags_that_change_how_the_student_runs_change_nothing_else(
    school: School, rows: Path, tmp_path: Path, flags: dict[str, Any]
) -> None:
    """The states that are read are those of the forward that is trained."""
    student = student_folder(tmp_path / "student")
    method = METHOD | {"message_dropout": 0, "answer_dropout": 0}
    found = []
    for given in ({}, flags):
        trainer = trainer_of(student, rows, school.address, tmp_path, method=method, max_steps=3, **given)
        trainer.train()
        found.append(trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False))
    close(*found)


def test_a_task_loss_of_your_own(school: School, student: Path, rows: Path, tmp_path: Path) -> None:
    def halved(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        return 0.5 * torch.nn.functional.cross_entropy(outputs.logits, labels)

    logged = []
    for given in ({}, {"compute_loss_func": halved}):
        trainer = trainer_of(
            student, rows, school.address, tmp_path, method=METHOD, max_steps=1, logging_steps=1, **given
        )
        trainer.train()
        logged.append(next(entry for entry in trainer.state.log_history if "loss" in entry))
    assert logged[1]["loss_task"] == pytest.approx(logged[0]["loss_task"] / 2, rel=1e-5)


class Killer(hf.TrainerCallback):
    """Kills one teacher between two steps, and the next one within a step, between two Backwards."""

    def __init__(self, servers: list[ServerProcess]) -> None:
        self.servers = servers

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 2:
            self.servers[0].kill()

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 4:
            self.servers[1].kill()


def test_killed_teachers_are_a_pause(
    model_folder: Any, school: School, student: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """kill -9 in the middle, twice, and on at the next address: the same weights and the same codec, to the bit."""
    settings = {"model": str(model_folder("bert")), "deterministic": True, "metrics_port": -1}
    servers = [ServerProcess({"teacher": settings}) for _ in range(2)]
    addresses = ",".join([*(server.addresses["teacher"].name for server in servers), school.address])
    fields = {"save_strategy": "epoch", "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}
    whole = trainer_of(student, rows, school.address, tmp_path / "whole", method=METHOD, **fields)
    whole.train()
    broken = trainer_of(
        student, rows, addresses, tmp_path / "broken", method=METHOD, callbacks=[Killer(servers)], **fields
    )
    broken.train()
    for server in servers:
        assert server.process.poll() is not None
        server.close()
    assert capsys.readouterr().out.count("the teacher is there again") == 2
    assert same(weights_of(whole.model), weights_of(broken.model))
    found = [next((tmp_path / name / "checkpoint-8").glob("distillation/step-*")) for name in ("whole", "broken")]
    assert (found[0] / "session-0.safetensors").read_bytes() == (found[1] / "session-0.safetensors").read_bytes()


def test_without_patience_a_lost_teacher_ends_the_run(student: Path, rows: Path, tmp_path: Path) -> None:
    teacher = {"address": "127.0.0.1:1", "patience_s": 0.0, "deadline_s": 1.0}
    with pytest.raises(TeacherUnavailable):
        trainer_of(student, rows, teacher, tmp_path, method=METHOD).train()  # type: ignore[arg-type]


def test_errors_say_what_to_do(school: School, student: Path, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"method\.w_interact: received -1"):
        distillation_config(school.address, {"w_interact": -1})
    model = hf.AutoModelForSequenceClassification.from_pretrained(student)
    distillation = Distillation(model, distillation_config(school.address, METHOD))
    with pytest.raises(ConfigError, match="no session is open"):
        distillation.step(1e-3)
    with distillation:
        outputs = model(input_ids=torch.ones(2, 3, dtype=torch.long))
        with pytest.raises(DataError, match="keep the column 'text'"):
            distillation.loss({"labels": torch.zeros(2)}, outputs)
        state = distillation.state_dict()
    with (
        Distillation(model, distillation_config(school.address, METHOD | {"message_width": 8})) as other,
        pytest.raises(StateMismatch),
    ):
        other.load_state_dict(state)
