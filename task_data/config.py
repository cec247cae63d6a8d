"""Which data set and which of its rows, as one frozen value; knows no loader."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["DataConfig", "DataName", "GlueTask", "Level", "SplitName"]

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


class DataConfig(BaseModel):
    """Which data set, and how many of its rows go where."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: DataName = Field("reuters_r8", description="Which data set; `file` is your own, at `path`.")
    path: Path | None = Field(
        None, description="File or folder to read; None takes the data set from its package, where it has one."
    )
    classes: tuple[str, ...] | None = Field(
        None, min_length=2, description="Newsgroups and Reuters only: the classes to keep; None keeps all."
    )
    text_column: str = Field("text", min_length=1, description="Column of a file that holds the text.")
    pair_column: str | None = Field(
        None,
        min_length=1,
        description="Column of a file that holds a second text; the two are read as one, with [SEP] between.",
    )
    label_column: str = Field("label", min_length=1, description="Column of a file that holds the label or target.")
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
