"""Which data set and which of its rows, as one frozen value; knows no loader."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from command_config import hint

__all__ = ["DataConfig", "DataName", "GlueTask", "Level", "SplitName", "is_on_hub"]

DataName = Literal[
    "newsgroups",
    "reuters_r8",
    "uci_sentiment",
    "sentence_polarity",
    "spam_assassin",
    "glue",
    "movielens",
    "digits",
    "mnist",
    "fashion_mnist",
    "file",
]
"""Data sets by name; `file` is a table or folder of your own."""

SplitName = Literal["train", "validation", "test"]
"""The three parts of a data set."""

GlueTask = Literal["cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2"]
"""Tasks of GLUE."""


Level = Literal["row", "token", "next_token"]
"""What has a label: a row, each token of it (word by word), or each token by being followed by another."""

_ON_HUB = re.compile(r"[\w.-]+/[\w.-]+")


def is_on_hub(name: str) -> bool:
    """Whether a name is of the form that data sets on the hub have, OWNER/NAME."""
    return _ON_HUB.fullmatch(name) is not None


def _known(name: str) -> str:
    names = get_args(DataName)
    if name not in names and not is_on_hub(name):
        raise ValueError(
            f"expected one of {', '.join(names)}, or OWNER/NAME of the Hugging Face hub{hint(name, names)}"
        )
    return name


class DataConfig(BaseModel):
    """Which data set, and how many of its rows go where."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Annotated[str, AfterValidator(_known)] = Field(
        "reuters_r8",
        description="Which data set; `file` is your own, at `path`; `OWNER/NAME` is one of the Hugging Face hub.",
    )
    path: Path | None = Field(
        None, description="File or folder to read; None takes the data set from its package, where it has one."
    )
    classes: tuple[str, ...] | None = Field(
        None,
        min_length=2,
        description="Newsgroups and Reuters: the classes to keep, None keeps all. With `streaming`: the classes there are; "
        "None takes those of the validation and test rows and of the first `shuffle_rows`.",
    )
    subset: str | None = Field(
        None, min_length=1, description="Of a data set of the hub: its configuration, where it has several."
    )
    revision: str | None = Field(
        None, min_length=1, description="Of a data set of the hub: the commit or tag to read; None is the newest."
    )
    train_split: str = Field(
        "train", min_length=1, description="Of a data set of the `datasets` library: the split that trains."
    )
    validation_split: str | None = Field(
        None,
        description="Likewise, the split that validates; None takes `validation` where there is one, an empty name draws "
        "it from the training rows.",
    )
    test_split: str | None = Field(
        None,
        description="Likewise, the split that tests; None takes `test` where there is one, an empty name draws it from "
        "the training rows.",
    )
    streaming: bool = Field(
        False,
        description="Whether the training rows are read as they are needed, where they do not fit into memory; validation "
        "and test rows are. Needs `training.max_steps`, parts of their own for validation and test, and `labelled` None: a "
        "row without a label is unlabelled.",
    )
    shuffle_rows: int = Field(
        10_000,
        ge=1,
        description="With `streaming`: so many rows are in memory at a time, and are shuffled among themselves.",
    )
    text_column: str = Field("text", min_length=1, description="Column of a file that holds the text.")
    pair_column: str | None = Field(
        None,
        min_length=1,
        description="Column of a file that holds a second text; the two are read as one, with [SEP] between.",
    )
    label_column: str = Field(
        "label", min_length=1, description="Column of a file that holds the label, a list of labels, or the target."
    )
    label_separator: str | None = Field(
        None,
        min_length=1,
        description="What stands between the labels of a cell, such as `;`, where a row may have several: a multi-label task.",
    )
    label_columns: tuple[str, ...] | None = Field(
        None,
        min_length=2,
        description="Columns of 0 and 1, one for each class: a multi-label task; `label_column` is not read then.",
    )
    level: Level = Field(
        "row",
        description="Files only: whether a row has a label, each of its tokens has one, or each token is followed by another.",
    )
    tokens_column: str = Field(
        "tokens", min_length=1, description="Column of a file that holds the list of a row's tokens, at level `token`."
    )
    tags_column: str = Field(
        "tags", min_length=1, description="Column of a file that holds the list of their labels, at level `token`."
    )
    block_bytes: int = Field(
        480,
        ge=16,
        le=2048,
        description="Bytes of text, at most, that are a row at level `next_token`: some 4 of them make a token.",
    )
    labelled: int | None = Field(
        300,
        ge=1,
        description="How many training rows keep their label; None is all, and `unlabelled` is not read then.",
    )
    unlabelled: int | None = Field(
        1500, ge=0, description="How many more training rows join without their label; None is all that are left."
    )
    validation: int = Field(500, ge=1, description="How many rows validate; taken off the training rows.")
    test: int | None = Field(
        None,
        ge=1,
        description="How many rows test; None is the data set's own test part, or else a fifth of the rows.",
    )
    seed: int = Field(0, ge=0, description="Seed of every draw of rows; the same seed gives the same splits.")
    genre: str = Field("Sci-Fi", min_length=1, description="MovieLens only: whose ratings the student predicts.")
    other_genres: bool = Field(
        False, description="MovieLens only: the ratings of all other films join the training rows, with their labels."
    )
    glue_task: GlueTask = Field("sst2", description="GLUE only: which of its tasks.")
    max_rows: int | None = Field(
        None, ge=1, description="Upper limit on the rows taken from each part of the data set, drawn by the seed."
    )
