"""Draws the pictures of docs/concepts as SVG, in the colours that their reader prefers, light or dark.

    python -m docs.pictures [--out docs/images]

Only boxes, arrows and words; every picture is a function below that says what stands where.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape

STYLE = """
  text { font: 14px system-ui, sans-serif; fill: #222; text-anchor: middle; dominant-baseline: central }
  .small { font-size: 12px; fill: #555 } .title { font-weight: 600; text-anchor: start }
  .ground { fill: #fff } .side { fill: #f4f5fb; stroke: #c5cae9 } .student { fill: #dbe7fb; stroke: #4c78b5 } .teacher { fill: #fde6c8; stroke: #b9782a }
  .codec { fill: #dff0dc; stroke: #4f8a47 } .frozen { fill: #eceff1; stroke: #78909c } .loss { fill: #f9dcdc; stroke: #b04a4a }
  line, path.arrow { stroke: #444; stroke-width: 1.6; fill: none } path.back { stroke: #b04a4a; stroke-dasharray: 5 4 }
  .head { fill: #444 } .backhead { fill: #b04a4a }
  @media (prefers-color-scheme: dark) {
    text { fill: #e8e8ea } .small { fill: #b5b7c2 } .ground { fill: #1a1c23 } .side { fill: #23252e; stroke: #444a66 }
    .student { fill: #21364f; stroke: #6f9fdc } .teacher { fill: #4a3418; stroke: #d9a05b } .codec { fill: #22402a; stroke: #79b870 }
    .frozen { fill: #333a3f; stroke: #90a4ae } .loss { fill: #4a2222; stroke: #e08080 }
    line, path.arrow { stroke: #c8cad2 } path.back { stroke: #e08080 } .head { fill: #c8cad2 } .backhead { fill: #e08080 }
  }
"""


@dataclass
class Picture:
    """SVG of a size, put together piece by piece; all measures in pixels."""

    width: int
    height: int
    about: str
    parts: list[str] = field(default_factory=list)

    def box(self, kind: str, x: float, y: float, words: str, width: float = 120, height: float = 40) -> None:
        """A rounded box with its words in the middle; a line each."""
        self.parts.append(f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="6"/>')
        self.words(x + width / 2, y + height / 2, words)

    def side(self, x: float, y: float, width: float, height: float, title: str) -> None:
        """A process: what is in it stands on its own ground."""
        self.parts.append(f'<rect class="side" x="{x}" y="{y}" width="{width}" height="{height}" rx="10"/>')
        self.parts.append(f'<text class="title" x="{x + 14}" y="{y + 20}">{escape(title)}</text>')

    def words(self, x: float, y: float, words: str, kind: str = "") -> None:
        """Lines of text around a point."""
        lines = words.split("\n")
        for number, line in enumerate(lines):
            place = y + 17 * (number - (len(lines) - 1) / 2)
            self.parts.append(f'<text class="{kind}" x="{x}" y="{place}">{escape(line)}</text>')

    def arrow(self, *points: tuple[float, float], words: str = "", back: bool = False) -> None:
        """A line through points with a head; `back` is a gradient's way. Words stand above its middle."""
        head, kind = ("backhead", "arrow back") if back else ("head", "arrow")
        route = " L ".join(f"{x} {y}" for x, y in points)
        self.parts.append(f'<path class="{kind}" d="M {route}" marker-end="url(#{head})"/>')
        if words:
            (x1, y1), (x2, y2) = points[0], points[-1]
            self.words((x1 + x2) / 2, (y1 + y2) / 2 - 11, words, "small")

    def svg(self) -> str:
        """The whole file."""
        heads = "".join(
            f'<marker id="{name}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
            f'orient="auto-start-reverse"><path class="{name}" d="M0 0L10 5L0 10z"/></marker>'
            for name in ("head", "backhead")
        )
        size = f'viewBox="0 0 {self.width} {self.height}" width="{self.width}" height="{self.height}"'
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
                f"<title>{escape(self.about)}</title><style>{STYLE}</style><defs>{heads}</defs>",
                f'<rect class="ground" width="{self.width}" height="{self.height}" rx="10"/>',
                *self.parts,
                "</svg>\n",
            ]
        )


def step() -> Picture:
    """One exchange of Talking Models: what is computed where, and how gradients come back."""
    picture = Picture(860, 360, "One step: the student asks in a message, the teacher answers, gradients travel back")
    picture.side(10, 10, 300, 340, "student process")
    picture.side(470, 10, 380, 340, "teacher process")
    picture.box("student", 30, 290, "lower layers")
    picture.box("student", 30, 60, "upper layers")
    picture.box("codec", 90, 210, "encoder")
    picture.box("codec", 170, 130, "decoder")
    picture.box("loss", 170, 60, "loss")
    picture.arrow((120, 290), (120, 252))
    picture.arrow((60, 290), (60, 102))
    picture.arrow((152, 80), (168, 80))
    picture.arrow((230, 130), (230, 102))
    picture.box("codec", 490, 210, "decoder")
    picture.box("frozen", 490, 120, "span of the\nfrozen body", 120, 56)
    picture.box("codec", 490, 50, "encoder")
    picture.box("frozen", 680, 120, "the same body\non the raw input", 150, 56)
    picture.arrow((550, 210), (550, 178))
    picture.arrow((550, 120), (550, 92))
    picture.arrow((755, 120), (755, 70), (612, 70))
    picture.words(755, 44, "what it knows\nwithout being asked", "small")
    picture.arrow((212, 230), (488, 230), words="message  [batch, tokens, width]")
    picture.arrow((488, 66), (400, 66), (400, 150), (292, 150))
    picture.words(400, 50, "answer", "small")
    picture.arrow((292, 162), (420, 162), (420, 82), (488, 82), back=True)
    picture.arrow((190, 102), (190, 128), back=True)
    picture.arrow((488, 244), (212, 244), back=True)
    picture.words(390, 260, "gradients, by the same calls", "small")
    picture.words(660, 300, "step: both optimizers, once, with one learning rate\nfrom the student's schedule", "small")
    return picture


def batch() -> Picture:
    """Rows of several students in one pass of the body, each student's own codecs at the edges."""
    picture = Picture(860, 300, "One batch across students: own codecs, one body")
    names = ("alice, width 128", "bob, width 64", "carol, width 128")
    for place, name in enumerate(names):
        y = 50 + 80 * place
        picture.box("student", 10, y, name, 150)
        picture.arrow((162, y + 20), (248, y + 20), words="message")
        picture.box("codec", 250, y, "decoder of\n" + name.split(",")[0], 100, 44)
        picture.arrow((352, y + 22), (408, 92 + 40 * place))
        picture.arrow((572, 92 + 40 * place), (628, y + 22))
        picture.box("codec", 630, y, "encoder of\n" + name.split(",")[0], 100, 44)
        picture.arrow((732, y + 22), (846, y + 22), words="answer")
    picture.box("frozen", 410, 60, "one pass over\nthe frozen span\n\n[rows of all,\nlongest, width]", 160, 170)
    picture.words(490, 284, "rows go back to their owners; one student's NaN stays its own", "small")
    picture.words(490, 24, "the scheduler takes the jobs that fit together, fair by work", "small")
    return picture


def committee() -> Picture:
    """Several teachers asked at once, weighed for each row."""
    picture = Picture(860, 320, "A committee: own questions, answers weighed for each row")
    picture.side(10, 10, 200, 300, "student process")
    picture.box("student", 30, 140, "state of a row x")
    picture.box("codec", 25, 220, "importance:\nsoftmax over teachers", 170, 50)
    picture.arrow((90, 182), (90, 218))
    for place, name in enumerate(("foundation", "complementary 1", "complementary 2")):
        y = 50 + 90 * place
        picture.box("codec", 290, y, f"question {place + 1}", 110)
        picture.arrow((152, 160), (288, y + 20))
        picture.box("teacher", 460, y, name, 150)
        picture.arrow((402, y + 20), (458, y + 20))
        picture.arrow((612, y + 20), (708, 160))
    picture.words(672, 76, "answers", "small")
    picture.box("loss", 710, 136, "sum of\nalpha x distance", 140, 50)
    picture.arrow((197, 245), (230, 245), (230, 304), (780, 304), (780, 188))
    picture.words(520, 290, "alpha, for each row: who counts how much; below tau nobody is asked", "small")
    return picture


def selection() -> Picture:
    """Knowledge selection: an actor weighs kinds of knowledge, a critic says what it was worth."""
    picture = Picture(860, 300, "Knowledge selection: the actor weighs kinds of knowledge at every step")
    picture.box("student", 10, 60, "student's state")
    picture.box("teacher", 10, 160, "teacher's state")
    picture.box("codec", 190, 110, "actor", 100)
    picture.arrow((132, 80), (188, 120))
    picture.arrow((132, 180), (188, 140))
    for place, kind in enumerate(("predictions", "states", "flow of states", "answers")):
        y = 20 + 58 * place
        picture.box("frozen", 380, y, kind, 130)
        picture.arrow((292, 130), (378, y + 20))
        picture.arrow((512, y + 20), (588, 130))
    picture.words(306, 74, "weights", "small")
    picture.box("loss", 590, 106, "loss of\nthe step", 90, 48)
    picture.arrow((682, 130), (738, 130))
    picture.box("student", 740, 110, "student\nlearns", 100)
    picture.arrow((790, 152), (790, 270), (240, 270), (240, 152), back=True)
    picture.words(520, 286, "reward: how much better on the development rows; the critic foretells it", "small")
    return picture


PICTURES: dict[str, Callable[[], Picture]] = {
    "step": step,
    "batch": batch,
    "committee": committee,
    "selection": selection,
}


def main() -> None:
    """Writes one file a picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "images")
    out: Path = parser.parse_args().out
    for name, draw in PICTURES.items():
        (out / f"{name}.svg").write_text(draw().svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
