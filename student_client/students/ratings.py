"""The ratings student: embeddings of user and item and an MLP cut in the middle; knows no teacher."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from student_client.config import StudentConfig
from student_client.data.splits import Split, TaskData
from student_client.students.blocks import MlpBlock
from student_client.students.card import StudentCard, sizes_of
from student_client.students.columns import tensor_column
from student_client.students.head import PooledHead, target_centre
from student_client.students.student import States, Student, Tensors
from student_client.students.weights import read_weights, write_weights

__all__ = ["RatingsStudent"]

_UNKNOWN = 0


class RatingsStudent(Student):
    """Predicts a user's rating of an item from their ids; one token of states.

    lower = Linear([u; i; u * i; b_u; b_i]) with embeddings u, i and biases b, then half of the residual blocks;
    upper = the other half. The head predicts the distance from the mean training rating. Row 0 of each
    table stands for an id that training never saw; in training, ids are replaced by it with the chance `dropout` (as
    DropoutNet does, Volkovs et al. 2017), so that it means something.

    Args:
        card: sizes (`users` and `items` among them) and task.
    """

    user_ids: torch.Tensor
    item_ids: torch.Tensor

    def __init__(self, card: StudentCard) -> None:
        super().__init__()
        self.card, self.task, self.width = card, card.to_task(), card.sizes["width"]
        users, items, layers = card.sizes["users"], card.sizes["items"], card.sizes["layers"]
        self.register_buffer("user_ids", torch.zeros(users, dtype=torch.int64))
        self.register_buffer("item_ids", torch.zeros(items, dtype=torch.int64))
        self.user, self.user_bias = _table(users, self.width)
        self.item, self.item_bias = _table(items, self.width)
        self.join = nn.Linear(3 * self.width + 2, self.width)
        blocks = [MlpBlock(self.width, card.dropout) for _ in range(layers)]
        self.lower_blocks = nn.Sequential(*blocks[: layers // 2])
        self.upper_blocks = nn.Sequential(*blocks[layers // 2 :])
        self.output = PooledHead(self.width, self.task, card.dropout)

    @classmethod
    def build(cls, config: StudentConfig, data: TaskData) -> RatingsStudent:
        """A new student that knows the users and items of the training split.

        Raises:
            ConfigError: sizes that do not fit together.
            DataError: the data set has no columns of users and items.
        """
        users, items = (torch.unique(tensor_column(data.train, name)) for name in ("user", "item"))
        sizes = sizes_of(config, "ratings") | {"users": len(users), "items": len(items)}
        card = StudentCard(
            modality="ratings", task=data.task.name, labels=data.task.labels, sizes=sizes, dropout=config.dropout
        )
        student = cls(card)
        student.user_ids.copy_(users)
        student.item_ids.copy_(items)
        student.output.centre.copy_(target_centre(data.task, data.train))
        return student

    @classmethod
    def load(cls, folder: Path, card: StudentCard) -> RatingsStudent:
        """The student that `save` wrote.

        Raises:
            ModelLoadError: a file is missing or broken.
        """
        student = cls(card)
        read_weights(student, folder / "model.safetensors")
        return student

    def view(self, split: Split) -> Tensors:
        """`user` and `item` [N] int64: rows of the tables, 0 for an id that training never saw."""
        known = {"user": self.user_ids, "item": self.item_ids}
        return {name: _rows_of(tensor_column(split, name), ids.cpu()) for name, ids in known.items()}

    def lower(self, inputs: Tensors) -> States:
        """The embeddings joined, and the first half of the blocks; states [batch, 1, width]."""
        user, item = self._seen(inputs["user"]), self._seen(inputs["item"])
        u, i = self.user(user), self.item(item)
        hidden = self.join(torch.cat([u, i, u * i, self.user_bias(user), self.item_bias(item)], dim=-1))
        mask = torch.ones(len(user), 1, dtype=torch.bool, device=user.device)
        return States(self.lower_blocks(hidden[:, None, :]), mask)

    def upper(self, states: States) -> States:
        """The second half of the blocks."""
        return States(self.upper_blocks(states.hidden), states.mask)

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
