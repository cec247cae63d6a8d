"""A table of text and labels from a CSV, TSV, JSON-lines or Parquet file; knows no task and draws no rows."""

from __future__ import annotations

import csv
import gzip
import json
import math
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pandas as pd

from teaching_protocol.errors import DataError

__all__ = ["READERS", "column_strings", "find_ending", "find_reader", "read_table"]


def read_table(path: Path) -> pd.DataFrame:
    """Reads a table of one row or more; `.gz` at the end of a CSV, TSV or JSON-lines name means compressed.

    Raises:
        DataError: no such file, an ending without a reader, a line that cannot be read, or no rows.
    """
    reader = find_reader(path)
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; give `path` the place of the data")
    try:
        frame = reader(path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error}); convert the file to UTF-8") from error
    except (OSError, EOFError, ValueError, zlib.error) as error:  # pandas' and pyarrow's errors are ValueErrors
        raise DataError(f"{path}: cannot be read: {error}; correct the file") from error
    if not isinstance(frame.index, pd.RangeIndex):
        raise DataError(f"{path}: the rows have more fields than the header names; correct the file")
    if frame.empty:
        raise DataError(f"{path}: the file has no rows; give a file with one row or more")
    return frame


def find_reader(path: Path) -> Callable[[Path], pd.DataFrame]:
    """Gives the reader for a file's name.

    Raises:
        DataError: an ending that has no reader.
    """
    return READERS[find_ending(path)]


def find_ending(path: Path) -> str:
    """The one of `READERS` that a file's name ends in; errors as of `find_reader`."""
    for ending in READERS:
        if path.name.lower().endswith(ending):
            return ending
    raise DataError(
        f"{path}: files of this kind are not read; the name must end in one of {', '.join(READERS)}"
        "; plain text (.txt) is read at data.level next_token"
    )


def column_strings(frame: pd.DataFrame, column: str, path: object, field: str) -> list[str]:
    """Gives a column as strings without white space around them; a missing value is the empty string.

    Raises:
        DataError: no such column, or text that is no valid Unicode.
    """
    if column not in frame.columns:
        there = ", ".join(map(str, frame.columns))
        raise DataError(f"{path}: there is no column {column!r}; the file has {there}: set `{field}` to one of them")
    for row, value in enumerate(frame[column], start=1):
        if isinstance(value, bytes | dict | list):
            raise DataError(f"{path}: row {row} of column {column!r} is a {type(value).__name__}; text is expected")
    values = ["" if _is_missing(value) else str(value).strip() for value in frame[column].tolist()]
    for row, value in enumerate(values, start=1):
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            raise DataError(f"{path}: row {row} of column {column!r} holds half a surrogate pair; correct the text")
    return values


def _is_missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def _read_csv(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, na_filter=False)


def _read_tsv(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, sep="\t", dtype=str, na_filter=False, quoting=csv.QUOTE_NONE)


def _read_json_lines(path: Path) -> pd.DataFrame:
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        return pd.DataFrame(_objects(lines), dtype=object)


def _objects(lines: IO[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number} is no JSON ({error.msg} at character {error.colno})") from error
        if not isinstance(value, dict):
            raise ValueError(f"line {number} is a JSON {type(value).__name__}, not an object such as {{...}}")
        yield value


def _read_parquet(path: Path) -> pd.DataFrame:
    return pd.read_parquet(path)


READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".csv": _read_csv,
    ".csv.gz": _read_csv,
    ".tsv": _read_tsv,
    ".tsv.gz": _read_tsv,
    ".jsonl": _read_json_lines,
    ".jsonl.gz": _read_json_lines,
    ".parquet": _read_parquet,
}
"""What is read, by the ending of the file's name."""
