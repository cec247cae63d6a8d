"""UCI Sentiment Labelled Sentences from the package that ships them; draws no splits."""

from __future__ import annotations

import json
from pathlib import Path

from task_data.assembly import TextRows, text_data
from task_data.config import DataConfig
from task_data.packages import npm_package
from task_data.splits import TaskData
from teaching_protocol.errors import DataError

__all__ = ["load_uci_sentiment"]


def load_uci_sentiment(config: DataConfig) -> TaskData:
    """Loads 3,000 sentences on products, films and restaurants; `config.path` may name a folder of the three files.

    Raises:
        DataError: the package cannot be had, or a file is not as expected.
    """
    folder = config.path or npm_package("sentiment@5.0.2", "package/test/fixtures")
    rows = [row for name in ("amazon", "imdb", "yelp") for row in _read(folder / f"{name}.json")]
    texts, labels = [text for text, _ in rows], [label for _, label in rows]
    return text_data(TextRows(texts, labels, ["train"] * len(rows)), config)


def _read(path: Path) -> list[tuple[str, str]]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        # Each file ends in an empty row whose class is null.
        return [(row["text"], ("negative", "positive")[row["class"]]) for row in rows if row["text"]]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(
            f"{path}: cannot be read as a list of {{text, class}} objects of class 0 or 1: {error!r}"
        ) from error
