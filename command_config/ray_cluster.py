"""The cluster that `--ray` names: Ray, which is imported when it is asked for and not before; knows nobody who runs on it."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any, Self

from teaching_protocol.errors import ConfigError, ServiceError

__all__ = ["RayCluster"]

_STORE_BYTES = 80 * 2**20  # the least that Ray takes: nothing lies in its store


class RayCluster:
    """A cluster that is there, or one on this machine that ends with this process; a context manager.

    Args:
        address: of the cluster, or `auto`; None takes RAY_ADDRESS, or starts Ray here.
        namespace: in which actors have their names; None is one of this process's own.

    Attributes:
        ray: the library.
        is_own: whether it is one that this process starts: it has this machine's room and never grows.

    Raises:
        ConfigError: Ray is not installed.
        ServiceError: on entering, where there is no such cluster.
    """

    def __init__(self, address: str | None, namespace: str | None = None) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report over the internet
        os.environ.setdefault("RAY_worker_niceness", "0")  # 15 by default: any other process would go before a teacher
        try:
            import ray
        except ModuleNotFoundError as error:
            raise ConfigError("this needs Ray; install it with: pip install 'talking-models[ray]'") from error
        self.ray: Any = ray
        self.is_own = address is None and not os.environ.get("RAY_ADDRESS")
        self._address, self._namespace = address, namespace

    def room(self, *, free: bool = False) -> dict[str, float]:
        """CPUs and GPUs of the cluster, all of them or those that nobody has, as `CPU` and `GPU`."""
        found = self.ray.available_resources() if free else self.ray.cluster_resources()
        return {name: float(found.get(name, 0.0)) for name in ("CPU", "GPU")}

    def __enter__(self) -> Self:
        own = {"include_dashboard": False, "object_store_memory": _STORE_BYTES} if self.is_own else {}
        try:
            self.ray.init(address=self._address, namespace=self._namespace, log_to_driver=False, **own)
        except (OSError, RuntimeError, ValueError, self.ray.exceptions.RayError) as error:
            raise ServiceError(
                f"no Ray cluster at {self._address or os.environ.get('RAY_ADDRESS') or 'this machine'}: {error}; start one with "
                "`ray start --head`; a fleet that is given no address starts its own"
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ray.shutdown()
