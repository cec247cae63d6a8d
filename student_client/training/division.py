"""How the ranks of one student divide its work: each batch by rows; and what cannot be divided is refused; knows no process."""

from __future__ import annotations

from dataclasses import replace

import torch

from student_client.config import RunConfig
from task_data import Batch
from task_data.config import Level
from teaching_protocol.errors import ConfigError

__all__ = ["check_divisible", "part_of"]

_BY_ROWS = ("task_only", "soft_labels", "fitnets", "pkd", "minilm", "one_way", "talking")
"""Methods whose loss is a mean over rows, or over what rows are made of."""
_CONSISTENT_BY_ROWS = ("cross", "layernorm_mse")


def part_of(batch: Batch, rank: int, count: int) -> Batch:
    """One rank's rows of a batch: every `count`-th from its own on, so that labelled and unlabelled rows are shared out alike.

    A rank without a row gets the first one, in a part of 0 rows: it goes through the motions and counts for nothing.
    """
    if count == 1:
        return batch
    mine = torch.arange(len(batch))[rank::count]
    part = len(mine), len(batch)
    mine = mine if len(mine) else torch.zeros(1, dtype=torch.int64)
    return replace(
        batch,
        rows=batch.rows[mine],
        inputs={name: tensor[mine] for name, tensor in batch.inputs.items()},
        teacher={name: tensor[mine] for name, tensor in batch.teacher.items()},
        labels=batch.labels[mine],
        labelled=batch.labelled[mine],
        part=part,
    )


def check_divisible(config: RunConfig, count: int, level: Level) -> None:
    """Refuses what several ranks cannot train as one process would.

    Args:
        config: of the run.
        count: of ranks.
        level: what has a label.

    Raises:
        ConfigError: a committee, a method or a reading whose loss relates the rows of a batch to each other.
    """
    if count == 1:
        return
    if config.complementary:
        raise ConfigError(
            f"complementary: received {len(config.complementary)} teachers and {count} ranks; ranks share one teacher's session, "
            "a committee has several: start one process, or leave the further teachers out"
        )
    wrong = [name for name in config.method.names if name not in _BY_ROWS]
    if wrong:
        raise ConfigError(
            f"method.names: received {', '.join(wrong)} with {count} ranks, expected some of {', '.join(_BY_ROWS)}: the others "
            "relate the rows of a batch to each other or choose by what they have seen, and each rank sees its own rows only; "
            "start one process"
        )
    if level != "row":
        raise ConfigError(
            f"data.level: received {level!r} with {count} ranks, expected row: losses of tokens are means over tokens, "
            "and ranks weigh theirs by rows; start one process"
        )
    method = config.method
    if "talking" in method.names and method.w_message_consistency and method.consistency not in _CONSISTENT_BY_ROWS:
        raise ConfigError(
            f"method.consistency: received {method.consistency!r} with {count} ranks, expected one of "
            f"{', '.join(_CONSISTENT_BY_ROWS)}: it relates the rows of a batch to each other; or set method.w_message_consistency "
            "to 0, or start one process"
        )
