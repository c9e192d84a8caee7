"""Meta's mask generator with the weights of `sam_tiny_demo`, and the pictures both of us get.

Records can only be equal where no rounding decides. So every comparison has a picture and
thresholds of its own, at which no candidate lies near a threshold; they depend on the weights, and
`tools/choose_generator_settings.py` chooses them and writes `CHOSEN`.
"""

import contextlib
import functools
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

import keras_sam
from keras_sam import presets
from tests.meta_oracle import meta_like
from tests.scenes import scene

PRESET = "sam_tiny_demo"
IMAGE_SHAPE = (256, 256)  # half the preset's: four times as quick, and its weights all the same
CHOSEN = Path(__file__).parent / "fixtures" / "generator_settings.json"
MARGIN = 1e-3  # of scores, stability and overlaps to their thresholds
ORDER_MARGIN = 3e-6  # between scores that are sorted; the two models' differ by 1e-6 at most
PIXEL_MARGIN = 2e-5  # of logits to the mask threshold; the two models' differ by 1e-5
IOU = 0.999  # of two masks that count as the same
RECORDS = 50  # that are kept, at least

GRID = {"points_per_side": 16}
# Layer 1 has half as many points per side.
CROPS = {"points_per_side": 12, "crop_n_points_downscale_factor": 2}


def own_grids():
    """Random clicks: 160 into the image, 50 into each crop."""
    rng = np.random.default_rng(0)
    return [rng.random((160, 2)), rng.random((50, 2))]


# name: kind of picture, what its thresholds are called in `CHOSEN`, all other parameters
SETTINGS = {
    "default grid": ("photograph", "default grid", {}),
    "grid": ("square", "grid", GRID),
    "small regions": ("square", "grid", {**GRID, "min_mask_region_area": 60}),
    "uncompressed": ("photograph", "odd size", {**GRID, "output_mode": "uncompressed_rle"}),
    "coco": ("portrait", "portrait", {**GRID, "output_mode": "coco_rle"}),
    "1 layer of crops": ("large", "1 layer of crops", {**CROPS, "crop_n_layers": 1}),
    "2 layers of crops": ("large", "2 layers of crops", {**CROPS, "crop_n_layers": 2}),
    "own grids": (
        "photograph",
        "own grids",
        {"points_per_side": None, "point_grids": own_grids(), "crop_n_layers": 1},
    ),
}


@functools.cache
def chosen():
    """The seed of the picture and the thresholds, for each name that `SETTINGS` has for them."""
    return json.loads(CHOSEN.read_text())


def parameters(setting, thresholds=None):
    """All parameters of either generator."""
    _, name, others = SETTINGS[setting]
    return {**others, **(thresholds or chosen()[name]["thresholds"])}


def count_crops(setting):
    """How many crops an image has, itself among them."""
    return sum(4**i for i in range(SETTINGS[setting][2].get("crop_n_layers", 0) + 1))


# --- pictures ---


@functools.cache
def picture(kind, seed):
    """A uint8 image `(H0, W0, 3)`.

    Args:
        kind: `"square"`, a drawn scene of the frame's size; `"large"`, one of odd size with more
            in it than the frame shows well; `"photograph"`, a landscape of odd size out of one of
            scikit-image's photographs; `"portrait"`, likewise, upright.
        seed: int.
    """
    rng = np.random.default_rng([30_000, seed])
    if kind == "square":
        return scene((256, 256), rng.integers(6, 9, 2), [30_000, seed])[0]
    if kind == "large":
        size = 2 * rng.integers(150, 200, 2) + 1
        return scene(size.tolist(), rng.integers(8, 12, 2), [30_000, seed])[0]
    from skimage import data

    image = getattr(data, ("coins", "chelsea", "coffee", "astronaut", "rocket")[seed % 5])()
    image = np.stack([image] * 3, axis=-1) if image.ndim == 2 else image
    size = np.sort(2 * rng.integers(90, 150, 2) + 1)
    h, w = size[::-1] if kind == "portrait" else size
    y, x = (rng.integers(n - m + 1) for n, m in zip(image.shape, (h, w), strict=False))
    return np.ascontiguousarray(image[y : y + h, x : x + w])


# --- Meta's code ---


def our_model():
    """The preset at the size at which both are compared, with Meta's defaults."""
    return keras_sam.SAMImageSegmenter.from_preset(
        PRESET, image_shape=IMAGE_SHAPE, generator_settings=None
    )


@functools.cache
def meta_model():
    """Meta's `Sam` of that size, with the preset's weights from a file in Meta's layout."""
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory() as folder:
        preset, file = Path(folder) / "preset", Path(folder) / "demo.safetensors"
        our_model().save_to_preset(preset)
        presets.convert_checkpoint(preset, file, "meta")
        parts = presets.read_preset(preset, load_weights=False).parts
        names = ("image_encoder", "prompt_encoder", "mask_decoder")
        model = meta_like(*(parts[name]["config"] for name in names))
        model.load_state_dict({name: values.float() for name, values in load_file(file).items()})
    return model.eval()


class Watch:
    """What Meta's generator decides on its way, and how near to its thresholds."""

    def __init__(self, thresholds):
        self.thresholds = thresholds
        self.scores = []  # predicted IoUs of all candidates, an array per batch of clicks
        self.stabilities = []  # of those whose predicted IoU was high enough, likewise
        self.margin = np.inf  # of scores, stability and overlaps to their thresholds
        self.order_margin = np.inf  # between scores whose order decides
        self.boxes = []  # that each call of suppression got, with their scores
        self.suppressed = []  # boxes that each of them dropped
        self.cut_off = 0  # boxes dropped at the edges of crops
        self.cleaned = 0  # masks that lost small regions
        self.doubtful = {}  # by predicted IoU: how many pixels of the mask rounding decides

    @contextlib.contextmanager
    def on(self, generator):
        module = sys.modules[type(generator).__module__]  # Meta's, or one made from it
        wrapped = {
            "calculate_stability_score": self._stability,
            "is_box_near_crop_edge": self._edge,
            "batched_nms": self._nms,
            "remove_small_regions": self._clean,
        }
        with pytest.MonkeyPatch.context() as patch:
            for name, watch in wrapped.items():
                patch.setattr(module, name, functools.partial(watch, getattr(module, name)))
            predict = generator.predictor.predict_torch
            patch.setattr(
                generator.predictor, "predict_torch", functools.partial(self._predict, predict)
            )
            yield self

    def _near(self, values, threshold):
        values = np.asarray(values, "float64")
        values = values[np.isfinite(values)]
        self.margin = min(self.margin, np.abs(values - threshold).min(initial=np.inf))

    def _predict(self, predict, *args, **kwargs):
        outputs = predict(*args, **kwargs)
        self.scores.append(outputs[1].flatten().numpy())
        self._near(self.scores[-1], self.thresholds["pred_iou_thresh"])
        return outputs

    def _stability(self, calculate, masks, mask_threshold, offset):
        score = calculate(masks, mask_threshold, offset)
        self.stabilities.append(score.numpy())
        self._near(score, self.thresholds["stability_score_thresh"])
        near = ((masks - mask_threshold).abs() < PIXEL_MARGIN).sum(dim=(1, 2)).tolist()
        judged = self.scores[-1][self.scores[-1] > np.float32(self.thresholds["pred_iou_thresh"])]
        self.doubtful.update(zip(judged.tolist(), near, strict=True))
        return score

    def _edge(self, is_near, *args, **kwargs):
        near = is_near(*args, **kwargs)
        self.cut_off += int(near.sum())
        return near

    def _clean(self, remove, *args, **kwargs):
        mask, changed = remove(*args, **kwargs)
        self.cleaned += changed
        return mask, changed

    def _nms(self, nms, boxes, scores, categories, iou_threshold):
        kept = nms(boxes, scores, categories, iou_threshold=iou_threshold)
        self.boxes.append((boxes.numpy(), scores.numpy().astype("float64")))
        self.suppressed.append(len(boxes) - len(kept))
        margin, order_margin = suppression_margins(*self.boxes[-1], kept.numpy(), iou_threshold)
        self.margin = min(self.margin, margin)
        self.order_margin = min(self.order_margin, order_margin)
        return kept


def suppression_margins(boxes, scores, kept, iou_threshold):
    """How near suppression is to another result: by an overlap, and by the order of scores."""
    if not len(boxes):
        return np.inf, np.inf
    iou = keras_sam.boxes.box_iou(boxes, boxes[kept])
    rank = np.argsort(np.argsort(-scores, kind="stable"))
    # Each box is kept or dropped for the kept box before it that overlaps it most.
    earlier = rank[kept][None] < rank[:, None]
    margin = np.abs(np.where(earlier, iou, 0).max(axis=1, initial=0) - iou_threshold).min()
    if not 0.01 < scores.max() < 1:  # 1 / crop area or flags: equal for both of us
        return margin, np.inf
    # A box that goes for a clearly better one goes in whatever order the others come.
    clearly = scores[kept][None] > scores[:, None] + 10 * ORDER_MARGIN
    gone = (clearly & (iou > iou_threshold)).any(axis=1)
    return margin, np.diff(np.sort(scores[~gone])).min(initial=np.inf)


def meta_records(setting, seed, thresholds=None):
    """Meta's records and the `Watch` of how they came about."""
    model = meta_model()
    from segment_anything import SamAutomaticMaskGenerator

    settings = parameters(setting, thresholds)
    generator = SamAutomaticMaskGenerator(model, **settings)
    with Watch(settings).on(generator) as watch:
        return generator.generate(picture(SETTINGS[setting][0], seed)), watch


def our_records(segmenter, setting, seed, thresholds=None):
    """Our records of the same."""
    settings = {**parameters(setting, thresholds), "prompt_chunk": 16}
    generator = keras_sam.SAMAutomaticMaskGenerator(segmenter, **settings)
    return generator.generate(picture(SETTINGS[setting][0], seed))


# --- what makes a comparison, and what it asks for ---


def assert_telling(setting, records, watch):
    """Fails where rounding could decide, or a step of Meta's had nothing to do."""
    assert watch.margin > MARGIN, "a candidate lies so near a threshold that rounding decides"
    assert watch.order_margin > ORDER_MARGIN, "scores so alike that rounding decides the order"
    for record in records:
        pixels = watch.doubtful[record["predicted_iou"]]
        assert pixels <= (1 - IOU) * record["area"], "rounding decides a pixel of a small mask"
    assert len(records) >= RECORDS, "too few records to tell anything"
    others, crops = SETTINGS[setting][2], count_crops(setting)
    within, after = watch.suppressed[:crops], watch.suppressed[crops:]
    assert len(within) == crops
    assert sum(n > 0 for n in within) >= min(crops, 3), "no suppression within crops"
    if crops > 1:
        assert watch.cut_off > 0, "no box at the edge of a crop"
        assert after.pop(0) > 0, "no suppression across crops"
    if others.get("min_mask_region_area"):
        assert watch.cleaned > 5, "no small regions"
        assert after.pop(0) > 0, "no suppression after the cleaning"
    assert not after


def mask_of(record):
    """A record's mask, bool `(H0, W0)`."""
    mask = record["segmentation"]
    return keras_sam.masks.decode_rle(mask) if isinstance(mask, dict) else mask


def assert_same_records(actual, expected):
    """Fails unless count, order, boxes and fields are the same, up to what rounding does."""
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected, strict=True):
        assert a.keys() == b.keys()
        assert type(a["segmentation"]) is type(b["segmentation"])
        assert a["bbox"] == b["bbox"]
        assert a["crop_box"] == b["crop_box"]
        np.testing.assert_allclose(a["point_coords"], b["point_coords"], rtol=0, atol=1e-9)
        assert abs(a["predicted_iou"] - b["predicted_iou"]) <= 1e-3
        assert abs(a["stability_score"] - b["stability_score"]) <= 1e-3
        mask, wanted = mask_of(a), mask_of(b)
        assert mask.shape == wanted.shape
        assert (mask & wanted).sum() >= IOU * (mask | wanted).sum()
        assert a["area"] == mask.sum()
