"""What a teacher answers about a task, and how far the student is from it: of rows, of tokens, of next tokens; asks nobody."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import nn

from student_client.losses import shared_head_kl, soft_targets, token_kl, top_kl
from student_client.method_config import SoftLabelsConfig
from student_client.methods.method import Seen
from student_client.methods.served import require_head, require_tokenizer
from student_models import Student
from student_models.language_head import hash_of_head, read_head
from task_data import IGNORED, Batch
from teaching_protocol.errors import IncompatibleTeacher
from teaching_protocol.verbs import DescribeReply

__all__ = ["Response", "response_for"]

Known = Mapping[str, torch.Tensor]

_STATE = "last_hidden_state"


class Response(nn.Module, ABC):
    """Response knowledge of one form.

    Attributes:
        ports: what it must know of the teacher.
    """

    ports: tuple[str, ...] = ("logits",)

    def __init__(self, settings: SoftLabelsConfig) -> None:
        super().__init__()
        self.temperature = settings.temperature

    @abstractmethod
    def loss(self, seen: Seen, batch: Batch, known: Known) -> torch.Tensor:
        """How far the student's prediction is from the teacher's; `known` holds the ports."""


class OfRows(Response):
    """A prediction a row: T^2 KL of softened logits, of each label by itself where a row may have several, or the squared error of predicted targets."""

    def loss(self, seen: Seen, batch: Batch, known: Known) -> torch.Tensor:
        """The divergence on all rows."""
        return soft_targets(
            seen.outputs, known["logits"], temperature=self.temperature, independent=seen.is_multi_label
        )


class OfTokens(Response):
    """A prediction a token: T^2 KL on every token that could have a label, of all rows."""

    def loss(self, seen: Seen, batch: Batch, known: Known) -> torch.Tensor:
        """The divergence, of tokens that both sides have alike."""
        return token_kl(seen.outputs, known["logits"], batch.labels != IGNORED, temperature=self.temperature)


class OfLikeliest(Response):
    """The k likeliest next tokens, exact, and all others as one more class."""

    def __init__(self, settings: SoftLabelsConfig) -> None:
        super().__init__(settings)
        percent = round(100 * settings.temperature)
        self.temperature = percent / 100
        self.ports = (f"logprobs.top{settings.top}.t{percent}", f"tokens.top{settings.top}")

    def loss(self, seen: Seen, batch: Batch, known: Known) -> torch.Tensor:
        """The divergence over k + 1 classes, wherever a token follows."""
        logprobs, places = (known[port] for port in self.ports)
        mask = batch.labels != IGNORED
        return top_kl(seen.outputs, logprobs, places, mask, temperature=self.temperature)


class BySharedHead(Response):
    """All of the vocabulary: the teacher sends its last hidden state, and its head is held here, frozen."""

    ports = (_STATE,)
    head: torch.Tensor

    def __init__(self, settings: SoftLabelsConfig, card: DescribeReply) -> None:
        super().__init__(settings)
        assert settings.head is not None, "asked for"
        head = read_head(settings.head)
        if hash_of_head(head) != card.head_hash:
            raise IncompatibleTeacher(
                f"method.soft_labels.head: the head of {settings.head} is {hash_of_head(head)[:12]}, that of the teacher "
                f"{card.model_name} {card.head_hash[:12] or '(not on its card)'}; give the name or folder of the model that is "
                "served, or leave it away: the likeliest tokens are sent then"
            )
        self.register_buffer("head", head.float(), persistent=False)  # the teacher's: no part of a checkpoint

    def loss(self, seen: Seen, batch: Batch, known: Known) -> torch.Tensor:
        """The divergence over the vocabulary, wherever a token follows."""
        mask = batch.labels != IGNORED
        return shared_head_kl(seen.outputs, known[_STATE], self.head, mask, temperature=self.temperature)


def response_for(settings: SoftLabelsConfig, student: Student, card: DescribeReply) -> Response:
    """The form that a student's task has.

    Raises:
        IncompatibleTeacher: the teacher has no head for the task, makes other tokens of a text, or has another head than is held.
    """
    if student.task.level == "row":
        require_head(card, student.task)
        return OfRows(settings)
    if student.task.level == "token":
        require_head(card, student.task)
        require_tokenizer(card, student)
        return OfTokens(settings)
    _require_language_model(card)
    require_tokenizer(card, student)
    if card.vocabulary_size != student.vocabulary_size:
        raise IncompatibleTeacher(
            f"the teacher {card.model_name} predicts {card.vocabulary_size} tokens, the student {student.vocabulary_size}; begin "
            "the student with the teacher's model: student.tokenizer or student.pretrained"
        )
    return OfLikeliest(settings) if settings.head is None else BySharedHead(settings, card)


def _require_language_model(card: DescribeReply) -> None:
    wanted = "logprobs.top<k>"
    if "causal_lm" not in card.heads or wanted not in card.output_ports:
        raise IncompatibleTeacher(
            f"{wanted!r} is not served by the teacher {card.model_name} (heads: {', '.join(card.heads) or 'none'}), which "
            f"serves {', '.join(card.output_ports)}; serve a causal language model, such as --model smollm2, or choose a method "
            "that needs no head"
        )
