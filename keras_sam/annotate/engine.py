"""The model behind the page: photographs are encoded once, clicks answered one after the other.

Two threads share the model. Clicks have one of their own, so that none waits while the next
photograph is encoded, which takes seconds with a large model.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np

from keras_sam.annotate.given_images import GivenImages
from keras_sam.annotate.photo_folder import PhotoFolder, opened
from keras_sam.annotate.worker import Worker, pass_on
from keras_sam.annotations import segmentation_to_rle
from keras_sam.embedding_cache import EmbeddingCache
from keras_sam.encode_decode import EncodesAndDecodes
from keras_sam.geometry import xyxy_to_xywh
from keras_sam.mask_generator import SAMAutomaticMaskGenerator
from keras_sam.masks import decode_rle, encode_rle, mask_area, mask_to_box
from keras_sam.predictor import SAMPredictor

MAX_POINTS = 256  # of one object: more are a mistake, and would take long
_PHOTOS_IN_MEMORY = 6
_LOGITS_IN_MEMORY = 64  # answers whose logits a later click may refine
_CANVASES = 1000
_ASKED_FOR, _AHEAD = 1, 0  # urgencies


class SupersededError(Exception):
    """A newer request of the same canvas has taken the place of this one."""


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A photograph that can be clicked on.

    Args:
        size: pair of ints `(H0, W0)`, pixels, upright.
        seconds: float. How long it took, 0 if it was in memory.
        source: `"memory"`, `"disk"` or `"model"`.
    """

    size: tuple[int, int]
    seconds: float
    source: str


@dataclasses.dataclass(frozen=True)
class Answer:
    """The candidates of a prompt.

    Args:
        number: string by which a later request refines one of them.
        size: pair of ints `(H0, W0)`, pixels.
        candidates: list of dicts of `segmentation` (compressed run lengths), `score`, `area` and
            `bbox` (x y width height).
        best: int. The candidate of the highest score.
        seconds: float. What the model took.
    """

    number: str
    size: tuple[int, int]
    candidates: list[dict]
    best: int
    seconds: float


class Engine:
    """Answers requests about photographs, from any number of pages at once.

    Args:
        segmenter: a `SAMImageSegmenter` or an `ExportedSegmenter`.
        photos: the `PhotoFolder`, or `GivenImages`.
        cache: optional function of a `SAMPredictor` that makes an `EmbeddingCache`.
        generator: optional dict of arguments of `SAMAutomaticMaskGenerator`, for `everything`.
        context: function that gives a context manager for each thread that runs the model.
        preprocessor: optional `SAMImageSegmenterPreprocessor`. Defaults to the segmenter's own.
    """

    def __init__(
        self,
        segmenter: EncodesAndDecodes,
        photos: PhotoFolder | GivenImages,
        cache: Callable[[SAMPredictor], EmbeddingCache] | None = None,
        generator: Mapping[str, Any] | None = None,
        context: Callable = contextlib.nullcontext,
        preprocessor: Any = None,
    ):
        self.segmenter, self.photos = segmenter, photos
        self._preprocessor = preprocessor
        self._make_cache, self._cache = cache, None
        self._generator = {**(generator or {}), "output_mode": "coco_rle"}
        self._clicks = Worker("keras_sam clicks", context)
        # Whoever pages through photographs waits for the one that is shown, not for those before.
        self._photos = Worker("keras_sam photographs", context, newest_first=True)
        self._lock = threading.Lock()
        # Predictors by photograph and stamp of its file, and logits by the answers' numbers, those
        # used last at the end.
        self._predictors: collections.OrderedDict[tuple, SAMPredictor] = collections.OrderedDict()
        self._logits: collections.OrderedDict[str, np.ndarray] = collections.OrderedDict()
        self._newest: collections.OrderedDict[str, int] = collections.OrderedDict()

    def close(self) -> None:
        """Ends the threads."""
        self._clicks.close()
        self._photos.close()

    def embed(self, photo: str, ahead: bool = False, canvas: str | None = None) -> Future:
        """Encodes a photograph, unless that was done before. Gives a future `Encoded`.

        Args:
            photo: its name.
            ahead: bool. Only when nothing else waits: for the photograph that comes next.
            canvas: optional string. Of the photographs that wait for one canvas, only the newest
                is encoded, for nobody looks at the others; they raise a `SupersededError`.
        """
        turns = None if canvas is None else f"photograph {canvas}"
        turn = self._take_turn(turns)
        predictor = self._in_memory(photo)
        if predictor is not None:
            done: Future = Future()
            done.set_result(Encoded(predictor.original_sizes[0], 0.0, "memory"))
            return done

        def encode():
            if self._is_superseded(turns, turn):
                raise SupersededError("Another photograph was opened.")
            return self._encode(photo)

        return self._photos.submit(encode, _AHEAD if ahead else _ASKED_FOR)

    def predict(
        self,
        photo: str,
        points: Sequence[Sequence[float]] = (),
        labels: Sequence[int] = (),
        box: Sequence[float] | None = None,
        refine: tuple[str, int] | None = None,
        mask: Mapping | None = None,
        multimask: bool | None = None,
        canvas: str | None = None,
    ) -> Future:
        """Segments one object of a photograph, which is encoded first if it has to be.

        Args:
            photo: the photograph's name.
            points: list of x, y in pixels of the photograph.
            labels: list of 1 (foreground) or 0 (background), one per point.
            box: optional x1, y1, x2, y2 in pixels.
            refine: optional number of an earlier answer, and the index of one of its candidates:
                its logits are a prompt, too. An answer that is forgotten is ignored.
            mask: optional run lengths of a mask to correct, such as one that was painted.
            multimask: bool. Three candidates or one. Defaults to three for a lone point.
            canvas: optional string. Of the requests of one canvas that wait, only the newest is
                answered; the others raise a `SupersededError`.

        Returns:
            A future `Answer`. Its exceptions are a KeyError if there is no such photograph, and a
            ValueError if it cannot be read or the prompt is malformed.
        """
        turn = self._take_turn(canvas)
        result: Future = Future()
        prompt = (list(points), list(labels), box, refine, mask, multimask)

        def decode():
            if self._is_superseded(canvas, turn):
                raise SupersededError("A newer click has replaced this one.")
            return self._decode(photo, *prompt)

        def after_encoding(encoded: Future):
            try:
                encoded.result()
            except BaseException as error:  # noqa: BLE001 - whoever waits gets it
                result.set_exception(error)
            else:
                pass_on(self._clicks.submit(decode), result)

        self.embed(photo).add_done_callback(after_encoding)
        return result

    def everything(self, photo: str) -> Future:
        """All masks of a photograph. Gives a future list of dicts as `Answer.candidates`."""
        return self._photos.submit(lambda: self._everything(photo), _ASKED_FOR)

    # --- in the threads ---

    def _encode(self, photo: str) -> Encoded:
        began = time.monotonic()
        predictor = self._in_memory(photo)
        if predictor is not None:  # another request was first
            return Encoded(predictor.original_sizes[0], 0.0, "memory")
        key = photo, self.photos.stamp(photo)  # before it is read, as it may change meanwhile
        self.photos.size(photo)  # refuses what is too large before it is decoded
        content = self.photos.read(photo)
        predictor, source = SAMPredictor(self.segmenter, self._preprocessor), "disk"
        if self._make_cache is not None and self._cache is None:
            self._cache = self._make_cache(predictor)
        if self._cache is None or not self._cache.load(predictor, content):
            predictor.set_image(opened(content))
            source = "model"
            if self._cache is not None:
                self._cache.save(predictor, content)
        with self._lock:
            self._predictors[key] = predictor
            while len(self._predictors) > _PHOTOS_IN_MEMORY:
                self._predictors.popitem(last=False)
        return Encoded(predictor.original_sizes[0], time.monotonic() - began, source)

    def _decode(self, photo, points, labels, box, refine, mask, multimask) -> Answer:
        began = time.monotonic()
        if len(points) > MAX_POINTS:
            raise ValueError(f"An object takes up to {MAX_POINTS} points. Received: {len(points)}.")
        predictor = self._in_memory(photo)
        if predictor is None:  # its file has changed, or so many were asked for that it was dropped
            raise ValueError(
                f"{photo} changed just now, or was opened in too many tabs at once: click again."
            )
        logits = None
        if mask is not None:
            logits = decode_rle(segmentation_to_rle(dict(mask), predictor.original_sizes[0]))
        elif refine is not None:
            with self._lock:
                earlier = self._logits.get(refine[0])
            if earlier is not None and 0 <= refine[1] < len(earlier):
                logits = earlier[refine[1]]
        lone = len(points) == 1 and box is None and logits is None
        wanted = lone if multimask is None else multimask
        masks, scores, logits = predictor.predict(
            points=points or None,
            labels=labels if points else None,
            boxes=None if box is None else list(box),
            masks=logits,
            multimask_output=wanted and self.segmenter.num_mask_tokens > 1,
        )
        number = secrets.token_hex(8)
        with self._lock:
            self._logits[number] = logits
            while len(self._logits) > _LOGITS_IN_MEMORY:
                self._logits.popitem(last=False)
        candidates = [
            _candidate(rle, float(score))
            for rle, score in zip(encode_rle(masks), scores, strict=True)
        ]
        size = predictor.original_sizes[0]
        best = int(np.nanargmax(scores)) if np.isfinite(scores).any() else 0
        return Answer(number, size, candidates, best, time.monotonic() - began)

    def _everything(self, photo: str) -> list[dict]:
        self._encode(photo)
        generator = SAMAutomaticMaskGenerator(self._in_memory(photo), **self._generator)
        # Crops need the photograph itself; without them its embedding is enough.
        image = opened(self.photos.read(photo)) if generator.crop_n_layers else None
        records = generator.generate(image, verbose=0)
        return [
            _candidate(record["segmentation"], record["predicted_iou"])
            for record in sorted(records, key=lambda record: -record["area"])
        ]

    # --- shared by the threads ---

    def _in_memory(self, photo: str) -> SAMPredictor | None:
        key = photo, self.photos.stamp(photo)
        with self._lock:
            predictor = self._predictors.get(key)
            if predictor is not None:
                self._predictors.move_to_end(key)
            return predictor

    def _take_turn(self, canvas: str | None) -> int | None:
        if canvas is None:
            return None
        with self._lock:
            turn = self._newest.pop(canvas, 0) + 1
            self._newest[canvas] = turn
            while len(self._newest) > _CANVASES:
                self._newest.popitem(last=False)
            return turn

    def _is_superseded(self, canvas: str | None, turn: int | None) -> bool:
        return canvas is not None and self._newest.get(canvas, turn) != turn


def _candidate(rle: dict, score: float) -> dict:
    box = xyxy_to_xywh(mask_to_box(rle, inclusive=False)).tolist()
    score = round(score, 4) if np.isfinite(score) else None
    return {"segmentation": rle, "score": score, "area": int(mask_area(rle)), "bbox": box}
