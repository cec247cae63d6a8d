"""Whether the teacher answers alike: when asked again, beside strangers, and over every compression."""

from __future__ import annotations

from concurrent.futures import Future

import torch

from student_client.doctor.visit import Visit
from teaching_protocol.diagnosis.findings import Finding, Value
from teaching_protocol.diagnosis.gradients import close, cosine, largest_error
from teaching_protocol.diagnosis.probe import ROWS, TOKENS, Probe, Reply, noise
from teaching_protocol.threads import side_threads

__all__ = ["check_compression", "check_repeatability", "check_strangers"]

_TRIES = 6
_ROUGH = {"none": 0.0, "bf16": 0.03, "fp16": 0.01, "int8": 0.1}


def check_repeatability(visit: Visit) -> Finding:
    """The same message twice as two calls, and one call sent twice."""
    probe = visit.probe
    message = _message(probe, 5)
    first = probe.forward(message, follows=True)
    again = probe.forward(message)
    repeated = probe.forward(message, follows=True, call_id=first.call_id)
    error = largest_error(first.answer, again.answer)
    is_same = torch.equal(first.answer, repeated.answer)
    values: dict[str, Value] = {"largest_error": error, "repeat_equal": is_same}
    measured = f"two calls differ by {error:.2g}, a repeated call {'not at all' if is_same else 'too'}"
    if not is_same:
        advice = "a repeated call must get the same reply: a proxy that sends calls to several teachers breaks sessions"
        return Finding("repeatability", "fail", measured, advice, values)
    return _judged("repeatability", visit, error, measured, values)


def check_strangers(visit: Visit) -> Finding:
    """The same message alone, and at the same time as another session's longer one, which may share its batch."""
    probe, stranger = visit.probe, visit.enroll("stranger")
    try:
        message, other = _message(probe, 6), noise(3, TOKENS, probe.settings.message_width, seed=7)
        alone = probe.forward(message).answer
        with side_threads(1, "doctor") as pool:
            errors = [_beside(probe, message, pool.submit(stranger.forward, other), alone) for _ in range(_TRIES)]
    finally:
        stranger.leave()
    values: dict[str, Value] = {"largest_error": max(errors), "tries": _TRIES}
    measured = f"alone and beside another session the answers differ by {max(errors):.2g} (of {_TRIES} tries)"
    return _judged("strangers", visit, max(errors), measured, values)


def check_compression(visit: Visit) -> Finding:
    """What each compression changes in the answer and in the gradient, both ways of the wire together."""
    probe = visit.probe
    message, weights = _message(probe, 8), None
    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for name in sorted(visit.card.compressions, key=lambda each: each != "none"):
        visit.transport.compression = name
        try:
            forward = probe.forward(message, follows=True, compression=name)
            weights = noise(*forward.answer.shape, seed=9) if weights is None else weights
            found[name] = forward.answer, probe.backward(forward, weights, name)
        finally:
            visit.transport.compression = "none"
    answer, gradient = found["none"]
    values: dict[str, Value] = {}
    said, rough = [], []
    for name, (theirs, their_gradient) in found.items():
        error, angle = _relative(theirs, answer), cosine(their_gradient, gradient)
        values |= {f"{name}_answer_error": error, f"{name}_gradient_cosine": angle}
        said.append(f"{name} {error:.2g} (gradient's cosine {angle:.5f})")
        rough += [name] if error > _ROUGH.get(name, 0.1) else []
    measured = f"relative error of the answer: {', '.join(said)}"
    if rough:
        advice = f"train with teacher.compression none rather than {' or '.join(rough)}: its error is larger than rounding explains"
        return Finding("compression", "warn", measured, advice, values)
    return Finding("compression", "ok", measured, "", values)


def _beside(probe: Probe, message: torch.Tensor, other: Future[Reply], alone: torch.Tensor) -> float:
    error = largest_error(probe.forward(message).answer, alone)
    other.result()
    return error


def _judged(check: str, visit: Visit, error: float, measured: str, values: dict[str, Value]) -> Finding:
    card = visit.card
    if error == 0 or (close(error, card.dtype) and not card.deterministic):
        return Finding(check, "ok", measured, "", values)
    if card.deterministic:
        advice = "this server promises the same bits and does not keep it: report it with its versions"
        return Finding(check, "fail", measured, advice, values)
    advice = f"{card.dtype} does not explain so much: serve with --deterministic to see whether batches are the cause, and report it"
    return Finding(check, "fail", measured, advice, values)


def _message(probe: Probe, seed: int) -> torch.Tensor:
    return noise(ROWS, TOKENS, probe.settings.message_width, seed=seed)


def _relative(theirs: torch.Tensor, ours: torch.Tensor) -> float:
    return float((theirs.double() - ours.double()).abs().sum() / ours.double().abs().sum().clamp_min(1e-30))
