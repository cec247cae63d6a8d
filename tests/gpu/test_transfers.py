"""Copies to and from the device: exact, and waited for by nobody but who reads."""

from __future__ import annotations

import pytest
import torch

from teacher_server.engine.transfers import Arriving, Transfers

pytestmark = pytest.mark.gpu

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.uint8)
BUSY_CYCLES = 500_000_000  # some tenths of a second


def values(dtype: torch.dtype, seed: int, size: int = 100_000) -> torch.Tensor:
    drawn = torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 3
    return drawn.abs().to(dtype) if dtype is torch.uint8 else drawn.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0, 3), (7,), (3, 5, 11)])
def test_there_and_back_is_the_same_to_the_bit(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    transfers = Transfers(torch.device("cuda:0"))
    sent = values(dtype, 0, torch.Size(shape).numel()).reshape(shape)
    placed = transfers.place(sent)
    assert placed.device == torch.device("cuda:0")
    assert transfers.place(placed) is placed
    back = transfers.fetch({"it": placed})["it"]
    assert (back.device.type, back.is_pinned()) == ("cpu", False)
    assert torch.equal(back, sent)


def test_many_in_flight_behind_a_busy_device() -> None:
    """The buffers of one copy are never given to another before both sides are done with them."""
    transfers = Transfers(torch.device("cuda:0"))
    sent = [values(torch.float32, seed) for seed in range(64)]
    found = []
    for place, tensor in enumerate(sent):
        if place % 16 == 0:
            torch.cuda._sleep(BUSY_CYCLES // 8)
        found.append(transfers.fetch({"twice": transfers.place(tensor.clone()) * 2, "it": transfers.place(tensor)}))
    for tensor, each in zip(sent, found, strict=True):
        assert torch.equal(each["it"], tensor)
        assert torch.equal(each["twice"], tensor * 2)


def test_nobody_waits_but_who_reads() -> None:
    transfers = Transfers(torch.device("cuda:0"))
    transfers.fetch({"warm": transfers.place(values(torch.float32, 0))})["warm"]
    torch.cuda._sleep(BUSY_CYCLES)
    arriving = transfers.fetch({"it": transfers.place(values(torch.float32, 1))})
    assert isinstance(arriving, Arriving)
    assert arriving._arrived is not None
    assert not arriving._arrived.query(), "the device was still busy when the copies had been asked for"
    assert torch.equal(arriving["it"], values(torch.float32, 1))
    assert transfers.read(torch.tensor([1.5, float("nan")], device="cuda").isfinite()) == [True, False]
