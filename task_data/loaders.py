"""Every data set by its name; draws no batch."""

from __future__ import annotations

from collections.abc import Callable

from task_data.config import DataConfig
from task_data.digits import load_digits
from task_data.fashion_mnist import load_fashion_mnist
from task_data.files import load_file, load_sentence_polarity
from task_data.glue import load_glue
from task_data.hub import load_named
from task_data.mnist import load_mnist
from task_data.movielens import load_movielens
from task_data.orange import load_newsgroups, load_reuters_r8
from task_data.spam_assassin import load_spam_assassin
from task_data.splits import TaskData
from task_data.streaming import load_stream
from task_data.uci_sentiment import load_uci_sentiment
from teaching_protocol.errors import DataError

__all__ = ["LOADERS", "load_data"]

LOADERS: dict[str, Callable[[DataConfig], TaskData]] = {
    "newsgroups": load_newsgroups,
    "reuters_r8": load_reuters_r8,
    "uci_sentiment": load_uci_sentiment,
    "sentence_polarity": load_sentence_polarity,
    "spam_assassin": load_spam_assassin,
    "glue": load_glue,
    "movielens": load_movielens,
    "digits": load_digits,
    "mnist": load_mnist,
    "fashion_mnist": load_fashion_mnist,
    "file": load_file,
}
"""Every data set by the name a config calls it."""


def load_data(config: DataConfig) -> TaskData:
    """Gives the data set a config names, split by its seed; the same config gives the same splits.

    Raises:
        DataError: a file or package that cannot be had or read, or rows that cannot be used.
    """
    if config.level != "row" and (config.name != "file" or config.streaming):
        where = "a stream" if config.streaming else f"the data set {config.name}"
        raise DataError(
            f"data.level: received {config.level!r} with {where}, which has a label for each row; "
            "tokens and plain text come from files: set data.name to file, and data.path, and leave data.streaming away"
        )
    if config.streaming:
        return load_stream(config)
    return LOADERS.get(config.name, load_named)(config)
