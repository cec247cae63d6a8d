"""Tensors between host and device: onto it, the few numbers the engine waits for, replies on their way back.

On a CPU there is no way to go, and nothing here copies. On CUDA copies run on streams of their own, from and to pinned
memory, so that the thread that launches kernels waits for none of them. Knows no call and no session.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Any

import torch

__all__ = ["Arriving", "Transfers"]

Tensors = Mapping[str, torch.Tensor]


class Arriving(Tensors):
    """Tensors on their way to the host: whoever reads one first waits for all, and nobody else does.

    They come in pinned memory, which is scarce, and are moved to ordinary memory as they are read.
    """

    def __init__(self, pinned: dict[str, torch.Tensor], arrived: torch.cuda.Event) -> None:
        self.size_bytes = sum(tensor.nbytes for tensor in pinned.values())
        self._tensors = pinned
        self._arrived: torch.cuda.Event | None = arrived
        self._lock = threading.Lock()

    def land(self) -> Tensors:
        """Waits until they are here; gives them, in ordinary memory."""
        with self._lock:
            if self._arrived is not None:
                self._arrived.synchronize()
                self._tensors = {name: tensor.clone() for name, tensor in self._tensors.items()}
                self._arrived = None
        return self._tensors

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.land()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


class Transfers:
    """The ways to and from one device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._is_cuda = device.type == "cuda"
        if self._is_cuda:
            self._inward: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._outward: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def place(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor on the device, whatever the device is busy with: the copy is waited for by kernels, not by the caller.

        A tensor that is there already is given as it is.
        """
        if tensor.device == self._device:
            return tensor
        if not self._is_cuda:
            return tensor.to(self._device)
        with torch.cuda.stream(self._inward):
            placed = tensor.pin_memory().to(self._device, non_blocking=True)
        compute = torch.cuda.current_stream(self._device)
        compute.wait_stream(self._inward)
        placed.record_stream(compute)
        return placed

    def read(self, numbers: torch.Tensor) -> list[Any]:
        """What a small tensor holds. This is what the engine waits for: all that was asked of the device before it."""
        if not self._is_cuda:
            return list(numbers.tolist())
        pinned, arrived = self._outbound({"": numbers})
        arrived.synchronize()
        return list(pinned[""].tolist())

    def fetch(self, tensors: Tensors) -> Tensors:
        """These tensors as the host can read them, without waiting; on a CPU as they are."""
        if not self._is_cuda or isinstance(tensors, Arriving):
            return tensors
        return Arriving(*self._outbound(tensors))

    def _outbound(self, tensors: Tensors) -> tuple[dict[str, torch.Tensor], torch.cuda.Event]:
        """Copies under way into pinned memory, and the event that tells their end; it sleeps, and does not spin."""
        arrived = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        self._outward.wait_stream(torch.cuda.current_stream(self._device))
        pinned = {}
        with torch.cuda.stream(self._outward):
            for name, tensor in tensors.items():
                pinned[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                pinned[name].copy_(tensor.detach(), non_blocking=True)
                tensor.record_stream(self._outward)
            arrived.record(self._outward)
        return pinned, arrived
