"""Threads beside the one that computes work on one core each."""

from __future__ import annotations

import torch

from teaching_protocol.threads import side_threads


def test_each_has_one_core_and_the_caller_keeps_its_own() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with side_threads(3, "side") as pool:
            assert [pool.submit(torch.get_num_threads).result() for _ in range(6)] == [1] * 6
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
