"""What transformers' Trainer was started as: its processes as ranks; what would train wrongly is refused; knows no teacher and no model."""

from __future__ import annotations

from typing import Any

from accelerate.utils import DistributedType

from student_client.config import RunConfig
from student_client.training.division import check_divisible
from task_data.config import Level
from teaching_protocol.errors import ConfigError

__all__ = ["check_start"]

_READ_THE_HEAD = ("one_way", "talking", "committee")
"""Methods that run the student's head outside of its forward, with `w_answer_task` or `w_answer_labels`."""


def check_start(accelerator: Any, args: Any, config: RunConfig, level: Level) -> None:
    """Refuses what a Trainer was told and what the processes it was started in cannot do with this method.

    Args:
        accelerator: the Trainer's.
        args: its TrainingArguments.
        config: of teachers and method.
        level: what has a label.

    Raises:
        ConfigError: with what to change.
    """
    count = accelerator.num_processes
    if args.n_gpu > 1:
        raise ConfigError(
            f"received {args.n_gpu} GPUs in one process, expected one; start a process for each with torchrun, or set "
            "CUDA_VISIBLE_DEVICES to one of them"
        )
    check_divisible(config, count, level)
    _check_kind(accelerator)
    _check_fp16(accelerator)
    _check_head(accelerator, config)
    if count > 1 and not args.accelerator_config.even_batches and not args.dataloader_drop_last:
        raise ConfigError(
            f"accelerator_config: received even_batches=False with {count} processes, expected True: their gradients are averaged "
            "alike, and the last batch of an epoch would be uneven; or set dataloader_drop_last"
        )


def _check_kind(accelerator: Any) -> None:
    kind, parallelism = accelerator.distributed_type, accelerator.parallelism_config
    known = (DistributedType.NO, DistributedType.FSDP, DistributedType.DEEPSPEED)
    if kind not in known and not kind.value.startswith("MULTI_"):
        raise ConfigError(f"received processes of the kind {kind.value}, expected those of DDP, FSDP or DeepSpeed")
    if parallelism is not None and parallelism.non_data_parallel_size > 1:
        raise ConfigError(
            f"parallelism_config: received {parallelism.non_data_parallel_size} processes for the same rows, expected 1: each "
            "process talks about rows of its own; leave tensor, context and sequence parallelism out"
        )


def _check_fp16(accelerator: Any) -> None:
    if accelerator.mixed_precision != "fp16":
        return
    if accelerator.num_processes > 1 or accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise ConfigError(
            "fp16: received true with several processes or DeepSpeed, expected bf16: a gradient that overflows on its way to "
            "the teacher is one process's, and the others would not skip that step"
        )


def _check_head(accelerator: Any, config: RunConfig) -> None:
    """A head that is in pieces can only be run within the model's own forward."""
    method, state = config.method, accelerator.state
    is_sharded = accelerator.distributed_type == DistributedType.FSDP
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        is_sharded = state.deepspeed_plugin.zero_stage == 3
    reads = [name for name in method.names if name in _READ_THE_HEAD]
    if is_sharded and reads and (method.w_answer_task or method.w_answer_labels):
        raise ConfigError(
            f"method: received w_answer_task {method.w_answer_task:g} and w_answer_labels {method.w_answer_labels:g} for "
            f"{', '.join(reads)} under FSDP or ZeRO-3, expected 0 for both: they run the student's head outside of its forward, "
            "where its weights are in pieces; or use DDP, ZeRO-1 or ZeRO-2"
        )
