"""Builds a new student for a data set without touching the global random state; knows no method."""

from __future__ import annotations

from collections.abc import Callable

import torch

from student_client.config import StudentConfig
from student_client.students.presets import sizes_of
from student_models import ImageStudent, RatingsStudent, Student, StudentCard, TappedStudent, TextStudent
from student_models.causal import causal_student
from student_models.columns import tensor_column, text_column
from student_models.tokenizer import pretrained_tokenizer, tokenizer_of, train_tokenizer, vocabulary_of, wrapped
from task_data import Split, Task, TaskData
from teaching_protocol.errors import ConfigError, DataError

__all__ = ["build_student"]


def build_student(config: StudentConfig, data: TaskData) -> Student:
    """A new student for a data set, in training mode; its initial weights follow from `config.seed` alone.

    Raises:
        ConfigError: sizes that do not fit together, or a modality without a student.
        DataError: the training split is empty or lacks the student's columns.
    """
    if config.pretrained is not None:
        return _pretrained(config, data)
    if data.modality not in _BUILDERS:
        raise ConfigError(
            f"modality: received {data.modality!r}, but students exist for {', '.join(_BUILDERS)}; use one of them"
        )
    if len(data.train) == 0:
        raise DataError("the training split has no rows, a student needs one at least; give more data")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)  # torch.manual_seed would seed the accelerators too
        student = _BUILDERS[data.modality](config, data)
    if isinstance(student, TappedStudent):
        return student.train()
    student.output.centre.copy_(_target_centre(data.task, data.train))
    return student


def _pretrained(config: StudentConfig, data: TaskData) -> Student:
    """A transformers model with a head for the task, some of its layers dropped.

    Raises:
        ConfigError: data that is not text, or a setting that only a new student has.
    """
    given = [
        name
        for name in ("width", "layers", "heads", "vocabulary_size", "max_tokens", "tokenizer")
        if getattr(config, name) is not None
    ]
    if data.modality != "text" or given:
        received = f"student.{given[0]}" if given else f"data of modality {data.modality}"
        raise ConfigError(
            f"student.pretrained: received it with {received}, but a pretrained student reads text and has sizes of its "
            "own; leave one of them out"
        )
    assert config.pretrained is not None, "asked for"
    return TappedStudent.from_pretrained(
        config.pretrained, data.task, config.keep_layers or (), config.keep_every or 1, config.seed
    ).train()


def _build_text(config: StudentConfig, data: TaskData) -> TextStudent:
    """Its vocabulary holds the training split's words, labelled or not."""
    card = _card(config, data, {})
    texts = text_column(data.train.columns, "text")
    if config.tokenizer is not None:
        return TextStudent(card, tokenizer_of(config.tokenizer, card.sizes["max_tokens"]))
    return TextStudent(card, train_tokenizer(texts, card.sizes["vocabulary_size"], card.sizes["max_tokens"]))


def _build_causal(config: StudentConfig, data: TaskData) -> TappedStudent:
    """A small Llama that predicts next tokens."""
    sizes = sizes_of(config, "text")
    if config.tokenizer is not None:
        tokenizer = pretrained_tokenizer(config.tokenizer)
        vocabulary = vocabulary_of(config.tokenizer, tokenizer)
    else:
        texts = text_column(data.train.columns, "text")
        tokenizer = wrapped(train_tokenizer(texts, sizes["vocabulary_size"], sizes["max_tokens"]), sizes["max_tokens"])
        vocabulary = len(tokenizer)
    return causal_student(tokenizer, vocabulary, data.task, sizes, config.dropout)


def _build_ratings(config: StudentConfig, data: TaskData) -> RatingsStudent:
    """It knows the users and items of the training split."""
    users, items = (torch.unique(tensor_column(data.train.columns, name)) for name in ("user", "item"))
    student = RatingsStudent(_card(config, data, {"users": len(users), "items": len(items)}))
    student.user_ids.copy_(users)
    student.item_ids.copy_(items)
    return student


def _build_image(config: StudentConfig, data: TaskData) -> ImageStudent:
    """For images of the training split's shape, standardised by its pixels."""
    images = tensor_column(data.train.columns, "image")  # [N, channels, height, width] uint8
    shape = dict(zip(("channels", "image_height", "image_width"), images.shape[1:], strict=True))
    student = ImageStudent(_card(config, data, shape))
    mean, std = _pixel_statistics(images)
    student.pixel_mean.copy_(mean)
    student.pixel_std.copy_(std)
    return student


_BUILDERS: dict[
    str, Callable[[StudentConfig, TaskData], TextStudent | TappedStudent | RatingsStudent | ImageStudent]
] = {
    "text": lambda config, data: (_build_causal if data.task.level == "next_token" else _build_text)(config, data),
    "ratings": _build_ratings,
    "image": _build_image,
}


def _card(config: StudentConfig, data: TaskData, found: dict[str, int]) -> StudentCard:
    sizes = sizes_of(config, data.modality) | found
    task = data.task
    return StudentCard(
        modality=data.modality,  # type: ignore[arg-type]
        task=task.name,
        labels=task.labels,
        kind=task.kind,
        level=task.level,
        sizes=sizes,
        dropout=config.dropout,
    )


def _target_centre(task: Task, train: Split) -> torch.Tensor:
    """Mean of the labelled training targets, a scalar; 0 for classes or where no row has its label."""
    if not task.is_regression or not train.labelled.any():
        return torch.zeros(())
    return train.labels[train.labelled].float().mean()


def _pixel_statistics(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation [channels, 1, 1], in one pass and without a float copy of all images."""
    counts = torch.stack([torch.bincount(channel.flatten().long(), minlength=256) for channel in images.unbind(1)])
    values = torch.arange(256, dtype=torch.float64)
    share = counts / counts.sum(1, keepdim=True)
    mean = (share * values).sum(1)
    std = (share * (values - mean[:, None]) ** 2).sum(1).sqrt().clamp(min=1e-3)
    return mean.float()[:, None, None], std.float()[:, None, None]
