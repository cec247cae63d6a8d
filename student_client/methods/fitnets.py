"""FitNets (arXiv 1412.6550): the student's state, through a regressor, learns the teacher's as a hint."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from student_client.losses import hint_error
from student_client.methods.method import Context, Method, Seen, Terms
from student_client.methods.projection import linear, masked_mean
from student_client.methods.served import means
from student_client.teachers.teachers import Teachers
from task_data import Batch

__all__ = ["FitNets"]


class FitNets(Method):
    """|| r(mean H^g) - mean H^h ||^2 with a learned linear r, beside the task loss.

    Romero et al. 2014 train middle layers first and the whole student afterwards. Ours is one stage, of states pooled
    over their tokens (the two sides' tokens differ), at the exit taps unless the settings say otherwise.
    """

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.settings = context.config.fitnets
        self.hint = means(context.cards[0], self.settings.layer)
        self.regressor = linear(context.student.width, self.hint.width, torch.Generator().manual_seed(context.seed))

    @property
    def is_active(self) -> bool:
        """Whether the term has a weight."""
        return self.settings.weight > 0

    @property
    def observed(self) -> Mapping[int, tuple[str, ...]]:
        """The foundation teacher's mean state at the hint layer."""
        return {0: (self.hint.port,)}

    def terms(self, seen: Seen, batch: Batch, teachers: Teachers) -> Terms:
        """The error to the hint."""
        terms, settings = Terms(), self.settings
        hint = teachers.first.observe(batch, self.observed[0])[self.hint.port].squeeze(1)  # [batch, d_h]
        guided = self.regressor(masked_mean(seen.upper if settings.at == "upper" else seen.lower))
        terms.add("fitnets", settings.weight, hint_error(guided, hint, normalise=settings.normalise))
        return terms
