"""The documentation's generated pages say what the package is: every name, every message."""

import ast
import importlib
import inspect
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import keras_sam

pytestmark = pytest.mark.once

BOOK = Path(__file__).resolve().parent.parent / "tools" / "book"
sys.path.insert(0, str(BOOK))
import messages  # noqa: E402
import reference  # noqa: E402

sys.path[0] = str(BOOK.parent)
import docs  # noqa: E402

del sys.path[0]


def public_modules(module=keras_sam):
    """The running package's public modules, as their `__all__` name them."""
    yield module
    for name in getattr(module, "__all__", ()):
        value = getattr(module, name)
        if inspect.ismodule(value) and value.__name__ == f"{module.__name__}.{name}":
            yield from public_modules(value)


def test_every_public_name_has_a_place_in_the_reference():
    """Read from the sources, compared with what the running package offers."""
    found = reference.contents()
    assert set(found) == {module.__name__ for module in public_modules()}
    for space, names in found.items():
        module = importlib.import_module(space)
        wanted = set(getattr(module, "__all__", names)) - {"__version__"}
        assert set(names) == {n for n in wanted if not inspect.ismodule(getattr(module, n))}, space
        for name, place in names.items():
            home, _, label = place.rpartition(".")
            assert getattr(importlib.import_module(home), label) is getattr(module, name), place


def test_every_documented_name_is_on_the_page_that_links_lead_to():
    pages = reference.pages()
    for place, (space, name) in reference.documented_at().items():
        page = pages[reference.page_name(space)]
        assert f"#{space}.{name} " in page, place
        assert f"::: {place}\n" in page or f"{name} = " in page, place


def test_what_is_written_about_messages_is_about_messages_that_are_there():
    written, found = messages.notes(), messages.collect()
    assert len(found) > 600
    for entry in written["message"]:
        for words in entry["says"]:
            hits = [m for m in found if words in m.text]
            assert [m for m in hits if messages.explained(m, written["message"]) is entry], words
    for room in written["room"]:
        for path in room["paths"]:
            assert [m for m in found if m.place.startswith(path)], (room["title"], path)
    assert all(messages.room_of(message, written["room"]) for message in found)


def test_every_message_is_a_heading_of_its_own_with_advice_below():
    """So that a search leads to it. Where nothing is written for it, the advice is its room's."""
    lines = messages.markdown().split("\n\n")
    headings = [i for i, line in enumerate(lines) if line.startswith("### ")]
    assert len(headings) == len(messages.collect())
    anchors = re.findall(r"^##.* \{ #([a-z0-9-]+)", "\n".join(lines), re.M)
    assert len(anchors) == len(set(anchors)) > len(headings)
    for i in headings:
        link = re.search(r"\(#([a-z0-9-]+)\)$", lines[i + 1])
        assert link[1] in anchors if link else lines[i + 1].endswith("**"), lines[i : i + 2]


@pytest.mark.parametrize(
    ("text", "kind", "place"),
    [
        ("The token is missing or wrong: open the address", "HTTP 401", "annotate/guard.py"),
        ("Other sites may not call this server.", "HTTP 403", "annotate/guard.py"),
        ("A request may have up to … MB.", "HTTP 413", "annotate/guard.py"),
        ("There is no such address.", "HTTP 404", "annotate/server.py"),
        ("The body must be JSON.", "HTTP 422", "annotate/server.py"),
        ("… was changed by another program and is", "not saved", "annotate/store.py"),
        ("… could not be written: …", "not saved", "annotate/store.py"),
        ("Accept this mask first (Enter)", "on the page", "annotate/static/editor.js"),
        ("The page cannot be opened", "on the page", "annotate/static/editor.js"),
        ("The mask is empty.", "on the page", "annotate/static/canvas.js"),
        ("The server does not answer. Is it", "on the page", "annotate/static/page.js"),
        ("The server answered …", "on the page", "annotate/static/page.js"),
        ("Python does not answer. If no", "on the page", "annotate/static/widget.js"),
    ],
)
def test_what_the_page_and_its_server_say_is_listed(text, kind, place):
    found = [
        message
        for message in messages.collect()
        if (message.kind, message.place) == (kind, place) and message.text.startswith(text)
    ]
    assert len(found) == 1
    room = messages.room_of(found[0], messages.notes()["room"])
    assert room["title"] == "The page for labelling, and the widget"


# What raises an error that was made, or worded, elsewhere.
PASSED_ON = re.compile(
    r"raise (\w*error|malformed|self\._(error|fault)|NotImplementedError|KeyboardInterrupt|"
    r"_TooLargeError)\b"
)
ANOTHERS = re.compile(
    r"\((str\(error(\.reason|\.__cause__)?\)|message|fault|"
    r"f'\{\w+\}:? \(?\{error\}\)?'|f'.*strerror.*')"
)


def test_no_error_is_raised_whose_words_are_not_collected():
    trees = {
        path.relative_to(messages.PACKAGE).as_posix(): ast.parse(path.read_text())
        for path in sorted(messages.PACKAGE.rglob("*.py"))
    }
    found = {
        place: {m.line for m in messages._of_file(place, tree)} for place, tree in trees.items()
    }
    makers = {
        node.name
        for place, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and any(node.lineno <= line <= node.end_lineno for line in found[place])
    }
    for place, tree in trees.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Raise) or node.exc is None:
                continue
            if any(node.lineno <= line <= node.end_lineno for line in found[place]):
                continue
            called = node.exc.func if isinstance(node.exc, ast.Call) else None
            if called is not None and ast.unparse(called).rpartition(".")[2] in makers:
                continue
            text = ast.unparse(node)
            assert PASSED_ON.match(text) or ANOTHERS.search(text), f"{place}:{node.lineno}: {text}"


@pytest.mark.parametrize(
    "call",
    [
        lambda: keras_sam.masks.encode_rle(np.zeros((2, 2)) + 0.5),
        lambda: keras_sam.masks.mask_to_polygons(np.zeros((2, 3, 4), bool)),
        lambda: keras_sam.boxes.nms(np.zeros((2, 3)), np.zeros(2), 0.5),
        lambda: keras_sam.presets.read_preset("no/such"),
        lambda: keras_sam.prompts.read({"points": [[1, 2]]}, [(10, 10)]),
        lambda: keras_sam.SAMPredictor("sam_tiny_demo").predict(points=[[1, 2]], labels=[1]),
        lambda: keras_sam.visualization.overlay(None),
        lambda: keras_sam.SAMPromptEncoder(hidden_size=7),
        lambda: keras_sam.training.MaskFolder("no/such", "folder"),
        lambda: keras_sam.ExportedSegmenter.load("no/such"),
    ],
    ids=lambda call: str(call.__code__.co_firstlineno),
)
def test_an_error_of_the_running_package_is_listed_by_its_words(call):
    with pytest.raises(Exception) as caught:  # noqa: PT011
        call()
    text = messages._plain(str(caught.value))
    patterns = [".*".join(map(re.escape, m.text.split(messages.GAP))) for m in messages.collect()]
    # Of patterns that match, one has real words of the message and not a gap alone.
    assert max(len(p) for p in patterns if re.match(p, text, re.S)) >= 25, text


def test_what_a_page_would_load_from_another_host_is_found(tmp_path):
    (tmp_path / "good.html").write_text(
        '<a href="https://a.org/">x</a><link rel="canonical" href="//a.org"><img src="b.png">'
    )
    (tmp_path / "good.css").write_text("a { background: url(b.png) }")
    assert docs.loaded_from_elsewhere(tmp_path) == []
    (tmp_path / "bad.html").write_text('<script src="//a.org/x.js"></script>')
    (tmp_path / "bad.css").write_text(
        "@import 'https://a.org/x.css'; a { src: url(http://a.org/f) }"
    )
    found = docs.loaded_from_elsewhere(tmp_path)
    assert found == [
        "bad.html: //a.org/x.js",
        "bad.css: https://a.org/x.css",
        "bad.css: http://a.org/f",
    ]
