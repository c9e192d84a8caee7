"""Results: folders and files that are written whole or not at all, and tables on the screen.

One rule for results that exist already: a command does not replace them without `--overwrite`.
An interrupted run continues when it is started again with the same settings.
"""

import contextlib
import csv
import io
import json
import os
from collections.abc import Iterable
from pathlib import Path

from keras_sam.cli.errors import CommandError, writing
from keras_sam.files import whole_file


def add_overwrite_option(group) -> None:
    """Adds the option that lets a command replace results that are there already."""
    group.add_argument("--overwrite", action="store_true", help="replace results already there")


def check_nothing_is_lost(paths: Iterable[Path], overwrite: bool, option: str = "--out") -> None:
    """Raises if one of the files or folders that a command will write is there already."""
    for path in () if overwrite else paths:
        if path.exists():
            raise CommandError(f"{option}: {path} is there already; --overwrite replaces it")


def check_same_settings(folder: Path, earlier: dict, now: dict) -> None:
    """Raises if a folder holds results of other settings than those of the run to continue."""
    now = json.loads(json.dumps(now))
    changed = [
        f"{name} was {earlier.get(name)}, is {now.get(name)}"
        for name in {**earlier, **now}
        if earlier.get(name) != now.get(name)
    ]
    if changed:
        raise CommandError(
            f"--out {folder}: holds results of other settings ({'; '.join(changed)}): choose "
            "another folder, or start from scratch with --overwrite"
        )


def check_output_folder(folder: Path, option: str = "--out") -> None:
    """Raises unless `folder` is, or can be made, a folder to write into. Creates nothing."""
    for place in (folder, *folder.absolute().parents):
        try:
            exists = place.exists()
        except OSError as error:
            raise CommandError(f"{option} {folder}: {error.strerror}") from error
        if not exists:
            continue
        if not place.is_dir():
            raise CommandError(f"{option} {folder}: {place} is a file, not a folder")
        if not os.access(place, os.W_OK | os.X_OK):
            raise CommandError(f"{option} {folder}: no permission to write in {place}")
        return


@contextlib.contextmanager
def made_folder(folder: Path):
    """Makes a folder and its missing parents; removes these again if the block fails."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    except BaseException:
        for place in missing:
            with contextlib.suppress(OSError):  # another program has put a file into it
                place.rmdir()
        raise


class OutputFiles:
    """Files of `output_files`: written under temporary names, put in place together."""

    def __init__(self, folder: Path, open_files: contextlib.ExitStack):
        self.folder = folder
        self._open_files = open_files

    def write(self, name: str, data: bytes) -> Path:
        """Writes a file under a temporary name. Returns the path that it will have."""
        path = self.folder / name
        if path.is_dir():
            raise CommandError(f"cannot write {path}: it is a folder")
        with writing(path):
            file = self._open_files.enter_context(whole_file(path))
            file.write(data)
            # A full disk must show before the first files are in place.
            file.flush()
            os.fsync(file.fileno())
        return path


@contextlib.contextmanager
def output_files(folder: Path):
    """Puts the files that the block writes into `folder` once it succeeds.

    Otherwise they are removed, so that an error or Ctrl-C leaves earlier results untouched.
    """
    with made_folder(folder), writing(folder), contextlib.ExitStack() as open_files:
        yield OutputFiles(folder, open_files)


def csv_text(rows: list[dict]) -> str:
    """Rows of the same columns as a CSV file."""
    table = io.StringIO()
    writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return table.getvalue()


def format_table(header: tuple[str, ...], rows: list[tuple]) -> str:
    """Aligns columns, numbers to the right.

    Example:

    >>> print(format_table(("name", "size"), [("a", 5), ("bcd", 10)]))
    name  size
    a        5
    bcd     10
    """
    cells = [header, *(tuple(str(cell) for cell in row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    right = [all(_is_number(row[column]) for row in cells[1:]) for column in range(len(header))]
    lines = [
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in cells
    ]
    return "\n".join(lines)


def _is_number(text):
    return text.lstrip("-").replace(",", "").replace(".", "").split(" ")[0].isdigit()
