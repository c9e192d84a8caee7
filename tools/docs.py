#!/usr/bin/env python3
"""Builds the documentation site; makes the environment it needs itself.

    python3 tools/docs.py                 the site, in .check/site/: open index.html there
    python3 tools/docs.py --out FOLDER    the same, elsewhere
    python3 tools/docs.py --serve         shows it, and builds again after every change of a page

A broken link, a public name without a page, a page that the navigation does not have, and
anything that a page would load from another host are errors. The API reference is read from the
sources, so that neither Keras nor a backend is needed. The examples on the pages and in the
docstrings are run by `tests/test_snippets.py`.
"""

from __future__ import annotations

import argparse
import html.parser
import re
import subprocess
import sys
import time
from pathlib import Path

from environment import ROOT, Environment, SetupError, clean, require_python

PACKAGES = (
    *("mkdocs-material", "mkdocstrings[python]", "nbconvert"),
    "ruff",  # formats signatures
    *("numpy", "pillow", "safetensors", "rich"),  # the command line prints its own help
)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / ".check" / "site", help="the site")
    parser.add_argument("--folder", type=Path, default=ROOT / ".check", help="the environment")
    parser.add_argument("--serve", action="store_true", help="show it at http://127.0.0.1:8000/")
    return parser.parse_args(arguments)


def install(environment: Environment) -> None:
    environment.pip("-c", str(ROOT / "constraints.txt"), *PACKAGES, what="what builds the site")


def build(environment: Environment, out: Path) -> int:
    """Builds the site; gives the exit code."""
    variables = clean(NO_MKDOCS_2_WARNING="1")  # the theme's announcement of its successor
    command = [str(environment.python), "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    return subprocess.call(command, cwd=ROOT, env=variables)


class Loads(html.parser.HTMLParser):
    """What a page loads without a click: scripts, styles, pictures, fonts."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if tag == "link" and values.get("rel") in ("canonical", "prev", "next"):
            return
        name = "href" if tag == "link" else "src"
        if tag in ("script", "link", "img", "iframe", "source", "video") and values.get(name):
            self.found.append(values[name])


def loaded_from_elsewhere(site: Path) -> list[str]:
    """Each page or style of the site with the address of another host that it loads from."""
    found = []
    for page in sorted(site.rglob("*.html")):
        reader = Loads()
        reader.feed(page.read_text(encoding="utf-8"))
        found += [
            f"{page.relative_to(site)}: {address}"
            for address in reader.found
            if re.match(r"(https?:)?//", address)
        ]
    for style in sorted(site.rglob("*.css")):
        text = style.read_text(encoding="utf-8")
        addresses = re.findall(r"""(?:url\(|@import\s*)["']?((?:https?:)?//[^"')]+)""", text)
        found += [f"{style.relative_to(site)}: {address}" for address in addresses]
    return found


def main() -> int:
    require_python()
    options = parse()
    started = time.monotonic()
    folder = options.folder.absolute()
    environment = Environment(folder / "docs", folder / "logs" / "docs_setup.log")
    recipe = [Path(__file__).read_text(), (ROOT / "constraints.txt").read_text()]
    try:
        environment.ensure(recipe, install)
    except SetupError as error:
        print(error, file=sys.stderr)
        return 1
    if options.serve:
        command = [str(environment.python), "-m", "mkdocs", "serve"]
        return subprocess.call(command, cwd=ROOT, env=clean())
    code = build(environment, options.out.absolute())
    if code:
        return code
    faults = loaded_from_elsewhere(options.out)
    if faults:
        print("Pages must load nothing from other hosts:", *faults, sep="\n", file=sys.stderr)
        return 1
    pages = len(list(options.out.rglob("*.html")))
    print(f"{pages} pages in {options.out}, after {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
