"""The suites that come with the product: tasks, students, teachers, budgets; tables to be read and edited."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from command_config import hint
from student_client.compare.suites import Suite, SuiteTask, TeacherPlan, Variant, read_suite
from student_client.compare.variants import CONTRASTS, GRID, VARIANTS
from task_data.config import DataConfig
from teaching_protocol.errors import ConfigError

__all__ = ["SUITES", "TASKS", "find_suite"]

_BUDGET = {"training.max_steps": 200, "training.evaluate_every": 25, "training.batch_size": 32}
_TEXT = {
    **_BUDGET,
    "student.width": 64,
    "student.layers": 2,
    "student.vocabulary_size": 4096,
    "teacher.entry": 4,
}
_RATINGS = {**_BUDGET, "training.batch_size": 64}
_IMAGE = {**_BUDGET, "student.width": 16, "student.layers": 4, "teacher.entry": 12}

_MINILM = TeacherPlan(model="minilm", finetune={"train": "lora"}, server={"max_tokens": 64})
_READER = TeacherPlan(model="minilm", finetune={"epochs": 6}, server={"max_tokens": 64})
_LITE0 = TeacherPlan(model="efficientnet_lite0", finetune={"image_size": 64}, server={"image_size": 64})
_PEER = TeacherPlan(student={"training.max_steps": 400})
_COLLECTOR = TeacherPlan(
    student={
        "data.other_genres": True,
        "training.max_steps": 1500,
        "training.batch_size": 256,
        "training.evaluate_every": 100,
    }
)

_GROUPS = ("comp.graphics", "rec.autos", "rec.sport.hockey", "sci.crypt", "sci.med", "sci.space", "talk.politics.guns",
           "talk.politics.mideast")  # fmt: skip


_CORE = ("task_only", "soft_labels", "fitnets", "one_way", "soft_labels_complementary", "averaged", "fixed_mix", "talking",
         "talking_soft_labels", "committee", "committee_labels", "selection")  # fmt: skip
"""What is compared on every task."""

_CONTROLS = ("one_way~random", "talking~random", "committee~random")

_PAIRED = ("fitnets_soft_labels", "talking_fitnets")
"""Two at once, on the first task of each family."""

_MORE = (*_PAIRED, "rkd", "pkd", "minilm", "one_way_no_labels", "random_soft", "random_hard", "selection_hard", "committee_tau",
         "committee_foundation", "committee_complementary", "committee_uniform", "committee_from_labels", "talking_no_question",
         "soft_labels~random", "fitnets~random", "selection~random", *_CONTROLS)  # fmt: skip
"""What is compared on the first task of ratings besides; the first task of text compares everything."""


def _data(name: str, **fields: Any) -> DataConfig:
    return DataConfig.model_validate({"name": name, "labelled": 300, "unlabelled": 1400, "validation": 400, **fields})


def _text(data: DataConfig, variants: tuple[str, ...] | None = _CORE, tokens: int = 32) -> SuiteTask:
    """A larger student as the complementary teacher, which has seen the same labels."""
    settings = {**_TEXT, "student.max_tokens": tokens}
    return SuiteTask(data=data, settings=settings, foundation=_MINILM, complementary=_PEER, variants=variants)


def _genre(genre: str, variants: tuple[str, ...] | None = _CORE) -> SuiteTask:
    """The foundation reads about films, the complementary teacher has collected the ratings of other genres."""
    data = _data("movielens", genre=genre, labelled=1000, unlabelled=2000, validation=800, test=2500)
    return SuiteTask(data=data, settings=_RATINGS, foundation=_READER, complementary=_COLLECTOR, variants=variants)


def _image(data: DataConfig, variants: tuple[str, ...] | None = _CORE) -> SuiteTask:
    return SuiteTask(data=data, settings=_IMAGE, foundation=_LITE0, complementary=_PEER, variants=variants)


_TEXT_TASKS = {
    "sentiment": _text(_data("uci_sentiment", test=850), None),
    "reuters": _text(_data("reuters_r8", labelled=100, test=1500)),
    "newsgroups": _text(_data("newsgroups", classes=_GROUPS, test=1500), _CORE, tokens=64),
    "spam": _text(_data("spam_assassin", labelled=50, test=1000)),
}
_RATINGS_TASKS = {
    "sci-fi": _genre("Sci-Fi", _CORE + _MORE),
    "comedy": _genre("Comedy"),
    "thriller": _genre("Thriller"),
}
_VISION_TASKS = {
    "fashion": _image(_data("fashion_mnist", test=1500), _CORE + _PAIRED + _CONTROLS),
    "digits": _image(_data("digits", labelled=50, unlabelled=850, validation=300, test=450)),
    "mnist": _image(_data("mnist", labelled=100, test=1500)),
}


def _suite(name: str, about: str, tasks: dict[str, SuiteTask]) -> Suite:
    """A suite of the variants that one of its tasks compares, at least."""
    shown = {variant for task in tasks.values() for variant in task.variants or VARIANTS}
    variants = {variant: found for variant, found in VARIANTS.items() if variant in shown}
    contrasts = tuple(pair for pair in CONTRASTS if shown.issuperset(pair))
    return Suite(name=name, about=about, grid=GRID, tasks=tasks, variants=variants, contrasts=contrasts)


_SMOKE = Suite(
    name="smoke",
    about="Whether the machinery runs, in a minute; not which method is better.",
    tasks={
        "digits": SuiteTask(
            data=_data("digits", labelled=100, unlabelled=400, validation=200, test=300),
            settings={
                "student.size": "tiny",
                "training.max_steps": 30,
                "training.evaluate_every": 10,
                "training.warmup_steps": 3,
                "training.lr": 1e-2,
                "method.message_width": 16,
            },
            foundation=TeacherPlan(student={"training.max_steps": 60, "student.width": 32, "student.layers": 4}),
        )
    },
    variants={
        "task_only": Variant(methods=("task_only",), role="baseline", teachers=(), about="the labels alone"),
        "one_way": Variant(methods=("one_way",), role="baseline", about="the teacher speaks unasked"),
        "talking": Variant(methods=("talking",), about="Talking Models"),
    },
    contrasts=(("talking", "one_way"),),
)

_ALL = {**_TEXT_TASKS, **_RATINGS_TASKS, **_VISION_TASKS}

SUITES: dict[str, Suite] = {
    "smoke": _SMOKE,
    "text": _suite("text", "Four text tasks, MiniLM and a larger student as teachers.", _TEXT_TASKS),
    "ratings": _suite("ratings", "MovieLens 100K, three genres.", _RATINGS_TASKS),
    "vision": _suite("vision", "Digits, MNIST and Fashion-MNIST, EfficientNet-Lite0 as a teacher.", _VISION_TASKS),
    "all": _suite("all", "Text, ratings and vision.", _ALL),
}
"""Suites by the name `--suite` takes."""

TASKS = tuple(dict.fromkeys(task for suite in SUITES.values() for task in suite.tasks))
"""Names of their tasks."""


def find_suite(name: str) -> Suite:
    """One of `SUITES`, or one of a YAML file.

    Raises:
        ConfigError: neither, or a file that holds no suite.
    """
    if name in SUITES:
        return SUITES[name]
    if Path(name).suffix in (".yaml", ".yml"):
        return read_suite(Path(name))
    raise ConfigError(
        f"--suite: received {name!r}, expected one of {', '.join(SUITES)}, or a YAML file{hint(name, SUITES)}"
    )
