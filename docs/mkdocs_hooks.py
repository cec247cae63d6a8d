"""What mkdocs does not know by itself: pages of the repository's root, the list of decisions, and links to what is no page."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
"""Files of the root that are pages of the site, by another name."""
PLOTS = "benchmarks/plots/"
OWN_LINK = re.compile(r"\]\((?!docs/|\w+:|#|\.)")
"""A link of a page of the root to another file of the root."""
LINK = re.compile(r"\[([^\]]+)\]\((\.\./[^)#]+)(#[^)]*)?\)")
LISTED = re.compile(r"- |\d+\. |\|")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Lists every decision; its first heading is its title."""
    decisions = sorted(path.name for path in (ROOT / "docs/decisions").glob("*.md"))
    config.nav[-1]["About"][-1]["Decisions"] = [f"decisions/{name}" for name in decisions]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages of the root, whose links are as from docs/, and the plots of benchmarks."""
    for source, name in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        text = OWN_LINK.sub("](../", text).replace("](docs/", "](").replace("[docs/", "[")
        files.append(File.generated(config, name, content=text))
    for path in sorted((ROOT / PLOTS).glob("*.png")):
        files.append(File.generated(config, PLOTS + path.name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Links out of docs/ go to the root's page or the plot, or say where in the repository the file is; lists begin as on other hosts."""
    folder = posixpath.dirname(page.file.src_uri)

    def inside(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join("docs", folder, found[2]))
        if target.startswith("docs/"):
            return found[0]
        if target.startswith(PLOTS):
            return f"[{found[1]}]({posixpath.relpath(target, folder or '.')})"
        if target in PAGES:
            return f"[{found[1]}]({posixpath.relpath(PAGES[target], folder or '.')}{found[3] or ''})"
        return f"{found[1]} (`{target}`)"

    return _parted(LINK.sub(inside, markdown))


def _parted(markdown: str) -> str:
    """With an empty line between a paragraph and the list or table behind it, which Python-Markdown asks for."""
    found, before, in_code = list[str](), "", False
    for line in markdown.split("\n"):
        in_code ^= line.lstrip().startswith("```")
        if not in_code and LISTED.match(line) and before[:1].strip() and not LISTED.match(before):
            found.append("")
        found.append(line)
        before = line
    return "\n".join(found)
