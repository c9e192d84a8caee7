"""Prompts of several objects, from the command line or a file."""

import argparse
import csv
import dataclasses
import json
from pathlib import Path

from keras_sam.cli import options
from keras_sam.cli.errors import CommandError

_KEYS = ("name", "points", "labels", "box", "mask")
_COLUMNS = ("object", "x", "y", "label", "x1", "y1", "x2", "y2", "mask")


@dataclasses.dataclass(frozen=True)
class ObjectPrompt:
    """The prompts of one object. Coordinates are pixels of the photograph."""

    name: str  # different for each object of a photograph
    points: tuple = ()  # of (x, y, label)
    box: tuple | None = None  # (x1, y1, x2, y2)
    mask: Path | None = None  # a picture or logits


def prompts_from_options(points, boxes, mask) -> list[ObjectPrompt]:
    """One object from all points, at most one box and a mask; or one object per box."""
    if not (points or boxes or mask):
        raise CommandError("no prompt: give at least one --point, --box, --mask or --prompts")
    if len(boxes) <= 1:
        return [ObjectPrompt("0", tuple(points), boxes[0] if boxes else None, mask)]
    if points or mask:
        raise CommandError(
            "several --box are one object each, so that --point and --mask belong to none of "
            "them: give one --box, or put all prompts into a --prompts file"
        )
    return [ObjectPrompt(str(index), box=box) for index, box in enumerate(boxes)]


def read_prompts(path: Path) -> list[ObjectPrompt]:
    """Reads a .json or .csv file of prompts, one object each. `--help` shows both."""
    reader = {".json": _read_json, ".csv": _read_csv}.get(path.suffix.lower())
    if reader is None:
        raise CommandError(f"--prompts {path}: expected a .json or .csv file")
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets put a mark in front
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"--prompts {path}: {getattr(error, 'strerror', error)}") from error
    prompts = reader(path, text)
    if not prompts:
        raise CommandError(f"--prompts {path}: holds no prompt")
    names = [prompt.name for prompt in prompts]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise CommandError(f"--prompts {path}: several objects have the name {twice[0]!r}")
    return prompts


def _read_json(path, text):
    try:
        entries = json.loads(text)
    except ValueError as error:
        raise CommandError(f"--prompts {path}: not JSON: {error}") from error
    if not isinstance(entries, list):
        raise CommandError(f"--prompts {path}: expected a list of objects")
    return [_json_object(path, index, entry) for index, entry in enumerate(entries)]


def _json_object(path, index, entry):
    where = f"--prompts {path}: object {index}"
    if not isinstance(entry, dict) or not entry.keys() <= set(_KEYS):
        raise CommandError(f"{where}: expected a dict with {', '.join(_KEYS)}, received {entry}")
    points = entry.get("points") or []
    labels = entry.get("labels")
    if not isinstance(points, list) or not all(isinstance(point, list) for point in points):
        raise CommandError(f"{where}: points must be a list of [x, y], received {points}")
    if labels is None:
        labels = [1] * len(points)
    if not isinstance(labels, list) or len(labels) != len(points):
        raise CommandError(f"{where}: labels must hold one label per point, received {labels}")
    pairs = zip(points, labels, strict=True)
    points = [_read(where, options.point, [*point, label]) for point, label in pairs]
    box = entry.get("box")
    if box is not None:
        box = _read(where, options.box, box)
    return _object(where, path, str(entry.get("name", index)), points, box, entry.get("mask"))


def _read_csv(path, text):
    rows = list(csv.DictReader(text.splitlines(), skipinitialspace=True))
    objects: dict[str, dict] = {}
    for number, row in enumerate(rows, start=2):  # line 1 is the header
        where = f"--prompts {path}: line {number}"
        if not row.keys() <= set(_COLUMNS):
            raise CommandError(f"{where}: the columns may be {', '.join(_COLUMNS)}")
        row = {key: (value or "").strip() for key, value in row.items()}
        name = row.get("object") or f"line {number}"
        known = objects.setdefault(name, {"where": where, "points": [], "box": None, "mask": None})
        if row.get("x") or row.get("y"):
            values = [row.get("x"), row.get("y"), row.get("label") or 1]
            known["points"].append(_read(where, options.point, values))
        corners = [row.get(key) or None for key in ("x1", "y1", "x2", "y2")]
        given = {
            "box": _read(where, options.box, corners) if any(corners) else None,
            "mask": row.get("mask"),
        }
        for key, value in given.items():
            if value and known[key]:
                raise CommandError(f"{where}: object {name!r} has a {key} already")
            known[key] = known[key] or value
    return [
        _object(known["where"], path, name, known["points"], known["box"], known["mask"])
        for name, known in objects.items()
    ]


def _read(where, read, values):
    """A point or a box, read by the rules of the command line's options."""
    try:
        return read(values)
    except argparse.ArgumentTypeError as error:
        raise CommandError(f"{where}: {error}") from error


def _object(where, path, name, points, box, mask):
    if mask is not None and not isinstance(mask, str):
        raise CommandError(f"{where}: mask must be the path of a file, received {mask}")
    if not (points or box or mask):
        raise CommandError(f"{where}: has neither points nor a box nor a mask")
    return ObjectPrompt(name, tuple(points), box, path.parent / mask if mask else None)
