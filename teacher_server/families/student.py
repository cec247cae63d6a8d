"""Trained students of `student_models`, served as teachers; knows no transformers architecture of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch

from student_models import ImageStudent, LayeredStudent, States, TextStudent
from student_models.tokenizer import PADDING
from teacher_server.families.family import Family, LayerSpan
from teacher_server.families.inputs import TextInputs
from teacher_server.families.masks import hides_tokens
from teacher_server.families.pooling import segment_means
from teacher_server.families.student_inputs import ExactImageInputs, RatingsInputs
from teaching_protocol.errors import InvalidTensor

__all__ = ["ImageStudentFamily", "RatingsStudentFamily", "StudentFamily", "TextStudentFamily"]


class StudentFamily(Family):
    """A student, cut at its layers; pooled by the mean over real tokens, as its own head pools.

    Args:
        student: as `load_student` gives it.
    """

    classifier: ClassVar[str]
    """Name of its head where it has classes; a student without classes has a `regression`."""

    def __init__(self, student: LayeredStudent) -> None:
        self.student = student

    @property
    def name(self) -> str:
        """Such as `text_student`."""
        return f"{self.modality}_student"

    @property
    def layers(self) -> int:
        """Number of layers."""
        return self.student.layers

    @property
    def widths(self) -> tuple[int, ...]:
        """The student's one width, at every cut."""
        return (self.student.width,) * (self.layers + 1)

    @property
    def heads(self) -> tuple[str, ...]:
        """The student's head."""
        task = self.student.task
        if task.level == "token":
            return ("token_classification",)
        own = {"regression": "regression", "multi_label": "multi_label_classification"}
        return (own.get(task.kind, self.classifier),)

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes it was trained on, in order; empty for a regression."""
        return self.student.task.labels

    def embed(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The student's embedding."""
        return self.student.embed(inputs).hidden

    def run(self, states: torch.Tensor, mask: torch.Tensor | None, span: LayerSpan) -> torch.Tensor:
        """Runs the layers of `span`; see `Family.run`."""
        if mask is None:
            mask = self.own_mask({}, states)
        return self.student.run(States(states, mask), span.start, span.stop).hidden

    def logits(
        self, inputs: Mapping[str, torch.Tensor], cuts: Sequence[int]
    ) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """The student's outputs: [batch, classes], [batch, 1] predicted targets, or [batch, tokens, classes]."""
        found = self.climb(inputs, [*cuts, self.layers])
        last = found[self.layers]
        outputs = self.student.head(States(last, self.own_mask(inputs, last)))
        return outputs[:, None] if outputs.dim() == 1 else outputs, found


class TextStudentFamily(StudentFamily):
    """A text student with its own tokenizer."""

    classifier = "sequence_classification"
    student: TextStudent

    def __init__(self, student: TextStudent) -> None:
        super().__init__(student)
        self.tokenizer = student.tokenizer

    @property
    def vocabulary_size(self) -> int:
        """Words its tokenizer knows."""
        return int(self.student.tokenizer.get_vocab_size())

    @property
    def max_tokens(self) -> int | None:
        """The length of its position table."""
        return self.student.card.sizes["max_tokens"]

    def build_inputs(self) -> TextInputs:
        """Reads texts as the student does, and ids of its tokenizer."""
        padding = self.student.tokenizer.token_to_id(PADDING)
        assert padding is not None, "a student's tokenizer pads with it"
        return TextInputs(self._tokenize, self.vocabulary_size, padding, padding, self.max_tokens)

    def _tokenize(self, texts: Sequence[str], limit: int) -> Sequence[Sequence[int]]:
        view = self.student.view({"text": texts})
        rows = zip(view["input_ids"], view["attention_mask"], strict=True)
        return [ids[mask][:limit].tolist() for ids, mask in rows]


class RatingsStudentFamily(StudentFamily):
    """A ratings student: one token a row; of a longer message it takes each token by itself."""

    modality = "ratings"
    classifier = "classification"

    def build_inputs(self) -> RatingsInputs:
        """Reads `user` and `item`."""
        return RatingsInputs(self.student.view)


class ImageStudentFamily(StudentFamily):
    """An image student: the cells of its grid are the tokens, row by row."""

    modality = "image"
    classifier = "image_classification"
    takes_padding = False
    student: ImageStudent

    def build_inputs(self) -> ExactImageInputs:
        """Reads `image` of the shape it was trained on."""
        sizes = self.student.card.sizes
        return ExactImageInputs((sizes["channels"], sizes["image_height"], sizes["image_width"]))

    def run(self, states: torch.Tensor, mask: torch.Tensor | None, span: LayerSpan) -> torch.Tensor:
        """Runs the layers of `span` on the student's own grid.

        Another number of tokens is laid out over its cells by even segments (ours): cell c of n takes the tokens from
        floor(c t / n) to ceil((c + 1) t / n), so that one token speaks for every cell. The states that come out
        are those of the cells.

        Raises:
            InvalidTensor: masked tokens.
        """
        if hides_tokens(mask):
            raise InvalidTensor("the mask hides tokens, and a convolution sees all; send messages without padding")
        cells = self.student.grid[0] * self.student.grid[1]
        if states.shape[1] != cells:
            states = segment_means(states, self.own_mask({}, states), cells)
        return super().run(states, None, span)
