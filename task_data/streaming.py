"""Training rows that are read as they are needed, a block at a time, from a place that can be gone back to; knows no batch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from task_data.assembly import assemble, row_keys
from task_data.config import DataConfig, is_on_hub
from task_data.division import Part, divide
from task_data.files import part_files
from task_data.frames import Table, columns_of, row_texts, text_rows
from task_data.hub import check_reachable, is_saved, library, named_frame, saved_parts, split_names
from task_data.multi_label import label_cells
from task_data.splits import Split, Task, TaskData
from task_data.stream_labels import encoded, task_of
from task_data.tables import find_ending, read_table
from teaching_protocol.errors import DataError

__all__ = ["BlockReader", "RowStream", "load_stream"]

_BUILDERS = {".jsonl": "json", ".parquet": "parquet"}


class BlockReader:
    """Rows of an `IterableDataset` as they are, some thousand at a time, from any state it had.

    Args:
        rows: the library's, unshuffled.
        count: rows of a block.
        source: what it is read from, for errors.
    """

    def __init__(self, rows: Any, count: int, source: str) -> None:
        self.source, self._rows, self._count = source, rows, count
        self._first = json.dumps(rows.state_dict())
        self._reading: Iterator[Mapping[str, Any]] | None = None
        self._state = self._first  # behind what was read last

    def read(self, state: str | None) -> tuple[pd.DataFrame, str | None]:
        """The block that begins at a state, None the first, and the state behind it; None where the rows end.

        Raises:
            DataError: rows that cannot be read.
        """
        state = state or self._first
        try:
            if self._reading is None or state != self._state:
                self._rows.load_state_dict(json.loads(state))
                self._reading = iter(self._rows)
            found = list(islice(self._reading, self._count))
            self._state = json.dumps(self._rows.state_dict())
        except Exception as error:  # the library raises errors of every library below it
            raise DataError(f"{self.source}: cannot be read on: {type(error).__name__}: {error}") from error
        if len(found) < self._count:
            self._reading = None
        names = list(found[0]) if found else []
        frame = pd.DataFrame({name: pd.Series([row.get(name) for row in found], dtype=object) for name in names})
        return named_frame(self._rows, frame, self.source), self._state if len(found) == self._count else None


class RowStream:
    """Blocks of training rows of a task; a row whose text validates or tests is left out.

    Args:
        reader: of the rows.
        task: of the labels.
        config: which columns count.
        held: `row_keys` of the texts that validate or test.
    """

    def __init__(self, reader: BlockReader, task: Task, config: DataConfig, held: frozenset[str]) -> None:
        self.source = reader.source
        self._reader, self._task, self._config, self._held = reader, task, config, held

    def block(self, state: str | None) -> tuple[Split, str | None]:
        """The usable rows of the block that begins at a state, and the state behind it.

        Args:
            state: as an earlier call gave it, in this process or another one; None begins with the first row.

        Returns:
            up to `data.shuffle_rows` rows, and where the next block begins; None where the rows end.

        Raises:
            DataError: rows that cannot be read, or a label that is none of the task's.
        """
        frame, behind = self._reader.read(state)
        if frame.empty:
            return Split({"text": []}, [], torch.zeros(0), torch.zeros(0, dtype=torch.bool)), behind
        texts = row_texts(frame, self._config, self.source)
        labels, labelled = encoded(self._task, label_cells(frame, self._config, self.source), self.source)
        kept = [row for row, key in enumerate(row_keys(texts)) if key and key not in self._held]
        chosen = [texts[row] for row in kept]
        return Split({"text": chosen}, chosen, labels[kept], labelled[kept]), behind


def load_stream(config: DataConfig) -> TaskData:
    """A text task whose training rows are a stream; its first block is `train`, of which a student's vocabulary is made.

    Raises:
        DataError: data that cannot be streamed, such as one without parts for validation and test, or as `load_file`.
    """
    if config.labelled is not None:
        raise DataError(
            f"data.labelled: received {config.labelled} with data.streaming, expected null: of a stream nothing is drawn; a row "
            "without a label is unlabelled"
        )
    rows, tables, source = _opened(config)
    held = text_rows(tables, config)
    missing = [part for part in ("validation", "test") if part not in held.parts]
    if missing:
        raise DataError(
            f"{source}: there are no rows for {' and '.join(missing)}; of a stream nothing is drawn: put a "
            f"{missing[0]} file beside the training one, or set data.{missing[0]}_split"
        )
    keys = row_keys(held.texts)
    reader = BlockReader(rows, config.shuffle_rows, source)
    first, _ = reader.read(None)
    if first.empty:
        raise DataError(f"{source}: there are no training rows; give one or more")
    task = task_of([*held.labels, *label_cells(first, config, source)], config)
    labels, labelled = encoded(task, held.labels, source)
    if not bool(labelled.all()):
        raise DataError(f"{source}: {int((~labelled).sum())} rows of validation and test have no label; give them one")
    division = divide(keys, held.parts, config)
    data = assemble(task, "text", {"text": held.texts}, held.texts, labels, division)
    stream = RowStream(reader, task, config, frozenset(keys))
    return replace(data, train=stream.block(None)[0], stream=stream)


def _opened(config: DataConfig) -> tuple[Any, list[Table], str]:
    """The training rows as the library streams them, the tables of the other parts, and the name of it all."""
    if is_on_hub(config.name):
        return _from_hub(config)
    if config.name != "file" or config.path is None:
        raise DataError(
            f"data.streaming: received data.name {config.name!r}, expected file, with data.path a folder, or OWNER/NAME of the "
            "hub; the others are small"
        )
    if is_saved(config.path):
        parts = saved_parts(config.path, config)
        train = parts.pop("train").to_iterable_dataset()
        return (
            train,
            [(part, _part_name(config, part), _whole(rows, config)) for part, rows in parts.items()],
            str(config.path),
        )
    return _from_files(config)


def _from_hub(config: DataConfig) -> tuple[Any, list[Table], str]:
    datasets = library()
    check_reachable(config)
    try:
        there = datasets.get_dataset_split_names(config.name, config.subset, revision=config.revision)
        parts: dict[Part, Any] = {
            part: datasets.load_dataset(
                config.name, config.subset, split=split, revision=config.revision, streaming=True
            )
            for part, split in split_names(config, there).items()
        }
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"{config.name}: it cannot be streamed from the hub ({type(error).__name__}: {error})"
        ) from error
    train = parts.pop("train")
    return train, [(part, _part_name(config, part), _whole(rows, config)) for part, rows in parts.items()], config.name


def _from_files(config: DataConfig) -> tuple[Any, list[Table], str]:
    files: dict[Part, list[Path]] = {}
    for part, path in part_files(config, shards=True):
        files.setdefault(part, []).append(path)
    tables: list[Table] = [
        (part, path, read_table(path)) for part, paths in files.items() if part != "train" for path in paths
    ]
    ending = find_ending(files["train"][0]).removesuffix(".gz")
    if ending not in _BUILDERS:
        raise DataError(f"{files['train'][0]}: a {ending} file is not streamed; write it as JSON lines or Parquet")
    datasets = library()
    try:
        names = [str(path.resolve()) for path in files["train"]]
        rows = datasets.load_dataset(_BUILDERS[ending], data_files={"train": names}, split="train", streaming=True)
    except Exception as error:
        raise DataError(f"{files['train'][0]}: cannot be streamed: {type(error).__name__}: {error}") from error
    return rows, tables, str(files["train"][0])


def _whole(rows: Any, config: DataConfig) -> pd.DataFrame:
    """All rows of a part that is to be in memory, the columns that are there."""
    columns: Sequence[str] = [name for name in columns_of(config) if name in (rows.column_names or [])]
    found = list(rows.select_columns(list(columns)))
    frame = pd.DataFrame({name: pd.Series([row[name] for row in found], dtype=object) for name in columns})
    return named_frame(rows, frame, config.name)


def _part_name(config: DataConfig, part: Part) -> str:
    return f"{config.path or config.name} ({part})"
