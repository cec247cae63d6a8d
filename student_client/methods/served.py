"""What a teacher's card says it serves, held against what a method needs; asks no teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from student_models import Student
from task_data import Task
from teaching_protocol.errors import IncompatibleTeacher
from teaching_protocol.verbs import DescribeReply

__all__ = [
    "MULTI_LABEL_HEAD",
    "Means",
    "has_head",
    "means",
    "require_head",
    "require_port",
    "require_tokenizer",
]

MULTI_LABEL_HEAD = "multi_label_classification"
"""What a card calls a head whose classes are independent of each other."""

_MEANS = "hidden.<layer>.mean<"
_NAMED = 12


@dataclass(frozen=True)
class Means:
    """A port `hidden.<layer>.mean<tokens>` and the width of its vectors [batch, tokens, width]."""

    port: str
    width: int


def means(card: DescribeReply, layer: int | None = None, tokens: int = 1) -> Means:
    """The teacher's states at a layer as means of `tokens` even segments; layer None takes its exit layer.

    Raises:
        IncompatibleTeacher: it has not that layer, or does not serve such means; the text names the port.
    """
    layer = card.exit if layer is None else layer
    port = f"hidden.{layer}.mean{tokens}"
    if not any(served.startswith(_MEANS) for served in card.output_ports):
        raise IncompatibleTeacher(_missing(card, port))
    if layer > card.layers or tokens > card.limits.tokens:
        raise IncompatibleTeacher(
            f"{port!r} is not served: the teacher {card.model_name} has layers 0 to {card.layers} and gives up to "
            f"{card.limits.tokens} tokens; choose a layer and a number of tokens among them"
        )
    return Means(port, card.widths[layer])


def require_port(card: DescribeReply, port: str) -> str:
    """The port itself.

    Raises:
        IncompatibleTeacher: the teacher does not serve it.
    """
    if port not in card.output_ports:
        raise IncompatibleTeacher(_missing(card, port))
    return port


def has_head(card: DescribeReply, task: Task) -> bool:
    """Whether the teacher's `logits` are about the task: the same labels in the same order, one or several of them true
    at a time as in the task, or a number as it is."""
    if not card.heads or "causal_lm" in card.heads or "logits" not in card.output_ports:
        return False
    if (MULTI_LABEL_HEAD in card.heads) != task.is_multi_label:
        return False
    if ("token_classification" in card.heads) != (task.level == "token"):
        return False
    return len(card.labels) <= 1 if task.is_regression else tuple(card.labels) == task.labels


def require_head(card: DescribeReply, task: Task) -> None:
    """Refuses a teacher whose `logits` are not about the task.

    Raises:
        IncompatibleTeacher: with the labels it has, the labels expected, and what to do.
    """
    if has_head(card, task):
        return
    if not card.heads or "causal_lm" in card.heads:
        received = f"received {' and '.join(card.heads) or 'no head'}"
    else:
        whose = " of tokens" if "token_classification" in card.heads else ""
        several = ", any number of which may be true" if MULTI_LABEL_HEAD in card.heads else ""
        received = f"received the labels {_listed(card.labels) or 'of a regression'}{whose}{several}"
    expected = "one predicted number" if task.is_regression else f"the labels {_listed(task.labels)}, in this order"
    expected += ", of which any number may be true" if task.is_multi_label else ""
    expected += " and of each token" if task.level == "token" else ""
    how = (
        "train a head on this data by `teacher-server finetune --model ... --data ... --out FOLDER` and serve that folder"
        if task.level == "row"
        else "serve a model for token classification with these labels, or a student trained on this data"
    )
    raise IncompatibleTeacher(
        f"`logits` of the teacher {card.model_name}: {received}, expected {expected} (task {task.name}); {how}, or choose "
        "a method that needs no head"
    )


def require_tokenizer(card: DescribeReply, student: Student) -> None:
    """Refuses a teacher that makes other tokens of a text than the student, where both are compared token by token.

    Raises:
        IncompatibleTeacher: with both tokenizers, and what to do.
    """
    if card.tokenizer_hash and card.tokenizer_hash == student.tokenizer_hash:
        return
    raise IncompatibleTeacher(
        f"the teacher {card.model_name} has the tokenizer {card.tokenizer_hash[:12] or '(none)'}, the student "
        f"{student.tokenizer_hash[:12] or '(none)'}, and each token's prediction is compared with the same token's; begin the "
        "student with the teacher's: set student.tokenizer to the name or folder of the teacher's model, or student.pretrained "
        "to that model with student.keep_every; or choose a method that compares no tokens: fitnets, rkd, pkd, minilm, talking"
    )


def _missing(card: DescribeReply, port: str) -> str:
    return (
        f"{port!r} is not served by the teacher {card.model_name}, which serves {', '.join(card.output_ports)}; serve a "
        "teacher that has it, or choose another method"
    )


def _listed(labels: Sequence[str]) -> str:
    rest = f" and {len(labels) - _NAMED} more" if len(labels) > _NAMED else ""
    return ", ".join(labels[:_NAMED]) + rest
