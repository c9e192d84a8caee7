"""A large picture as the tiles read it: by windows, with what is known of its place and values.

Numpy only.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from keras_sam.pixel_values import percentile_range, to_pixel_values
from keras_sam.tiles.grid import Box

_SAMPLES = 8  # windows along each side, from which the range of values of a picture is taken
_SAMPLE_SIDE = 256  # pixels of each
_SEARCH_SIDE = 1024  # pixels of windows that are searched where these hold nothing but 0


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture that is read by windows; `open_picture` makes it.

    Args:
        size: pair of ints `(H0, W0)`.
        num_channels: int. Channels of what is read, after the choice of `channels`.
        dtype: numpy dtype of the values.
        name: str, what messages call it.
        read: function of a box, x1 y1 x2 y2 in pixels, that returns its values `(h, w, C)`, masked
            where there are none.
        crs: optional, the coordinate reference system as rasterio has it.
        transform: optional six floats a b c d e f: column x and row y lie at `a x + b y + c`,
            `d x + e y + f` of the system.
        pixel_size: optional pair of floats, height and width of a pixel in `unit`.
        unit: optional str, such as `"µm"`.
        path: optional, the file or folder.
        channels: optional tuple of ints, the chosen channels.
        axes: optional str, a letter per axis of the array that is read.
        close: function that closes the file that `open_picture` has opened, if any.
    """

    size: tuple[int, int]
    num_channels: int
    dtype: np.dtype
    name: str
    read: Callable[[Box], np.ndarray]
    crs: Any = None
    transform: tuple[float, ...] | None = None
    pixel_size: tuple[float, float] | None = None
    unit: str | None = None
    path: Path | None = None
    channels: tuple[int, ...] | None = None
    axes: str | None = None
    close: Callable[[], Any] = lambda: None

    def whole_range(self, value_range: Any) -> Any:
        """Which values become 0..255 in every window of the picture, of a setting of `value_range`.

        What `"auto"` and `"percentile"` would choose for each window is chosen once, from windows
        all over the picture: else a dark part would be as bright as the others.
        """
        automatic = isinstance(value_range, str)
        if not automatic or (value_range == "auto" and self.dtype == np.uint8):
            return value_range
        sample = self._sample()
        if (value_range == "percentile" or self.dtype.kind == "f") and not _telling(sample).size:
            sample = self._first_values(sample)
        if value_range == "percentile":
            low, high = percentile_range(np.ma.compressed(sample).astype("float32"))
            return low, high if high > low else low + 1
        known = sample[np.isfinite(sample)] if sample.dtype.kind == "f" else sample
        if not known.size:
            return 0.0, 1.0
        to_pixel_values(known, "auto", self.name)  # says what is doubtful, refuses what is wrong
        if self.dtype == np.uint16:
            return 0.0, 65535.0
        within_one = self.dtype.kind == "f" and known.min() >= 0 and 0 < known.max() <= 1
        return (0.0, 1.0) if within_one else (0.0, 255.0)

    def content_hash(self) -> str:
        """A hash of the type of the values and of the windows that tell a picture from another."""
        digest = hashlib.blake2b(str(self.dtype).encode(), digest_size=8)
        for values in self._sampled():
            digest.update(np.ma.getmaskarray(values).tobytes() if np.ma.is_masked(values) else b"")
            digest.update(np.ascontiguousarray(np.ma.getdata(values)))
        return digest.hexdigest()

    def _sample(self) -> np.ndarray:
        # One value of 16 says as much as all. The step is no multiple of 3, so that each colour
        # counts; alpha does not.
        return np.ma.concatenate([part[..., :3].reshape(-1)[::16] for part in self._sampled()])

    def _first_values(self, sample: np.ndarray) -> np.ndarray:
        """The values besides 0 of the first window that has some, or the sample without them."""
        h, w = self.size
        for y in range(0, h, _SEARCH_SIDE):
            for x in range(0, w, _SEARCH_SIDE):
                values = self.read((x, y, min(x + _SEARCH_SIDE, w), min(y + _SEARCH_SIDE, h)))
                if (telling := _telling(values[..., :3])).size:
                    return telling
        return sample

    def _sampled(self) -> Iterator[np.ndarray]:
        """Windows all over the picture, all of it if it is small."""
        h, w = self.size
        side_y, side_x = min(_SAMPLE_SIDE, h), min(_SAMPLE_SIDE, w)
        for y in sorted({int(n) for n in np.linspace(0, h - side_y, _SAMPLES)}):
            for x in sorted({int(n) for n in np.linspace(0, w - side_x, _SAMPLES)}):
                yield self.read((x, y, x + side_x, y + side_y))


def _telling(values: np.ndarray) -> np.ndarray:
    """The known values besides 0, which is a background."""
    known = np.ma.compressed(values)
    return known[np.isfinite(known) & (known != 0)]


def import_for(extra: str, name: str, purpose: str) -> Any:
    """A module of an optional package, or an ImportError that names the extra which brings it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.split(".")[0]
        raise ImportError(f'{purpose} needs {package}: pip install "keras-sam[{extra}]"') from error
