"""The page for people who come from another package says what runs, and nothing else.

`tests/test_snippets.py` runs the page's code blocks. Here its tables run: in each row, all the
code in the last column, in the order of the page.
"""

import re

import pytest

from tests import test_snippets
from tests.test_snippets import ROOT, blocks, run_code

pytestmark = pytest.mark.once

# Its fixtures, by which every preset is a tiny one and the photographs are there.
tiny_preset = test_snippets.tiny_preset
tiny_presets = test_snippets.tiny_presets
sandbox = test_snippets.sandbox

PAGE = ROOT / "docs" / "coming_from.md"
SPAN = re.compile(r"`([^`]+)`")
# Argument names and keys that a row explains beside its code; not code by themselves.
WORDS = {"fit", "dropout_rate", "attention_dropout_rate", "drop_path_rate", "save_pretrained"}
SHAPES = re.compile(r"\([A-Z0-9, ]+\)|\"labels\": .*|keras-sam .*|SamModel")


def rows():
    """(line number, section, code spans of the last cell) of every row of every table."""
    section = ""
    for number, line in enumerate(PAGE.read_text().splitlines(), 1):
        if line.startswith("## "):
            section = line[3:]
        elif line.startswith("| ") and not line.startswith("|---"):
            cells = [cell.strip() for cell in line.strip("|").split(" | ")]
            assert len(cells) == 2, f"line {number} has {len(cells)} cells"
            if cells[1] != "keras_sam":
                yield number, section, SPAN.findall(cells[1])


def code_of(spans):
    return [s for s in spans if s not in WORDS and not SHAPES.fullmatch(s)]


def sections():
    found = {}
    for number, section, spans in rows():
        found.setdefault(section, []).append((number, code_of(spans)))
    return found


@pytest.mark.parametrize(("section", "lines"), sections().items(), ids=[*sections()])
@pytest.mark.filterwarnings("ignore:A float image lies within 0..1")
def test_our_column_runs(section, lines, sandbox):
    text = PAGE.read_text()
    sandbox(text)
    namespace = {"__name__": "example"}
    for line, code in blocks(text, "python"):
        run_code(code, namespace, PAGE.name, line)
    ran = 0
    for number, spans in lines:
        for code in spans:
            run_code(code, namespace, PAGE.name, number - 1)
            ran += 1
    assert ran >= 0.8 * len(lines)


def test_every_package_has_its_table():
    expected = {"KerasHub", "KerasCV", "Meta's segment_anything", "transformers", "tfimm"}
    assert {name: len(lines) > 15 for name, lines in sections().items()} == dict.fromkeys(
        expected, True
    )
