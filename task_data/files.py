"""A user's own file of texts and labels, or a folder with a file for each part; draws no splits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from task_data.config import DataConfig
from task_data.division import Part
from task_data.frames import frames_data
from task_data.hub import is_saved, load_saved
from task_data.splits import TaskData
from task_data.tables import READERS, read_table
from teaching_protocol.errors import DataError

__all__ = ["load_file", "load_sentence_polarity", "part_files"]


def load_file(config: DataConfig) -> TaskData:
    """Loads `config.path`: a CSV, TSV, JSON-lines or Parquet file, a folder of such files, or one of `datasets`' own.

    A folder has a `train` file (such as `train.csv`) and may have `validation` and `test` ones; parts it does
    not have are drawn from the training rows. With `config.pair_column` each text is two, with `SEPARATOR` between. A
    column of lists, `config.label_separator` or `config.label_columns` make it a multi-label task.

    Raises:
        DataError: no path, a file that cannot be read, a column that is not there, or rows that cannot be used.
    """
    if config.path is not None and is_saved(config.path):
        return load_saved(config.path, config)
    return frames_data(((part, path, read_table(path)) for part, path in part_files(config)), config)


def load_sentence_polarity(config: DataConfig) -> TaskData:
    """Loads 10,662 sentences of film reviews from the JSON-lines file at `config.path`, labels 0 and 1.

    Sentence polarity dataset v1.0, Pang and Lee (ACL 2005).

    Raises:
        DataError: as `load_file`.
    """
    return load_file(config)


def part_files(config: DataConfig, shards: bool = False) -> Sequence[tuple[Part, Path]]:
    """The file of each part: the one file, or those of a folder; with `shards` `train-*` files, too, in their order.

    Raises:
        DataError: no path, two files for one part, or none for the training rows.
    """
    if config.path is None:
        raise DataError(f"{config.name}: `path` is not set; give the file or folder to read")
    if not config.path.is_dir():
        return [("train", config.path)]
    found: list[tuple[Part, Path]] = []
    for part in ("train", "validation", "test"):
        there = [path for ending in READERS if (path := config.path / f"{part}{ending}").is_file()]
        several = [sorted(config.path.glob(f"{part}-*{ending}")) for ending in READERS] if shards else []
        if not there and len(given := [paths for paths in several if paths]) == 1:
            found += [(part, path) for path in given[0]]
        elif len(there) > 1:
            raise DataError(f"{config.path}: {there[0].name} and {there[1].name} are both there; keep one of them")
        found += [(part, path) for path in there]
    if not any(part == "train" for part, _ in found):
        raise DataError(f"{config.path}: the folder has no train file, such as train.csv or train.jsonl")
    return found
