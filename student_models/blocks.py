"""Residual blocks of the small students; knows no student."""

from __future__ import annotations

import math

import torch
from torch import nn

__all__ = ["ConvBlock", "MlpBlock"]


class MlpBlock(nn.Module):
    """x + MLP(LayerNorm(x)) on [batch, tokens, width]."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 2 * width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(2 * width, width),
        )

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[batch, tokens, width] -> the same."""
        change: torch.Tensor = self.layers(hidden)
        return hidden + change


class ConvBlock(nn.Module):
    """x + two 3x3 convolutions of it on [batch, channels, rows, columns].

    GroupNorm and not BatchNorm: a row's states must not depend on its neighbours in the batch.
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        groups = math.gcd(8, width)
        self.layers = nn.Sequential(
            nn.GroupNorm(groups, width), nn.GELU(), nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(groups, width), nn.GELU(), nn.Dropout(dropout), nn.Conv2d(width, width, 3, padding=1),
        )  # fmt: skip

    def forward(self, grid: torch.Tensor) -> torch.Tensor:
        """[batch, channels, rows, columns] -> the same."""
        change: torch.Tensor = self.layers(grid)
        return grid + change
