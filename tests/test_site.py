"""The documentation as a site: built once, warnings as errors; whole, from this host alone, with every public name."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs.pictures import PICTURES

ROOT = Path(__file__).parent.parent
SHOWN = re.compile(r"^::: ([\w.]+)\n(?!    options)", re.MULTILINE)
"""Modules that the reference shows whole."""
PUBLIC = {"student_client", "teacher_server.local", "teaching_protocol.verbs", "student_models", "task_data"}
FOREIGN = re.compile(
    r"""<(?:script|img|link|iframe|source)\b[^>]*?(?:src|href)=["']?(https?:)?//|url\(["']?(?:https?:)?//|@import"""
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. A link, an anchor or a name that is not there, a page in no menu: each is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout + done.stderr
    return folder


def test_nothing_comes_from_another_host(site: Path) -> None:
    """No font, script, picture or style; what a page cites is a plain link."""
    pages = [*site.rglob("*.html"), *site.rglob("*.css")]
    assert len(pages) > 40
    for page in pages:
        found = FOREIGN.search(page.read_text())
        assert found is None, f"{page.relative_to(site)}: {found and found[0]}"


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    pages = "".join(page.read_text() for page in (site / "reference").glob("*.html"))
    shown = {name for page in (ROOT / "docs/reference").glob("*.md") for name in SHOWN.findall(page.read_text())}
    assert shown >= PUBLIC
    known = set(re.findall(r'id="([\w.]+)"', pages))
    for module in shown:
        for name in importlib.import_module(module).__all__:
            assert f"{module}.{name}" in known, f"{module}.{name}: has it a docstring?"


def test_the_search_knows_the_pages(site: Path) -> None:
    index = json.loads((site / "search/search_index.json").read_text())
    found = {entry["location"].partition("#")[0] for entry in index["docs"] if "committee" in entry["text"].lower()}
    assert {"concepts/committee.html", "guides/committee.html", "methods.html"} <= found


def test_pages_of_the_root_and_all_decisions_are_there(site: Path) -> None:
    assert "Knowledge distillation as a two-way conversation" in (site / "index.html").read_text()
    assert {path.stem for path in (ROOT / "docs/decisions").glob("*.md")} == {
        path.stem for path in (site / "decisions").glob("*.html")
    }
    assert 'src="../images/step.svg"' in (site / "concepts/step.html").read_text()


def test_every_picture_is_there_and_none_is_left_as_text(site: Path) -> None:
    seen = 0
    for page in site.rglob("*.html"):
        text = page.read_text()
        for source in re.findall(r'<img [^>]*src="([^"]+)"', text):
            assert (page.parent / source).resolve().is_file(), f"{page.relative_to(site)}: {source}"
            seen += 1
        assert not re.search(r"<p>![^<]+\(<code>", text), f"{page.relative_to(site)}: a picture that is no link"
    assert seen > 15


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_what_their_code_draws(name: str) -> None:
    assert (ROOT / f"docs/images/{name}.svg").read_text() == PICTURES[name]().svg(), "python -m docs.pictures"
