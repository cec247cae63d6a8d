"""RKD (arXiv 1904.05068): the rows of a batch lie to each other as they do for the teacher."""

from __future__ import annotations

from collections.abc import Mapping

from student_client.losses import angle_relation, distance_relation
from student_client.methods.method import Context, Method, Seen, Terms
from student_client.methods.projection import masked_mean
from student_client.methods.served import require_port
from student_client.teachers.teachers import Teachers
from task_data import Batch

__all__ = ["Rkd"]


class Rkd(Method):
    """Distances and angles between rows, of the student's mean exit state and the teacher's `pooled`.

    Park et al. 2019. It needs no projection and learns no parameter of its own.
    """

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.settings = context.config.rkd
        self.port = require_port(context.cards[0], "pooled")

    @property
    def is_active(self) -> bool:
        """Whether any of the two terms has a weight."""
        return self.settings.w_distance > 0 or self.settings.w_angle > 0

    @property
    def observed(self) -> Mapping[int, tuple[str, ...]]:
        """The foundation teacher's vector of a row."""
        return {0: (self.port,)}

    def terms(self, seen: Seen, batch: Batch, teachers: Teachers) -> Terms:
        """The errors of distances and of angles."""
        terms, settings = Terms(), self.settings
        theirs = teachers.first.observe(batch, self.observed[0])[self.port]  # [batch, d_h]
        ours = masked_mean(seen.upper)
        if settings.w_distance:
            terms.add("rkd_distance", settings.w_distance, distance_relation(ours, theirs))
        if settings.w_angle:
            terms.add("rkd_angle", settings.w_angle, angle_relation(ours, theirs))
        return terms
