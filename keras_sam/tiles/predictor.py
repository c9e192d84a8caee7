"""Prompts anywhere in a picture that is too large for one frame."""

from __future__ import annotations

import dataclasses
import functools
import os
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_sam.embedding_cache import EmbeddingCache
from keras_sam.encode_decode import EncodesAndDecodes
from keras_sam.masks import compress_rle, encode_rle, mask_to_box
from keras_sam.masks.rle import mask_flips
from keras_sam.predictor import SAMPredictor
from keras_sam.prompts import PromptLike
from keras_sam.prompts import read as read_prompts
from keras_sam.prompts.labels import BACKGROUND, FOREGROUND, TOP_LEFT
from keras_sam.prompts.spellings import refuses_unknown_arguments
from keras_sam.tiles.grid import Box, Tile, TileGrid
from keras_sam.tiles.picture import Picture
from keras_sam.tiles.pictures import open_picture

_EDGE = 20  # pixels of the level: a mask as close to the edge of its window is cut off
_BLOCK = 2048  # pixels along each side that are read together for a coarser level


@dataclasses.dataclass(frozen=True, eq=False)
class TiledPrediction:
    """Masks of one object in a large picture.

    Args:
        size: pair of ints `(H0, W0)` of the picture.
        scores: float32 `(K,)`, predicted IoUs.
        logits: float32 `(K, L, L)` in the frame of the window.
        masks: list of `K` bool arrays `(h, w)`, each a crop around the mask, with a pixel for
            `2**level` by `2**level` of the picture.
        boxes: int64 `(K, 4)`, x1 y1 x2 y2 in pixels of the picture, x2 and y2 one past the last:
            where the crops lie, all 0 for an empty mask.
        level: int. 0 for the picture's own pixels; each level has half as many along each side.
        window: four ints, x1 y1 x2 y2 in pixels of the picture: what the model saw.
    """

    size: tuple[int, int]
    scores: np.ndarray
    logits: np.ndarray
    masks: list[np.ndarray]
    boxes: np.ndarray
    level: int
    window: Box

    def run_lengths(self) -> list[dict]:
        """COCO's run lengths of each mask in the frame of the picture, made from its crop."""
        return [
            _run_lengths(mask, box.tolist(), 2**self.level, self.size)
            for mask, box in zip(self.masks, self.boxes)
        ]

    def crop(self, index: int) -> np.ndarray:
        """A mask in pixels of the picture, bool, as large as its box in `boxes`."""
        x1, y1, x2, y2 = self.boxes[index]
        mask = self.masks[index]
        for axis in (0, 1):
            mask = np.repeat(mask, 2**self.level, axis=axis)
        return mask[: y2 - y1, : x2 - x1]


class TiledPredictor:
    """Click to segment in a picture of any size: a prompt goes to the tile that holds it best.

    A tile is encoded when a prompt first needs it, and its embedding is kept on disk. An object
    whose mask is cut off by the edge of its window is segmented again at a coarser level, where a
    window shows twice as much along each side, and so on up to the whole picture.

    Args:
        segmenter: as in `SAMPredictor`.
        tile_shape: int or pair of ints, height and width of a tile without its halo, in pixels.
        halo: int or pair of ints, how far a window reaches beyond its tile, in pixels.
        cache: optional path of a folder for embeddings, which later sessions find again. Defaults
            to a temporary one, which goes with the predictor.
        cache_gb: float. What they may take together, in 10^9 bytes; those that were not used for
            longest are deleted.

    Raises:
        ValueError: if the halo is negative or larger than a tile.

    Example:

    ```python
    predictor = keras_sam.tiles.TiledPredictor(tiny_segmenter, tile_shape=64, halo=16)
    predictor.set_image(np.zeros((300, 400, 3), "uint8"))
    found = predictor.predict(points=[[250, 120]])
    best = int(np.argmax(found.scores))
    mask, (x1, y1, x2, y2) = found.crop(best), found.boxes[best]
    rle = found.run_lengths()[best]  # of the whole picture
    refined = predictor.predict(points=[[250, 120], [10, 20]], labels=[1, 0], refine=found)
    ```
    """

    @refuses_unknown_arguments
    def __init__(
        self,
        segmenter: EncodesAndDecodes | SAMPredictor | str | os.PathLike,
        tile_shape: int | Sequence[int] = (1024, 1024),
        halo: int | Sequence[int] = (256, 256),
        cache: str | os.PathLike | None = None,
        cache_gb: float = 4,
    ):
        grid = TileGrid((1, 1), tile_shape, halo)  # checks them before the model is loaded
        self.tile_shape, self.halo = grid.tile_shape, grid.halo
        is_predictor = isinstance(segmenter, SAMPredictor)
        self.predictor = segmenter if is_predictor else SAMPredictor(segmenter)
        if cache is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="keras_sam_")
            cache = self._temporary.name
        self._cache = EmbeddingCache(cache, self.predictor, int(cache_gb * 1e9))
        self._picture: Picture | None = None
        # The level and tile that are set, and the embedding, by which it is seen if they still are.
        self._set: tuple[int, Tile, np.ndarray] | None = None

    @refuses_unknown_arguments
    def set_image(self, image: Any, axes: str | None = None, channels: Any = None) -> None:
        """Opens a picture for the calls of `predict` that follow. Nothing is encoded yet.

        Args:
            image: this and the others as in `open_picture`.

        Raises:
            ValueError: if the picture is not usable; the one before is then gone.
            FileNotFoundError: if there is no such file.
        """
        self._picture = self._set = None
        picture = open_picture(image, axes, channels)
        converter = self.predictor.preprocessor.image_converter
        is_alone = len(self._grid(picture, 0)) == 1
        # The windows of all levels are read alike.
        read = (lambda x: x) if is_alone else picture.whole_range
        self._value_range = read(converter.value_range)
        self._picture = picture

    @refuses_unknown_arguments
    def predict(
        self,
        points: PromptLike = None,
        labels: PromptLike = None,
        boxes: PromptLike = None,
        multimask_output: bool | str = True,
        refine: TiledPrediction | None = None,
        level: int | None = None,
    ) -> TiledPrediction:
        """Masks of one object.

        Args:
            points: `(N, 2)` or `(2,)`; x, y in pixels of the picture.
            labels: `(N,)`: 1 foreground, 0 background. Defaults to foreground.
            boxes: `(4,)`; x1, y1, x2, y2 in pixels of the picture.
            multimask_output: see `SAMPredictor.predict`.
            refine: optional earlier prediction for the same object: its best mask is a prompt, too,
                and its window is used again.
            level: optional int. Which level to use. By default the finest one whose window holds
                the prompts and the mask with the highest score.

        Returns:
            A `TiledPrediction`.

        Raises:
            RuntimeError: if no picture is set.
            ValueError: if a prompt is malformed, or outside the picture; `level` is none; or
                `refine` is of another picture or other tiles.
        """
        if self._picture is None:
            raise RuntimeError("No picture is set: call `set_image` before this.")
        prompts = self._read({"points": points, "labels": labels, "boxes": boxes})
        places = np.concatenate([prompts[0], prompts[2].reshape(-1, 2)])
        extent = (*places.min(axis=0), *places.max(axis=0))
        levels = self._levels
        if level is not None and not 0 <= level < levels:
            raise ValueError(
                f"`level` must be 0 to {levels - 1}, where a window holds the whole picture. "
                f"Received: level={level}."
            )
        if refine is not None:
            tile = self._tile(refine.level, extent, refine.window)
            if tile is None or refine.size != self._picture.size:
                raise ValueError(
                    "`refine` must be a prediction for the picture that is set, with the same "
                    f"tiles. Received: one for the window {refine.window} of {refine.size} pixels, "
                    f"and the picture has {self._picture.size}: predict without `refine` first."
                )
            mask = refine.logits[int(np.argmax(refine.scores))]
            return self._predict(refine.level, tile, prompts, multimask_output, mask)
        for at in range(levels) if level is None else (level,):
            tile = self._tile(at, extent)
            is_last = at in (levels - 1, level)
            if not is_last and not self._holds(at, tile, extent):
                continue
            found = self._predict(at, tile, prompts, multimask_output)
            box = found.boxes[int(np.argmax(found.scores))]
            if is_last or self._holds(at, tile, box):
                return found
        raise RuntimeError("No level was left.")

    @property
    def _levels(self):
        """How many levels there are; in the last one a window holds the picture."""
        level = 0
        while len(self._grid(self._picture, level)) > 1:
            level += 1
        return level + 1

    def _grid(self, picture, level):
        return _grid(picture.size, self.tile_shape, self.halo, level)

    def _read(self, given):
        """The points `(N, 2)`, labels `(N,)` and boxes `(M, 4)` of one object, checked."""
        prompts = read_prompts(given)
        points, labels = prompts.points[0], prompts.labels[0]  # (P, T, 2), (P, T)
        if len(labels) != 1 or (labels == TOP_LEFT).sum() > 1:
            raise ValueError(
                "Prompts must be of one object, with at most one box: others may lie in other "
                f"tiles, so call `predict` for each. Received: prompts of {len(labels)} objects."
            )
        points, labels = np.asarray(points[0], "float64"), labels[0]
        clicks = np.isin(labels, (BACKGROUND, FOREGROUND))
        boxes = points[labels >= TOP_LEFT].reshape(-1, 4)
        h, w = self._picture.size
        places = np.concatenate([points[clicks], boxes.reshape(-1, 2)])
        if not ((places >= 0) & (places <= [w, h])).all():
            raise ValueError(
                f"Prompts must lie in the picture, 0..{w} by 0..{h} pixels. Received: "
                f"{places.min(axis=0).tolist()} to {places.max(axis=0).tolist()}."
            )
        return points[clicks], labels[clicks], boxes

    def _tile(self, level, extent, window=None):
        """The tile whose core holds the middle of a box, or which has a window."""
        grid = self._grid(self._picture, level)
        if window is not None:
            return next((tile for tile in grid if tile.window == tuple(window)), None)
        x, y = (extent[0] + extent[2]) / 2, (extent[1] + extent[3]) / 2
        return grid.at(x, y)

    def _holds(self, level, tile, box):
        """Whether a box stays away from the edges that cut objects."""
        grid, window = self._grid(self._picture, level), tile.window
        margin = min(_EDGE * 2**level, *(halo // 4 for halo in grid.halo))
        gaps = (box[0] - window[0], box[1] - window[1], window[2] - box[2], window[3] - box[3])
        return not any(cut and gap <= margin for cut, gap in zip(grid.cut_sides(tile), gaps))

    def _predict(self, level, tile, prompts, multimask_output, mask=None):
        self._encode(level, tile)
        scale, (x, y) = 2**level, tile.window[:2]
        points, labels, corners = prompts
        masks, scores, logits = self.predictor.predict(
            points=(points - [x, y]) / scale if len(points) else None,
            labels=labels if len(points) else None,
            boxes=(corners[0] - [x, y, x, y]) / scale if len(corners) else None,
            masks=mask,
            multimask_output=multimask_output,
        )
        crops, boxes = [], []
        for one in masks:
            x1, y1, x2, y2 = (int(n) for n in mask_to_box(one, inclusive=False))
            crops.append(one[y1:y2, x1:x2].copy())
            box = np.array([x1, y1, x2, y2]) * scale + [x, y, x, y]
            boxes.append(np.minimum(box, tile.window[2:] * 2) * one.any())  # (4,)
        return TiledPrediction(
            self._picture.size, scores, logits, crops, np.array(boxes), level, tile.window
        )

    def _encode(self, level, tile):
        """Sets a window in the predictor: from there, from disk, or from the picture."""
        if self._set is not None and self.predictor.is_image_set:
            *place, embedding = self._set
            if place == [level, tile] and self.predictor.image_embeddings is embedding:
                return
        self._set = None
        values = _coarse(self._picture, tile.window, level)
        pixels = self.predictor.preprocessor.image_converter.read(
            values,
            channel_order="rgb",
            data_format="channels_last",
            value_range=self._value_range,
        )
        content = repr((pixels.shape, pixels.dtype.str)).encode() + pixels.tobytes()
        if not self._cache.load(self.predictor, content):
            self.predictor.set_pixels(pixels)
            self._cache.save(self.predictor, content)
        self._set = (level, tile, self.predictor.image_embeddings)


@functools.lru_cache(maxsize=32)
def _grid(size, tile_shape, halo, level):
    return TileGrid(
        size, tuple(n * 2**level for n in tile_shape), tuple(n * 2**level for n in halo)
    )


def _coarse(picture: Picture, window: Box, level: int) -> np.ndarray:
    """The values of a window, each the mean of `2**level` by `2**level` of the picture's."""
    if level == 0:
        return picture.read(window)
    scale, (x1, y1, x2, y2) = 2**level, window
    step = max(scale, _BLOCK // scale * scale)
    rows = []
    for y in range(y1, y2, step):
        parts = [
            _means(picture.read((x, y, min(x + step, x2), min(y + step, y2))), scale)
            for x in range(x1, x2, step)
        ]
        rows.append(np.ma.concatenate(parts, axis=1))
    values = np.ma.concatenate(rows)
    return values if np.ma.getmaskarray(values).any() else np.ma.getdata(values)


def _means(values: np.ndarray, scale: int) -> np.ndarray:
    h, w, channels = values.shape
    missing = [(0, -n % scale) for n in (h, w)]
    if any(more for _, more in missing):
        # At the picture's edge: the last pixels count more than once.
        rows, columns = (np.minimum(np.arange(n + m), n - 1) for n, (_, m) in zip((h, w), missing))
        values = values[rows][:, columns]
    h, w = values.shape[:2]
    means = values.reshape(h // scale, scale, w // scale, scale, channels).mean(axis=(1, 3))
    return np.rint(means).astype(values.dtype) if values.dtype.kind in "iu" else means


def _run_lengths(mask: np.ndarray, box: Box, scale: int, size: tuple[int, int]) -> dict:
    """Run lengths of a picture, of a mask each of whose pixels stands for `scale` by `scale`."""
    (x1, y1, x2, y2), (h0, w0) = box, size
    if not mask.size:
        return compress_rle({"size": list(size), "counts": [h0 * w0]})
    if scale == 1:
        return encode_rle(mask, crop_box=box, original_size=size)
    # The runs within each column of the crop, with a row below that ends the last one.
    h, w = mask.shape
    flips = mask_flips(np.pad(mask, [(0, 1), (0, 0)])[None])
    x, y = np.divmod(flips.reshape(-1, 2), h + 1)
    x, y = x[:, 0], np.minimum(y * scale, y2 - y1) + y1  # (runs,), (runs, 2)
    columns = x1 + np.arange(scale)[:, None] + x * scale  # (scale, runs), of the picture
    places = columns[..., None] * h0 + y  # (scale, runs, 2)
    ends, counts = np.unique(places[columns < x2], return_counts=True)
    ends = ends[counts == 1]  # where a run ends and the next one starts, nothing changes
    return compress_rle(
        {"size": list(size), "counts": np.diff(np.append(ends, h0 * w0), prepend=0)}
    )
