"""Which checks the server's doctor makes of this machine, of a model, of a running server, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from teacher_server.config import ServerConfig
from teacher_server.describing import OtherTeacher
from teacher_server.doctor import settings
from teacher_server.doctor.model import ModelBench
from teacher_server.doctor.server import check_health
from teaching_protocol.diagnosis import machine
from teaching_protocol.diagnosis.connection import Door, check_connection
from teaching_protocol.diagnosis.findings import CONNECTION
from teaching_protocol.diagnosis.reaching import check_card, check_clock, check_latency
from teaching_protocol.diagnosis.rounds import Check
from teaching_protocol.diagnosis.trust import check_tls
from teaching_protocol.errors import ConfigError
from teaching_protocol.verbs import TeacherVerbs

__all__ = ["machine_checks", "running_checks"]

_PACKAGES = ("transformers", "tokenizers", "accelerate", "grpcio-health-checking", "prometheus-client")
_CALL_S, _MODEL_S = 10.0, 600.0


def machine_checks(path: Path | None, flags: dict[str, Any], limit_s: float) -> Sequence[Check]:
    """This machine as a teacher's; with a configuration that cannot be used, as far as it goes without."""
    try:
        config = settings.configured(path, flags)
        wrong = None
    except ConfigError as error:
        config, wrong = ServerConfig.model_validate({"model": "none"}), error
    needs = ("config",)
    checks = [
        Check("versions", partial(machine.check_versions, _PACKAGES)),
        Check("device", partial(machine.check_device, config.device)),
        Check("memory", partial(settings.check_room, config), ("device",)),
        Check("threads", partial(machine.check_threads, config.threads)),
        Check("malloc", machine.check_malloc),
        Check("shared_memory", machine.check_shared_blocks),
        Check("limits", partial(machine.check_limits, settings.descriptors(config))),
        Check("config", partial(_config, path, config, wrong)),
        Check("ports", partial(settings.check_ports, config)),
        Check("tokens", partial(settings.check_tokens, config), needs if wrong else ()),
        Check("certificate", partial(settings.check_certificate, config), needs if wrong else ()),
    ]
    if wrong is None and config.model != "none":
        bench = ModelBench(config, min(_CALL_S, limit_s))
        loaded, limit = ("model",), max(limit_s, _MODEL_S)
        checks += [
            Check("model", bench.check_load, ("device",), limit),
            Check("local_remote", bench.check_served, loaded, limit),
            Check("gradient", bench.check_gradient, loaded, limit),
            Check("codec_gradient", bench.check_codec_gradient, loaded, limit),
        ]
    return checks


def running_checks(
    door: Door, other: OtherTeacher, config: ServerConfig, model: str | None, limit_s: float
) -> Sequence[Check]:
    """A server at an address; with a model, that against it."""
    call_s = min(_CALL_S, limit_s)
    teacher = cast(TeacherVerbs, other)
    checks = [
        Check("versions", partial(machine.check_versions, _PACKAGES)),
        Check(CONNECTION, partial(check_connection, door, limit_s)),
        Check("tls", partial(check_tls, door, limit_s), (CONNECTION,)),
        Check("teacher", partial(check_card, teacher, call_s, lambda card: None), ("tls",)),
        Check("health", partial(check_health, other.channel, call_s), ("tls",)),
        Check("clock", partial(check_clock, teacher, lambda: other.clock_s, call_s), ("teacher",)),
        Check("latency", partial(check_latency, teacher, call_s), ("teacher",)),
    ]
    if model is not None:
        bench, limit = ModelBench(config, call_s), max(limit_s, _MODEL_S)
        checks += [
            Check("model", bench.check_load, ("teacher",), limit),
            Check("local_remote", partial(bench.check_other, teacher), ("teacher", "model"), limit),
        ]
    return checks


def _config(path: Path | None, config: ServerConfig, wrong: ConfigError | None) -> Any:
    if wrong is not None:
        raise wrong
    return settings.check_config(path, config)
