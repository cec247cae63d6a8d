"""A teacher that knows a task: settings in, a Hugging Face folder out; knows no server and no student."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

from task_data import Split, TaskData, load_data, teacher_view
from teacher_server.families import ImageSettings
from teacher_server.families.pretrained import PretrainedFamily
from teacher_server.finetuning.finetune_config import FinetuneConfig
from teacher_server.finetuning.heads import last_linear, with_head
from teacher_server.finetuning.learners import BodyLearner, HeadLearner, Learner, LoraLearner, LoraSettings
from teacher_server.finetuning.tokens import TokenObjective, words_of
from teacher_server.finetuning.tuning import Epoch, Examples, Objective, Plan, tune
from teacher_server.models.loading import load_teacher
from teacher_server.models.split import FrozenTeacher
from teaching_protocol.errors import ConfigError, DataError, ModelLoadError

__all__ = ["Finetuned", "finetune"]

_RECORD = "finetune.json"
_FEWEST_VALIDATION_ROWS = 10
_EPOCHS: Mapping[str, int] = {"head": 50, "body": 5, "lora": 5}
_LEARNING_RATES: Mapping[str, tuple[float, ...]] = {"head": (3e-4, 1e-3, 3e-3, 1e-2), "body": (5e-5,), "lora": (1e-3,)}


@dataclass(frozen=True)
class Finetuned:
    """What came out: the chosen epoch, all epochs, and how many rows taught and chose it."""

    output: Path
    metric: str
    best: Epoch
    epochs: Sequence[Epoch]
    labelled: int
    validation: int


def finetune(
    config: FinetuneConfig, overwrite: bool = False, report: Callable[[Epoch], None] = lambda epoch: None
) -> Finetuned:
    """Trains a new head, and on request more of the model, and writes the result as a folder to serve.

    Only the labelled training rows teach, only the validation rows choose epoch and learning rate, and the test rows
    are not read. The folder is whole or not there.

    Args:
        config: of the fine-tuning.
        overwrite: give up the earlier fine-tuning that the output folder holds.
        report: told every epoch.

    Raises:
        ConfigError: an output folder that holds something, or a part that cannot be trained.
        DataError: data that cannot be had or used.
        ModelLoadError, UnsupportedFamily: a model that cannot be had, or that cannot get a new head.
        NonFiniteError: the training came to nothing finite.
    """
    _claim(config.output, overwrite)
    if config.data.streaming:
        raise ConfigError(
            "data.streaming: received true, expected false; a teacher is fine-tuned on labelled rows in memory"
        )
    if config.data.level == "next_token":
        raise ConfigError(
            "data.level: received 'next_token', expected row or token: a language model has its head; train a student of it "
            "on the text alone (student-client train --method task_only) and serve its run's folder"
        )
    # how many rows join unlabelled has no influence on which ones are labelled
    data = load_data(config.data.model_copy(update={"unlabelled": 0}))
    _check_validation(data)
    with _room_beside(config.output) as folder:
        accelerator = _accelerator(config)
        source = load_teacher(config.model, device=str(accelerator.device), image_size=config.image_size)
        with torch.random.fork_rng([accelerator.device] if accelerator.device.type == "cuda" else []):
            teacher = with_head(source, data.task, config.seed)
            _check_modality(teacher, data)
            result = _train(teacher, data, config, accelerator, report)
        _write(folder / _RECORD, _record(config, source, teacher, data, result))
        _fill(folder, teacher)
        if config.output.exists():
            shutil.rmtree(config.output)
        folder.rename(config.output)
    return result


def _train(
    teacher: FrozenTeacher,
    data: TaskData,
    config: FinetuneConfig,
    accelerator: Accelerator,
    report: Callable[[Epoch], None],
) -> Finetuned:
    """Leaves the teacher with the best weights."""
    learner = _learner(teacher, config)
    train, validation = _labelled(data.train), _labelled(data.validation)
    objective = _objective(learner, train, data)
    seen, held = (_examples(learner, split, data) for split in (train, validation))
    best, epochs = tune(learner.module, seen, held, objective, _plan(config), accelerator, report)
    learner.finish(objective)
    return Finetuned(config.output, objective.metric, best, epochs, len(train), len(validation))


def _examples(learner: Learner, split: Split, data: TaskData) -> Examples:
    if data.task.level != "token":
        return learner.examples(teacher_view(split), split.labels)
    words = words_of(learner.teacher, split, learner.max_tokens)
    return learner.examples(teacher_view(split), words.labels, words.places)


def _labelled(split: Split) -> Split:
    """The labelled rows of a split as a teacher sees them, and nothing of the others."""
    rows = split.labelled.nonzero().squeeze(-1)
    taken = split.teacher[rows] if isinstance(split.teacher, torch.Tensor) else [split.teacher[row] for row in rows]
    return Split({}, taken, split.labels[rows], split.labelled[rows])


def _check_validation(data: TaskData) -> None:
    needed = max(_FEWEST_VALIDATION_ROWS, len(data.task.labels))
    if len(data.validation) < needed:
        raise DataError(
            f"{data.task.name}: {len(data.validation)} validation rows, expected {needed} or more: they choose epoch and "
            "learning rate; raise data.validation"
        )


def _check_modality(teacher: FrozenTeacher, data: TaskData) -> None:
    (port,) = teacher_view(data.validation)
    if port in teacher.input_ports:
        return
    if port == teacher.family.modality:
        raise ModelLoadError(f"{teacher.name} has no tokenizer, and the data is text; give a folder that has its files")
    raise ConfigError(
        f"{teacher.name} reads {teacher.family.modality}, and {data.task.name} shows its teacher {port}; "
        "give another model"
    )


def _accelerator(config: FinetuneConfig) -> Accelerator:
    # what accelerate shares between all Accelerators of a process would give a second run the first one's settings
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    accelerator = Accelerator(cpu=config.device == "cpu")
    if accelerator.num_processes > 1:
        raise ConfigError(f"received {accelerator.num_processes} processes, expected one; start without a launcher")
    return accelerator


def _plan(config: FinetuneConfig) -> Plan:
    return Plan(
        learning_rates=config.learning_rates or _LEARNING_RATES[config.train],
        epochs=config.epochs or _EPOCHS[config.train],
        batch_size=config.batch_size,
        patience=config.patience,
        weight_decay=config.weight_decay,
        warmup=config.warmup,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
    )


def _learner(teacher: FrozenTeacher, config: FinetuneConfig) -> Learner:
    if config.train == "head":
        return HeadLearner(teacher, config.max_tokens)
    if config.train == "body":
        return BodyLearner(teacher, config.max_tokens)
    lora = LoraSettings(config.lora_rank, config.lora_alpha, config.lora_dropout)
    return LoraLearner(teacher, config.max_tokens, lora, config.seed)


def _objective(learner: Learner, train: Split, data: TaskData) -> Objective:
    """Classes, or targets of mean 0 and deviation 1; without a bias nothing could give the mean back."""
    if data.task.level == "token":
        return TokenObjective(data.task.kind, task=data.task)
    if not data.task.is_regression:
        return Objective(data.task.kind)
    scale = float(train.labels.std()) if len(train) > 1 else 0.0
    shift = float(train.labels.mean()) if last_linear(learner.head).bias is not None else 0.0
    return Objective("regression", shift, scale or 1.0)


def _claim(output: Path, overwrite: bool) -> None:
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not (output / _RECORD).is_file():
        raise ConfigError(f"--out: received {output}, which holds something else; give a folder that is new or empty")
    if not overwrite:
        raise ConfigError(
            f"--out: received {output}, which holds a fine-tuned model; give another folder, or --overwrite to give it up"
        )


@contextmanager
def _room_beside(output: Path) -> Iterator[Path]:
    """A folder that can be renamed to the output when it is whole; gone afterwards if it was not."""
    output = output.resolve()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        room = tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-")
    except OSError as error:
        raise ConfigError(f"--out: nothing can be written beside {output} ({error}); give another folder") from error
    with room as own:
        folder = Path(own) / "model"
        folder.mkdir()
        yield folder


def _fill(folder: Path, teacher: FrozenTeacher) -> None:
    family = teacher.family
    assert isinstance(family, PretrainedFamily), "`with_head` gives no other"
    family.model.save_pretrained(folder)
    if family.tokenizer is not None:
        family.tokenizer.save_pretrained(folder)
    if family.image is not None:
        _write(folder / "preprocessor_config.json", _preprocessor(family.image))


def _preprocessor(image: ImageSettings) -> dict[str, Any]:
    """What the image processors of transformers, and the server, do to a picture."""
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": image.size, "width": image.size},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(image.mean),
        "image_std": list(image.std),
    }


def _record(
    config: FinetuneConfig, source: FrozenTeacher, teacher: FrozenTeacher, data: TaskData, result: Finetuned
) -> dict[str, Any]:
    """finetune.json; both hashes are as on a teacher's card."""
    settings = config.model_dump(mode="json", exclude={"output"})
    plan = dataclasses.asdict(_plan(config))
    return {
        "model_hash": teacher.model_hash,
        "source": {"model": config.model, "model_hash": source.model_hash},
        "task": data.task.name,
        "labels": list(data.task.labels),
        "rows": {"labelled": result.labelled, "validation": result.validation},
        "metric": result.metric,
        "best": dataclasses.asdict(result.best),
        "settings": settings | {name: plan[name] for name in ("learning_rates", "epochs")},
        "epochs": [dataclasses.asdict(epoch) for epoch in result.epochs],
    }


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
