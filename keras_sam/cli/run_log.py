"""The log of finished photographs in a folder of results, which lets an interrupted run continue.

A text file of JSON lines: the settings of the run, then a line per photograph, added once its
results are in place. A photograph without a whole line is segmented again.
"""

import contextlib
import json
import os
from pathlib import Path

from keras_sam.cli.errors import CommandError, writing
from keras_sam.cli.output import check_same_settings
from keras_sam.files import whole_file

FILE = "keras_sam_run.jsonl"


class RunLog:
    """The log of one folder. Nothing is written before `start`.

    `settings`, ready for JSON, are everything that the results depend on: results that are there
    already must have the same, unless `overwrite` starts from scratch.
    """

    def __init__(self, folder: Path, settings: dict, overwrite: bool = False):
        self.path = folder / FILE
        self.settings = settings
        self.started = False
        self._entries: dict[str, dict] = {}
        self._owners: dict[str, str] = {}  # the photograph that was last to write an output
        self._is_there = self.path.is_file() and not overwrite
        if self._is_there:
            self._read(folder)

    @property
    def is_new(self) -> bool:
        """Whether nothing was logged before this run."""
        return not self._is_there

    def entries(self) -> list[dict]:
        """The finished photographs, in the order of their names."""
        return [self._entries[name] for name in sorted(self._owners.values())]

    def count_masks(self, names: set[str]) -> int:
        """How many masks these photographs have together."""
        return sum(self._entries[name]["masks"] for name in names)

    def find(self, name: str, stamp: dict) -> dict | None:
        """The entry of a photograph, unless the photograph has changed since."""
        entry = self._entries.get(name)
        if entry is None or self._owners[entry["output"]] != name:
            return None
        return entry if entry.items() >= stamp.items() else None

    def other_file(self, name: str, path: Path) -> str | None:
        """The file of another photograph, still there, whose results have the name of this one."""
        known = self._entries.get(name, {}).get("file")
        return None if known in (None, _real(path)) or not os.path.exists(known) else known

    def start(self) -> None:
        """Creates the file, or prepares an earlier one for more lines."""
        with writing(self.path):
            if self.is_new:
                with whole_file(self.path, text=True) as file:
                    file.write(json.dumps({"settings": self.settings}) + "\n")
            elif not self.path.read_bytes().endswith(b"\n"):
                with self.path.open("ab") as file:
                    file.write(b"\n")  # completes the line that a killed run left unfinished
        self.started = True

    def add(self, name: str, path: Path, entry: dict) -> None:
        """Logs that a photograph is finished; the line survives a power cut."""
        entry = {"photo": name, "file": _real(path), **entry}
        with writing(self.path), self.path.open("ab") as file:
            file.write(json.dumps(entry).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._enter(entry)

    def _enter(self, entry):
        name = entry["photo"]
        before = self._entries.get(name)
        if before is not None and self._owners[before["output"]] == name:
            del self._owners[before["output"]]
        self._entries[name] = entry
        self._owners[entry["output"]] = name

    def _read(self, folder):
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        parsed = []
        for line in lines:
            with contextlib.suppress(ValueError):  # cut off: that photograph is done again
                parsed.append(json.loads(line))
        if not parsed or "settings" not in parsed[0]:
            raise CommandError(
                f"--out {folder}: {FILE} is damaged; --overwrite starts from scratch"
            )
        check_same_settings(folder, parsed[0]["settings"], self.settings)
        for entry in parsed[1:]:
            self._enter(entry)


def _real(path: Path) -> str:
    return os.path.realpath(path)
