"""A user's own file of texts and labels, or a folder with a file for each part; draws no splits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from task_data.config import DataConfig
from task_data.division import Part
from task_data.frames import frames_data
from task_data.hub import is_saved, load_saved
from task_data.splits import TaskData
from task_data.tables import READERS, column_strings, read_table
from task_data.text_files import TEXT_ENDINGS, load_blocks, read_lines
from task_data.token_files import load_tagged
from teaching_protocol.errors import DataError

__all__ = ["load_file", "load_sentence_polarity", "part_files"]


def load_file(config: DataConfig) -> TaskData:
    """Loads `config.path`: a CSV, TSV, JSON-lines or Parquet file, a folder of such files, or one of `datasets`' own.

    A folder has a `train` file (such as `train.csv`) and may have `validation` and `test` ones; parts it does
    not have are drawn from the training rows. With `config.pair_column` each text is two, with `SEPARATOR` between. A
    column of lists, `config.label_separator` or `config.label_columns` make it a multi-label task. `config.level` says what
    has a label; next tokens may come from plain text files (.txt), too.

    Raises:
        DataError: no path, a file that cannot be read, a column that is not there, or rows that cannot be used.
    """
    if config.path is not None and is_saved(config.path):
        if config.level != "row":
            raise DataError(
                f"data.level: received {config.level!r} with {config.path}, which the datasets library has saved, and whose rows have "
                "a label each; write its rows to JSON lines or Parquet"
            )
        return load_saved(config.path, config)
    if config.level == "token":
        return load_tagged(((part, path, read_table(path)) for part, path in part_files(config)), config)
    if config.level == "next_token":
        return load_blocks(((part, path, _documents(path, config)) for part, path in part_files(config)), config)
    return frames_data(((part, path, read_table(path)) for part, path in part_files(config)), config)


def load_sentence_polarity(config: DataConfig) -> TaskData:
    """Loads 10,662 sentences of film reviews from the JSON-lines file at `config.path`, labels 0 and 1.

    Sentence polarity dataset v1.0, Pang and Lee (ACL 2005).

    Raises:
        DataError: as `load_file`.
    """
    return load_file(config)


def _documents(path: Path, config: DataConfig) -> list[str]:
    """The texts of a plain text file, or of a table's column, in order."""
    if path.name.lower().endswith(TEXT_ENDINGS):
        return read_lines(path)
    return column_strings(read_table(path), config.text_column, path, "text_column")


def part_files(config: DataConfig, shards: bool = False) -> Sequence[tuple[Part, Path]]:
    """The file of each part: the one file, or those of a folder; with `shards` `train-*` files, too, in their order.

    Raises:
        DataError: no path, two files for one part, or none for the training rows.
    """
    if config.path is None:
        raise DataError(f"{config.name}: `path` is not set; give the file or folder to read")
    if not config.path.is_dir():
        return [("train", config.path)]
    endings = (*READERS, *TEXT_ENDINGS) if config.level == "next_token" else tuple(READERS)
    found: list[tuple[Part, Path]] = []
    endings = (*READERS, *TEXT_ENDINGS) if config.level == "next_token" else tuple(READERS)
    for part in ("train", "validation", "test"):
        there = [path for ending in endings if (path := config.path / f"{part}{ending}").is_file()]
        several = [sorted(config.path.glob(f"{part}-*{ending}")) for ending in READERS] if shards else []
        if not there and len(given := [paths for paths in several if paths]) == 1:
            found += [(part, path) for path in given[0]]
        elif len(there) > 1:
            raise DataError(f"{config.path}: {there[0].name} and {there[1].name} are both there; keep one of them")
        found += [(part, path) for path in there]
    if not any(part == "train" for part, _ in found):
        raise DataError(f"{config.path}: the folder has no train file, such as train.csv or train.jsonl")
    return found
