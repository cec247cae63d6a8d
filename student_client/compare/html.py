"""report.html: one page that opens on its own, on a phone too, light and dark; computes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from string import Template

from student_client.compare.plots import Plot, svg
from student_client.compare.sheets import Sheet, as_html

__all__ = ["Section", "page"]

Section = tuple[str, Sequence[Sheet | Plot | str]]
"""A heading, and what stands under it: tables, plots and paragraphs."""

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 0 auto; padding: 1rem; color: CanvasText; background: Canvas; }
h1, h2, h3 { line-height: 1.2; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; vertical-align: top; white-space: nowrap; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: Canvas; }
table.words th, table.words td { text-align: left; white-space: normal; }
tbody tr:hover td { background: var(--soft); }
.note { font-size: .875rem; opacity: .8; }
code { background: var(--soft); padding: .1rem .3rem; overflow-wrap: anywhere; }
figure { margin: 1rem 0; }
svg { width: 100%; height: auto; max-width: 56rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; }
dd { margin: 0; overflow-wrap: anywhere; }
</style>
</head>
<body>
<h1>$title</h1>
<p><code>$command</code></p>
<dl>$facts</dl>
$sections
</body>
</html>
""")


def page(title: str, command: str, facts: Mapping[str, object], sections: Sequence[Section]) -> str:
    """The whole page; nothing in it is loaded from elsewhere."""
    listed = "".join(
        f"<dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(str(value))}</dd>" for name, value in facts.items()
    )
    body = "\n".join(f"<h2>{escape(heading)}</h2>\n" + "\n".join(map(_part, parts)) for heading, parts in sections)
    return _PAGE.substitute(title=escape(title), command=escape(command), facts=listed, sections=body)


def _part(part: Sheet | Plot | str) -> str:
    if isinstance(part, Sheet):
        return as_html(part)
    if isinstance(part, Plot):
        return f'<figure role="img" aria-label="{escape(part.title)}">{svg(part)}</figure>'
    return f"<p>{escape(part)}</p>"
