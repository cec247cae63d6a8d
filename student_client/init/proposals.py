"""What a user's file and a teacher's card propose for a first configuration: pure choices; asks nobody, reads nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from task_data.config import Level
from teaching_protocol.errors import IncompatibleTeacher
from teaching_protocol.verbs import DescribeReply

__all__ = [
    "MODALITIES",
    "propose_columns",
    "propose_level",
    "propose_method",
    "propose_rows",
    "propose_separator",
    "propose_session",
    "propose_tags",
    "said_of",
]

MODALITIES: Mapping[str, str] = {"digits": "image", "mnist": "image", "fashion_mnist": "image"}
"""What a teacher is shown of a data set, by its name; all others are texts."""

_GRIDS = ("efficientnet", "resnet")
_GRID_TOKENS = 16
_PART = 0.15
_SEPARATORS = (";", "|")
_HEAR_LABELS = ("one_way", "talking")
_LABELLED, _UNLABELLED, _VALIDATION = 300, 1500, 500


def propose_columns(columns: Mapping[str, Sequence[str]]) -> tuple[str, str]:
    """The columns that look like text and label: by their names, else the longest values and the fewest kinds of them.

    Args:
        columns: the values of each, by name; two columns at least.
    """
    text = "text" if "text" in columns else max(columns, key=lambda name: sum(map(len, columns[name])))
    others = [name for name in columns if name != text]
    label = "label" if "label" in others else min(others, key=lambda name: len(set(columns[name])))
    return text, label


def propose_level(lists: Mapping[str, Sequence[Sequence[str]]] | None) -> Level:
    """What has a label: the tokens, where two columns of lists have as many in every row; of plain text, what comes next.

    Args:
        lists: the columns of lists by name; None of plain text.
    """
    if lists is None:
        return "next_token"
    lengths = [tuple(map(len, each)) for each in lists.values()]
    return "token" if len(lengths) > len(set(lengths)) else "row"


def propose_tags(lists: Mapping[str, Sequence[Sequence[str]]]) -> tuple[str, str]:
    """The columns of lists that look like tokens and their labels: by their names, else the most kinds and the fewest.

    Args:
        lists: the columns of lists by name; two at least.
    """
    kinds = {name: len({value for row in rows for value in row}) for name, rows in lists.items()}
    tokens = next((name for name in ("tokens", "words") if name in kinds), max(kinds, key=kinds.__getitem__))
    others = {name: count for name, count in kinds.items() if name != tokens}
    return tokens, "tags" if "tags" in others else min(others, key=others.__getitem__)


def propose_separator(cells: Sequence[str]) -> str | None:
    """What seems to stand between several labels of a cell: then there are fewer labels than kinds of cells."""
    for separator in _SEPARATORS:
        parts = {part.strip() for cell in cells for part in cell.split(separator)}
        if any(separator in cell for cell in cells) and len(parts) < len(set(cells)):
            return separator
    return None


def propose_method(names: Sequence[str], level: Level) -> dict[str, Any]:
    """What methods need to be told for a level: of tokens, labels are not read in an answer about the whole row."""
    if level == "row" or not any(name in _HEAR_LABELS for name in names):
        return {}
    return {"method.w_answer_task": 0.0, "method.w_answer_labels": 0.0}


def propose_rows(rows: int) -> dict[str, int]:
    """How many of a file's rows are labelled, unlabelled and for validation, after the fifth that is for the test.

    A long file is taken as the defaults have it; of a short one 15 in 100 validate, and all others keep their label.
    """
    left = rows - rows // 5
    validation = min(_VALIDATION, max(1, round(_PART * rows)))
    labelled = min(_LABELLED, max(1, left - validation))
    return {
        "data.labelled": labelled,
        "data.unlabelled": min(_UNLABELLED, max(0, left - validation - labelled)),
        "data.validation": validation,
    }


def propose_session(card: DescribeReply, modality: str, batch_size: int, message_width: int) -> dict[str, Any]:
    """Entry, exit, rows and messages that this teacher takes, as near to the defaults as it allows.

    Args:
        card: of the teacher.
        modality: what it is to be shown: text or image.
        batch_size, message_width: the defaults.

    Raises:
        IncompatibleTeacher: it does not take such data.
    """
    if modality not in card.input_ports:
        takes = ", ".join(card.input_ports) or "nothing"
        raise IncompatibleTeacher(
            f"the data are {modality}, but {card.model_name} takes {takes}; choose other data (--data) or another "
            "teacher (--teacher)"
        )
    found: dict[str, Any] = {
        "teacher.entry": card.entry,
        "teacher.exit": card.exit,
        "training.batch_size": min(batch_size, card.limits.rows),
        "method.message_width": min(message_width, card.limits.message_width),
    }
    if card.family in _GRIDS:  # a grid of one token is too small for the strides behind the entry
        found["method.message_tokens"] = min(_GRID_TOKENS, card.limits.tokens)
    return found


def said_of(card: DescribeReply) -> str:
    """The card in one sentence."""
    knows = f", knows {', '.join(card.labels[:6])}" if card.labels else ""
    return (
        f"{card.model_name} ({card.family}, {card.layers} layers{knows}); messages enter at layer {card.entry} and are "
        f"answered at {card.exit}; up to {card.limits.rows} rows a call"
    )
