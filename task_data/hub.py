"""Data sets of the `datasets` library: by name on the hub, or the folder that `save_to_disk` wrote; runs no code of theirs."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from task_data.config import DataConfig
from task_data.division import Part
from task_data.frames import Table, columns_of, frames_data
from task_data.splits import TaskData
from teaching_protocol.errors import DataError

__all__ = [
    "check_reachable",
    "is_saved",
    "library",
    "load_named",
    "load_saved",
    "named_frame",
    "saved_parts",
    "split_names",
]

_REACH_S = 10.0
_FIRST_WITHOUT_SCRIPTS = 4


def library() -> Any:
    """The `datasets` library, of a version that runs no code which a data set brings.

    Raises:
        DataError: it is not installed, or too old.
    """
    try:
        found: Any = importlib.import_module("datasets")
    except ImportError as error:
        raise DataError(
            "`datasets` is not installed; install it with: pip install 'talking-models[datasets]'"
        ) from error
    if int(found.__version__.partition(".")[0]) < _FIRST_WITHOUT_SCRIPTS:
        raise DataError(
            f"`datasets` {found.__version__} may run scripts that a data set brings; install {_FIRST_WITHOUT_SCRIPTS} or newer"
        )
    return found


def load_named(config: DataConfig) -> TaskData:
    """Loads `config.name`, OWNER/NAME of the hub, from the library's cache or the network.

    `HF_HUB_OFFLINE`, `HF_ENDPOINT`, `HF_TOKEN` and `HF_HOME` count as the library has them.

    Raises:
        DataError: it cannot be had, or its rows cannot be used.
    """
    datasets, name = library(), config.name
    check_reachable(config)
    try:
        there = datasets.get_dataset_split_names(name, config.subset, revision=config.revision)
        wanted = split_names(config, there)
        parts = {
            part: datasets.load_dataset(name, config.subset, split=split, revision=config.revision)
            for part, split in wanted.items()
        }
    except DataError:
        raise
    except Exception as error:  # the library raises errors of every library below it, of the network too
        raise DataError(_unloaded(name, error)) from error
    return frames_data(_tables(parts, config, name), config)


def is_saved(path: Path) -> bool:
    """Whether a folder is one that `save_to_disk` wrote, of a data set with splits or of one."""
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def load_saved(path: Path, config: DataConfig) -> TaskData:
    """Loads a folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote.

    Raises:
        DataError: it cannot be read, or its rows cannot be used.
    """
    return frames_data(_tables(saved_parts(path, config), config, str(path)), config)


def saved_parts(path: Path, config: DataConfig) -> dict[Part, Any]:
    """The library's data sets of such a folder, mapped and not read, by part."""
    datasets = library()
    try:
        found = datasets.load_from_disk(str(path))
    except Exception as error:  # as above
        raise DataError(f"{path}: cannot be read as a folder of `save_to_disk` ({error}); save it again") from error
    if not isinstance(found, dict):
        return {"train": found}
    return {part: found[split] for part, split in split_names(config, list(found)).items()}


def split_names(config: DataConfig, there: Sequence[str]) -> dict[Part, str]:
    """Which split is which part; parts without one are drawn from the training rows.

    Raises:
        DataError: a split that is not there, or one that is to be two parts.
    """
    wanted: dict[Part, str | None] = {
        "train": config.train_split,
        "validation": config.validation_split,
        "test": config.test_split,
    }
    named = [name for name in wanted.values() if name]
    found: dict[Part, str] = {}
    for part, name in wanted.items():
        if name is None:
            name = part if part in there and part not in named else ""
        if name and name not in there:
            raise DataError(
                f"{config.name}: there is no split {name!r}, there are {', '.join(there)}; set data.{part}_split to one of them"
            )
        if name:
            found[part] = name
    if len(set(found.values())) < len(found):
        raise DataError(f"{config.name}: the splits {', '.join(found.values())} are for several parts; name each once")
    return found


def check_reachable(config: DataConfig) -> None:
    """Says at once that the hub cannot be reached, where the library would try again for half a minute.

    Raises:
        DataError: it cannot, or it has no such data set; nothing is asked where `HF_HUB_OFFLINE` is set.
    """
    hub: Any = importlib.import_module("huggingface_hub")
    if hub.is_offline_mode() or Path(config.name).is_dir():
        return
    try:
        hub.HfApi().dataset_info(config.name, revision=config.revision, timeout=_REACH_S)
    except Exception as error:
        raise DataError(_unloaded(config.name, error)) from error


def named_frame(part: Any, frame: pd.DataFrame, source: object) -> pd.DataFrame:
    """The frame with the names of classes where the library's features have numbers.

    Raises:
        DataError: a label of -1, as test sets have whose labels are hidden.
    """
    for column in frame.columns:
        feature = (part.features or {}).get(column)
        own, inner = getattr(feature, "names", None), getattr(getattr(feature, "feature", None), "names", None)
        if own is not None:
            frame[column] = [_class(number, own, column, source) for number in frame[column]]
        elif inner is not None:
            frame[column] = [[_class(each, inner, column, source) for each in cell] for cell in frame[column]]
    return frame


def _tables(parts: dict[Part, Any], config: DataConfig, source: str) -> Iterable[Table]:
    for part, rows in parts.items():
        columns = [name for name in columns_of(config) if name in rows.column_names] or rows.column_names[:1]
        frame = rows.select_columns(columns).to_pandas()
        if set(columns_of(config)) - set(columns):
            frame = pd.DataFrame(columns=rows.column_names)  # the error names what there is
        yield part, f"{source} ({part})", named_frame(rows, frame, source)


def _class(number: Any, names: Sequence[str], column: str, source: object) -> str:
    if number is None or pd.isna(number):
        return ""
    if not 0 <= int(number) < len(names):
        raise DataError(
            f"{source}: column {column!r} has the label {int(number)}, expected 0 to {len(names) - 1}: the labels of this "
            "split are hidden; set data.test_split to another split, or to an empty name"
        )
    return names[int(number)]


def _unloaded(name: str, error: Exception) -> str:
    reason = (str(error).strip().splitlines() or [""])[0]
    return (
        f"{name}: it cannot be had from the Hugging Face hub ({type(error).__name__}: {reason}). Look at the name, at data.subset, "
        "data.revision, the network and HF_TOKEN; without a network HF_HUB_OFFLINE=1 takes what the cache has, and data.name=file "
        "with data.path a file, or a folder that `save_to_disk` wrote"
    )
