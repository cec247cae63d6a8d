"""The ratings student: embeddings of user and item and an MLP cut in the middle; knows no teacher."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from student_models.blocks import MlpBlock
from student_models.card import StudentCard
from student_models.columns import tensor_column
from student_models.head import PooledHead
from student_models.student import Columns, LayeredStudent, States, Tensors
from student_models.weights import read_weights, write_weights

__all__ = ["RatingsStudent"]

_UNKNOWN = 0


class RatingsStudent(LayeredStudent):
    """Predicts a user's rating of an item from their ids; one token of states.

    The embedding is Linear([u; i; u * i; b_u; b_i]) with vectors u, i and biases b, the layers are residual blocks. The
    head predicts the distance from the mean training rating. Row 0 of each
    table stands for an id that training never saw; in training, ids are replaced by it with the chance `dropout` (as
    DropoutNet does, Volkovs et al. 2017), so that it means something.

    Args:
        card: sizes (`users` and `items` among them) and task.
    """

    inputs = ("user", "item")
    user_ids: torch.Tensor
    item_ids: torch.Tensor

    def __init__(self, card: StudentCard) -> None:
        super().__init__()
        self.card, self.task, self.width = card, card.to_task(), card.sizes["width"]
        users, items, self.layers = card.sizes["users"], card.sizes["items"], card.sizes["layers"]
        self.register_buffer("user_ids", torch.zeros(users, dtype=torch.int64))
        self.register_buffer("item_ids", torch.zeros(items, dtype=torch.int64))
        self.user, self.user_bias = _table(users, self.width)
        self.item, self.item_bias = _table(items, self.width)
        self.join = nn.Linear(3 * self.width + 2, self.width)
        self.blocks = nn.ModuleList(MlpBlock(self.width, card.dropout) for _ in range(self.layers))
        self.output = PooledHead(self.width, self.task, card.dropout)

    @classmethod
    def load(cls, folder: Path, card: StudentCard) -> RatingsStudent:
        """The student that `save` wrote.

        Raises:
            ModelLoadError: a file is missing or broken.
        """
        student = cls(card)
        read_weights(student, folder / "model.safetensors")
        return student

    def view(self, columns: Columns) -> Tensors:
        """`user` and `item` [N] int64: rows of the tables, 0 for an id that training never saw."""
        known = {"user": self.user_ids, "item": self.item_ids}
        return {name: _rows_of(tensor_column(columns, name), ids.cpu()) for name, ids in known.items()}

    def embed(self, inputs: Tensors) -> States:
        """The embeddings joined; states [batch, 1, width]."""
        user, item = self._seen(inputs["user"]), self._seen(inputs["item"])
        u, i = self.user(user), self.item(item)
        hidden = self.join(torch.cat([u, i, u * i, self.user_bias(user), self.item_bias(item)], dim=-1))
        return States(hidden[:, None, :], torch.ones(len(user), 1, dtype=torch.bool, device=user.device))

    def run(self, states: States, start: int, stop: int) -> States:
        """Residual blocks `start` to `stop` - 1."""
        hidden = states.hidden
        for block in self.blocks[start:stop]:
            hidden = block(hidden)
        return States(hidden, states.mask)

    def head(self, states: States) -> torch.Tensor:
        """[batch] predicted ratings (or [batch, outputs] logits where the task has classes)."""
        outputs: torch.Tensor = self.output(states)
        return outputs

    def save(self, folder: Path) -> None:
        """Writes the weights and the card."""
        folder.mkdir(parents=True, exist_ok=True)
        write_weights(self, folder / "model.safetensors")
        self.card.write(folder)

    def _seen(self, rows: torch.Tensor) -> torch.Tensor:
        if not self.training or self.card.dropout == 0:
            return rows
        return rows.masked_fill(torch.rand(rows.shape, device=rows.device) < self.card.dropout, _UNKNOWN)


def _table(known: int, width: int) -> tuple[nn.Embedding, nn.Embedding]:
    embedding, bias = nn.Embedding(known + 1, width), nn.Embedding(known + 1, 1)
    nn.init.normal_(embedding.weight, std=0.1)
    nn.init.zeros_(bias.weight)
    return embedding, bias


def _rows_of(raw: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    place = torch.searchsorted(known, raw.contiguous()).clamp(max=len(known) - 1)
    return torch.where(known[place] == raw, place + 1, _UNKNOWN)
