"""Several students' codecs applied at once, where that pays; knows no student and no body.

On a CPU they are applied one after the other: stacking copies every weight, and measured it loses (docs/decisions/0009).
On a GPU each of a codec's small kernels costs its launch, and equal codecs are stacked into one batched product.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import nn
from torch.nn.functional import layer_norm

from teacher_server.engine.asks import Decode, Encode

__all__ = ["FEWEST_STACKED", "apply_stacked", "decode_each", "encode_each"]

FEWEST_STACKED = 4
"""Equal codecs from which on a GPU stacks them: reasoned; `benchmarks/bench_edges.py --device cuda` measures it."""

_MOST_PADDING = 2.0

Codec = tuple[nn.Sequential, torch.Tensor]  # and what it is applied to, [batch, tokens, width]


def decode_each(asks: Sequence[Decode]) -> list[torch.Tensor]:
    """Each message through its own decoder."""
    return _each([(ask.codec.decoder(ask.width), ask.message) for ask in asks])


def encode_each(asks: Sequence[Encode]) -> list[torch.Tensor]:
    """Each state through its own encoder."""
    return _each([(ask.codec.encoder(ask.states.shape[-1]), ask.states) for ask in asks])


def apply_stacked(codecs: Sequence[Codec]) -> list[torch.Tensor]:
    """Equally built codecs, each on its own [batch, tokens, width], as batched products over all of them."""
    flat = [given.flatten(0, 1) for _, given in codecs]
    whole = nn.utils.rnn.pad_sequence(flat, batch_first=True)  # [codecs, most rows, width]
    for layers in zip(*(modules for modules, _ in codecs), strict=True):
        whole = _layer(layers, whole)
    return [
        done[: len(rows)].reshape(*given.shape[:2], -1)
        for done, rows, (_, given) in zip(whole.unbind(), flat, codecs, strict=True)
    ]


def _each(codecs: Sequence[Codec]) -> list[torch.Tensor]:
    groups: dict[Hashable, list[int]] = {}
    for place, (modules, given) in enumerate(codecs):
        groups.setdefault(_build(modules) if given.is_cuda else place, []).append(place)
    found: dict[int, torch.Tensor] = {}
    for places in groups.values():
        group = [codecs[place] for place in places]
        found |= zip(places, apply_stacked(group) if _pays(group) else _loop(group), strict=True)
    return [found[place] for place in range(len(codecs))]


def _loop(codecs: Sequence[Codec]) -> list[torch.Tensor]:
    return [modules(given) for modules, given in codecs]


def _pays(codecs: Sequence[Codec]) -> bool:
    rows = [given.shape[0] * given.shape[1] for _, given in codecs]
    return len(codecs) >= FEWEST_STACKED and max(rows) * len(rows) <= _MOST_PADDING * sum(rows)


def _build(modules: nn.Sequential) -> Hashable:
    return tuple((type(layer), *(parameter.shape for parameter in layer.parameters())) for layer in modules)


def _layer(layers: Sequence[nn.Module], given: torch.Tensor) -> torch.Tensor:
    """One layer of every codec on [codecs, rows, width]."""
    first = layers[0]
    if isinstance(first, nn.Linear):
        weight = torch.stack([layer.get_parameter("weight") for layer in layers])
        return torch.baddbmm(_stacked_vectors(layers, "bias"), given, weight.mT)
    if isinstance(first, nn.LayerNorm):
        normal = layer_norm(given, given.shape[-1:], eps=first.eps)
        return normal * _stacked_vectors(layers, "weight") + _stacked_vectors(layers, "bias")
    applied: torch.Tensor = first(given)
    return applied


def _stacked_vectors(layers: Sequence[nn.Module], name: str) -> torch.Tensor:
    return torch.stack([layer.get_parameter(name) for layer in layers]).unsqueeze(1)
