"""What a user's file and a teacher's card propose for a first configuration: pure choices; asks nobody, reads nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from teaching_protocol.errors import IncompatibleTeacher
from teaching_protocol.verbs import DescribeReply

__all__ = ["MODALITIES", "propose_columns", "propose_rows", "propose_session", "said_of"]

MODALITIES: Mapping[str, str] = {"digits": "image", "mnist": "image", "fashion_mnist": "image"}
"""What a teacher is shown of a data set, by its name; all others are texts."""

_GRIDS = ("efficientnet", "resnet")
_GRID_TOKENS = 16
_PART = 0.15
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
