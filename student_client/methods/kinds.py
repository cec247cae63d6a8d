"""The kinds of knowledge that can be selected, each with its ports and its loss; knows no weight and no policy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import nn

from student_client.losses import flow_error, hint_error, soft_targets, task_loss
from student_client.methods.method import Context, Seen, Terms
from student_client.methods.projection import linear, masked_mean
from student_client.methods.served import means, require_head
from student_client.methods.talking import Talking
from student_client.teachers.pausing import Pausing
from student_client.teachers.teachers import Teachers
from task_data import Batch
from teaching_protocol.errors import ConfigError, IncompatibleTeacher
from teaching_protocol.verbs import DescribeReply

__all__ = ["KINDS", "Kind", "build_kind"]

Known = Mapping[str, torch.Tensor]


class Kind(nn.Module, ABC):
    """One kind of knowledge. Its own parameters are trained with the student's.

    Raises:
        IncompatibleTeacher: the foundation teacher does not serve it; the text names the port.
    """

    ports: tuple[str, ...] = ()
    """What it must know of the foundation teacher."""
    converses = False
    """Whether it asks by messages, in a call of its own."""

    @property
    def asks(self) -> bool:
        """Whether it costs the teacher anything."""
        return bool(self.ports) or self.converses

    @abstractmethod
    def terms(self, seen: Seen, batch: Batch, teachers: Teachers, known: Known) -> Terms:
        """Its loss as terms to be summed, none where the batch holds nothing of its kind; `known` holds its ports."""

    def pausing_terms(self, seen: Seen, batch: Batch, teachers: Teachers, known: Known) -> Pausing[Terms]:
        """`terms`, with a pause wherever a teacher's answer is under way."""
        yield from ()
        return self.terms(seen, batch, teachers, known)


class FineTuning(Kind):
    """FinK: the task loss on labelled rows."""

    def __init__(self, context: Context) -> None:
        super().__init__()

    def terms(self, seen: Seen, batch: Batch, teachers: Teachers, known: Known) -> Terms:
        """The task loss; nothing where no row is labelled."""
        terms = Terms()
        if batch.labelled.any():
            terms.add("task", 1.0, task_loss(seen.outputs, batch.labels, batch.labelled))
        return terms


class Response(Kind):
    """ResK: T^2 KL(teacher || student) of softened logits; a regression: the squared error (ours)."""

    ports = ("logits",)

    def __init__(self, context: Context) -> None:
        super().__init__()
        require_head(context.cards[0], context.student.task)
        self.temperature = context.config.selection.temperature

    def terms(self, seen: Seen, batch: Batch, teachers: Teachers, known: Known) -> Terms:
        """The divergence from the teacher's prediction."""
        terms = Terms()
        loss = soft_targets(
            seen.outputs, known["logits"], temperature=self.temperature, independent=seen.is_multi_label
        )
        terms.add("response", 1.0, loss)
        return terms


class Feature(Kind):
    """FeaK: L2 between mapped layers, the student's through a learned projection.

    Ours: the layers are both sides' entry and exit taps, states are means over tokens, and LayerNormed.
    """

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.hints = [means(context.cards[0], layer) for layer in _layers(context)]
        self.ports = tuple(dict.fromkeys(hint.port for hint in self.hints))
        draw = torch.Generator().manual_seed(context.seed)
        self.projections = nn.ModuleList(linear(context.student.width, hint.width, draw) for hint in self.hints)

    def terms(self, seen: Seen, batch: Batch, teachers: Teachers, known: Known) -> Terms:
        """The mean error at the two taps."""
        terms = Terms()
        taps = zip(self.projections, (seen.lower, seen.upper), self.hints, strict=True)
        errors = [hint_error(project(masked_mean(ours)), known[hint.port].squeeze(1)) for project, ours, hint in taps]
        terms.add("feature", 1.0, torch.stack(errors).mean())
        return terms


class Relation(Kind):
    """RelK: squared error of the two sides' FSP matrices between the entry and the exit tap.

    Ours: the teacher's states are means of even segments, since tokens of two tokenizers do not align and the matrix
    sums over them, and are projected to the student's width, since a matrix of the teacher's would be large.
    """

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.means = [means(context.cards[0], layer, context.config.selection.segments) for layer in _layers(context)]
        self.ports = tuple(dict.fromkeys(each.port for each in self.means))
        draw = torch.Generator().manual_seed(context.seed)
        self.projections = nn.ModuleList(linear(each.width, context.student.width, draw) for each in self.means)

    def terms(self, seen: Seen, batch: Batch, teachers: Teachers, known: Known) -> Terms:
        """The error of the flow matrices."""
        terms = Terms()
        lower, upper = (
            project(known[each.port]) for project, each in zip(self.projections, self.means, strict=True)
        )  # [batch, segments, d_g]
        loss = flow_error((seen.lower.hidden, seen.upper.hidden), (lower, upper), seen.lower.mask)
        terms.add("relation", 1.0, loss)
        return terms


class Conversation(Kind):
    """The conversation of Talking Models as a further kind of knowledge (ours)."""

    converses = True

    def __init__(self, context: Context) -> None:
        super().__init__()
        if not context.config.is_active:
            raise ConfigError(
                "method.selection.kinds: received conversation, while all weights of its terms are 0; set "
                "method.w_interact, or leave conversation out"
            )
        self.talking = Talking(context)

    def terms(self, seen: Seen, batch: Batch, teachers: Teachers, known: Known) -> Terms:
        """All terms of the conversation."""
        return self.talking.terms(seen, batch, teachers)

    def pausing_terms(self, seen: Seen, batch: Batch, teachers: Teachers, known: Known) -> Pausing[Terms]:
        """`terms`, with a pause in every round."""
        return self.talking.pausing_terms(seen, batch, teachers)


KINDS: dict[str, type[Kind]] = {
    "fine_tuning": FineTuning,
    "response": Response,
    "feature": Feature,
    "relation": Relation,
    "conversation": Conversation,
}
"""Kinds of knowledge by name."""


def build_kind(name: str, context: Context) -> Kind:
    """One kind of knowledge.

    Raises:
        IncompatibleTeacher: the teacher does not serve it.
    """
    try:
        return KINDS[name](context)
    except IncompatibleTeacher as error:
        raise IncompatibleTeacher(
            f"the kind of knowledge {name!r} needs a port that is not there: {error}; or leave {name} out of "
            "method.selection.kinds"
        ) from error


def _layers(context: Context) -> tuple[int, int]:
    """The teacher's lower and upper layer that are compared."""
    card: DescribeReply = context.cards[0]
    return context.config.selection.teacher_layers or (card.entry, card.exit)
