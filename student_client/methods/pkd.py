"""PKD (arXiv 1908.09355): the student patiently learns from several layers of the teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from student_client.losses import patient_error
from student_client.methods.method import Context, Method, Seen, Terms
from student_client.methods.projection import linear, masked_mean
from student_client.methods.served import means
from student_client.teachers.teachers import Teachers
from task_data import Batch
from teaching_protocol.errors import ConfigError

__all__ = ["Pkd", "patient_layers"]


class Pkd(Method):
    """|| s / |s| - t / |t| ||^2 between the student's layers 1 .. layers - 1 and as many of the teacher.

    Sun et al. 2019; there of the [CLS] token. Ours: the mean over real tokens, which students and sentence encoders
    pool by, and a linear layer where widths differ. Its soft labels are a method of their own, to compose with.
    """

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.settings = context.config.pkd
        student, card = context.student, context.cards[0]
        if student.layers < 2:
            raise ConfigError(
                f"pkd: received a student of {student.layers} layers, expected 2 or more, since the last one is left "
                "to the head; raise student.layers, or use fitnets"
            )
        layers = patient_layers(student.layers, card.layers, self.settings.layers)
        self.hints = [means(card, layer) for layer in layers]
        draw = torch.Generator().manual_seed(context.seed)
        same, width = nn.Identity(), student.width
        self.projections = nn.ModuleList(
            same if hint.width == width else linear(width, hint.width, draw) for hint in self.hints
        )

    @property
    def is_active(self) -> bool:
        """Whether the term has a weight."""
        return self.settings.weight > 0

    @property
    def observed(self) -> Mapping[int, tuple[str, ...]]:
        """The foundation teacher's mean states at its layers, each port once."""
        return {0: tuple(dict.fromkeys(hint.port for hint in self.hints))}

    def terms(self, seen: Seen, batch: Batch, teachers: Teachers) -> Terms:
        """The error of all pairs of layers."""
        terms = Terms()
        found = teachers.first.observe(batch, self.observed[0])
        theirs = [found[hint.port].squeeze(1) for hint in self.hints]  # [batch, d_h] each
        between = zip(self.projections, seen.states[1:-1], strict=True)
        ours = [project(masked_mean(states)) for project, states in between]
        terms.add("pkd", self.settings.weight, patient_error(ours, theirs))
        return terms


def patient_layers(student: int, teacher: int, which: str) -> Sequence[int]:
    """The teacher's layer (1 .. `teacher`) for each of the student's layers 1 .. `student` - 1.

    `skip` spreads them evenly: floor(j teacher / student), such as 2, 4, 6, 8, 10 for 12 and 6 layers. `last` takes
    those before the last: 7, 8, 9, 10, 11. Of a teacher with too few layers the first serves several times (ours).
    """
    if which == "skip":
        return [max(1, j * teacher // student) for j in range(1, student)]
    return [max(1, teacher - student + j) for j in range(1, student)]
