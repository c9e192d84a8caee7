"""Everything in a picture that is too large for one frame, tile by tile."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from keras_sam.embedding_cache import precision_of
from keras_sam.encode_decode import EncodesAndDecodes
from keras_sam.mask_generator.generator import SAMAutomaticMaskGenerator
from keras_sam.predictor import SAMPredictor
from keras_sam.prompts.spellings import refuses_unknown_arguments
from keras_sam.tiles.grid import Tile, TileGrid
from keras_sam.tiles.joining import Joiner
from keras_sam.tiles.picture import Picture
from keras_sam.tiles.pictures import open_picture
from keras_sam.tiles.tile_folder import TileFolder


class TiledMaskGenerator:
    """Segments everything in a picture of any size, in memory that does not grow with it.

    Each tile is segmented with its halo by a `SAMAutomaticMaskGenerator`, and what several tiles
    show is joined into one mask, dropped if it stays cut, by the rule in `tiles.joining`:
    an object up to twice the halo comes as the tile shows it in which it is farthest from the
    edges; a larger one is put together from the tiles; one that reaches over more than
    `max_windows` windows' length is dropped. Windows of a single value are not
    segmented, for there is nothing in them.

    Args:
        segmenter: as in `SAMAutomaticMaskGenerator`.
        tile_shape: int or pair of ints, height and width of a tile without its halo, in pixels.
        halo: int or pair of ints, how far a window reaches beyond its tile, in pixels. Half the
            length of the largest objects that are to be found whole.
        max_windows: float. How many windows' length and width an object may have.
        **parameters: those of `SAMAutomaticMaskGenerator` besides `output_mode`, for each window:
            `points_per_side=32` are 32 by 32 clicks per tile and halo.

    Raises:
        ValueError: if the halo is negative or larger than a tile, or a parameter is out of range.

    Example:

    ```python
    generator = keras_sam.tiles.TiledMaskGenerator(
        tiny_segmenter, tile_shape=32, halo=16, points_per_side=2, pred_iou_thresh=0,
        stability_score_thresh=0,
    )
    for record in generator.stream(image):
        x, y, width, height = record["bbox"]
        crop = [x, y, x + width + 1, y + height + 1]
        mask = keras_sam.masks.decode_rle(record["segmentation"], crop_box=crop)
    ```
    """

    def __init__(
        self,
        segmenter: EncodesAndDecodes | SAMPredictor | str | os.PathLike,
        tile_shape: int | Sequence[int] = (1024, 1024),
        halo: int | Sequence[int] = (256, 256),
        max_windows: float = 4,
        **parameters: Any,
    ):
        TileGrid((1, 1), tile_shape, halo)  # checks them before the model is loaded
        self.tile_shape, self.halo, self.max_windows = tile_shape, halo, max_windows
        self.generator = SAMAutomaticMaskGenerator(segmenter, output_mode="coco_rle", **parameters)

    def grid(self, picture: Any) -> TileGrid:
        """The `TileGrid` of a picture."""
        return TileGrid(open_picture(picture).size, self.tile_shape, self.halo)

    @refuses_unknown_arguments
    def stream(
        self,
        picture: Any,
        folder: str | os.PathLike | None = None,
        progress: Callable[[int], Any] | None = None,
    ) -> Iterator[dict]:
        """Segments everything in a picture, and yields records as rows of tiles are finished.

        Args:
            picture: what `open_picture` returns or takes.
            folder: optional path where the masks of each tile are kept, a file each: a run that
                was interrupted or killed goes on with the tiles that are missing.
            progress: optional function that is called with 1 after each tile.

        Yields:
            Records as `SAMAutomaticMaskGenerator` makes them, in pixels of the picture:
            `segmentation` is COCO's run lengths in the frame of the picture, `crop_box` the window
            that the mask was found in. A picture that fits one window has the same records.
            `decode_rle(segmentation, crop_box=)` decodes the part that is needed.

        Raises:
            ValueError: if the picture is not usable, or `folder` is of another picture or of other
                settings.
            OSError: if files cannot be read or written.
        """
        picture = open_picture(picture)
        grid = self.grid(picture)
        kept = None if folder is None else TileFolder(folder, self.settings(picture))
        return self._stream(picture, grid, kept, progress or (lambda tiles: None))

    def settings(self, picture: Picture) -> dict[str, Any]:
        """Everything that the masks of a picture's tiles depend on, ready for JSON."""
        grid = self.grid(picture)
        generator = self.generator
        clicks = [np.round(points, 6).tolist() for points in generator.point_grids]
        if picture.path is not None and picture.path.is_file():
            stamp = picture.path.stat()
            about = {"bytes": stamp.st_size, "changed": stamp.st_mtime_ns}
        else:  # a folder's time says nothing of the files in it
            about = {"content": picture.content_hash()}
        return {
            "picture": {
                **about,
                "size": grid.size,
                "axes": picture.axes,
                "channels": picture.channels,
            },
            "tile_shape": grid.tile_shape,
            "halo": grid.halo,
            "model": _fingerprint(generator.segmenter),
            "precision": precision_of(generator.segmenter),
            "value_range": generator.predictor.preprocessor.image_converter.value_range,
            **dataclasses.asdict(generator.thresholds),
            "clicks": f"{len(clicks[0])} of {_short_hash(clicks)}",
            "crops": [generator.crop_n_layers, generator.crop_overlap_ratio],
            "use_m2m": generator.use_m2m,
        }

    def _stream(self, picture, grid, kept, progress):
        joiner = Joiner(grid, self.max_windows)
        converter = self.generator.predictor.preprocessor.image_converter
        value_range = None
        for tile in grid:
            records = None if kept is None else kept.read(tile)
            if records is None:
                if value_range is None:  # once, and not for tiles that are done
                    value_range = converter.value_range
                    if len(grid) > 1:
                        value_range = picture.whole_range(value_range)
                records = self._segment(picture, tile, value_range, len(grid) == 1)
                if kept is not None:
                    kept.write(tile, records)
            yield from records if len(grid) == 1 else joiner.add(tile, records)
            progress(1)

    def _segment(
        self, picture: Picture, tile: Tile, value_range: Any, is_alone: bool
    ) -> list[dict]:
        """The records of one window."""
        values = picture.read(tile.window)
        if not is_alone and is_blank(values):
            return []
        converter = self.generator.predictor.preprocessor.image_converter
        pixels = converter.read(
            values, channel_order="rgb", data_format="channels_last", value_range=value_range
        )
        return list(self.generator.segment_pixels(pixels))


def is_blank(values: np.ndarray) -> bool:
    """Whether a window has no values, or one alone."""
    known = np.ma.compressed(values) if np.ma.isMaskedArray(values) else values
    if known.dtype.kind == "f":
        known = known[np.isfinite(known)]
    return known.size == 0 or bool(known.min() == known.max())


def _fingerprint(segmenter: EncodesAndDecodes) -> str:
    """A hash of the model, its decoder included, which may be fine-tuned alone."""
    parts = [segmenter.encoder_fingerprint()]
    if hasattr(segmenter, "backbone"):
        from keras_sam.models.vit_det_backbone import hash_model

        backbone = segmenter.backbone
        parts += [hash_model(part, "") for part in (backbone.prompt_encoder, backbone.mask_decoder)]
    else:
        parts.append(segmenter.files_hash)
    return _short_hash(parts)


def _short_hash(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=8).hexdigest()
