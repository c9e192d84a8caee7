"""Result files that are there whole or not at all."""

import contextlib
import os
from pathlib import Path

from keras_sam.cli.failure import CommandError, writing
from keras_sam.files import whole_file


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
    """Makes a folder and its parents where missing; a block that fails takes those back."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    except BaseException:
        for place in missing:
            with contextlib.suppress(OSError):  # somebody else's file is in it by now
                place.rmdir()
        raise


class OutputFiles:
    """Files of one run: written under temporary names, put in place together.

    Made by `output_files`.
    """

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
            # Now, not when the first files are in place already: the disk may be full.
            file.flush()
            os.fsync(file.fileno())
        return path


@contextlib.contextmanager
def output_files(folder: Path):
    """Puts the files that the block writes in place when it ends well.

    Otherwise they are removed, so that an error or Ctrl-C leaves earlier results untouched.

    Args:
        folder: Path. Made with its parents where missing.

    Yields:
        `OutputFiles`.
    """
    with made_folder(folder), writing(folder), contextlib.ExitStack() as open_files:
        yield OutputFiles(folder, open_files)
