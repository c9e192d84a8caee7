"""A widget on which people point at objects of an image and get their masks."""

from __future__ import annotations

import asyncio
import contextvars
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import anywidget
import numpy as np
import traitlets

from keras_sam.annotate.desk import STATUSES, Desk, text_of
from keras_sam.annotate.engine import Engine
from keras_sam.annotate.given_images import GivenImages
from keras_sam.annotate.store import AnnotationStore
from keras_sam.encode_decode import EncodesAndDecodes
from keras_sam.masks import decode_rle
from keras_sam.predictor import SAMPredictor
from keras_sam.widget.module import read_module

# What the widget's JavaScript may ask, and which of it changes what is kept.
_CHANGES = ("keep", "change", "remove", "restore", "label", "save")
_QUESTIONS = ("session", "embed", "predict", "everything", "objects", *_CHANGES)


class _Masks(traitlets.TraitType):
    """Made of the run lengths in `objects` when they are asked for."""

    def get(self, obj, cls=None):
        return obj._decoded_masks()

    def set(self, obj, value):
        raise traitlets.TraitError("`masks` cannot be set: objects are kept on the widget.")


class ClickToSegment(anywidget.AnyWidget):
    """The page of `keras-sam annotate` in a notebook: point at objects, and use them in Python.

    A click or a box is a mask, right or Alt clicks are on the background, 1, 2, 3 choose a
    candidate, Enter accepts; `?` shows all keys. Embeddings stay in memory. It needs a running
    kernel, and works in JupyterLab, VS Code, Colab and marimo, wherever anywidget does.

    `objects` and `masks` can be observed, as the traits of any widget can:
    `widget.observe(function, "objects")`. They are never set from Python.

    Args:
        model_or_predictor: a `SAMImageSegmenter` or an `ExportedSegmenter`, a `SAMPredictor`, or
            the name, address or path of a preset.
        image: array `(H0, W0, 3)` or `(H0, W0)`, RGB, PIL image or path; or a list of images of
            any sizes, through which the widget pages; or a dict of them by their names.
        labels: sequence of str, to choose from. More can be added in the widget. Defaults to
            `"object"`.
        out: optional path of a COCO file. Everything is saved there at once, and what it holds is
            shown and continued, as `keras-sam annotate` does. Images are found in it by their
            names: files by their paths within the folder that they have in common, of one file
            its last part. Arrays and PIL images are `image 1`, `image 2`, which tells nobody
            which they are: once such a name has masks there, give them names of their own, by
            a dict. Defaults to memory alone.
        height: int. Height of the widget in CSS pixels. Defaults to `560`.
        generator: optional dict of arguments of `SAMAutomaticMaskGenerator`, for "everything".

    Attributes:
        objects: list of dicts, the accepted objects in order: `segmentation` (COCO's compressed
            run lengths), `area` and `bbox` (x y width height) in pixels of the image, `label`,
            `score` (the predicted IoU, if nothing was painted), and COCO's `id`, `image_id`,
            `category_id` and `iscrowd`. Of several images, a list of these lists.
        masks: bool array `(P, H0, W0)`, the masks of `objects`. Of several images, a list of
            arrays.

    Raises:
        ImportError: if anywidget is not installed.
        ValueError: if there is no image, or one cannot be read or is a file of more than 150
            megapixels; or if `out` is no COCO instances
            file, or has masks of an image without a name of its own.

    Example:

    ```python
    widget = keras_sam.widget.ClickToSegment(tiny_segmenter, image, labels=["cat", "dog"])
    widget  # as the last line of a cell, shows it
    widget.observe(lambda change: print(len(change["new"])), "objects")
    widget.masks.shape  # (0, 400, 600)
    widget.to_coco()["categories"]  # [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    ```
    """

    _esm = read_module()
    height = traitlets.Int(560, min=200).tag(sync=True)
    objects = traitlets.List(read_only=True)
    masks = _Masks()
    _engine: Engine | None = None

    def __init__(
        self,
        model_or_predictor: EncodesAndDecodes | SAMPredictor | str | os.PathLike,
        image: Any,
        labels: Sequence[str] = (),
        out: str | os.PathLike | None = None,
        height: int = 560,
        generator: Mapping[str, Any] | None = None,
    ):
        predictor = model_or_predictor
        if not isinstance(predictor, SAMPredictor):
            predictor = SAMPredictor(predictor)
        self._is_list = isinstance(image, (list, tuple, Mapping))
        value_range = predictor.preprocessor.image_converter.value_range
        images = GivenImages(image if self._is_list else [image], value_range)
        for name in images.names:
            images.size(name)  # what cannot be read is said now
        self._store = AnnotationStore(out, images.names, labels)
        counts = self._store.counts()
        for name in images.numbered:
            if counts[name]:
                raise ValueError(
                    f"`out` has masks of {name!r}, which may be another image than the one of that "
                    "number in `image`. Received: an image without a name. Pass `image` as a dict "
                    "of images by their names; one of that name continues those masks."
                )
        self._engine = Engine(
            predictor.segmenter,
            images,
            generator=generator,
            preprocessor=predictor.preprocessor,
        )
        self._desk = Desk(self._engine, self._store)
        self._objects_of: dict[str, list[dict]] = {}  # by the image's name
        self._masks_of: dict[str, Any] = {}  # the same, of those that were asked for
        self._masks: Any = None  # what `masks` is, once it was asked for
        self._masks_are_observed = False
        super().__init__(height=height)
        self.on_msg(self._hear)
        self._read_objects()

    def to_coco(self) -> dict[str, Any]:
        """All objects as COCO instances, ready for `json.dump`.

        Returns:
            Dict of `images`, `annotations` and `categories`, and what `out` has besides. Images
            without objects are left out, but for those that were listed in `out` from the start.
        """
        return self._store.coco()

    def observe(self, handler: Callable, names: Any = traitlets.All, type: str = "change") -> None:
        """Calls `handler` at changes, as for any trait; see `traitlets.HasTraits.observe`."""
        wanted = [names] if isinstance(names, str) else names
        # Masks are large, so that they are made at each change only if somebody wants that.
        if wanted is traitlets.All or "masks" in wanted:
            self._masks_are_observed = True
        super().observe(handler, names, type)

    def close(self) -> None:
        """Ends the widget and its threads; objects and masks can still be read."""
        if self._engine is not None:  # it was made whole
            self._engine.close()
        super().close()

    # --- messages of the widget's JavaScript ---

    def _hear(self, _, message: dict, buffers: list) -> None:
        """Answers a question, `{number, question, content}`, with an answer of that number."""
        number, question = message.get("number"), message.get("question")
        content = message.get("content") or {}
        try:
            if question == "here":
                self._answer(number, {})
                return
            if question == "picture":
                picture, kind = self._engine.photos.picture(content["photo"])
                self._answer(number, {"type": kind}, [picture])
                return
            if question not in _QUESTIONS:
                raise ValueError(f"There is no question {question!r}.")
            answer = getattr(self._desk, question)(**content)
        except Exception as error:  # noqa: BLE001 - whoever clicked is told
            self._refuse(number, error)
            return
        if isinstance(answer, Future):
            self._answer_later(number, answer)
            return
        self._answer(number, answer)
        if question in _CHANGES and question != "label":  # which no object has yet
            self._read_objects(content.get("photo"))

    def _answer_later(self, number: str, future: Future) -> None:
        """Answers in this thread if it has an event loop, as in notebooks, else in the model's."""

        def finish(done: Future) -> None:
            error = done.exception()
            if error is not None:
                self._refuse(number, error)
            else:
                self._answer(number, done.result())

        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            future.add_done_callback(finish)
            return
        context = contextvars.copy_context()  # by which notebooks know the cell
        future.add_done_callback(
            lambda done: loop.call_soon_threadsafe(finish, done, context=context)
        )

    def _answer(self, number: str, answer: dict, buffers: Sequence[bytes] = ()) -> None:
        self.send({"number": number, "answer": answer}, list(buffers))

    def _refuse(self, number: str, error: BaseException) -> None:
        status = next((n for kind, n in STATUSES.items() if isinstance(error, kind)), 500)
        text = text_of(error) if status != 500 else f"{type(error).__name__}: {error}"
        self.send({"number": number, "error": text, "status": status})

    # --- what is kept ---

    def _read_objects(self, photo: str | None = None) -> None:
        """Takes what the store has into `objects`, which tells those who observe.

        Args:
            photo: name of the image that alone has changed. Defaults to all of them.
        """
        names = {label["id"]: label["name"] for label in self._store.labels}
        photos = self._engine.photos
        for name in photos.names if photo is None else [photo]:
            self._objects_of[name] = [
                {**entry, "label": names.get(entry.get("category_id"))}
                for entry in self._store.objects(name, photos.size(name))
            ]
            self._masks_of.pop(name, None)
        of_images = list(self._objects_of.values())
        objects = of_images if self._is_list else of_images[0]
        if objects == self.objects:
            return
        before, self._masks = self._masks, None
        self.set_trait("objects", objects)
        if self._masks_are_observed:
            change = {"name": "masks", "old": before, "new": self.masks, "owner": self}
            self.notify_change(traitlets.Bunch(change, type="change"))

    def _decoded_masks(self) -> Any:
        if self._masks is None:
            photos = self._engine.photos
            for name, objects in self._objects_of.items():
                if name not in self._masks_of:
                    rles = [record["segmentation"] for record in objects]
                    empty = np.zeros((0, *photos.size(name)), bool)
                    self._masks_of[name] = decode_rle(rles) if rles else empty
            masks = [self._masks_of[name] for name in self._objects_of]
            self._masks = masks if self._is_list else masks[0]
        return self._masks
