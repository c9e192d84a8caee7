#!/usr/bin/env python3
"""Writes the stubs of the namespaces whose names are imported at their first use.

    python3 tools/stubs.py        after a public name was added, moved or removed

Type checkers and editors cannot see what a module's `__getattr__` will import, so a stub beside
each lazy `__init__.py` says where its names come from. `tests/test_typing.py` fails while a stub
is not what this writes.
"""

from __future__ import annotations

import argparse
import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(Path(__file__).resolve().parent / "book"))

import reference  # noqa: E402


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    return argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args(arguments)


def lazy_modules() -> list[str]:
    """The public modules whose names a type checker cannot see."""
    return [
        space
        for space in reference.namespaces()
        if isinstance(reference.assigned(reference.module(space), "__all__"), ast.Call)
    ]


def stub(space: str) -> str:
    """The text of a namespace's stub."""
    lines = ["# Written by tools/stubs.py."]
    for name in reference.public_names(space):
        place = reference.resolve(space, name)
        if name == reference.VERSION:
            continue
        home, _, label = place.rpartition(".")
        lines.append(f"from {home} import {label} as {name}")
    lines.append("")
    source = reference.module(space)
    if reference.assigned(source, "HOMES") is not None:
        lines.append("HOMES: dict[str, str]")
    if space == reference.PACKAGE:
        lines.append(f"{reference.VERSION}: str")
    return "\n".join([*lines, "__all__: list[str]", ""])


def path_of(space: str) -> Path:
    return ROOT.joinpath(*space.split("."), "__init__.pyi")


def main() -> None:
    parse()
    for space in lazy_modules():
        path_of(space).write_text(stub(space), encoding="utf-8")
        print(path_of(space).relative_to(ROOT))


if __name__ == "__main__":
    main()
