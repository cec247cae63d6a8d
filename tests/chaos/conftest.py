"""What chaos is compared with: unbroken runs, each made once; and the hosts it happens between."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.world import Ended, unbroken
from tests.hosts import CannotMake, Host, Link, hosts
from tests.parts import part


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


@pytest.fixture
def network() -> Iterator[tuple[Host, list[Link]]]:
    """A teacher's host and the links of two students' hosts; skips where the machine allows none, which no part can change."""
    if os.geteuid() != 0:
        pytest.skip("only root makes network namespaces")
    for name in ("ip", "tc"):
        part(name)
    try:
        with hosts(2) as found:
            yield found
    except CannotMake as error:
        pytest.skip(f"this machine makes no hosts for tests: {error}")
