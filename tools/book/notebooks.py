"""The notebooks of `examples/` as pages, with the outputs that they are stored with."""

from __future__ import annotations

import functools
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


@functools.cache
def pages() -> dict[str, str | bytes]:
    """The Markdown of each notebook, and its pictures, by their names on the site."""
    from nbconvert import MarkdownExporter

    made: dict[str, str | bytes] = {}
    for path in sorted((ROOT / "examples").glob("*.ipynb")):
        folder = f"{path.stem}_files"
        text, resources = MarkdownExporter().from_filename(
            str(path), {"output_files_dir": folder, "unique_key": path.stem}
        )
        made[f"notebooks/{path.stem}.md"] = text
        for name, content in resources["outputs"].items():
            made[f"notebooks/{Path(name).as_posix()}"] = content
    return made
