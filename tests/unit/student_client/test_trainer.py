from __future__ import annotations

import io
import json
import math
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from student_client.config import RunConfig
from student_client.reporting.progress import Progress
from student_client.reporting.result import Result
from student_client.training.runs import open_run, train
from student_models import load_student
from teacher_server.actor import TeacherActor
from teacher_server.local import local_teacher
from teaching_protocol.errors import ConfigError, NonFiniteError, StateMismatch
from tests.unit.student_client.run_setup import quiet, run_config

Teach = Callable[[], TeacherActor]
METHODS = ("task_only", "one_way", "talking")


@pytest.fixture(scope="module")
def teach(model_folder: Callable[[str], Path]) -> Teach:
    """Gives a fresh teacher of the same weights at each call, as a restarted server would be."""
    folder = model_folder("bert")
    return lambda: local_teacher(str(folder), device="cpu", entry=1, exit=3, deterministic=True)


def trained(config: RunConfig, teach: Teach, steps: int | None = None, resume: bool = False) -> dict[str, Any]:
    """Weights of student and codec, and the exported session, after a run; and what it returned."""
    with open_run(config, teachers=[teach()], progress=quiet(), resume=resume) as trainer:
        result = trainer.run(steps)
        session = trainer.teachers.export_states()
        weights = {"student": trainer.student.state_dict(), "method": trainer.method.state_dict()}
    return {"result": result, "session": session, "trainer": trainer, **weights}


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def records(config: RunConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (config.output / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("method", METHODS)
def test_resumed_equals_unbroken(tmp_path: Path, teach: Teach, method: str) -> None:
    whole = trained(run_config(tmp_path, "whole", method), teach)
    broken = run_config(tmp_path, "broken", method)
    assert trained(broken, teach, steps=10)["result"] is None
    torch.manual_seed(99)  # a new process has another random state
    resumed = trained(broken, teach, resume=True)
    assert_same(whole["student"], resumed["student"])
    assert_same(whole["method"], resumed["method"])
    assert whole["session"] == resumed["session"]
    drop = {"wall_s": 0.0, "teacher_s": 0.0, "teacher_rows": 0}
    assert replace(whole["result"], **drop) == replace(resumed["result"], **drop)
    validations = [
        [
            (line["step"], line["validation"])
            for line in records(run_config(tmp_path, name, method))
            if "validation" in line
        ]
        for name in ("whole", "broken")
    ]
    assert validations[0] == validations[1]


def test_resumes_in_the_middle_of_an_epoch_with_accumulation(tmp_path: Path, teach: Teach) -> None:
    fields = {"training__accumulation": 3, "training__schedule": "cosine", "training__max_steps": 8}
    whole = trained(run_config(tmp_path, "whole", **fields), teach)
    broken = run_config(tmp_path, "broken", **fields)
    for _ in range(2):
        trained(broken, teach, steps=3, resume=(broken.output / "checkpoints").exists())
    assert_same(whole["student"], trained(broken, teach, resume=True)["student"])


def test_resuming_rewinds_what_came_after_the_checkpoint(tmp_path: Path, teach: Teach) -> None:
    config = run_config(tmp_path)
    first = trained(config, teach, steps=10)
    journal = config.output / "metrics.jsonl"
    journal.write_text(journal.read_text() + '{"step": 16, "validation": {"accuracy": 1.0}}\n{"step": 1')
    (config.output / "student" / "student.json").write_text("{}")
    second = trained(config, teach, resume=True)
    assert [line["step"] for line in records(config)] == [4, 5, 8, 10, 12, 15, 16, 20]
    assert first["trainer"].position.best_step <= 10
    assert second["result"] is not None


@pytest.mark.parametrize("method", ["one_way", "talking"])
def test_with_zero_weights_training_is_bit_equal_to_task_only(tmp_path: Path, teach: Teach, method: str) -> None:
    names = ("interact", "message_consistency", "state_consistency", "answer_task", "answer_labels")
    zero = {f"method__w_{name}": 0.0 for name in names}
    alone = trained(run_config(tmp_path, "alone"), teach)
    silent = trained(run_config(tmp_path, "silent", method, **zero), teach)
    assert_same(alone["student"], silent["student"])


@pytest.mark.parametrize("method", ["one_way", "talking"])
def test_both_codecs_learn_and_the_run_folder_is_whole(tmp_path: Path, teach: Teach, method: str) -> None:
    config = run_config(tmp_path, "run", method)
    with open_run(config, teachers=[teach()], progress=quiet()) as trainer:
        codec = {name: value.clone() for name, value in trainer.method.state_dict().items()}
        session = trainer.teachers.first.teacher.export_state()
        result = trainer.run()
        assert trainer.teachers.first.teacher.steps == 20
        assert trainer.teachers.first.teacher.export_state() != session
    assert result is not None
    assert result == Result.read(config.output)
    assert result.steps == 20
    assert result.parameters == sum(p.numel() for p in load_student(config.output / "student").parameters())
    assert result.codec_parameters > 0
    assert result.teacher_s > 0
    changed = trainer.method.state_dict()
    assert [name for name in codec if torch.equal(codec[name], changed[name])] == []
    last = records(config)[-1]
    assert {"step", "epoch", "seconds", "teacher_s", "loss", "parts", "monitors", "validation"} <= last.keys()
    assert "interact" in last["parts"]
    assert last["monitors"]["teacher_latency_s"] > 0
    saved = list((config.output / "student").rglob("*"))
    assert not [path for path in saved if "codec" in path.name or "session" in path.name]


def test_two_runs_of_one_seed_are_the_same_and_of_two_seeds_are_not(tmp_path: Path, teach: Teach) -> None:
    first, again = (trained(run_config(tmp_path, name), teach) for name in ("a", "b"))
    other = trained(run_config(tmp_path, "c", training__seed=1), teach)
    assert_same(first["student"], again["student"])
    assert any(not torch.equal(value, other["student"][name]) for name, value in first["student"].items())


def test_accumulated_microbatches_are_one_batch(tmp_path: Path, teach: Teach) -> None:
    """60 labelled rows: 12 x 5 or 4 x 15, without dropout the same gradients up to rounding."""
    fields = {"student__dropout": 0.0, "training__max_steps": 4, "training__max_grad_norm": 0.0}
    split = run_config(tmp_path, "a", training__batch_size=5, training__accumulation=3, **fields)
    whole = run_config(tmp_path, "b", training__batch_size=15, **fields)
    first, second = trained(split, teach)["student"], trained(whole, teach)["student"]
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=1e-3, atol=1e-4)


def test_ends_when_patience_runs_out_and_keeps_the_best(tmp_path: Path, teach: Teach) -> None:
    config = run_config(tmp_path, training__lr=1e-12, training__evaluate_every=2, training__patience=3)
    result = trained(config, teach)["result"]
    assert result.steps == 8
    assert result.best_step == 2


def test_epochs_give_the_number_of_steps(tmp_path: Path, teach: Teach) -> None:
    config = run_config(tmp_path, training__max_steps=None, training__epochs=2, training__accumulation=2)
    assert trained(config, teach)["result"].steps == 2 * 8 // 2


class _Interrupting(io.StringIO):
    """An output that raises a signal in the middle of step 8's report."""

    def write(self, text: str) -> int:
        if "step 8/" in text:
            signal.raise_signal(signal.SIGTERM)
        return super().write(text)


def test_a_signal_ends_the_run_after_its_step_with_a_checkpoint(tmp_path: Path, teach: Teach) -> None:
    config = run_config(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    with open_run(config, progress=Progress("run", file=_Interrupting())) as trainer:
        assert trainer.run() is None
        assert trainer.interrupts.signal == signal.SIGTERM
        assert trainer.position.step == 8
    assert signal.getsignal(signal.SIGTERM) is before
    whole = trained(run_config(tmp_path, "whole"), teach)
    assert_same(whole["student"], trained(config, teach, resume=True)["student"])


def test_a_signal_that_comes_while_ranks_are_asked_for_theirs_is_not_lost(tmp_path: Path) -> None:
    with open_run(run_config(tmp_path)) as trainer:
        gather, came = trainer.ranks.gather, []

        def late(value: Any) -> list[Any]:
            """The signal comes when this rank's word is given already."""
            if trainer.position.step == 8 and type(value) is int and not came:  # asked for its signal
                came.append(True)
                signal.raise_signal(signal.SIGTERM)
            return gather(value)

        trainer.ranks.gather = late  # type: ignore[method-assign]
        assert trainer.run() is None
        assert trainer.position.step in (8, 9)


@pytest.mark.parametrize("method", ["task_only", "talking"])
def test_trains_in_bfloat16(tmp_path: Path, teach: Teach, method: str) -> None:
    config = run_config(tmp_path, "run", method, training__mixed_precision="bf16", training__max_steps=3)
    result = trained(config, teach)
    assert result["result"] is not None
    assert all(tensor.dtype != torch.bfloat16 for tensor in result["student"].values())


def test_it_computes_with_the_threads_it_is_given(tmp_path: Path, teach: Teach) -> None:
    """In the thread that runs it, and while it is put together; afterwards the thread has those it had before."""
    seen: list[int] = []
    config = run_config(tmp_path, training__threads=3, training__max_steps=2)
    with ThreadPoolExecutor(1) as pool:
        before = pool.submit(torch.get_num_threads).result()
        with open_run(config, progress=quiet()) as trainer:
            seen.append(torch.get_num_threads())
            trainer.student.output.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
            pool.submit(trainer.run).result()
        assert pool.submit(torch.get_num_threads).result() == before
    assert len(seen) > 2
    assert set(seen) == {3}
    assert torch.get_num_threads() != 3


def test_tensorboard_files_are_written(tmp_path: Path, teach: Teach) -> None:
    config = run_config(tmp_path, training__tensorboard=True, training__max_steps=4)
    trained(config, teach)
    assert list((config.output / "tensorboard").glob("events*"))


def test_fp16_without_a_gpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mixed_precision: received 'fp16'"):
        train(run_config(tmp_path, training__mixed_precision="fp16"), progress=quiet())


def test_a_loss_that_is_no_number_is_refused(tmp_path: Path) -> None:
    with open_run(run_config(tmp_path), progress=quiet()) as trainer:
        torch.nn.init.constant_(next(iter(trainer.student.parameters())), math.nan)
        with pytest.raises(NonFiniteError, match=r"step 1: the loss is nan \(task nan\)"):
            trainer.run()


def test_collapsed_messages_are_reported_once(tmp_path: Path, teach: Teach) -> None:
    said = io.StringIO()
    config = run_config(tmp_path, "run", "talking")
    with open_run(config, teachers=[teach()], progress=Progress("run", file=said)) as trainer:
        for parameter in trainer.method.methods["talking"].codec.encoder.parameters():
            with torch.no_grad():
                parameter.zero_()
                parameter += torch.arange(parameter.numel()).view_as(parameter) if parameter.dim() == 1 else 0
        trainer.run()
    assert said.getvalue().count("collapsed") == 1


def test_a_folder_that_holds_a_run_is_refused(tmp_path: Path, teach: Teach) -> None:
    config = run_config(tmp_path)
    trained(config, teach)
    with pytest.raises(ConfigError, match="--resume"):
        train(config, progress=quiet())
    mine = config.output / "notes.txt"
    mine.write_text("kept")
    assert train(config, progress=quiet(), overwrite=True) is not None
    assert mine.exists()


def test_resuming_what_does_not_fit_is_refused(tmp_path: Path, teach: Teach) -> None:
    config = run_config(tmp_path)
    with pytest.raises(ConfigError, match="nothing to resume"):
        train(config, progress=quiet(), resume=True)
    trained(config, teach, steps=2)
    with pytest.raises(ConfigError, match=r"training\.lr"):
        train(run_config(tmp_path, training__lr=1.0), progress=quiet(), resume=True)
    rows = config.data.path.read_text() if config.data.path else ""
    (tmp_path / "mood.csv").write_text(rows.replace(" n", " m"))
    (tmp_path / "mood.csv").write_text(rows.replace("good", "good fine new words"))
    with pytest.raises(StateMismatch, match="does not fit"):
        train(config, progress=quiet(), resume=True)


def test_a_method_that_asks_needs_a_teacher(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--teacher HOST:PORT"):
        train(run_config(tmp_path, "run", "talking"), progress=quiet())


def test_a_method_that_learns_nothing_from_unlabelled_rows_gets_none(tmp_path: Path, teach: Teach) -> None:
    for method in METHODS:
        with open_run(run_config(tmp_path, method, method), teachers=[teach()], progress=quiet()) as trainer:
            batches = [trainer.stream.next() for _ in range(trainer.stream.epoch_batches)]
        assert all(batch.labelled.all() for batch in batches) is (method == "task_only")
