"""The connection to Ray, which is imported when it is asked for and not before; starts nobody on it."""

from __future__ import annotations

import os
from typing import Any

from teaching_protocol.errors import ConfigError, ServiceError

__all__ = ["RayCluster"]

_STORE_BYTES = 80 * 2**20  # the least that Ray takes: nothing lies in its store


class RayCluster:
    """A cluster that is there, or one on this machine that ends with this process; a context manager.

    Args:
        address: of the cluster, or `auto`; None takes RAY_ADDRESS, or starts Ray here.

    Raises:
        ConfigError: Ray is not installed.
    """

    def __init__(self, address: str | None) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report over the internet
        os.environ.setdefault("RAY_worker_niceness", "0")  # 15 by default: any other process would go before a student
        try:
            import ray
        except ModuleNotFoundError as error:
            raise ConfigError("this needs Ray; install it with: pip install 'talking-models[ray]'") from error
        self.ray: Any = ray
        self._address = address

    @property
    def cpus(self) -> float:
        """CPUs of the cluster."""
        return float(self.ray.cluster_resources().get("CPU", 0.0))

    def __enter__(self) -> RayCluster:
        here = self._address is None and not os.environ.get("RAY_ADDRESS")
        own = {"include_dashboard": False, "object_store_memory": _STORE_BYTES} if here else {}
        try:
            self.ray.init(address=self._address, log_to_driver=False, **own)
        except (OSError, RuntimeError, ValueError, self.ray.exceptions.RayError) as error:
            raise ServiceError(
                f"no Ray cluster at {self._address or os.environ.get('RAY_ADDRESS') or 'this machine'}: {error}; start one with "
                "`ray start --head`, or leave the address away"
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        self.ray.shutdown()
