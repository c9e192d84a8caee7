"""Classes for `ray.data.Dataset.map_batches`: a model per actor, a row per photograph."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from keras_sam.ray.engine import (
    DEATHS,
    Everything,
    Prompts,
    as_image,
    deadly,
    open_segmenter,
    reason_of,
    segment,
    sha256,
)

IMAGE_COLUMNS = ("image", "bytes", "path")  # as `ray.data` calls them


class _Segment:
    """What both classes do: columns in, columns out."""

    def __init__(self, engine: Any, image_column: str | None, prompts_column: str | None = None):
        self._engine = engine
        self._image_column = image_column
        self._prompts_column = prompts_column
        self._attempts = Attempts.of_this_job(type(self).__name__)

    def __call__(self, batch: Any) -> Any:
        """The batch's columns except for its pixels, and those of the masks.

        Args:
            batch: dict of arrays, `pyarrow.Table` or `pandas.DataFrame`, whichever the
                `batch_format` of `map_batches` is.

        Returns:
            A `pyarrow.Table`.

        Raises:
            ValueError: if there is no column of images, or of prompts.
        """
        from keras_sam.ray.results import table_of  # pyarrow

        columns = batch.to_pydict() if hasattr(batch, "to_pydict") else dict(batch)
        image_column = self._find(columns)
        images = list(columns[image_column])
        prompts = [None] * len(images)
        if self._prompts_column is not None:
            prompts = list(columns[self._prompts_column])
        rows = [self._row(image, boxes) for image, boxes in zip(images, prompts)]
        kept = {
            name: list(values)
            for name, values in columns.items()
            if name not in ("image", "bytes", image_column) or name == "path"
        }
        return table_of(kept, rows, with_prompts=self._prompts_column is not None)

    def _row(self, image, prompts):
        try:
            image = as_image(image)
        except (OSError, ValueError) as error:
            return {"sha256": None, "error": reason_of(error)}
        with self._attempts.trying(sha256(image)) as deaths:
            if deaths >= DEATHS:
                return {"sha256": sha256(image), "error": deadly(deaths)}
            return segment(self._engine, image, prompts)

    def _find(self, columns):
        wanted = [self._image_column] if self._image_column else list(IMAGE_COLUMNS)
        found = next((name for name in wanted if name in columns), None)
        missing = None if found else " or ".join(f"`{name}`" for name in wanted)
        if self._prompts_column is not None and self._prompts_column not in columns:
            missing = missing or f"`{self._prompts_column}`"
        if missing:
            raise ValueError(
                f"A batch must have a column {missing}. Received: {', '.join(map(str, columns))}. "
                "`image_column` names that of the images, `boxes_column` that of the boxes."
            )
        return found


class SegmentEverything(_Segment):
    """Segments everything in the photographs of a `ray.data.Dataset`.

    `map_batches` makes an object in each of its actors, with a model of its own. Rows keep their
    columns, except for the pixels, and get these: `sha256` of the file or of the array;
    `height` and `width`, pixels; a list each with an entry per mask, `mask_counts`, COCO's
    compressed run lengths, `mask_boxes`, x y width height from inclusive corners, `mask_areas`,
    `mask_scores`, the predicted IoU, `mask_stability_scores`, `mask_points`, `mask_crop_boxes`;
    and `error`, the reason why a photograph has no masks, or null. Columns of these names are
    replaced.

    A photograph that cannot be used loses nothing but itself. So does one with which workers
    die, for want of memory or in a decoder's fault: Ray repeats the batch on the next worker, and
    after two deaths the photograph gets an `error` instead. What is begun is noted on the disk of
    the worker's machine, so two deaths are counted per machine.

    Args:
        model: str. What `SAMImageSegmenter.from_preset` takes, or an exported folder, found on
            every machine of the cluster.
        image_column: optional str. Arrays `(H0, W0, 3)`, bytes of files, or paths and addresses
            that pyarrow opens. Defaults to the first of `image`, `bytes` and `path` that is there.
        backend: optional str. Keras's backend in the workers. Defaults to `KERAS_BACKEND` there,
            see `runtime_env`.
        dtype: optional str, as in `from_preset`.
        image_shape: optional pair of ints, as in `from_preset`.
        value_range: optional, as in `SAMImageConverter`.
        **parameters: those of `SAMAutomaticMaskGenerator`.

    Raises:
        ValueError: if there is no such model, or a parameter is out of range.

    Example:

    ```python
    tiny_segmenter().save_to_preset("tiny")
    everything = keras_sam.ray.SegmentEverything("tiny", points_per_side=2)
    # In Ray: dataset.map_batches(
    #     keras_sam.ray.SegmentEverything, fn_constructor_args=("tiny",), concurrency=2,
    #     fn_constructor_kwargs={"points_per_side": 2}, runtime_env=keras_sam.ray.runtime_env())
    table = everything({"image": [image, image[:100]], "id": [7, 8]})
    table["height"].to_pylist()  # [400, 100]
    ```
    """

    def __init__(
        self,
        model: str,
        image_column: str | None = None,
        backend: str | None = None,
        dtype: str | None = None,
        image_shape: Any = None,
        value_range: Any = None,
        **parameters: Any,
    ):
        segmenter = open_segmenter(
            model, backend, dtype=dtype, image_shape=image_shape, value_range=value_range
        )
        super().__init__(Everything(segmenter, parameters), image_column)


class SegmentPrompts(_Segment):
    """Segments the boxes of a detector in the photographs of a `ray.data.Dataset`.

    See `SegmentEverything`, from which the columns differ in this: there is one mask per box, in
    the order of the boxes, and only `mask_counts`, `mask_boxes`, `mask_areas` and `mask_scores`
    of each. A row without boxes has no masks, and no error.

    Args:
        model: see `SegmentEverything`.
        boxes_column: str. A list of boxes per photograph, x1 y1 x2 y2 in its pixels.
        image_column: see `SegmentEverything`.
        backend: see `SegmentEverything`.
        dtype: see `SegmentEverything`.
        image_shape: see `SegmentEverything`.
        value_range: see `SegmentEverything`.
        mask_threshold: optional float. Logits above it belong to the mask. Defaults to the
            model's.

    Raises:
        ValueError: if there is no such model.

    Example:

    ```python
    tiny_segmenter().save_to_preset("tiny")
    prompts = keras_sam.ray.SegmentPrompts("tiny")
    table = prompts({"image": [image], "boxes": [[[60, 40, 300, 260], [310, 50, 560, 380]]]})
    [len(scores) for scores in table["mask_scores"].to_pylist()]  # [2]
    ```
    """

    def __init__(
        self,
        model: str,
        boxes_column: str = "boxes",
        image_column: str | None = None,
        backend: str | None = None,
        dtype: str | None = None,
        image_shape: Any = None,
        value_range: Any = None,
        mask_threshold: float | None = None,
    ):
        segmenter = open_segmenter(
            model, backend, dtype=dtype, image_shape=image_shape, value_range=value_range
        )
        parameters = {"mask_threshold": mask_threshold}
        super().__init__(Prompts(segmenter, parameters), image_column, boxes_column)


class Attempts:
    """Notes of what a process has begun and not ended, which outlive it.

    A note is an empty file `KEY-PROCESS`; one whose process is gone counts as a death. `folder`
    None takes no notes.
    """

    def __init__(self, folder: Path | None):
        self._folder = folder

    @classmethod
    def of_this_job(cls, what: str) -> Attempts:
        """Those of a job of Ray on this machine, or none outside of Ray."""
        ray = sys.modules.get("ray")
        if ray is None or not ray.is_initialized():
            return cls(None)
        about = ray.get_runtime_context()
        name = f"keras_sam-{about.get_node_id()[:16]}-{about.get_job_id()}-{what}"
        return cls(Path(tempfile.gettempdir()) / name)

    @contextlib.contextmanager
    def trying(self, key: str) -> Iterator[int]:
        """Notes that `key` is being done, and yields how often a process has died with it."""
        if self._folder is None:
            yield 0
            return
        self._folder.mkdir(exist_ok=True)
        own = self._folder / f"{key}-{os.getpid()}"
        deaths = [note for note in self._folder.glob(f"{key}-*") if not _is_alive(note)]
        own.touch()
        try:
            yield len(deaths)
        finally:
            own.unlink(missing_ok=True)


def _is_alive(note):
    try:
        os.kill(int(note.name.rpartition("-")[2]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
