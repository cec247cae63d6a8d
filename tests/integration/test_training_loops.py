"""The same distillation by four loops against a real server: `student-client train`, Trainer, Lightning, plain PyTorch."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from student_client.training.runs import measured, open_run
from task_data import batches, load_data
from tests.integration.loops import LABELS, LR, student_folder, trainer_of, weights_of
from tests.integration.school import School
from tests.unit.student_client.run_setup import quiet, run_config

STEPS, ROWS = 6, 48


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return student_folder(tmp_path_factory.mktemp("student"))


def config_of(folder: Path, student: Path, teacher: str, **fields: Any) -> Any:
    """A run of `student-client train` as the other loops are: constant learning rate, no dropout, one pass."""
    return run_config(
        folder,
        method="talking",
        data__labelled=ROWS,
        data__unlabelled=0,
        student__pretrained=str(student),
        teacher__address=teacher,
        method__message_width=128,
        method__message_tokens=1,
        method__answer_dropout=0.0,
        training__max_steps=STEPS,
        training__lr=LR,
        training__schedule="constant",
        training__warmup_steps=0,
        training__evaluate_every=100,
        **fields,
    )


def ordered_texts(config: Any, path: Path) -> Path:
    """The training rows in the order in which the run's first epoch has them."""
    train = load_data(config.data).train
    texts: Any = train.columns["text"]
    rows = torch.cat([batch.rows for batch in batches({}, {}, train, 8, config.training.seed, 0)]).tolist()
    with path.open("w") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        writer.writerows((texts[row], LABELS[int(train.labels[row])]) for row in rows)
    return path


def test_four_loops_end_with_the_same_weights(
    school: School, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit: no dropout is drawn, and whatever else may differ between the loops was made equal."""
    from examples import lightning_student, plain_loop

    no_dropout = {"names": "talking", "answer_dropout": 0.0}
    for example in (lightning_student, plain_loop):
        made = example.distillation_config
        monkeypatch.setattr(
            example, "distillation_config", lambda teacher, method, made=made: made(teacher, no_dropout)
        )
    config = config_of(tmp_path, student, school.address)
    texts = ordered_texts(config, tmp_path / "ordered.csv")
    with open_run(config, progress=quiet()) as ours:
        ended = ours.run()
        result = None if ended is None else measured(ours, ended)
    assert result is not None
    assert result.student_size.parameters == result.parameters
    assert result.teacher_size.parameters > result.student_size.parameters
    assert min(size.batch_ms for size in (result.student_size, result.teacher_size)) > 0
    assert result.student_size.size_bytes >= 4 * result.parameters
    expected = weights_of(ours.student.model)  # type: ignore[arg-type]

    plain = plain_loop.main(str(student), str(texts), school.address, LR)
    trainer = trainer_of(student, texts, school.address, tmp_path / "trainer", method=no_dropout)
    trainer.train()
    quiet_flags = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    lightning = lightning_student.main(str(student), str(texts), school.address, LR, **quiet_flags)
    before = weights_of(hf.AutoModelForSequenceClassification.from_pretrained(student))
    assert any(not torch.equal(before[name], value) for name, value in expected.items())
    for name, model in {"plain": plain, "trainer": trainer.model, "lightning": lightning}.items():
        found = weights_of(model)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(found[key], value), f"{name}: {key} differs by {(found[key] - value).abs().max():g}"
