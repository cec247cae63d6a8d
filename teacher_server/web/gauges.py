"""What is looked up when somebody scrapes: the queue, what sessions hold, the device's memory, and all limits."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch

from teacher_server.live import LiveSettings
from teacher_server.metrics.metrics import Metrics
from teacher_server.scheduling.scheduler import ThreadScheduler
from teacher_server.sessions.sessions import Sessions

__all__ = ["device_memory", "device_memory_limit", "look_up"]

_CGROUP = Path("/sys/fs/cgroup/memory.max")


def look_up(
    metrics: Metrics, live: LiveSettings, scheduler: ThreadScheduler, sessions: Sessions, device: torch.device
) -> None:
    """Has the gauges look when they are asked; limits may have changed since the server began."""
    metrics.permits.set_function(lambda: live.now.permits)
    metrics.session_limit.set_function(lambda: live.now.max_sessions)
    metrics.state_limit.set_function(lambda: live.now.state_bytes)
    metrics.queue_length.set_function(lambda: scheduler.waiting(time.monotonic())[0])
    metrics.oldest_wait.set_function(lambda: scheduler.waiting(time.monotonic())[1])
    held = metrics.session_bytes.labels
    held("state").set_function(lambda: sum(each.size_bytes for each in sessions.live()))
    held("inputs").set_function(lambda: sum(each.input_bytes for each in sessions.live()))
    held("replies").set_function(lambda: sum(each.replies.size_bytes for each in sessions.live()))
    limit = device_memory_limit(device)
    if limit:
        metrics.device_memory.set_function(lambda: device_memory(device))
        metrics.device_limit.set(limit)


def device_memory(device: torch.device) -> float:
    """Bytes of tensors on a GPU, or of the whole process where the model runs on the host."""
    if device.type == "cuda":
        return float(torch.cuda.memory_allocated(device))
    resident_pages = Path("/proc/self/statm").read_text().split()[1]
    return float(int(resident_pages) * os.sysconf("SC_PAGE_SIZE"))


def device_memory_limit(device: torch.device) -> float:
    """Bytes there are: of the GPU, or of the host, or of the container where that is less; 0 where nobody says."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    if not Path("/proc/self/statm").exists():
        return 0.0
    there = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    allowed = _CGROUP.read_text().strip() if _CGROUP.exists() else "max"
    return min(there, float(allowed)) if allowed.isdigit() else there
