"""Runs examples/talking_models.ipynb from its first cell to its last and writes what came out into it."""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "examples" / "talking_models.ipynb"
CELL_S = 600


def executed(path: Path) -> nbformat.NotebookNode:
    """The notebook with new outputs, in a kernel of this interpreter; an error in a cell is raised.

    Times are not recorded, so that two runs differ in results alone.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=CELL_S, record_timing=False, resources={"metadata": {"path": str(path.parent)}}
    )
    client.execute()
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


def main() -> None:
    """Writes the notebook."""
    nbformat.write(executed(NOTEBOOK), NOTEBOOK)
    print(f"{NOTEBOOK.relative_to(ROOT)} was run")


if __name__ == "__main__":
    main()
