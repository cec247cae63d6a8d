"""How long a batch will take, learned from those that ran: seconds for starting one and seconds a token.

A least-squares line through (padded tokens, seconds), older batches counting less and less; one line a kind of call.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

__all__ = ["Pace"]

_FADE = 0.97
_VARIED = 0.1  # standard deviation over mean
_REMEMBERED = 1000  # batches


@dataclass
class _Line:
    """Faded sums of a least-squares fit; `told` is start over slope when sizes last differed enough, `ago` batches before."""

    weight: float = 0.0
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    xy: float = 0.0
    told: float | None = None
    ago: int = 0

    def learn(self, x: float, y: float) -> None:
        new = {"weight": 1.0, "x": x, "y": y, "xx": x * x, "xy": x * y}
        for name, value in new.items():
            setattr(self, name, _FADE * getattr(self, name) + value)
        self.ago += 1
        if self.varied:
            start, slope = self.fit()
            self.told, self.ago = start / slope if slope > 0 else math.inf, 0
        elif self.ago > _REMEMBERED:
            self.told = None

    @property
    def varied(self) -> bool:
        """Whether the sizes seen differ enough to tell start from slope."""
        mean = self.x / self.weight
        return bool(self.xx / self.weight - mean**2 > (_VARIED * mean) ** 2)

    def fit(self) -> tuple[float, float]:
        """Start and slope, neither below 0; batches that are all of one size are taken to cost by the token."""
        mean_x, mean_y = self.x / self.weight, self.y / self.weight
        if mean_x == 0:
            return mean_y, 0.0
        if not self.varied:
            return 0.0, mean_y / mean_x
        slope = (self.xy / self.weight - mean_x * mean_y) / (self.xx / self.weight - mean_x**2)
        slope = min(max(slope, 0.0), mean_y / mean_x)
        return max(0.0, mean_y - slope * mean_x), slope


@dataclass
class Pace:
    """Expected seconds of batches, a kind of call."""

    _lines: dict[str, _Line] = field(default_factory=dict)

    def learn(self, kind: str, tokens: int, seconds: float) -> None:
        """Takes in what a batch of so many padded tokens took."""
        self._lines.setdefault(kind, _Line()).learn(tokens, seconds)

    def seconds(self, kind: str, tokens: int) -> float:
        """Seconds a batch will take; 0 while nothing is known."""
        start, slope = self._lines[kind].fit() if kind in self._lines else (0.0, 0.0)
        return start + slope * tokens

    def start_s(self, kind: str) -> float | None:
        """Seconds that starting a batch costs, whatever is in it; None while batches of one size cannot tell."""
        line = self._lines.get(kind)
        return line.fit()[0] if line is not None and line.varied else None

    def free_tokens(self, kind: str) -> float:
        """Tokens that take as long as starting a batch does: below them a batch costs about the same with more."""
        start, slope = self._lines[kind].fit() if kind in self._lines else (0.0, 0.0)
        return start / slope if slope > 0 else 0.0

    def told_tokens(self, kind: str) -> float | None:
        """The same as batches of several sizes last told it, within the last thousand; None if none did.

        What batches of one size leave open is tried out again and again otherwise, by those who would merge to find out.
        """
        return self._lines[kind].told if kind in self._lines else None
