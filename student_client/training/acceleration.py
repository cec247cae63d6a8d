"""What of the machine the trainer uses: accelerate, determinism, random states; knows no student and no method."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

from student_client.config import TrainingConfig
from teaching_protocol.errors import ConfigError

__all__ = [
    "RandomNumbers",
    "build_accelerator",
    "compute_threads",
    "exact_algorithms",
    "random_state",
    "set_random_state",
]


def build_accelerator(training: TrainingConfig, folder: Path, ranks: int = 1) -> Accelerator:
    """An Accelerator of its own for a run of so many processes; TensorBoard files go below `folder`.

    Runs of one process come one after the other: accelerate keeps one state a process.

    Raises:
        ConfigError: fp16 without a GPU, or another number of processes.
    """
    # what accelerate shares between all Accelerators of a process would give a second run the first one's settings
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    accelerator = Accelerator(
        mixed_precision=training.mixed_precision,
        gradient_accumulation_steps=training.accumulation,
        log_with="tensorboard" if training.tensorboard else None,
        project_dir=folder,
        cpu=training.device == "cpu",
    )
    if training.mixed_precision == "fp16" and accelerator.scaler is None:
        raise ConfigError(
            f"training.mixed_precision: received 'fp16', expected a GPU for it and found {accelerator.device}; "
            "use bf16, or no"
        )
    if accelerator.num_processes != ranks:
        raise ConfigError(
            f"received {accelerator.num_processes} processes of a launcher, expected {ranks}; `student-client train` takes several "
            "under torchrun or accelerate launch, all else runs in one, without a launcher"
        )
    return accelerator


class RandomNumbers:
    """Random numbers of one piece of work, whatever is drawn elsewhere while it pauses.

    While entered, torch's generators stand where the work left them, at first at the seed; afterwards they stand where
    they stood before.

    Args:
        seed: 0 or more.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._own: Mapping[str, torch.Tensor] | None = None
        self._outside: Mapping[str, torch.Tensor] = {}

    def __enter__(self) -> None:
        self._outside = random_state()
        if self._own is None:
            torch.manual_seed(self._seed)
        else:
            set_random_state(self._own)

    def __exit__(self, *_: object) -> None:
        self._own = random_state()
        set_random_state(self._outside)


@contextmanager
def exact_algorithms(wanted: bool) -> Iterator[None]:
    """Deterministic algorithms while entered, if wanted."""
    before = torch.are_deterministic_algorithms_enabled()
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextmanager
def compute_threads(count: int) -> Iterator[None]:
    """So many threads for torch while entered; 0 leaves torch's choice. Each thread that computes enters for itself."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if count:
            torch.set_num_threads(before)


def random_state() -> dict[str, torch.Tensor]:
    """State of torch's generators: `cpu`, and `cuda.<n>` where there are GPUs; no other is drawn from."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state |= {f"cuda.{place}": each for place, each in enumerate(torch.cuda.get_rng_state_all())}
    return state


def set_random_state(state: Mapping[str, torch.Tensor]) -> None:
    """Puts torch's generators where `random_state` found them; GPUs that are not here are left out."""
    torch.set_rng_state(state["cpu"])
    for place in range(torch.cuda.device_count()):
        if f"cuda.{place}" in state:
            torch.cuda.set_rng_state(state[f"cuda.{place}"], place)
