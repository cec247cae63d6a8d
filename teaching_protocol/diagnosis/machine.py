"""What this machine and this process are: versions, device, memory, cores, malloc, shared memory; knows no side."""

from __future__ import annotations

import os
import platform
import resource
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import torch

from teaching_protocol.diagnosis.findings import Finding, Value
from teaching_protocol.memory import OFF_SWITCH, keep_freed_memory
from teaching_protocol.shared_memory import Block, can_share
from teaching_protocol.verbs import PROTOCOL_VERSION

__all__ = [
    "check_device",
    "check_limits",
    "check_malloc",
    "check_memory",
    "check_shared_blocks",
    "check_threads",
    "check_versions",
    "free_bytes",
    "usable_cores",
]

GIB = 2**30
_PACKAGES = ("torch", "grpcio", "protobuf", "safetensors", "numpy")
_TRIED_BYTES = 2**20
_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
_MEMORY_MAX, _MEMORY_NOW = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")


def check_versions(packages: Sequence[str] = ()) -> Finding:
    """Of Python, of this project, of the protocol, and of packages that both sides or this one need."""
    values: dict[str, Value] = {"python": platform.python_version(), "protocol": PROTOCOL_VERSION}
    missing = []
    for name in ("talking-models", *_PACKAGES, *packages):
        try:
            values[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            values[name] = None
            missing.append(name)
    measured = ", ".join(f"{name} {value}" for name, value in values.items())
    if missing:
        advice = f"install {', '.join(missing)}: pip install 'talking-models[server,client]'"
        return Finding("versions", "fail", measured, advice, values)
    return Finding("versions", "ok", measured, "", values)


def check_device(device: str = "auto") -> Finding:
    """The device a model would be put on, and its memory."""
    name = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name).add_(1).cpu()
    except (RuntimeError, AssertionError) as error:
        line = (str(error).strip().splitlines() or ["no reason given"])[0]
        advice = "set device to auto or cpu, or repair the driver (nvidia-smi says what it sees)"
        return Finding("device", "fail", f"{name} cannot be used: {line}", advice, {"device": name})
    place = torch.device(name)
    if place.type == "cuda":
        return _cuda(place)
    values: dict[str, Value] = {"device": name, "cores": usable_cores(), "machine": platform.machine()}
    return Finding("device", "ok", f"{name} ({platform.machine()}), {usable_cores():g} cores usable", "", values)


def _cuda(place: torch.device) -> Finding:
    free, total = torch.cuda.mem_get_info(place)
    facts = torch.cuda.get_device_properties(place)
    values: dict[str, Value] = {"device": str(place), "name": facts.name, "free_bytes": free, "total_bytes": total}
    values["capability"] = f"{facts.major}.{facts.minor}"
    measured = f"{facts.name} (capability {facts.major}.{facts.minor}), {free / GIB:.1f} of {total / GIB:.1f} GiB free"
    if free < total / 4:
        advice = "end other processes on this GPU (nvidia-smi lists them), or choose another with --device cuda:N"
        return Finding("device", "warn", measured, advice, values)
    return Finding("device", "ok", measured, "", values)


def check_memory(needed_bytes: int = 0, what: str = "", device: str = "cpu") -> Finding:
    """Memory this process may still take (on a device, where one is named), against what is going to be needed."""
    is_gpu = torch.device(device).type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if is_gpu else free_bytes()
    values: dict[str, Value] = {"free_bytes": free, "needed_bytes": needed_bytes}
    measured = f"{free / GIB:.1f} GiB of memory free to this process{' on the GPU' if is_gpu else ''}"
    if needed_bytes:
        measured += f", up to {needed_bytes / GIB:.1f} GiB may be needed ({what})"
    if free < max(needed_bytes, GIB // 4):
        advice = "lower the byte budgets of the configuration, serve a smaller model, or give the process more memory"
        return Finding("memory", "warn", measured, advice, values)
    return Finding("memory", "ok", measured, "", values)


def check_threads(threads: int = 0) -> Finding:
    """Compute threads against the cores this process may use, and how busy they are."""
    cores, asked = usable_cores(), threads or torch.get_num_threads()
    load = os.getloadavg()[0]
    values: dict[str, Value] = {"cores": cores, "threads": asked, "load_1min": round(load, 2)}
    measured = f"{asked} compute threads on {cores:g} usable cores, load {load:.1f}"
    if asked > cores:
        advice = (
            f"set --threads (or OMP_NUM_THREADS) to {max(1, int(cores))}: more threads than cores is many times slower"
        )
        return Finding("threads", "warn", measured, advice, values)
    if load > 1.5 * (os.cpu_count() or 1):
        return Finding(
            "threads", "warn", measured, "others compute here: give each process its part of the cores", values
        )
    return Finding("threads", "ok", measured, "", values)


def check_malloc() -> Finding:
    """Whether malloc keeps freed blocks, without which large messages cost several times as much."""
    set_by = sorted(name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_TUNABLES")))
    values: dict[str, Value] = {"kept": keep_freed_memory(), "environment": ", ".join(set_by) or None}
    if values["kept"]:
        return Finding("malloc", "ok", "malloc keeps freed blocks for the next message", "", values)
    if set_by:
        return Finding("malloc", "ok", f"malloc is as the environment says: {', '.join(set_by)}", "", values)
    advice = f"unset {OFF_SWITCH}, or use a system with glibc: messages of megabytes are several times slower without"
    return Finding("malloc", "warn", "malloc gives freed blocks back to the kernel", advice, values)


def check_shared_blocks() -> Finding:
    """Whether this system has memory that a student and a teacher on it can share."""
    advice = (
        "large messages between processes of this host go through sockets; a Linux kernel with memfd would share them"
    )
    if not can_share():
        return Finding("shared_memory", "warn", f"{sys.platform} has no memfd with seals", advice, {"usable": False})
    try:
        block, descriptor = Block.create(_TRIED_BYTES)
        os.close(descriptor)
        block.put([bytes(_TRIED_BYTES)])
    except (OSError, RuntimeError) as error:
        return Finding("shared_memory", "warn", f"no block could be made: {error}", advice, {"usable": False})
    return Finding("shared_memory", "ok", "a block of 1 MiB was made and written", "", {"usable": True})


def check_limits(descriptors: int) -> Finding:
    """The process's limits (ulimit) against the descriptors it may need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    space, _ = resource.getrlimit(resource.RLIMIT_AS)
    values: dict[str, Value] = {"descriptors": soft, "descriptors_hard": hard, "needed": descriptors}
    values["address_space_bytes"] = None if space == resource.RLIM_INFINITY else space
    measured = f"{soft} descriptors allowed, up to {descriptors} may be needed"
    if soft != resource.RLIM_INFINITY and soft < descriptors:
        return Finding("limits", "warn", measured, f"raise it before the start: ulimit -n {descriptors}", values)
    if space != resource.RLIM_INFINITY:
        measured += f", address space limited to {space / GIB:.1f} GiB"
        return Finding(
            "limits", "warn", measured, "lift it (ulimit -v unlimited): shared blocks are mapped beside", values
        )
    return Finding("limits", "ok", measured, "", values)


def free_bytes() -> int:
    """Bytes this process may still take: of the machine, and of its control group if that has a limit."""
    facts = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    free = 1024 * int(facts["MemAvailable"].split()[0])
    try:
        return min(free, int(_MEMORY_MAX.read_text()) - int(_MEMORY_NOW.read_text()))
    except (OSError, ValueError):  # no control group, or no limit: `max`
        return free


def usable_cores() -> float:
    """Cores this process may use: its affinity, and its control group's quota if that is less."""
    cores = float(len(os.sched_getaffinity(0)))
    try:
        quota, period = _CPU_MAX.read_text().split()
        return min(cores, int(quota) / int(period))
    except (OSError, ValueError):
        return cores
