"""What chaos is compared with: unbroken runs, each made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.world import Ended, unbroken


@pytest.fixture(scope="session")
def whole(model_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Ended]:
    """Gives the unbroken run of so many steps."""
    made: dict[str, Ended] = {}

    def run(steps: int, **fields: Any) -> Ended:
        key = f"{steps} {fields}"
        if key not in made:
            made[key] = unbroken(model_folder("bert"), tmp_path_factory.mktemp("whole"), steps, **fields)
        return made[key]

    return run
