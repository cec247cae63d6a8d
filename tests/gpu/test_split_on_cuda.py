"""A teacher split over two GPUs: the plain one's numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from teacher_server.config import ServerConfig
from teacher_server.models.loading import load_teacher
from teacher_server.parallel.start import split_teacher
from tests.integration.test_split_teacher import everything


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_give_what_one_gives(model_folder: Callable[[str], Path]) -> None:
    folder = model_folder("llama")
    wanted = everything(load_teacher(folder, device="cuda"))
    teacher = split_teacher(ServerConfig(model=str(folder), tensor_parallel=2))
    try:
        found = everything(teacher)
    finally:
        teacher.close()
    for name, value in wanted.items():
        largest = max(1.0, float(value.float().abs().max()))
        torch.testing.assert_close(found[name].cpu(), value.cpu(), atol=1e-4 * largest, rtol=0, msg=name)
