"""Whether a served teacher is the teacher: the engine of this process against one behind gRPC, forward and gradients."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch

from teacher_server.app import TeacherApp
from teacher_server.config import ServerConfig
from teacher_server.describing import other_teacher
from teacher_server.local import local_teacher
from teacher_server.models.loading import load_teacher
from teacher_server.models.split import FrozenTeacher
from teaching_protocol.diagnosis.findings import Finding, Value
from teaching_protocol.diagnosis.gradients import check_codec_gradient, check_gradient, close, cosine, largest_error
from teaching_protocol.diagnosis.probe import ROWS, TOKENS, Probe, doctor_name, noise, probe_settings
from teaching_protocol.errors import ConfigError
from teaching_protocol.verbs import Call, DescribeReply, DescribeRequest, TeacherVerbs

__all__ = ["ModelBench", "compare", "served"]

_ALIKE = 0.9999
_OWN = ("entry", "exit", "dtype", "deterministic", "max_rows", "max_tokens", "max_message_width", "batch_tokens")


@dataclass
class ModelBench:
    """A model that is loaded once for several checks.

    Attributes:
        config: as it would be served.
        call_s: deadline of each call.
    """

    config: ServerConfig
    call_s: float
    _teacher: FrozenTeacher | None = None

    @property
    def teacher(self) -> FrozenTeacher:
        """The loaded model."""
        if self._teacher is None:
            raise ConfigError("no model is loaded; see the check `model`")
        return self._teacher

    def check_load(self) -> Finding:
        """Loads the model as `serve` does."""
        config, began = self.config, time.monotonic()
        self._teacher = load_teacher(
            config.model, config.dtype, config.device, config.trust_remote_code, config.image_size
        )
        took_s = time.monotonic() - began
        weights = list(self._teacher.model.parameters())
        size = sum(weight.numel() * weight.element_size() for weight in weights)
        values: dict[str, Value] = {
            "model_hash": self._teacher.model_hash[:12],
            "parameters": sum(weight.numel() for weight in weights),
            "weights_bytes": size,
            "load_s": round(took_s, 3),
            "device": str(self._teacher.device),
        }
        what = f"{self._teacher.name} ({values['model_hash']}), {size / 2**20:.0f} MiB of {config.dtype}"
        measured = f"{what} on {self._teacher.device}, loaded in {took_s:.1f} s"
        return Finding("model", "ok", measured, "", values)

    def local(self) -> TeacherVerbs:
        """The loaded model behind the verbs, in this process."""
        own = {name: getattr(self.config, name) for name in _OWN}
        return local_teacher(self.teacher, **own)

    def check_gradient(self) -> Finding:
        """The message's gradient through codec and body against finite differences, without a network."""
        with self._probe() as probe:
            return check_gradient(probe, self.config.dtype)

    def check_codec_gradient(self) -> Finding:
        """The codec's gradient against Steps forth and back, without a network."""
        with self._probe() as probe:
            return check_codec_gradient(probe, self.config.dtype)

    def check_served(self) -> Finding:
        """The model in this process against itself behind gRPC on a free port."""
        with served(self.config, self.teacher) as other:
            return compare(self.local(), other, self.call_s)

    def check_other(self, other: TeacherVerbs) -> Finding:
        """The model in this process against the one another server serves."""
        return compare(self.local(), other, self.call_s)

    def _probe(self) -> Probe:
        mine = self.local()
        return Probe(mine, doctor_name("local"), probe_settings(_card(mine)), self.call_s)


@contextmanager
def served(config: ServerConfig, teacher: FrozenTeacher) -> Iterator[TeacherVerbs]:
    """A server of a loaded teacher on a free port of this machine, asked over gRPC; the teacher is not loaded again."""
    quiet = {"host": "127.0.0.1", "port": 0, "metrics_port": -1, "compile": False, "drain_s": 1.0, "handoff_s": 0.0}
    open_to_us = {"tls_cert": None, "tls_key": None, "client_ca": None, "tokens": None}
    with (
        TeacherApp(config.model_copy(update=quiet | open_to_us), teacher) as app,
        other_teacher(f"127.0.0.1:{app.port}", None, None, None) as other,
    ):
        yield cast(TeacherVerbs, other)


def compare(ours: TeacherVerbs, theirs: TeacherVerbs, call_s: float) -> Finding:
    """The same session at both: answers, message gradients, codec gradients by what a Step of them changes."""
    card, other = _card(ours), _card(theirs)
    settings = probe_settings(other)
    found = []
    for teacher in (ours, theirs):
        with Probe(teacher, doctor_name("compare"), settings, call_s) as probe:
            found.append(_steps(probe))
    values: dict[str, Value] = {"same_weights": card.model_hash == other.model_hash, "dtype": other.dtype}
    said, worst, least = [], 0.0, 1.0
    for name in found[0]:
        mine, their = found[0][name], found[1][name]
        angle, error = cosine(mine, their), largest_error(mine, their)
        scale = max(1.0, float(mine.abs().max()))
        worst, least = max(worst, error / scale), min(least, angle)
        values |= {f"{name}_cosine": angle, f"{name}_largest_error": error}
        said.append(f"{name}: cosine {angle:.6f}, largest error {error:.2g}")
    return _judged("; ".join(said), values, worst, least)


def _steps(probe: Probe) -> dict[str, torch.Tensor]:
    message = noise(ROWS, TOKENS, probe.settings.message_width)
    forward = probe.forward(message, follows=True)
    gradient = probe.backward(forward, noise(*forward.answer.shape, seed=1))
    norm = probe.step(1e-3)
    after = probe.forward(message).answer
    return {"answer": forward.answer, "gradient": gradient, "codec": torch.tensor([norm]), "after_step": after}


def _judged(said: str, values: dict[str, Value], worst: float, least: float) -> Finding:
    if not values["same_weights"]:
        advice = "serve the weights of --model, or give --model the folder of the served ones (and --dtype theirs)"
        return Finding("local_remote", "fail", f"the weights differ; {said}", advice, values)
    if close(worst, str(values["dtype"])):
        return Finding("local_remote", "ok", said, "", values)
    if least > _ALIKE:
        advice = (
            "other devices, threads and kernels round otherwise; ask on the server's own machine and device to be sure"
        )
        return Finding("local_remote", "warn", said, advice, values)
    return Finding(
        "local_remote", "fail", said, "report it with both sides' versions: the wire or a batch changes numbers", values
    )


def _card(teacher: TeacherVerbs) -> DescribeReply:
    return teacher.describe(DescribeRequest(), Call(time.monotonic() + 60.0))
