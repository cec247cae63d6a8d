"""What is asked about the data: which, what of it has a label, and in which columns; knows no teacher and no method."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from student_client.init.questions import NONE, Asker, one_of
from task_data.config import Level
from task_data.flags import data_fields
from teaching_protocol.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ask_data"]

_TEXT_ENDINGS = (".txt", ".txt.gz")
_BLOCK_BYTES = 480


def ask_data(asker: Asker, given: Mapping[str, str | None]) -> dict[str, Any]:
    """The data set, and of a file what has a label, its columns, and how many rows go where.

    Args:
        asker: asks for what is None.
        given: flags by name: data, level, and the names of columns.
    """
    found: dict[str, Any] = asker.ask(
        "Data set, or a file of yours", "--data", given["data"], "reuters_r8", data_fields
    )
    if found["data.name"] != "file":
        return found
    path = Path(found["data.path"])
    if path.is_dir():
        return found | {f"data.{name}": value for name, value in given.items() if value and name != "data"}
    table = None if path.name.lower().endswith(_TEXT_ENDINGS) else _table(path)
    from student_client.init.proposals import propose_level

    level = asker.ask(
        "What has a label: row, token, or next_token (the text is its own)",
        "--level",
        given["level"],
        propose_level(None if table is None else _lists(table)),
        one_of("--level", get_args(Level) if table is not None else ("next_token",)),
    )
    if level == "next_token":
        return found | {"data.level": level} | _text(asker, given, path, table)
    assert table is not None, "plain text is read at one level only"
    columns = _tokens if level == "token" else _rows
    return found | ({} if level == "row" else {"data.level": level}) | columns(asker, given, path, table)


def _table(path: Path) -> pd.DataFrame:
    from task_data.tables import read_table

    return read_table(path)


def _lists(table: pd.DataFrame) -> dict[str, list[list[str]]]:
    """The columns of lists, as text."""
    return {
        str(name): [list(map(str, cell)) for cell in table[name]]
        for name in table.columns
        if all(isinstance(cell, list | tuple) or type(cell).__name__ == "ndarray" for cell in table[name])
    }


def _text(asker: Asker, given: Mapping[str, str | None], path: Path, table: pd.DataFrame | None) -> dict[str, Any]:
    """Text that is packed into blocks."""
    from student_client.init.proposals import propose_rows
    from task_data.text_files import packed, read_lines

    if table is None:
        return propose_rows(sum(1 for _ in packed(read_lines(path), _BLOCK_BYTES)))
    cells = {str(name): [str(cell) for cell in table[name]] for name in table.columns}
    likely = "text" if "text" in cells else max(cells, key=lambda name: sum(map(len, cells[name])))
    text = _column(asker, "Column of the texts", "--text-column", given["text_column"], likely, table)
    return {"data.text_column": text, **propose_rows(sum(1 for _ in packed(cells[text], _BLOCK_BYTES)))}


def _tokens(asker: Asker, given: Mapping[str, str | None], path: Path, table: pd.DataFrame) -> dict[str, Any]:
    """Columns of lists."""
    from student_client.init.proposals import propose_rows, propose_tags

    lists = _lists(table)
    if len(lists) < 2:
        raise ConfigError(
            f"--level: received token, but {path} has {len(lists)} columns of lists, expected one of tokens and one of their "
            "labels, as JSON-lines and Parquet files have them"
        )
    tokens, tags = propose_tags(lists)
    return {
        "data.tokens_column": _column(
            asker, "Column of the tokens", "--tokens-column", given["tokens_column"], tokens, table
        ),
        "data.tags_column": _column(
            asker, "Column of their labels", "--tags-column", given["tags_column"], tags, table
        ),
        **propose_rows(len(table)),
    }


def _rows(asker: Asker, given: Mapping[str, str | None], path: Path, table: pd.DataFrame) -> dict[str, Any]:
    """A column of texts, and one of labels; where a cell seems to have several, what stands between them."""
    from student_client.init.proposals import propose_columns, propose_rows, propose_separator

    if len(table.columns) < 2:
        raise ConfigError(f"--data: {path} has one column only, expected one of texts and one of labels")
    cells = {str(name): [str(cell) for cell in table[name]] for name in table.columns}
    text, label = propose_columns(cells)  # a label may be a list of several
    found: dict[str, Any] = {
        "data.text_column": _column(asker, "Column of the texts", "--text-column", given["text_column"], text, table),
        "data.label_column": _column(
            asker, "Column of the labels", "--label-column", given["label_column"], label, table
        ),
    }
    between = (
        None if found["data.label_column"] in _lists(table) else propose_separator(cells[found["data.label_column"]])
    )
    if between or given["label_separator"]:
        question = f"What stands between several labels of a row, or {NONE}"
        said = asker.ask(question, "--label-separator", given["label_separator"], between or NONE, str)
        found |= {} if said == NONE else {"data.label_separator": said}
    return found | propose_rows(len(table))


def _column(asker: Asker, question: str, flag: str, given: str | None, likely: str, table: pd.DataFrame) -> str:
    return asker.ask(question, flag, given, likely, one_of(flag, tuple(map(str, table.columns))))
