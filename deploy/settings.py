"""Writes the tables of docs/configuration.md: every field of both commands and of a fleet, from the configurations themselves."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from command_config import field_rows
from student_client.config import ENVIRONMENT as STUDENT
from student_client.config import RunConfig
from student_client.fleet.settings import FleetConfig
from teacher_server.config import ENVIRONMENT as TEACHER
from teacher_server.config import ServerConfig
from teacher_server.fleet.settings import FleetSettings
from teacher_server.live import LIVE_FIELDS

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "docs" / "configuration.md", ROOT / "docs" / "fleet.md", ROOT / "docs" / "scale.md")
LONGEST = 60


def table(model: Any, prefix: str, live: frozenset[str] = frozenset()) -> str:
    """A row for each field; `live` fields are marked."""
    rows = field_rows(model, prefix)
    lines = ["| field | default | about |", "|---|---|---|"]
    for row in rows:
        default = (
            "must be given"
            if row.default is None
            else f"`{row.default}`"
            if len(row.default) <= LONGEST
            else "see there"
        )
        about = row.about.replace("|", "\\|")
        lines.append(f"| `{row.field}`{' ⟳' if row.field in live else ''} | {default} | {about} |")
    return "\n".join(lines)


TABLES = {
    "teacher-server": lambda: table(ServerConfig, TEACHER, LIVE_FIELDS),
    "student-client": lambda: table(RunConfig, STUDENT),
    "fleet": lambda: table(FleetConfig, ""),
    "teachers": lambda: table(FleetSettings, ""),
}


def written(text: str) -> str:
    """A page with every table between its two marks made anew."""
    for name, make in TABLES.items():
        first, last = f"<!-- fields of {name} -->", "<!-- end of the fields -->"
        found = re.compile(rf"{re.escape(first)}\n.*?{re.escape(last)}", re.DOTALL)
        made = f"{first}\n{make()}\n{last}"
        text = found.sub(lambda _, made=made: made, text)
    return text


def main() -> None:
    """Writes the pages."""
    for page in PAGES:
        page.write_text(written(page.read_text()))
        print(f"{page.relative_to(ROOT)}: its tables are written")


if __name__ == "__main__":
    main()
