"""Fixtures of the tests that need a CUDA device; `make test-gpu` runs them, and they fail where there is none."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, at the first product: for deterministic mode

import pytest
import torch

from teacher_server.models.split import FrozenTeacher
from tests.unit.teacher_server.tiny_models import tiny_model


@pytest.fixture(scope="session", autouse=True)
def _whole_float32() -> Iterator[None]:
    """Products and convolutions in float32 proper: TF32 keeps ten bits."""
    matmul, convolution = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, convolution


@pytest.fixture(scope="session")
def cuda_teacher() -> Callable[..., FrozenTeacher]:
    """A tiny teacher on the device, by model type and dtype; a new one at each call."""

    def build(model_type: str, dtype: torch.dtype = torch.float32) -> FrozenTeacher:
        return FrozenTeacher(tiny_model(model_type).to("cuda", dtype), model_type)

    return build
