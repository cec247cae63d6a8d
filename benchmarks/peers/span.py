"""The span that every peer serves: some layers of a frozen BERT, as transformers has them, and a codec that one may put around them.

Run by itself it is a worker (`workers.py`) that has the span in its own process: what the peers' remote steps are held against.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import nn
from workers import obey


class FrozenSpan(nn.Module):
    """Layers `entry` to `exit` of a model folder: states [batch, tokens, width] to states."""

    def __init__(self, folder: str, entry: int, exit: int) -> None:
        from transformers import BertModel

        super().__init__()
        model = BertModel.from_pretrained(folder, add_pooling_layer=False).eval().requires_grad_(False)
        self.width: int = model.config.hidden_size
        self.layers = model.encoder.layer[entry:exit]

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            found = layer(states)
            states = found if isinstance(found, torch.Tensor) else found[0]
        return states


class Codec(nn.Module):
    """A student's codec as ours has it, from its weights: a message is decoded to states, and states are encoded to a message."""

    def __init__(self, file: str) -> None:
        from safetensors.torch import load_file

        super().__init__()
        weights = load_file(file)
        self.decode, self.encode = (_layers(weights, side) for side in ("decoder", "encoder"))


def _layers(weights: Mapping[str, torch.Tensor], side: str) -> nn.Sequential:
    """Of `decoder.0.weight` and so on: a norm has weights of one dimension, a GELU has none."""
    own = {name.removeprefix(f"{side}."): tensor for name, tensor in weights.items() if name.startswith(side)}
    layers: list[nn.Module] = []
    for place in range(1 + max(int(name.partition(".")[0]) for name in own)):
        weight = own.get(f"{place}.weight")
        if weight is None:
            layers.append(nn.GELU())
        else:
            layers.append(nn.LayerNorm(weight.shape) if weight.dim() == 1 else nn.Linear(*weight.shape[::-1]))
    found = nn.Sequential(*layers)
    found.load_state_dict(own)
    return found


def work(module: Callable[[torch.Tensor], torch.Tensor], width: int) -> None:
    """Is a worker whose step is a forward and a backward through this; first says what one fixed message comes to."""

    def step(message: torch.Tensor) -> torch.Tensor:
        message.grad = None
        answer = module(message)
        answer.square().mean().backward()
        return answer

    def prepare(order: dict[str, Any]) -> Callable[[], object]:
        message = torch.randn(order["rows"], order["tokens"], width, requires_grad=True)
        return lambda: step(message)

    torch.manual_seed(0)
    fixed = torch.randn(8, 64, width, requires_grad=True)
    answer = step(fixed)
    assert fixed.grad is not None
    obey(prepare, answer=answer.square().sum().item(), gradient=fixed.grad.square().sum().sqrt().item())


def flags(description: str | None) -> argparse.ArgumentParser:
    """What every peer is told: be the server of a model, or a client of an address."""
    made = argparse.ArgumentParser(description=description)
    side = made.add_mutually_exclusive_group(required=True)
    side.add_argument("--serve", metavar="MODEL_FOLDER")
    side.add_argument("--client", metavar="ADDRESS")
    made.add_argument("--span", type=int, nargs=2, default=[2, 6])
    made.add_argument("--tokens", type=int, default=64)
    made.add_argument("--threads", type=int, default=1)
    return made


if __name__ == "__main__":
    span = FrozenSpan(sys.argv[1], 2, 6)
    work(span, span.width)
