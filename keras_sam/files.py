"""Files and folders that appear complete or not at all.

Everything is written under a temporary name in the same folder and renamed at the end, so after
a full disk, an error or Ctrl-C the earlier file is unchanged, and no partial file is left.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

_LEFTOVERS_AFTER = 60  # seconds: a younger temporary file may belong to a program that writes now


@contextlib.contextmanager
def whole_file(path: str | os.PathLike, text: bool = False) -> Iterator[IO]:
    """Opens a file for writing that appears at `path` only when the block ends well.

    Missing parent folders are created, and an existing file is replaced. `text` is UTF-8, with a
    bare line feed on every system. An OSError names `path` and the reason.
    """
    path = Path(path)
    temporary = _beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        how = {"mode": "x", "encoding": "utf-8", "newline": "\n"} if text else {"mode": "xb"}
        with open(temporary, **how) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        _raise_with_path(error, path, temporary)
    finally:
        with contextlib.suppress(OSError):  # it does not exist after the renaming
            temporary.unlink()


@contextlib.contextmanager
def whole_place(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a path for a program to write a file at, which appears at `path` when the block ends
    well.

    The name is that of the file, in a temporary folder beside it: some programs take the format
    from its ending, or write more files.
    """
    path = Path(path)
    folder = _beside(path)
    try:
        folder.mkdir(parents=True)
        yield folder / path.name
        os.replace(folder / path.name, path)
    except OSError as error:
        _raise_with_path(error, path, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def whole_folder(path: str | os.PathLike, replaceable: str) -> Iterator[Path]:
    """Makes a folder that appears at `path` only when the block ends well.

    Yields its temporary path, to write into. An existing folder is replaced if it is empty or
    holds a file named `replaceable`, the mark of an earlier result; else it is a FileExistsError.
    """
    path = Path(path)
    temporary, old = _beside(path), _beside(path)
    try:
        if path.exists() and not path.is_dir():
            raise FileExistsError(f"`{path}` must be a folder. Received: a file of that name.")
        if path.is_dir() and any(path.iterdir()) and not (path / replaceable).is_file():
            raise FileExistsError(
                f"`{path}` holds other files, and writing would replace them. Choose a new folder."
            )
        temporary.mkdir(parents=True)
        yield temporary
        if path.is_dir():
            os.rename(path, old)
        os.rename(temporary, path)
    except OSError as error:
        if old.is_dir() and not path.exists():
            os.rename(old, path)
        _raise_with_path(error, path, temporary)
    finally:
        for leftover in (temporary, old):
            shutil.rmtree(leftover, ignore_errors=True)


def remove_leftovers(folder: str | os.PathLike, names: str) -> None:
    """Removes what programs that were killed while they wrote left in a folder.

    `names` is a regular expression for the names of the files and folders that they were writing.
    """
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            if not is_leftover(entry.name, names):
                continue
            if time.time() - entry.stat().st_mtime <= _LEFTOVERS_AFTER:
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                os.unlink(entry.path)


def is_leftover(name: str, names: str) -> bool:
    """Whether a file or folder is one of which `remove_leftovers` removes the old ones."""
    return re.fullmatch(rf"\.(?:{names})\.[0-9a-f]{{8}}\.part", name) is not None


def import_h5py() -> Any:
    """The module h5py, which comes with Keras alone, or an ImportError with the remedy."""
    try:
        import h5py
    except ImportError as error:
        raise ImportError('HDF5 files need h5py: pip install "keras-sam[keras]"') from error
    return h5py


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")


def _raise_with_path(error: OSError, path: Path, temporary: Path) -> None:
    """Raises the error with the file that could not be written, unless it is about another one."""
    about = None if error.filename is None else Path(os.fsdecode(error.filename))
    own = about is None or about in (path, *path.parents) or temporary in (about, *about.parents)
    if error.errno is None or not own:
        raise error
    raise OSError(
        error.errno, f"{error.strerror}; `{path}` could not be written and was left as it was"
    ) from error
