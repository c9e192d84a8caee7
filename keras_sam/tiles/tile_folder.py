"""The masks of each tile in a folder, so that a run that was killed goes on where it stopped.

Numpy only.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from keras_sam.annotations.image_annotations import plain
from keras_sam.files import is_leftover, remove_leftovers, whole_file
from keras_sam.tiles.grid import Tile

SETTINGS_FILE = "tiles.json"
_NAMES = r"tile_\d+_\d+\.json|tiles\.json"


class TileFolder:
    """Records of tiles, one file each, written whole or not at all; a damaged one is not there.

    Args:
        folder: path, created when needed.
        settings: dict, ready for JSON: everything that the records depend on.

    Raises:
        ValueError: if the folder holds tiles of other settings.
    """

    def __init__(self, folder: str | os.PathLike, settings: dict):
        self.folder = Path(folder)
        about = self.folder / SETTINGS_FILE
        settings = json.loads(json.dumps(plain(settings)))
        if about.is_file():
            changed = _changes(about, settings)
            if changed:
                raise ValueError(
                    "`folder` must be new, or of an earlier run of the same picture and settings. "
                    f"Received: {self.folder}, where {'; '.join(changed)}."
                )
            remove_leftovers(self.folder, _NAMES)
            return
        # Leftovers are of a run that was killed before its first tile.
        if self.folder.is_dir() and not all(
            is_leftover(path.name, _NAMES) for path in self.folder.iterdir()
        ):
            raise ValueError(
                "`folder` must be new, or of an earlier run of the same picture and settings. "
                f"Received: {self.folder}, which holds other files."
            )
        with whole_file(about, text=True) as file:
            json.dump(settings, file)

    def read(self, tile: Tile) -> list[dict] | None:
        """The records of a tile, or None if it is not done."""
        try:
            return json.loads(self._path(tile).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None

    def write(self, tile: Tile, records: list[dict]) -> None:
        """Keeps the records of a tile."""
        with whole_file(self._path(tile), text=True) as file:
            json.dump(plain(records), file)

    def _path(self, tile: Tile) -> Path:
        return self.folder / f"tile_{tile.row}_{tile.column}.json"


def _changes(about: Path, settings: dict) -> list[str]:
    """What differs from the settings in a file, in words."""
    try:
        earlier = dict(json.loads(about.read_text(encoding="utf-8")))
    except ValueError:
        return [f"{SETTINGS_FILE} is damaged"]
    return [
        f"{name} was {earlier.get(name)}, is {settings.get(name)}"
        for name in {**earlier, **settings}
        if earlier.get(name) != settings.get(name)
    ]
