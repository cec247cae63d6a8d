"""Soft labels (arXiv 1503.02531): the student learns what the teacher itself predicts for the task."""

from __future__ import annotations

from collections.abc import Mapping

from student_client.method_config import MethodConfig
from student_client.methods.method import Context, Method, Seen, Terms
from student_client.methods.responses import response_for
from student_client.teachers.teachers import Teachers
from task_data import Batch, Task

__all__ = ["SoftLabels"]


class SoftLabels(Method):
    """T^2 KL(softmax(y_h / T) || softmax(y / T)) on all rows, of sigmoids for several labels; a regression: (y - y_h)^2.

    Hinton et al. 2015. The teacher needs a head for the task. Where tokens have labels it is the mean over tokens, and
    both sides make the same tokens of a text; of next tokens the teacher's k likeliest are compared, and the rest as
    one class, or all of them where its head is held here (see `responses`).
    """

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.settings = context.config.soft_labels
        self.response = response_for(self.settings, context.student, context.cards[0])

    @classmethod
    def compares_tokens(cls, config: MethodConfig, task: Task) -> bool:
        """Where tokens have labels."""
        return task.level != "row"

    @property
    def is_active(self) -> bool:
        """Whether the term has a weight."""
        return self.settings.weight > 0

    @property
    def observed(self) -> Mapping[int, tuple[str, ...]]:
        """What the foundation teacher predicts."""
        return {0: self.response.ports}

    def terms(self, seen: Seen, batch: Batch, teachers: Teachers) -> Terms:
        """The divergence from the teacher's prediction."""
        terms = Terms()
        known = teachers.first.observe(batch, self.response.ports)
        terms.add("soft_labels", self.settings.weight, self.response.loss(seen, batch, known))
        return terms
