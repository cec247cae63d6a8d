"""How one process takes its place among those of a split teacher: its rank, its device, the collectives; loads nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta

import torch
from torch import distributed

from teaching_protocol.errors import InvalidSetting

__all__ = ["check_devices", "finished", "join", "leave"]

_BACKENDS = {"cpu": "gloo", "cuda": "nccl"}
_MEETING = timedelta(hours=2)
"""Of the collectives themselves; processes that died or stand still are found out long before, see `followers.py`."""


def check_devices(count: int, device: str) -> None:
    """Whether this machine has a device for each process.

    Raises:
        InvalidSetting: fewer GPUs than processes, or a device that transformers would not take.
    """
    kind, there = _kind(), torch.accelerator.device_count()
    if kind not in _BACKENDS:
        raise InvalidSetting(
            f"tensor_parallel: received a machine with {kind}, expected GPUs of CUDA, or none; leave it away"
        )
    if device not in ("auto", kind):
        raise InvalidSetting(
            f"tensor_parallel: device is {device}, but transformers splits over {kind} here; leave device away"
            + (", or hide the GPUs (CUDA_VISIBLE_DEVICES=)" if device == "cpu" else "")
        )
    if kind == "cuda" and count > there:
        raise InvalidSetting(
            f"tensor_parallel is {count}, but {there} GPUs are here; expected one for each process, so at most {there}"
        )


def join(rank: int, ranks: int, meeting: str) -> None:
    """Meets the others, who all call this. They speak over loopback alone: there is no encryption between them."""
    kind = _kind()
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(name, "lo")
    if rank:
        os.environ["LOCAL_RANK"] = str(
            rank
        )  # by which transformers takes the process's GPU; the first one if there is none
    device = torch.device(kind, rank) if kind == "cuda" else None
    if device is not None:
        torch.cuda.set_device(device)
    distributed.init_process_group(
        _BACKENDS[kind],
        init_method=f"file://{meeting}",
        rank=rank,
        world_size=ranks,
        timeout=_MEETING,
        device_id=device,
    )


def finished() -> Callable[[], bool]:
    """What tells, whenever it is asked, whether the device has done all that it was asked until now."""
    if _kind() != "cuda":
        return lambda: True
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return event.query


def leave() -> None:
    """The process is one of nobody again. With NCCL that would wait for the others, and ending does it as well."""
    if distributed.is_initialized() and distributed.get_backend() == "gloo":
        distributed.destroy_process_group()


def _kind() -> str:
    found = torch.accelerator.current_accelerator()
    return "cpu" if found is None or not torch.accelerator.is_available() else found.type
