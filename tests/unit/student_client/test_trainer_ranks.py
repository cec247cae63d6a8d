"""What DistillationTrainer refuses of the processes and arguments it is started with."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist
from accelerate import ParallelismConfig
from accelerate.utils import DistributedType

from student_client.loops.distillation import Distillation, distillation_config
from student_client.loops.trainer_ranks import check_start
from task_data.config import Level
from teaching_protocol.errors import ConfigError
from tests.chaos.world import free_port
from tests.unit.teacher_server.tiny_models import tiny_model

WITHOUT_HEAD = {"names": "talking", "consistency": "cross", "w_answer_task": 0, "w_answer_labels": 0}
BY_ROWS = {"names": "talking", "consistency": "cross"}


def started(method: Any = "soft_labels", level: Level = "row", **fields: Any) -> None:
    """Two processes of DDP, but for what is given; of accelerate and transformers what is read."""
    accelerator = {"num_processes": 2, "distributed_type": DistributedType.MULTI_GPU, "mixed_precision": "no"}
    accelerator |= {"parallelism_config": None, "state": None}
    args = {"n_gpu": 1, "dataloader_drop_last": False, "accelerator_config": SimpleNamespace(even_batches=True)}
    for name, value in fields.items():
        (accelerator if name in accelerator else args)[name] = value
    config = distillation_config("127.0.0.1:1", method)
    check_start(SimpleNamespace(**accelerator), SimpleNamespace(**args), config, level)


def zero(stage: int) -> dict[str, Any]:
    plugin = SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=stage))
    return {"distributed_type": DistributedType.DEEPSPEED, "state": plugin}


@pytest.mark.parametrize(
    "fields",
    [
        {"method": BY_ROWS},
        {"method": BY_ROWS, **zero(2)},
        {"method": WITHOUT_HEAD, **zero(3)},
        {"method": WITHOUT_HEAD, "distributed_type": DistributedType.FSDP},
        {"method": "talking", "num_processes": 1, "distributed_type": DistributedType.NO, "mixed_precision": "fp16"},
        {"dataloader_drop_last": True, "accelerator_config": SimpleNamespace(even_batches=False)},
        {"parallelism_config": ParallelismConfig()},
    ],
)
def test_what_works(fields: dict[str, Any]) -> None:
    started(**fields)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"n_gpu": 2}, "received 2 GPUs in one process, expected one"),
        ({"method": "talking"}, "method.consistency: received 'contrastive' with 2 ranks"),
        ({"method": "rkd"}, "method.names: received rkd with 2 ranks"),
        ({"level": "token"}, "data.level: received 'token' with 2 ranks"),
        ({"mixed_precision": "fp16"}, "fp16: received true with several processes or DeepSpeed, expected bf16"),
        ({"num_processes": 1, "mixed_precision": "fp16", **zero(1)}, "fp16: received true"),
        ({"method": BY_ROWS, "distributed_type": DistributedType.FSDP}, "under FSDP or ZeRO-3, expected 0 for both"),
        ({"method": BY_ROWS, **zero(3)}, "under FSDP or ZeRO-3, expected 0 for both"),
        ({"distributed_type": DistributedType.MEGATRON_LM}, "of the kind MEGATRON_LM, expected those of DDP"),
        ({"parallelism_config": ParallelismConfig(tp_size=2)}, "received 2 processes for the same rows"),
        ({"accelerator_config": SimpleNamespace(even_batches=False)}, "received even_batches=False with 2 processes"),
    ],
)
def test_what_would_train_wrongly_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        started(**fields)


def test_processes_that_know_nothing_of_each_other_are_refused() -> None:
    """A loop under a launcher that does not give its ranks: each would learn another codec."""
    model = tiny_model("bert")
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{free_port()}", rank=0, world_size=1)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dist, "get_world_size", lambda *_: 2)
            with pytest.raises(ConfigError, match=r"received 1 ranks in a process group of 2.*give `ranks=in_group"):
                Distillation(model, distillation_config(None, "task_only")).__enter__()
    finally:
        dist.destroy_process_group()
