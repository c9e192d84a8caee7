"""Docstrings in this package's style as Markdown, while the generator reads the sources.

Sections are `Args:`, `Call arguments:`, `Returns:`, `Raises:`, `Source:` and `Example:`, as Keras
writes them. Types are part of the words, so the usual parsers, which look for types in
parentheses and split what is returned at its colons, would tear sentences apart.
"""

from __future__ import annotations

import re
import textwrap

import griffe

LISTS = ("Args", "Attributes", "Call arguments", "Raises")
TEXTS = ("Returns", "Yields", "Source", "Example", "Examples")
HEADER = re.compile(rf"^({'|'.join(LISTS + TEXTS)}):[ \t]*(.*)$", re.M)
# One name, or several with commas, each perhaps starred, dotted or in backticks.
ITEM = re.compile(r"^(\*{0,2}`?[\w.*\"']+`?(?:,\s*\*{0,2}`?[\w.*\"']+`?)*):\s+(.*)$")


class AsMarkdown(griffe.Extension):
    """Rewrites every docstring before it is rendered."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    """The docstring with its sections as paragraphs and lists, and its examples as code."""
    pieces = HEADER.split(text)
    parts = [pieces[0].strip()]
    for title, rest, body in zip(pieces[1::3], pieces[2::3], pieces[3::3]):
        body = f"{rest.strip()}\n{textwrap.dedent(body.strip(chr(10)))}".strip()
        if title in LISTS:
            parts += [f"**{title}:**", _items(body)]
        elif title in ("Example", "Examples"):
            parts += [f"**{title}:**", _fenced(body)]
        else:
            parts.append(f"**{title}:** {body}")
    return "\n\n".join(parts) + "\n"


def _items(body: str) -> str:
    lines = []
    for line in body.splitlines():
        item = ITEM.match(line)
        lines.append(f"* **{_code(item[1])}**: {item[2]}" if item else line)
    return "\n".join(lines)


def _code(names: str) -> str:
    return ", ".join(f"`{name.strip().strip('`')}`" for name in names.split(","))


def _fenced(body: str) -> str:
    """Sessions, whose lines start with `>>>`, in fences of their own."""
    if ">>>" not in body or "```" in body:
        return body
    blocks = re.split(r"\n\n", body)
    return "\n\n".join(f"```pycon\n{b}\n```" if b.startswith(">>>") else b for b in blocks)
