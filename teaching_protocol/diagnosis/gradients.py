"""Whether a teacher's Backward is the gradient of its Forward, told without its weights: finite differences.

Only messages, answers and the session's own exported state are looked at, so that any teacher behind any network can be asked.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from teaching_protocol.diagnosis.findings import Finding, Value
from teaching_protocol.diagnosis.probe import ROWS, TOKENS, Probe, noise

__all__ = ["Roughness", "check_codec_gradient", "check_gradient", "close", "cosine", "largest_error"]

_STEPS = (0.25, 0.0625, 0.015625, 0.004, 0.001, 0.00025)  # of a message of deviation 1; the best of them counts
_CODEC_STEPS = (0.01, 0.003, 0.001, 0.0003)  # of all weights together
_DIRECTIONS = 3
_NOISE_STEP = 4  # of _STEPS: so small that what changes there beyond the slope is rounding
_GOOD, _ROUGH = 0.01, 0.1
_HALF_GOOD = 0.2
_EXPLAINED = 3.0  # times the noise: then rounding explains the error


@dataclass(frozen=True)
class Roughness:
    """Finite differences against the gradient, in shares of the gradient's length.

    Attributes:
        error: the largest over directions, each at the step that fits best.
        step: the step of that direction.
        slope: the gradient's length: how much the answer's sum changes along it.
        noise: what rounding alone may make of the error at that step.
    """

    error: float
    step: float
    slope: float
    noise: float = 0.0


def cosine(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Of the angle between two tensors; 1 where both are zero."""
    ours, theirs = ours.double().flatten(), theirs.double().flatten()
    lengths = ours.norm() * theirs.norm()
    return float(ours @ theirs / lengths) if lengths else float(not ours.any() and not theirs.any())


def largest_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference of two tensors."""
    return float((ours.double() - theirs.double()).abs().max())


def close(error: float, dtype: str) -> bool:
    """Whether a difference of numbers of size 1 is no more than the teacher's dtype explains."""
    return error <= {"float32": 1e-5, "float16": 2e-2}.get(dtype, 1e-1)


def check_gradient(probe: Probe, dtype: str) -> Finding:
    """The message's gradient against central differences of the answer, along itself and along random directions.

    With g the gradient of <answer, c>, every direction v of length 1 must have (f(m + h v) - f(m - h v)) / 2h = <g, v>. Along g
    itself that finds a wrong length and whatever in g is no gradient; random directions find what is missing in it.
    """
    message = noise(1, TOKENS, probe.settings.message_width)
    forward = probe.forward(message, follows=True)
    weights = noise(*forward.answer.shape, seed=1)
    gradient = probe.backward(forward, weights).double()
    directions, steps = _directions(gradient), torch.tensor(_STEPS, dtype=torch.float64)
    signed = torch.stack([steps, -steps], 1).flatten()  # h, -h for each step
    moved = directions[:, None] * signed[:, None, None]  # [directions, 2 steps, tokens, width]
    rows = (message.double() + moved.flatten(0, 1)).float()
    sums = (probe.forward(rows).answer.double() * weights).sum((1, 2)).reshape(len(directions), len(steps), 2)
    slopes = (sums[..., 0] - sums[..., 1]) / (2 * steps)
    found = _roughness(slopes, directions.flatten(1) @ gradient.flatten(), float(gradient.norm()))
    near = sums[:, _NOISE_STEP]  # [directions, 2]
    rounding = max(0.0, float(near.max() - near.min()) - 2 * _STEPS[_NOISE_STEP] * found.slope)
    noise_share = rounding / (2 * found.step * max(found.slope, 1e-300))
    return _judged("gradient", dataclasses.replace(found, noise=noise_share), dtype)


def check_codec_gradient(probe: Probe, dtype: str) -> Finding:
    """The gradient of the teacher-side codec, by Steps forth and back along it.

    A Step of plain SGD moves the codec's weights by lr g, g the gathered gradient, whose length the Step tells. So the answer's
    sum must change by 2 lr |g|^2 between a Step after Backward and one after the Backward of the opposite.
    """
    message = noise(ROWS, TOKENS, probe.settings.message_width, seed=2)
    probe.step(0.0)  # lets go of what other checks have gathered
    before = probe.export()
    weights = noise(*probe.forward(message).answer.shape, seed=3)
    gathered = []
    for signed in (weights, -weights):
        probe.import_state(before)
        probe.backward(probe.forward(message, follows=True), signed)
        gathered.append(probe.export())
    length = probe.step(0.0)
    slopes = []
    for step in _CODEC_STEPS:
        ends = []
        for state in gathered:
            probe.import_state(state)
            probe.step(step / max(length, 1e-30))
            ends.append(float((probe.forward(message).answer.double() * weights).sum()))
        slopes.append((ends[1] - ends[0]) / (2 * step))
    probe.import_state(before)
    wanted = torch.tensor([length], dtype=torch.float64)
    found = torch.tensor([slopes], dtype=torch.float64)
    return _judged("codec_gradient", _roughness(found, wanted, length, _CODEC_STEPS), dtype)


def _directions(gradient: torch.Tensor) -> torch.Tensor:
    """Along the gradient, then at random, each of length 1: [directions, tokens, width]."""
    random = noise(_DIRECTIONS - 1, *gradient.shape[1:], seed=4).double()
    found = torch.cat([gradient, random])
    lengths: torch.Tensor = found.flatten(1).norm(dim=1).clamp_min(1e-300)
    return found / lengths[:, None, None]


def _roughness(
    slopes: torch.Tensor, wanted: torch.Tensor, length: float, tried: tuple[float, ...] = _STEPS
) -> Roughness:
    """Of slopes [directions, steps] that should be `wanted` [directions], for a gradient of this length."""
    errors, places = ((slopes - wanted[:, None]).abs() / max(length, 1e-300)).min(1)
    worst = int(errors.argmax())
    return Roughness(float(errors[worst]), tried[int(places[worst])], length)


def _judged(check: str, found: Roughness, dtype: str) -> Finding:
    values: dict[str, Value] = {"error": found.error, "step": found.step, "length": found.slope, "dtype": dtype}
    values["rounding"] = found.noise
    measured = (
        f"gradient and finite differences differ by {found.error:.2g} of the gradient's length (step {found.step:g})"
    )
    if not found.slope:
        advice = "the answer does not depend on the message: look at entry, exit and the model's weights"
        return Finding(check, "fail", "the gradient is zero", advice, values)
    is_half = dtype != "float32"
    if found.error <= _GOOD:
        return Finding(check, "ok", measured, "", values)
    if is_half and found.error <= _HALF_GOOD:
        advice = (
            f"{dtype} rounds so much; to check the gradient itself, ask a server of the same model with --dtype float32"
        )
        return Finding(check, "warn", measured, advice, values)
    if found.error <= _EXPLAINED * found.noise:
        advice = f"the gradient is short beside the rounding of {dtype}, so nothing is known: ask a server with --dtype float32"
        return Finding(check, "warn", measured, advice, values)
    if found.error <= _ROUGH:
        advice = "train no student before its cause is known: compare with teacher-server doctor ADDRESS --model MODEL"
        return Finding(check, "warn", measured, advice, values)
    advice = (
        "what Backward sends back is not the gradient of Forward: serve another model or release, and report this one"
    )
    return Finding(check, "fail", measured, advice, values)
