"""The photographs that a command works on, and what their results are called."""

import dataclasses
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from keras_sam.cli.errors import CommandError
from keras_sam.images import IMAGE_ENDINGS


@dataclasses.dataclass(frozen=True)
class Photo:
    """One photograph."""

    path: Path
    name: str  # its path within the folder, with `/` on every system
    # What its results are called: the name without its ending, or with it where another photograph
    # or a folder has the same name up to the ending.
    result: str

    def stamp(self) -> dict:
        """Size and time of the file, by which a changed photograph is recognised."""
        about = self.path.stat()
        return {"bytes": about.st_size, "changed": about.st_mtime_ns}


def find_photos(
    places: Sequence[Path], recursive: bool, not_in: tuple[Path, ...] = ()
) -> list[Photo]:
    """Finds photographs, and those in folders, in the order of their names.

    Names are those within the one folder, or within what all places have in common. Folders
    `not_in`, such as that of the results, are left out.
    """
    for place in places:
        if not place.exists():
            raise CommandError(f"{place}: there is no such photograph or folder")
    base = os.path.commonpath([_folder_of(place) for place in places])
    photos: dict[Path, tuple[Path, str]] = {}  # by the file itself, so that none comes twice
    folders: list[str] = []
    for place in places:
        found, subfolders = (
            _look_into(place, recursive, not_in) if place.is_dir() else ([place], [])
        )
        for path in found:
            name = _within(path, base)
            photos.setdefault(path.resolve(), (path, name))
        folders += [_within(path, base) for path in subfolders]
    return _named(sorted(photos.values(), key=lambda photo: photo[1]), folders)


def _folder_of(place):
    return os.path.abspath(place if place.is_dir() else place.parent)


def _within(path, base):
    return Path(os.path.abspath(path)).relative_to(base).as_posix()


def _look_into(place, recursive, not_in):
    """The photographs in a folder, and its subfolders."""
    left_out = {path.resolve() for path in not_in} - {place.resolve()}
    photos: list[Path] = []
    folders: list[Path] = []
    for folder, subfolders, files in os.walk(place):
        here = Path(folder)
        subfolders[:] = sorted(
            name
            for name in subfolders
            if recursive and not name.startswith(".") and (here / name).resolve() not in left_out
        )
        folders += [here / name for name in subfolders]
        photos += [
            here / name
            for name in files
            if name.lower().endswith(IMAGE_ENDINGS) and not name.startswith(".")
        ]
    if not photos:
        where = "" if recursive else " (--recursive looks into its folders)"
        raise CommandError(f"{place}: the folder has no photographs{where}")
    return photos, folders


def _named(photos, folders):
    """Gives each photograph's results a name of its own, even where case is ignored."""
    short = [str(PurePosixPath(name).with_suffix("")) for _, name in photos]
    taken = Counter(name.casefold() for name in [*short, *folders])
    return [
        Photo(path, name, stem if taken[stem.casefold()] == 1 else name)
        for (path, name), stem in zip(photos, short, strict=True)
    ]
