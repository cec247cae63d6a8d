"""A configuration read again while the server runs: what can change does, the rest is named; knows no signal and no file."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

from teacher_server.config import ServerConfig
from teacher_server.live import LiveSettings
from teacher_server.logs import set_level
from teacher_server.metrics.metrics import Metrics
from teaching_protocol.errors import ConfigError

__all__ = ["reload"]

_log = logging.getLogger(__name__)


def reload(read: Callable[[], ServerConfig], live: LiveSettings, most_permits: int, metrics: Metrics) -> None:
    """Reads the configuration again and takes over what a running server can; a bad one changes nothing.

    Args:
        read: reads every layer, with the flags of the start on top.
        live: the settings that hold.
        most_permits: how many calls there are threads for.
        metrics: where the outcome is counted.
    """
    try:
        wanted = read()
    except ConfigError as error:
        metrics.config_reloads.labels("failed").inc()
        metrics.config_holds.set(0)
        _log.error("the configuration was read again and cannot be used; everything stays as it was: %s", error)
        return
    too_many = wanted.permits > most_permits
    changed, waiting = live.swap(wanted, frozenset({"permits"} if too_many else ()))
    set_level(live.now.log_level)
    for name, (before, after) in changed.items():
        _log.info("configuration: %s is %s now, it was %s", name, _said(after), _said(before))
    for name in waiting:
        why = f"there are threads for {most_permits}" if name == "permits" else "it is read at the start alone"
        _log.warning("configuration: %s has changed and stays as it was until a restart: %s", name, why)
    _log.info("the configuration was read again: %d fields taken over, %d need a restart", len(changed), len(waiting))
    metrics.config_reloads.labels("ok").inc()
    metrics.config_holds.set(1)
    metrics.config_reloaded.set(time.time())


def _said(value: Any) -> str:
    """A field's value on one line; of quotas what is not their default."""
    if isinstance(value, tuple):
        value = [each.model_dump(exclude_defaults=True) if isinstance(each, BaseModel) else each for each in value]
    return json.dumps(value, default=str)
