"""The served teacher against the same model loaded here by transformers: its states on an input of noise."""

from __future__ import annotations

from typing import Any

import torch

from student_client.doctor.visit import Visit
from teaching_protocol.diagnosis.findings import Finding, Value
from teaching_protocol.diagnosis.gradients import close, cosine, largest_error

__all__ = ["check_model"]

_ROWS, _TOKENS = 2, 12


def check_model(visit: Visit, model: str) -> Finding:
    """Compares hidden states at the entry and below the last layer; the whole comparison is `teacher-server doctor`'s."""
    card = visit.card
    if "input_ids" not in card.input_ports or not card.vocabulary_size:
        return Finding(
            "model", "skip", f"a {card.family} reads no ids; teacher-server doctor {visit.address} --model compares it"
        )
    local, failure = _loaded(model)
    if local is None:
        advice = "give --model the folder of the served model, or the name under which this machine has it"
        return Finding("model", "fail", f"{model} cannot be loaded here: {failure}", advice)
    ids = torch.randint(0, card.vocabulary_size, (_ROWS, _TOKENS), generator=torch.Generator().manual_seed(0))
    layers = sorted({card.entry, card.layers - 1})
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    theirs = visit.probe.observe(given, tuple(f"hidden.{layer}" for layer in layers))
    with torch.no_grad():
        ours = local(**given, output_hidden_states=True).hidden_states
    pairs = [(ours[layer], theirs[f"hidden.{layer}"]) for layer in layers]
    if any(mine.shape != their.shape for mine, their in pairs):
        return Finding(
            "model", "fail", f"{model} has states of other shapes", "another model is served", {"equal": False}
        )
    angle, error = min(cosine(*pair) for pair in pairs), max(largest_error(*pair) for pair in pairs)
    size = max(1.0, float(max(mine.abs().max() for mine, _ in pairs)))
    values: dict[str, Value] = {"cosine": angle, "largest_error": error}
    measured = f"states at layers {layers} have cosine {angle:.6f}, largest error {error:.2g}"
    if close(error / size, card.dtype):
        return Finding("model", "ok", measured, "", values)
    advice = f"the teacher serves {card.model_name} in {card.dtype}: see whether the weights in {model} are the same"
    return Finding("model", "warn" if angle > 0.99 else "fail", measured, advice, values)


def _loaded(model: str) -> tuple[Any, str]:
    from transformers import AutoModel  # here: a doctor without --model needs no transformers
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        found: Any = AutoModel.from_pretrained(model, dtype=torch.float32, use_safetensors=True)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        return None, (str(error).strip().splitlines() or [type(error).__name__])[0]
    return getattr(found, "encoder", found).eval() if found.config.is_encoder_decoder else found.eval(), ""
