"""Soft labels (arXiv 1503.02531): the student learns what the teacher itself predicts for the task."""

from __future__ import annotations

from collections.abc import Mapping

from student_client.losses import soft_targets
from student_client.methods.method import Context, Method, Seen, Terms
from student_client.methods.served import require_head
from student_client.teachers import Teachers
from task_data import Batch

__all__ = ["SoftLabels"]


class SoftLabels(Method):
    """T^2 KL(softmax(y_h / T) || softmax(y / T)) on all rows, of sigmoids for several labels; a regression: (y - y_h)^2.

    Hinton et al. 2015. The teacher needs a head for the task.
    """

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.settings = context.config.soft_labels
        require_head(context.cards[0], context.student.task)

    @property
    def is_active(self) -> bool:
        """Whether the term has a weight."""
        return self.settings.weight > 0

    @property
    def observed(self) -> Mapping[int, tuple[str, ...]]:
        """The foundation teacher's logits."""
        return {0: ("logits",)}

    def terms(self, seen: Seen, batch: Batch, teachers: Teachers) -> Terms:
        """The divergence from the teacher's prediction."""
        terms, settings = Terms(), self.settings
        logits = teachers.first.observe(batch, self.observed[0])["logits"]
        loss = soft_targets(seen.outputs, logits, temperature=settings.temperature, independent=seen.is_multi_label)
        terms.add("soft_labels", settings.weight, loss)
        return terms
