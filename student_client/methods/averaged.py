"""Averaged teachers: the naive committee, in which every teacher counts the same."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from student_client.losses import averaged_soft_targets, hint_error
from student_client.methods.method import Context, Method, Seen, Terms
from student_client.methods.projection import linear, masked_mean
from student_client.methods.served import has_head, means, require_head
from student_client.teachers.teachers import Teachers
from task_data import Batch

__all__ = ["Averaged"]


class Averaged(Method):
    """Soft labels of the mean prediction of all teachers, and the mean of their FitNets errors.

    The negative control of a committee (ours). Teachers without a head for the task have no part in the soft labels;
    where none has one, the features are all there is.
    """

    asks_all = True
    predicts_rows = True

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.settings = settings = context.config.averaged
        cards, task = context.cards, context.student.task
        if settings.w_labels and not settings.w_features and not any(has_head(card, task) for card in cards):
            require_head(cards[0], task)
        self.predicting = [place for place, card in enumerate(cards) if settings.w_labels and has_head(card, task)]
        self.hints = [means(card) for card in cards]
        draw = torch.Generator().manual_seed(context.seed)
        self.regressors = nn.ModuleList(linear(context.student.width, hint.width, draw) for hint in self.hints)

    @property
    def is_active(self) -> bool:
        """Whether any of the two terms has a weight."""
        return self.settings.w_labels > 0 or self.settings.w_features > 0

    @property
    def observed(self) -> Mapping[int, tuple[str, ...]]:
        """Of every teacher: its logits where they are about the task, and its mean exit state."""
        wanted = {}
        for place, hint in enumerate(self.hints):
            labels = ("logits",) if place in self.predicting else ()
            features = (hint.port,) if self.settings.w_features else ()
            if labels or features:
                wanted[place] = labels + features
        return wanted

    def terms(self, seen: Seen, batch: Batch, teachers: Teachers) -> Terms:
        """The divergence from the mean prediction, and the mean error to the hints."""
        terms, settings = Terms(), self.settings
        found = {place: teachers[place].observe(batch, ports) for place, ports in self.observed.items()}
        if self.predicting:
            logits = [found[place]["logits"] for place in self.predicting]
            loss = averaged_soft_targets(
                seen.outputs, logits, temperature=settings.temperature, independent=seen.is_multi_label
            )
            terms.add("averaged_labels", settings.w_labels, loss)
        if settings.w_features:
            ours, errors = masked_mean(seen.upper), []
            for place, hint in enumerate(self.hints):
                theirs = found[place][hint.port].squeeze(1)  # [batch, d_h]
                errors.append(hint_error(self.regressors[place](ours), theirs, normalise=settings.normalise))
            terms.add("averaged_features", settings.w_features, torch.stack(errors).mean())
        return terms
