"""Automatic masks: the records of Meta's generator, and what goes beyond it.

Both run on a small SAM trained on drawn scenes (tools/make_trained_fixture.py), for a model with
random weights makes masks as large as the image.
"""

import contextlib
import copy
import functools
import inspect
import json
import pickle
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import keras_sam
from keras_sam import mask_records
from keras_sam.geometry import ResizePlan
from keras_sam.mask_records import Thresholds
from tests.meta_oracle import import_segment_anything
from tests.scenes import scene
from tests.tiny import photograph

FIXTURE = Path(__file__).parent / "fixtures" / "sam_shapes.safetensors"


@functools.cache
def trained():
    return keras_sam.SAMImageSegmenter.from_preset(FIXTURE)


@functools.cache
def trained_meta():
    """Meta's code with the same weights."""
    import_segment_anything()
    import torch
    from safetensors.torch import load_file
    from segment_anything import modeling

    norm = functools.partial(torch.nn.LayerNorm, eps=1e-6)
    model = modeling.Sam(
        image_encoder=modeling.ImageEncoderViT(
            img_size=128,
            patch_size=8,
            embed_dim=64,
            depth=4,
            num_heads=4,
            mlp_ratio=2,
            out_chans=48,
            qkv_bias=True,
            norm_layer=norm,
            use_rel_pos=True,
            window_size=7,
            global_attn_indexes=(1, 3),
        ),
        prompt_encoder=modeling.PromptEncoder(
            embed_dim=48,
            image_embedding_size=(16, 16),
            input_image_size=(128, 128),
            mask_in_chans=8,
        ),
        mask_decoder=modeling.MaskDecoder(
            num_multimask_outputs=3,
            transformer=modeling.TwoWayTransformer(
                depth=2, embedding_dim=48, mlp_dim=96, num_heads=8
            ),
            transformer_dim=48,
            iou_head_depth=3,
            iou_head_hidden_dim=48,
        ),
    )
    weights = {name: values.float() for name, values in load_file(FIXTURE).items()}
    model.load_state_dict(weights)
    return model.eval()


# --- equal to Meta's ---


class Watch:
    """What Meta's generator decides on its way, and how near to its thresholds."""

    def __init__(self, thresholds):
        self.thresholds = thresholds
        self.margin = np.inf  # of scores, stability and overlaps to their thresholds
        self.order_margin = np.inf  # between scores that are sorted
        self.suppressed = []  # boxes that each call of suppression dropped
        self.cut_off = 0  # boxes dropped at the edges of crops

    @contextlib.contextmanager
    def on(self, generator):
        from segment_anything import automatic_mask_generator as module

        wrapped = {
            "calculate_stability_score": self._stability,
            "is_box_near_crop_edge": self._edge,
            "batched_nms": self._nms,
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
        self._near(outputs[1].flatten(), self.thresholds["pred_iou_thresh"])
        return outputs

    def _stability(self, calculate, *args):
        score = calculate(*args)
        self._near(score, self.thresholds["stability_score_thresh"])
        return score

    def _edge(self, is_near, *args, **kwargs):
        near = is_near(*args, **kwargs)
        self.cut_off += int(near.sum())
        return near

    def _nms(self, nms, boxes, scores, categories, iou_threshold):
        kept = nms(boxes, scores, categories, iou_threshold=iou_threshold)
        self.suppressed.append(len(boxes) - len(kept))
        if (
            len(scores) and scores.max() > 0.01
        ):  # else they are 1 / crop area, the same for everybody
            ranks = np.unique(scores.numpy().astype("float64"))
            self.order_margin = min(self.order_margin, np.diff(ranks).min(initial=np.inf))
        iou = keras_sam.boxes.box_iou(boxes.numpy(), boxes[kept].numpy())
        rank = np.argsort(np.argsort(-scores.numpy().astype("float64"), kind="stable"))
        earlier = rank[kept.numpy()][None] < rank[:, None]
        # Each box is kept or dropped for the kept box before it that overlaps it most.
        self._near(np.where(earlier, iou, 0).max(axis=1, initial=0), iou_threshold)
        return kept


# Scores of the two differ by 1e-7, rarely by 1e-6.
ORDER_MARGIN = 1.5e-6

GRID = {
    "points_per_side": 16,
    "pred_iou_thresh": 0.5041,
    "stability_score_thresh": 0.6001,
    "box_nms_thresh": 0.7,
}
# Layer 1 has half as many points per side.
CROPS = {**GRID, "points_per_side": 12, "crop_n_points_downscale_factor": 2}


def own_grids():
    """Random clicks: 160 into the image, 50 into each crop."""
    rng = np.random.default_rng(0)
    return [rng.random((160, 2)), rng.random((50, 2))]


GRID_PICTURE = ((128, 128), (6, 6), 4)
CROPS_PICTURE = ((240, 320), (8, 10), 2)
# name: (image size, cells of the scene, its seed), parameters, records at least
SETTINGS = {
    "grid": (GRID_PICTURE, GRID, 100),
    "uncompressed": (GRID_PICTURE, {**GRID, "output_mode": "uncompressed_rle"}, 100),
    "coco": (GRID_PICTURE, {**GRID, "output_mode": "coco_rle"}, 100),
    "small regions": (GRID_PICTURE, {**GRID, "min_mask_region_area": 20}, 90),
    "odd size": (
        ((131, 187), (6, 8), 2),
        {
            **GRID,
            "pred_iou_thresh": 0.4892,
            "stability_score_thresh": 0.5947,
            "box_nms_thresh": 0.72,
        },
        50,
    ),
    "portrait": (
        ((203, 97), (8, 4), 18),
        {
            **GRID,
            "pred_iou_thresh": 0.4971,
            "stability_score_thresh": 0.6014,
            "box_nms_thresh": 0.73,
        },
        50,
    ),
    "1 layers of crops": (
        CROPS_PICTURE,
        {
            **CROPS,
            "crop_n_layers": 1,
            "pred_iou_thresh": 0.5014,
            "stability_score_thresh": 0.6042,
        },
        100,
    ),
    "2 layers of crops": (
        CROPS_PICTURE,
        {
            **CROPS,
            "crop_n_layers": 2,
            "pred_iou_thresh": 0.4463,
            "stability_score_thresh": 0.6144,
            "box_nms_thresh": 0.71,
            "crop_nms_thresh": 0.71,
        },
        100,
    ),
    "own grids": (
        ((240, 320), (8, 10), 1),
        {
            **GRID,
            "points_per_side": None,
            "point_grids": own_grids(),
            "crop_n_layers": 1,
            "pred_iou_thresh": 0.466,
            "stability_score_thresh": 0.604,
            "box_nms_thresh": 0.72,
            "crop_nms_thresh": 0.72,
        },
        100,
    ),
}


def parameters(setting):
    return {**SETTINGS[setting][1], "points_per_batch": 16}


def picture(setting):
    return scene(*SETTINGS[setting][0])[0]


@functools.cache
def metas(setting):
    """Meta's records and the `Watch` of how they came about."""
    model = trained_meta()
    from segment_anything import SamAutomaticMaskGenerator

    generator = SamAutomaticMaskGenerator(model, **parameters(setting))
    with Watch(parameters(setting)).on(generator) as watch:
        return generator.generate(picture(setting)), watch


@functools.cache
def ours(setting):
    generator = keras_sam.SAMAutomaticMaskGenerator(
        trained(), **parameters(setting), prompt_chunk=16
    )
    return generator.generate(picture(setting))


def mask_of(record):
    mask = record["segmentation"]
    return keras_sam.masks.decode_rle(mask) if isinstance(mask, dict) else mask


def assert_same_records(actual, expected):
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
        assert (mask & wanted).sum() >= 0.999 * (mask | wanted).sum()
        assert a["area"] == mask.sum()


@pytest.mark.parametrize("setting", SETTINGS)
def test_records_equal_metas(setting):
    expected, watch = metas(setting)
    assert watch.margin > 1e-3, "a candidate lies so near a threshold that rounding decides"
    assert watch.order_margin > ORDER_MARGIN, "scores so alike that rounding decides the order"
    assert len(expected) >= SETTINGS[setting][2]
    assert_same_records(ours(setting), expected)


def test_every_stage_of_metas_drops_something():
    """Or the comparison would not see whether ours has it."""
    _, whole = metas("grid")
    assert len(whole.suppressed) == 1 and whole.suppressed[0] > 50
    for layers in (1, 2):
        _, watch = metas(f"{layers} layers of crops")
        *within, across = watch.suppressed
        assert len(within) == sum(4**i for i in range(layers + 1))
        assert sum(n > 0 for n in within) > layers and across > 0
        assert watch.cut_off > 20
    plain, cleaned = metas("grid")[0], metas("small regions")[0]
    assert len(metas("small regions")[1].suppressed) == 2
    areas = {str(r["point_coords"]) + str(r["predicted_iou"]): r["area"] for r in plain}
    changed = [areas.get(str(r["point_coords"]) + str(r["predicted_iou"])) for r in cleaned]
    assert sum(a != r["area"] for a, r in zip(changed, cleaned, strict=True)) > 5


def test_run_lengths_have_metas_form():
    for setting in ("uncompressed", "coco"):
        (a, b) = ours(setting)[0]["segmentation"], metas(setting)[0][0]["segmentation"]
        assert {k: type(v) for k, v in a.items()} == {k: type(v) for k, v in b.items()}
        assert a == b
        json.dumps(ours(setting))


def test_parameters_and_defaults_are_metas():
    import_segment_anything()
    from segment_anything import SamAutomaticMaskGenerator

    wanted = dict(inspect.signature(SamAutomaticMaskGenerator).parameters)
    given = dict(inspect.signature(keras_sam.SAMAutomaticMaskGenerator).parameters)
    wanted.pop("model")
    assert len(wanted) == 13
    assert {name: given[name].default for name in wanted} == {
        name: parameter.default for name, parameter in wanted.items()
    }
    assert list(given)[1:14] == list(wanted)


# --- one click grid for what follows ---

FEW = {
    "points_per_side": 4,
    "pred_iou_thresh": 0.45,
    "stability_score_thresh": 0.5,
    "points_per_batch": 16,
    "prompt_chunk": 16,
}


def generator(segmenter=None, **changes):
    return keras_sam.SAMAutomaticMaskGenerator(segmenter or trained(), **{**FEW, **changes})


def small_picture(seed=5, size=(128, 100)):
    return scene(size, (4, 3), seed)[0]


def assert_identical(actual, expected):
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(mask_of(a), mask_of(b))
        assert {k: v for k, v in a.items() if k != "segmentation"} == {
            k: v for k, v in b.items() if k != "segmentation"
        }


def test_images_of_different_sizes_in_one_call():
    images = [small_picture(), small_picture(6, (90, 128))]
    results = generator().generate(images, verbose=0)
    assert [r.original_size for r in results] == [(128, 100), (90, 128)]
    for records, image in zip(results, images, strict=True):
        assert len(records) > 5
        assert_identical(records, generator().generate(image))


def test_stream_reads_an_image_when_its_turn_comes():
    read = []

    def images():
        for seed in (5, 6):
            read.append(seed)
            yield small_picture(seed)

    stream = generator().stream(images())
    assert read == []
    assert_identical(next(stream), generator().generate(small_picture(5)))
    assert read == [5]
    assert len(list(stream)) == 1


def interrupted_at(monkeypatch, segmenter, call):
    """Makes Ctrl-C arrive while image number `call` is encoded."""
    encode, calls = segmenter.encode_frames, []

    def encode_frames(frames):
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return encode(frames)

    monkeypatch.setattr(segmenter, "encode_frames", encode_frames)


def test_ctrl_c_keeps_finished_images(monkeypatch):
    images = [small_picture(seed) for seed in (5, 6, 7)]
    expected = generator().generate(images[:2], verbose=0)
    interrupted_at(monkeypatch, trained(), 3)
    with pytest.warns(UserWarning, match="first 2 of 3 images"):
        results = generator().generate(images, verbose=0)
    assert len(results) == 2
    for a, b in zip(results, expected, strict=True):
        assert_identical(a, b)


def test_ctrl_c_before_anything_is_finished(monkeypatch):
    interrupted_at(monkeypatch, trained(), 1)
    with pytest.raises(KeyboardInterrupt):
        generator().generate([small_picture()] * 2, verbose=0)


def unusable_among_good(tmp_path):
    (tmp_path / "text.jpg").write_text("not a picture")
    return [small_picture(5), tmp_path / "text.jpg", small_picture(6), np.zeros((0, 5, 3))]


def test_an_unusable_image_loses_no_others(tmp_path):
    images = unusable_among_good(tmp_path)
    with pytest.raises(keras_sam.UnfinishedImagesError) as caught:
        generator().generate(images, verbose=0)
    message = str(caught.value)
    assert message.count("Image ") == 2 and "in this error's `results`" in message
    assert "Image 1 of 4" in message and "text.jpg): The file must be an image" in message
    assert "Image 3 of 4, counted from 0: An image must have at least one pixel" in message
    results = caught.value.results
    assert [records is None for records in results] == [False, True, False, True]
    assert_identical(results[2], generator().generate(images[2]))
    with pytest.warns(UserWarning, match="Image 1 of 4.*Image 3 of 4"):
        skipped = generator().generate(images, verbose=0, unusable="skip")
    assert [records is None for records in skipped] == [False, True, False, True]
    assert_identical(skipped[0], results[0])


def test_stream_ends_at_an_unusable_image_or_skips_it(tmp_path):
    images = unusable_among_good(tmp_path)
    stream = generator().stream(images)
    assert len(next(stream)) > 5
    with pytest.raises(keras_sam.UnfinishedImagesError, match="Image 1, counted from 0.*text.jpg"):
        next(stream)
    with pytest.warns(UserWarning, match="Image [13], counted from 0"):
        found = list(generator().stream(images, unusable="skip"))
    assert [records is None for records in found] == [False, True, False, True]
    with pytest.raises(ValueError, match="`unusable` must be one of"):
        generator().stream(images, unusable="ignore")


def test_ctrl_c_after_an_unusable_image(monkeypatch, tmp_path):
    interrupted_at(monkeypatch, trained(), 2)
    with pytest.warns(UserWarning, match="first 2 of 4 images.*Image 1 of 4"):
        results = generator().generate(unusable_among_good(tmp_path), verbose=0)
    assert [records is None for records in results] == [False, True]


def test_a_disk_too_full_for_candidates_loses_no_others(monkeypatch):
    class Full(mask_records.CandidateFile):
        made = 0

        def __init__(self):
            super().__init__()
            Full.made += 1
            if Full.made == 2:
                self._file = open("/dev/full", "wb")  # noqa: SIM115

    monkeypatch.setattr("keras_sam.mask_generator.CandidateFile", Full)
    images = [small_picture(seed) for seed in (5, 6, 7)]
    with pytest.raises(keras_sam.UnfinishedImagesError, match="Image 1 of 3.*No space left"):
        generator(keep_candidates=True).generate(images, verbose=0)
    Full.made = 0
    with pytest.raises(keras_sam.UnfinishedImagesError) as caught:
        generator(keep_candidates=True).generate(images, verbose=0)
    first, *others = caught.value.results
    assert others == [None, None]
    assert len(first.filter(pred_iou_thresh=0.2)) > len(first) > 5
    Full.made = 1
    with pytest.raises(OSError, match="No space left"):
        generator(keep_candidates=True).generate(images[0])


def test_stream_tells_how_many_clicks_are_done():
    told = []
    crops = generator(crop_n_layers=1, crop_n_points_downscale_factor=2)
    list(crops.stream([small_picture()], progress=told.append))
    assert sum(told) == crops.clicks_per_image == 32 and len(told) == 5


def test_embeddings_are_used_as_they_are(monkeypatch, tmp_path):
    expected = generator().generate(small_picture())
    other = generator().generate(small_picture(6))
    predictor = keras_sam.SAMPredictor(trained())
    predictor.set_images([small_picture(), small_picture(6)], verbose=0)
    predictor.save_embedding(tmp_path / "two.safetensors")
    loaded = keras_sam.SAMPredictor(trained())
    loaded.load_embedding(tmp_path / "two.safetensors")
    interrupted_at(monkeypatch, trained(), 1)  # nothing is encoded again
    results = generator(loaded).generate(verbose=0)
    assert_identical(results[0], expected)
    assert_identical(results[1], other)


def test_a_predictor_keeps_its_image():
    predictor = keras_sam.SAMPredictor(trained())
    predictor.set_image(small_picture())
    before = predictor.image_embeddings
    generator(predictor).generate(small_picture(6, (90, 128)))
    assert predictor.image_embeddings is before


def test_bgr_and_paths(tmp_path):
    from PIL import Image

    expected = generator().generate(small_picture())
    assert_identical(
        generator().generate(small_picture()[..., ::-1], channel_order="bgr"), expected
    )
    Image.fromarray(small_picture()).save(tmp_path / "photo.png")
    assert_identical(generator().generate(tmp_path / "photo.png"), expected)


def test_no_other_backend_is_imported():
    """As Keras imports TensorFlow for a layer's config: seconds, and half a gigabyte."""
    code = (
        "import sys, numpy as np, keras, keras_sam\n"
        f"segmenter = keras_sam.SAMImageSegmenter.from_preset({str(FIXTURE)!r})\n"
        "generator = keras_sam.SAMAutomaticMaskGenerator(segmenter, 2, 4, pred_iou_thresh=0)\n"
        "before = set(sys.modules)\n"
        "generator.generate(np.zeros((30, 40, 3), 'uint8'))\n"
        "more = {'jax', 'torch', 'tensorflow'} & (set(sys.modules) - before)\n"
        "assert not more, more"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_progress_counts_clicks(capsys):
    generator(crop_n_layers=1, crop_n_points_downscale_factor=2).generate(
        small_picture(), verbose=1
    )
    assert "32/32" in capsys.readouterr().out  # 16, and 4 in each of 4 crops
    generator().generate(small_picture())
    assert capsys.readouterr().out == ""


# --- choosing again ---


@pytest.mark.parametrize(
    "changes",
    [
        {"pred_iou_thresh": 0.6},  # stricter
        {"pred_iou_thresh": 0.2, "stability_score_thresh": 0.1},  # looser
        {"stability_score_offset": 2.0},
        {"pred_iou_thresh": 0, "stability_score_thresh": 0, "box_nms_thresh": 0.95},
        {"crop_nms_thresh": 0.3},
        {"min_mask_region_area": 25},
        {"output_mode": "coco_rle"},
    ],
    ids=str,
)
def test_candidates_give_what_generating_again_gives(changes):
    crops = {"crop_n_layers": 1, "crop_n_points_downscale_factor": 2}
    kept = generator(**crops).generate(small_picture(), keep_candidates=True)
    expected = generator(**crops, **changes).generate(small_picture())
    assert_identical(generator().filter(kept, **changes), expected)
    assert_identical(kept.filter(**changes).filter(**FEW_THRESHOLDS), kept)  # and back again


FEW_THRESHOLDS = {
    name: getattr(Thresholds(), name) if name not in FEW else FEW[name]
    for name in inspect.signature(Thresholds).parameters
    if name != "mask_threshold"
}


@pytest.mark.parametrize("output_mode", mask_records.OUTPUT_MODES)
def test_stricter_scores_without_candidates(output_mode):
    records = generator(output_mode=output_mode).generate(small_picture())
    stricter = records.filter(pred_iou_thresh=0.55)
    assert 0 < len(stricter) < len(records)
    assert_identical(stricter, generator(pred_iou_thresh=0.55).generate(small_picture()))
    scores = sorted(r["stability_score"] for r in records)
    middle = scores[len(scores) // 2]
    stable = records.filter(stability_score_thresh=middle)
    assert [r["stability_score"] for r in stable] == [
        r["stability_score"] for r in records if r["stability_score"] >= middle
    ]


def test_stricter_suppression_and_regions_without_candidates():
    crops = {"crop_n_layers": 1, "crop_n_points_downscale_factor": 2}
    records = generator(**crops).generate(small_picture())
    assert_identical(records.filter(), records)
    for name in ("box_nms_thresh", "crop_nms_thresh"):
        fewer = records.filter(**{name: 0.2})
        assert 0 < len(fewer) < len(records)
        assert_identical(fewer, [r for r in records if any(r["bbox"] == f["bbox"] for f in fewer)])
    again = generator(**crops, min_mask_region_area=25).generate(small_picture())
    assert_identical(records.filter(min_mask_region_area=25), again)
    assert sum(r["area"] for r in again) != sum(r["area"] for r in records)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pred_iou_thresh": 0.1}, r"only be stricter.*pred_iou_thresh=0\.1.*keep_candidates=True"),
        ({"box_nms_thresh": 0.9}, "box_nms_thresh=0.9"),
        ({"stability_score_offset": 0.5}, "stability_score_offset=0.5"),  # neither way
        ({"points_per_side": 8}, r"takes pred_iou_thresh.*Received: points_per_side"),
        ({"output_mode": "png"}, "`output_mode` must be one of"),
        ({"pred_iou_thresh": float("nan")}, "`pred_iou_thresh` must be a finite number"),
    ],
)
def test_filters_that_cannot_be(changes, message):
    records = generator().generate(small_picture())
    with pytest.raises(ValueError, match=message):
        records.filter(**changes)


def test_records_are_a_list_that_can_be_copied_and_pickled():
    records = generator(output_mode="coco_rle").generate(small_picture(), keep_candidates=True)
    assert isinstance(records, list)
    for twin in (copy.copy(records), pickle.loads(pickle.dumps(records))):
        assert twin == records
        assert twin.candidates is None
        assert len(twin.filter(pred_iou_thresh=0.55)) < len(records)


def test_the_temporary_file_goes_with_the_records(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    records = generator().generate(small_picture(), keep_candidates=True)
    file = records.candidates._file
    assert records.filter(pred_iou_thresh=0.55)
    del records
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="closed file"):
        file.close() or file.read()


# --- memory, refinement ---


def test_low_scores_are_dropped_before_anything_is_enlarged(monkeypatch):
    enlarge, enlarged = mask_records._enlarge, []

    def count(logits, plan, thresholds):
        enlarged.append(1)
        return enlarge(logits, plan, thresholds)

    monkeypatch.setattr(mask_records, "_enlarge", count)
    records = generator(pred_iou_thresh=0).generate(small_picture(), keep_candidates=True)
    assert len(enlarged) == 3 * 16
    enlarged.clear()
    scores = np.concatenate(
        [batch.scores for _, batches in records.candidates.crops() for batch in batches]
    )
    generator(pred_iou_thresh=0.55).generate(small_picture())
    assert len(enlarged) == (scores > 0.55).sum() > 0


def test_memory_does_not_grow_with_the_number_of_points():
    image = photograph((300, 400))
    enlarged = {"pred_iou_thresh": 0, "stability_score_thresh": 1.01}  # all, and none is a record
    generator(**enlarged, points_per_side=6).generate(image)  # compiles, and fills the caches
    peaks = []
    for side in (6, 12):  # 3 batches, and 9
        tracemalloc.start()
        assert generator(**enlarged, points_per_side=side).generate(image) == []
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]


@pytest.mark.parametrize("seed", range(6))
def test_a_part_is_enlarged_as_the_whole(seed):
    rng = np.random.default_rng(seed)
    plan = ResizePlan(tuple(rng.integers(20, 300, 2).tolist()), (128, 112))
    thresholds = Thresholds(stability_score_offset=0.5, mask_threshold=0.25)
    logits = np.full((32, 28), -4, "float32")
    y, x = rng.integers(0, 20, 2)
    if seed:  # else nothing is inside
        logits[y : y + 6, x : x + 5] = rng.normal(0, 3, (6, 5))
    whole = plan.masks_to_original(logits)
    part, (x, y) = mask_records._enlarge(logits, plan, thresholds)
    inside = (slice(y, y + part.shape[0]), slice(x, x + part.shape[1]))
    np.testing.assert_allclose(part, whole[inside], rtol=0, atol=1e-5)
    outside = np.ones(whole.shape, bool)
    outside[inside] = False
    assert whole[outside].max(initial=-9) <= -0.25 + 1e-6
    assert part.size < whole.size or seed


def test_m2m_decodes_every_mask_with_itself_as_prompt():
    image, grid = small_picture(), np.array([[0.3, 0.4], [0.7, 0.55]])
    everything = {"pred_iou_thresh": 0, "stability_score_thresh": 0, "point_grids": [grid]}
    refined = generator(points_per_side=None, use_m2m=True, **everything)
    ((_, batches),) = refined.generate(image, keep_candidates=True).candidates.crops()
    (batch,) = batches
    predictor = keras_sam.SAMPredictor(trained())
    predictor.set_image(image)
    clicks = {"points": (grid * [100, 128])[:, None], "labels": [[1], [1]]}
    _, _, first = predictor.predict(**clicks)
    for k in range(3):
        _, scores, logits = predictor.predict(**clicks, masks=first[:, k], multimask_output=False)
        np.testing.assert_allclose(batch.scores[:, k], scores[:, 0], atol=1e-4)
        np.testing.assert_allclose(batch.logits[:, k], logits[:, 0], atol=2e-3)
        assert np.abs(logits[:, 0] - first[:, k]).max(axis=(1, 2)).min() > 0.1  # other masks


# --- bad input ---


def black(*size):
    return np.zeros((*size, 3), "uint8")


@pytest.mark.parametrize(
    ("image", "settings"),
    [
        (black(1, 1), {}),
        (black(1, 1), {"pred_iou_thresh": 0, "stability_score_thresh": 0}),
        (black(40, 60), {}),
        (black(3, 5), {"crop_n_layers": 1}),
        (small_picture(), {"pred_iou_thresh": 0.999}),  # drops everything
        (small_picture(), {"stability_score_thresh": 1.01, "crop_n_layers": 1}),
        (small_picture(), {"pred_iou_thresh": 0.999, "min_mask_region_area": 10}),
    ],
    ids=["1x1", "1x1, all kept", "black", "crops of 3x5", "iou", "stability", "regions"],
)
def test_images_without_objects_are_no_error(image, settings):
    records = generator(**settings).generate(image)
    assert isinstance(records, list)
    assert records == [] or "999" not in str(settings) and "1.01" not in str(settings)
    assert all(r["segmentation"].shape == image.shape[:2] for r in records)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"points_per_side": 0}, "`points_per_side`|at least one point"),
        ({"points_per_side": None}, "Exactly one of `points_per_side` and `point_grids`"),
        ({"point_grids": [[[0.5, 0.5]]]}, "pass `points_per_side=None`"),
        ({"points_per_side": None, "point_grids": [np.zeros((0, 2))]}, "at least one point"),
        ({"points_per_side": None, "point_grids": [[[50, 60]]]}, "not pixels"),
        (
            {"points_per_side": None, "point_grids": [[[0.5, 0.5]]], "crop_n_layers": 1},
            "2 in all. Received: 1",
        ),
        ({"crop_n_layers": 3, "crop_n_points_downscale_factor": 2}, "at least one point per side"),
        ({"crop_n_layers": -1}, "`crop_n_layers` must be at least 0"),
        ({"crop_overlap_ratio": 1.0}, r"`crop_overlap_ratio` in \[0, 1\)"),
        ({"points_per_batch": 0}, "`points_per_batch` must be"),
        ({"output_mode": "png"}, "`output_mode` must be one of"),
        ({"stability_score_thresh": None}, "`stability_score_thresh` must be a finite number"),
    ],
    ids=str,
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        generator(**settings)


@pytest.mark.parametrize(
    ("image", "settings", "message"),
    [
        (np.zeros((0, 5, 3), "uint8"), {}, "at least one pixel"),
        (black(1, 1), {"crop_n_layers": 1}, "too small for 1 layers of crops"),
        ([], {}, "at least one image"),
        (np.zeros((4, 5, 7), "uint8"), {}, "channels"),
    ],
    ids=["empty", "crops of 1x1", "no image", "7 channels"],
)
def test_images_that_cannot_be(image, settings, message):
    with pytest.raises(ValueError, match=message):
        generator(**settings).generate(image)


def test_without_an_image():
    with pytest.raises(RuntimeError, match="No image"):
        generator().generate()
    predictor = keras_sam.SAMPredictor(trained())
    predictor.set_image(small_picture())
    with pytest.raises(ValueError, match="Crops need the image itself"):
        generator(predictor, crop_n_layers=1).generate()


# --- what reads Meta's records reads ours ---


def test_supervision_reads_the_records():
    supervision = pytest.importorskip("supervision")
    records = ours("grid")
    detections = supervision.Detections.from_sam(records)
    by_area = sorted(records, key=lambda r: r["area"], reverse=True)
    np.testing.assert_array_equal(detections.mask, [r["segmentation"] for r in by_area])
    np.testing.assert_array_equal(detections.xyxy[:, :2], [r["bbox"][:2] for r in by_area])


def test_pycocotools_reads_the_records():
    tools = pytest.importorskip("pycocotools.mask")
    for record, binary in zip(ours("coco"), ours("grid"), strict=True):
        np.testing.assert_array_equal(
            tools.decode(record["segmentation"]).astype(bool), binary["segmentation"]
        )
        assert tools.area(record["segmentation"]) == record["area"]


def test_pictures_take_the_records_even_when_there_are_none():
    records = generator().generate(small_picture())
    plain, drawn, empty = (
        np.asarray(keras_sam.visualization.overlay(small_picture(), masks))
        for masks in (None, records, records.filter(pred_iou_thresh=0.999))
    )
    np.testing.assert_array_equal(empty, plain)
    assert (drawn != plain).any()
