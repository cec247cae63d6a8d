"""MiniLM (arXiv 2002.10957): tokens relate to each other as they do for the teacher."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from student_client.losses import self_relation_kl
from student_client.methods.method import Context, Method, Seen, Terms
from student_client.methods.projection import segment_means
from student_client.methods.served import means
from student_client.teachers.teachers import Teachers
from student_models import RatingsStudent
from task_data import Batch
from teaching_protocol.errors import ConfigError

__all__ = ["MiniLM"]


class MiniLM(Method):
    """KL(R(teacher) || R(student)), R(A) = softmax(A A^T / sqrt(d_r)) for each relation head.

    Wang et al. 2020, relation heads as in MiniLMv2 (arXiv 2012.15828). Ours: hidden states stand for the values of the
    attention; tokens of two tokenizers cannot be paired, so both sides' are pooled to the same number of segments; a
    student of one token has no relation between tokens, and with one segment the rows of the batch are related instead.
    """

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.settings = context.config.minilm
        student, heads = context.student, self.settings.relation_heads
        self.tokens = 1 if isinstance(student, RatingsStudent) else self.settings.tokens
        self.means = means(context.cards[0], self.settings.layer, self.tokens)
        if student.width % heads or self.means.width % heads:
            raise ConfigError(
                f"method.minilm.relation_heads: received {heads}, expected a divisor of the student's width "
                f"{student.width} and of the teacher's {self.means.width} at {self.means.port}; set another number"
            )

    @property
    def is_active(self) -> bool:
        """Whether the term has a weight."""
        return self.settings.weight > 0

    @property
    def observed(self) -> Mapping[int, tuple[str, ...]]:
        """The foundation teacher's segment means at the layer."""
        return {0: (self.means.port,)}

    def terms(self, seen: Seen, batch: Batch, teachers: Teachers) -> Terms:
        """The divergence of the relations between segments, or between rows."""
        terms = Terms()
        theirs = teachers.first.observe(batch, self.observed[0])[self.means.port]  # [batch, tokens, d_h]
        pooled = segment_means(seen.upper, self.tokens)
        ours, mask = pooled.hidden, pooled.mask
        if self.tokens == 1:
            ours, theirs, mask = (torch.transpose(each, 0, 1) for each in (ours, theirs, mask))  # [1, batch, width]
        loss = self_relation_kl(ours, theirs, mask, heads=self.settings.relation_heads)
        terms.add("minilm", self.settings.weight, loss)
        return terms
