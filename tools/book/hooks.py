"""What MkDocs asks while it builds the site: the pages that are no files of `docs/`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(Path(__file__).resolve().parent))

import command_line  # noqa: E402
import messages  # noqa: E402
import notebooks  # noqa: E402
import reference  # noqa: E402

# Pages of the repository's own folder.
DOCUMENTS = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")

# Where the pages of the repository say that the site has more, it is put in the place of that.
MESSAGES = "*The messages are on the site, which `python3 tools/docs.py` builds.*"
OPTIONS = "*All options are on the site, which `python3 tools/docs.py` builds, and in `--help`.*"


def on_config(config):
    """Lists the modules of the reference in the navigation."""
    ours, others = [], []
    for space in sorted(reference.contents()):
        name = space.removeprefix("keras_sam.")
        stands_in = name.startswith("compat")
        (others if stands_in else ours).append(
            {name.removeprefix("compat."): reference.page_name(space)}
        )
    ours.append({"compat": others})
    for entry in config.nav:
        if entry.get("API reference") == "reference/":
            entry["API reference"] = ["reference/index.md", *ours]
    return config


def on_files(files, config):
    """Adds the reference, the notebooks and the repository's documents."""
    made = {**reference.pages(), **notebooks.pages()}
    for name in DOCUMENTS:
        made[name] = (ROOT / name).read_text(encoding="utf-8")
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links that are right in the repository, `docs/models.md` and `../README.md`, on the site.

    A file that is no page, such as a source or a folder, is named without a link.
    """
    here = page.file.src_uri
    if here == "errors.md":
        markdown = _filled(markdown, MESSAGES, messages.markdown())
    if here == "command_line.md":
        markdown = _filled(markdown, OPTIONS, command_line.markdown())
    if here in DOCUMENTS:
        markdown = re.sub(r"\]\(docs/", "](", markdown)
    return re.sub(
        r"\[([^\]]+)\]\(((?:\.\./)+|)((?:examples|tools|tests|presets|keras_sam)/[^)#]*|LICENSE)"
        r"(#[^)]*)?\)",
        _as_text,
        markdown,
    )


def _filled(markdown, place, content):
    if place not in markdown:
        raise PluginError(f"A page must have the line that its list replaces: {place}")
    return markdown.replace(place, content)


def on_page_content(html, page, config, files):
    """Leaves the hundreds of messages, which are headings for the search, out of the contents."""
    if page.file.src_uri == "errors.md":
        for heading in page.toc.items:
            for room in heading.children:
                room.children = []
    return html


def _as_text(match):
    label, place = match[1], match[3]
    if place.endswith(".ipynb"):
        return f"[{label}](notebooks/{Path(place).stem}.md)"
    return label if place.strip("/") in label else f"{label} (`{place}`)"
