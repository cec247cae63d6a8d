"""The page's files: nothing from elsewhere, no markup made of text, colours that can be read, all of them in the package."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tests.test_architecture import ROOT

STATIC = ROOT / "teacher_server" / "web" / "static"
FILES = sorted(STATIC.iterdir())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_nothing_comes_from_elsewhere(path: Path) -> None:
    text = path.read_text().replace("http://www.w3.org/2000/svg", "")
    assert "//" not in re.sub(r"(^|\s)// .*", "", text) or (path.suffix == ".html" and "<!doctype" in text)
    assert "://" not in text
    assert "@import" not in text


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.suffix in (".js", ".html")], ids=lambda path: path.name
)
def test_text_never_becomes_markup(path: Path) -> None:
    text = path.read_text()
    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "Function(",
        " on",
        "style=",
    ):
        assert not re.search(rf"{re.escape(word)}\w*=" if word == " on" else re.escape(word), text), word


@pytest.mark.parametrize("path", [path for path in FILES if path.suffix == ".js"], ids=lambda path: path.name)
def test_each_script_is_small_and_says_what_it_is(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("// ")
    assert text.count("\n") <= 250


def test_the_package_has_them() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    patterns = declared["teacher_server.web"]
    matched = {path for pattern in patterns for path in (ROOT / "teacher_server" / "web").glob(pattern)}
    assert matched >= set(FILES)


def colours(block: str) -> dict[str, str]:
    return {
        name: "#" + "".join(c * 2 for c in value) if len(value) == 3 else f"#{value}"
        for name, value in re.findall(r"--([a-z-]+): #([0-9a-f]{3,6})\b", block)
    }


def luminance(colour: str) -> float:
    parts = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    linear = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(scheme: str) -> None:
    """WCAG 2.2 AA: 4.5 for text, 3 for the curves."""
    style = (STATIC / "page.css").read_text()
    light, dark = re.findall(r":root \{(.*?)\}", style, re.DOTALL)[:2]
    found = colours(light if scheme == "light" else dark)
    texts = [(text, ground) for text in ("text", "muted") for ground in ("ground", "surface", "raised")]
    texts += [("accent", "ground"), ("bad", "surface"), ("warn", "surface")]
    texts += [(kind, f"{kind}-ground") for kind in ("good", "warn", "bad")]
    for text, ground in texts:
        assert contrast(found[text], found[ground]) >= 4.5, (text, ground)
    for curve in ("accent", "warn"):
        assert contrast(found[curve], found["surface"]) >= 3
