"""Every message of the package by its own words: errors, warnings, notices and log lines.

They are read from the sources. What holds for a room's messages, their cause and what to do, is
written by hand in `messages.toml`, whose rooms, and entries for single messages, are checked
against the sources by `tests/test_book.py`.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import html
import itertools
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGE = ROOT / "keras_sam"
NOTES = Path(__file__).with_name("messages.toml")
GAP = "…"  # stands for what the running program fills in

# What a call says, by the last part of the called name.
WARNINGS = {"notice": "warning, said once", "warn": "warning", "warn_explicit": "warning"}
LOGS = {"info": "log", "debug": "log", "warning": "log", "exception": "log"}
SAID = {"say": "printed", "print": "printed"}
# What the page's JavaScript says: all up to the end of the statement, and the texts in it.
SHOWN = re.compile(
    r'(?:\b(?:toast|tell)\(|\bnew \w*Error\(|"fail", \{ text: |\.textContent = )'
    r'((?:[^;"`]|"(?:[^"\\]|\\.)*"|`(?:[^`\\]|\\.)*`)*)'
)
QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"|`((?:[^`\\]|\\.)*)`')
# Places where a message of ours is passed on, or another's is worded.
PASSED_ON = re.compile(r"^(notices|cli/errors)\.py$")


@dataclasses.dataclass(frozen=True)
class Message:
    """One message.

    Args:
        text: str. Its words, with `…` for values.
        kind: str. The error's class, or "warning", "log", "printed", "not saved", "on the page", or
            the status of an HTTP answer.
        place: str. The file inside the package.
        line: int. Where it is in that file.
    """

    text: str
    kind: str
    place: str
    line: int


@functools.cache
def collect() -> list[Message]:
    """All messages, in the order of the files; equal ones of a file once."""
    found: dict[tuple[str, str, str], Message] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE).as_posix()
        if PASSED_ON.match(place):
            continue
        for message in _of_file(place, ast.parse(path.read_text(encoding="utf-8"))):
            found.setdefault((message.text, message.kind, place), message)
    for path in sorted(PACKAGE.rglob("*.js")):
        place = path.relative_to(PACKAGE).as_posix()
        for message in _of_page(place, path.read_text(encoding="utf-8")):
            found.setdefault((message.text, message.kind, place), message)
    return list(found.values())


def _of_file(place: str, tree: ast.Module) -> Iterator[Message]:
    functions = {n.name: n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
    raised = {id(n.exc) for n in ast.walk(tree) if isinstance(n, ast.Raise)}
    for answer in ast.walk(tree):
        yield from _of_answer(place, answer)
    for scope, call in _calls(tree, tree):
        kind = _kind(call)
        if kind is None:
            # `raise no_dict(x, "...")`: what makes the error is told its words.
            for argument in call.args if id(call) in raised else ():
                for text in _texts(argument, scope, {}, ast.Module([], [])):
                    if text.count(" ") >= 2:
                        yield Message(text, "ValueError", place, call.lineno)
            continue
        arguments = call.args[2:] if kind == "not saved" else call.args
        if kind in ("OSError", "PermissionError") and len(arguments) > 1:
            arguments = arguments[1:]  # the first is the error's number
        for text in _texts(arguments[0], scope, functions, tree) if arguments else ():
            if re.search(r"[A-Za-z]{3}", text.replace(GAP, "")):
                yield Message(text, kind, place, call.lineno)


def _of_answer(place: str, node: ast.AST) -> Iterator[Message]:
    """The words beside a status of HTTP: `return 403, "..."`, or `plainly(404, "...")`."""
    if isinstance(node, ast.Tuple):
        status, *said = [*node.elts, None]
    elif isinstance(node, ast.Call) and ast.unparse(node.func) == "plainly":
        status, *said = [*node.args, None]
    else:
        return
    number = status.value if isinstance(status, ast.Constant) else None
    if type(number) is int and 400 <= number < 600 and isinstance(said[0], ast.expr):
        for text in _texts(said[0], node, {}, ast.Module([], [])):
            if text.count(" ") >= 2:
                yield Message(text, f"HTTP {number}", place, node.lineno)


def _of_page(place: str, script: str) -> Iterator[Message]:
    """What a page's script says when something is not as it should be, in four words or more."""
    for shown in SHOWN.finditer(script):
        for quoted in QUOTED.finditer(shown[1]):
            text = _plain(re.sub(r"\$\{[^}]*\}", GAP, quoted[1] or quoted[2] or ""))
            if text.count(" ") >= 3 and text[0].isupper():
                line = script.count("\n", 0, shown.start()) + 1
                yield Message(text, "on the page", place, line)


def _calls(node: ast.AST, scope: ast.AST) -> Iterator[tuple[ast.AST, ast.Call]]:
    """Every call with the function that it is in."""
    for child in ast.iter_child_nodes(node):
        inner = child if isinstance(child, ast.FunctionDef) else scope
        if isinstance(child, ast.Call):
            yield scope, child
        yield from _calls(child, inner)


def _kind(call: ast.Call) -> str | None:
    name = ast.unparse(call.func).rpartition(".")[2]
    owner = ast.unparse(call.func).rpartition(".")[0]
    if re.fullmatch(r"[A-Z]\w*(Error|Exception)", name) or name == "SystemExit":
        return name
    if name == "SaveState":
        return "not saved"
    if name in WARNINGS:
        return WARNINGS[name]
    if name in LOGS and re.search(r"log", owner):
        return LOGS[name]
    if name in SAID and (owner or name == "print"):
        return SAID[name]
    if name == "error" and owner.endswith("parser"):
        return "CommandError"
    return None


def _texts(node: ast.expr, scope: ast.AST, functions: dict, tree: ast.Module, deep=2) -> list[str]:
    """The words of an expression; several where it chooses, none where it is another's message."""
    if isinstance(node, ast.Constant):
        return [_plain(node.value)] if isinstance(node.value, str) else []
    if isinstance(node, ast.JoinedStr):
        parts = [p.value if isinstance(p, ast.Constant) else GAP for p in node.values]
        return [_plain("".join(parts))]
    if isinstance(node, ast.IfExp):
        either = (node.body, node.orelse)
        return [text for one in either for text in _texts(one, scope, functions, tree, deep)]
    if isinstance(node, ast.BoolOp):
        return [text for one in node.values for text in _texts(one, scope, functions, tree, deep)]
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Mod)):
        left = _texts(node.left, scope, functions, tree, deep)
        if isinstance(node.op, ast.Mod):
            return [re.sub(r"%\w", GAP, text) for text in left]
        right = _texts(node.right, scope, functions, tree, deep) or [GAP]
        return [_plain(a + b) for a in left for b in right[:1]]
    if not deep:
        return []
    if isinstance(node, ast.Name):
        return [
            text
            for value in _assigned(node.id, scope, tree)
            for text in _texts(value, scope, functions, tree, deep - 1)
        ]
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):  # a table of messages
        values = (v for d in _assigned(node.value.id, tree, tree) for v in getattr(d, "values", ()))
        return [text for v in values for text in _texts(v, scope, functions, tree, deep - 1)]
    if isinstance(node, ast.Call):
        name = ast.unparse(node.func).rpartition(".")[2]
        if name == "join" and node.args:
            return _texts(node.args[0], scope, functions, tree, deep - 1)
        if name in functions:
            return _sentences(functions[name])
    if isinstance(node, (ast.List, ast.Tuple)):
        return [text for one in node.elts for text in _texts(one, scope, functions, tree, deep)]
    return []


def _assigned(name: str, scope: ast.AST, tree: ast.Module) -> list[ast.expr]:
    found = []
    for node in ast.walk(scope):
        if isinstance(node, (ast.Assign, ast.AugAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(t, ast.Name) and t.id == name for t in targets):
                found.append(node.value)
        elif isinstance(node, ast.NamedExpr) and node.target.id == name:
            found.append(node.value)
    return found or ([] if scope is tree else _assigned(name, tree, tree))


def _sentences(function: ast.FunctionDef) -> list[str]:
    """What a function that words a message may say: its strings of several words."""
    doc = ast.get_docstring(function, clean=False)
    inside = {id(n) for j in ast.walk(function) if isinstance(j, ast.JoinedStr) for n in j.values}
    found = []
    for node in ast.walk(function):
        if id(node) in inside or not isinstance(node, (ast.Constant, ast.JoinedStr)):
            continue
        for text in _texts(node, function, {}, ast.Module([], []), 0):
            if text.count(" ") >= 2 and text != _plain(doc or ""):
                found.append(text)
    return found


def _plain(text: str) -> str:
    """One line, with one gap where several values follow each other."""
    text = re.sub(r"%[sdr]|%\.\d[fg]", GAP, " ".join(text.split()) if "\n" in text else text)
    return re.sub(rf"{GAP}(\s*{GAP})+", GAP, text).strip()


def notes() -> dict:
    """What is written by hand: `room` tables, and `message` tables for single messages."""
    return tomllib.loads(NOTES.read_text(encoding="utf-8"))


def room_of(message: Message, rooms: list[dict]) -> dict | None:
    """The first room one of whose paths the message's file starts with."""
    for room in rooms:
        if any(message.place == path or message.place.startswith(path) for path in room["paths"]):
            return room
    return None


def explained(message: Message, entries: list[dict]) -> dict | None:
    """The first hand-written entry that has a part of the message's words."""
    return next((entry for entry in entries if any(w in message.text for w in entry["says"])), None)


def markdown() -> str:
    """The part of the errors page that is made from the sources.

    Each message is a heading, so that a search leads to it and not to a room of a hundred. What is
    written for it follows, or the way to the room's cause and remedy.
    """
    written = notes()
    everything = collect()
    taken: set[str] = set()
    parts = []
    for room in written["room"]:
        own = [m for m in everything if room_of(m, written["room"]) is room]
        if not own:
            continue
        anchor = _anchor(room["title"], taken)
        parts += [
            f"## {room['title']} {{ #{anchor} }}",
            f"**Cause.** {room['cause']}",
            f"**What to do.** {room['remedy']}",
        ]
        for message in _sorted(own):
            entry = explained(message, written["message"])
            if entry:
                advice = f"{entry['because']} **{entry['do']}**"
            else:
                advice = f"[{room['title']}: cause, and what to do](#{anchor})"
            parts.append(f"### {_shown(message)} {{ #{_anchor(message.text, taken)} .message }}")
            parts.append(f"`{message.kind}` {advice}")
    return "\n\n".join(parts) + "\n"


def _anchor(text: str, taken: set[str]) -> str:
    """Up to eight words of a heading, with a number where another one starts with the same."""
    words = re.findall(r"[a-z0-9]+", text.lower())[:8]
    anchor = next(
        name
        for number in itertools.count(1)
        if (name := "-".join([*words, str(number)] if number > 1 else words)) not in taken
    )
    taken.add(anchor)
    return anchor


def _sorted(messages: list[Message]) -> list[Message]:
    return sorted(messages, key=lambda m: re.sub(r"[^a-z]", "", m.text.lower()))


def _shown(message: Message) -> str:
    """The words as Markdown; their backticks are code on the page as well."""
    text = html.escape(message.text, quote=False)
    text = re.sub(r"`([^`]*)`", r"<code>\1</code>", text).replace("`", "&#96;")
    return re.sub(r"([*_\[\]{}|#~^\\])", lambda found: f"&#{ord(found[1])};", text)
