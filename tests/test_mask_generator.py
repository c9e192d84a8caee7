"""Automatic masks: the records of Meta's generator, and what goes beyond it.

Both run on the trained weights of `sam_tiny_demo`, for a model with random weights makes masks as
large as the image.

A backend encodes pictures and decodes clicks, crops and masks; what becomes of the candidates is
numpy, which is tested once.
"""

import copy
import functools
import inspect
import json
import pickle
import re
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import keras_sam
from keras_sam.geometry import ResizePlan
from keras_sam.mask_generator import candidates
from keras_sam.mask_generator import records as mask_records
from keras_sam.mask_generator.candidates import CandidateFile, Candidates, Crop
from keras_sam.mask_generator.records import Thresholds, select_records
from keras_sam.masks import stability_score
from tests.generator_oracle import (
    PRESET,
    SETTINGS,
    assert_same_records,
    assert_telling,
    chosen,
    mask_of,
    meta_records,
    our_model,
    our_records,
    picture,
)
from tests.meta_oracle import import_segment_anything
from tests.scenes import scene
from tests.tiny import photograph

pytestmark = pytest.mark.once


@functools.cache
def trained():
    return our_model()


# --- equal to Meta's ---


@functools.cache
def metas(setting):
    return meta_records(setting, chosen()[SETTINGS[setting][1]]["seed"])


@functools.cache
def ours(setting):
    return our_records(trained(), setting, chosen()[SETTINGS[setting][1]]["seed"])


# An odd size, an upright one and crops: what a model is asked differs in nothing else.
ON_EVERY_BACKEND = ("uncompressed", "coco", "1 layer of crops")


@pytest.mark.parametrize(
    "setting",
    [
        pytest.param(name, marks=[pytest.mark.every_backend] * (name in ON_EVERY_BACKEND))
        for name in SETTINGS
    ],
)
def test_records_equal_metas(setting):
    expected, watch = metas(setting)
    assert_telling(setting, expected, watch)
    assert_same_records(ours(setting), expected)


def test_images_of_odd_sizes_are_among_them():
    kinds = {name: kind for kind, name, _ in SETTINGS.values()}
    shapes = [picture(kinds[name], choice["seed"]).shape for name, choice in chosen().items()]
    odd = [(h, w) for h, w, _ in shapes if h % 2 and w % 2]
    assert len(odd) >= 4
    assert any(h < w for h, w in odd) and any(h > w for h, w in odd)


@pytest.mark.every_backend
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


def middle(records, field):
    """A value that half of the records' are above."""
    return float(np.median([record[field] for record in records]))


def assert_identical(actual, expected):
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(mask_of(a), mask_of(b))
        assert {k: v for k, v in a.items() if k != "segmentation"} == {
            k: v for k, v in b.items() if k != "segmentation"
        }


@pytest.mark.every_backend
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
    class Full(CandidateFile):
        made = 0

        def __init__(self):
            super().__init__()
            Full.made += 1
            if Full.made == 2:
                self._file = open("/dev/full", "wb")  # noqa: SIM115

    monkeypatch.setattr("keras_sam.mask_generator.generator.CandidateFile", Full)
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


@pytest.mark.every_backend
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


@pytest.mark.every_backend
def test_no_other_backend_is_imported():
    """As Keras imports TensorFlow for a layer's config: seconds, and half a gigabyte."""
    code = (
        "import sys, numpy as np, keras, keras_sam\n"
        f"segmenter = keras_sam.SAMImageSegmenter.from_preset({PRESET!r})\n"
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
    assert_identical(kept.filter(**changes), expected)
    assert_identical(kept.filter(**changes).filter(**FEW_THRESHOLDS), kept)  # and back again


FEW_THRESHOLDS = {
    name: getattr(Thresholds(), name) if name not in FEW else FEW[name]
    for name in inspect.signature(Thresholds).parameters
    if name != "mask_threshold"
}


@pytest.mark.parametrize("output_mode", mask_records.OUTPUT_MODES)
def test_stricter_scores_without_candidates(output_mode):
    records = generator(output_mode=output_mode).generate(small_picture())
    half = middle(records, "predicted_iou")
    stricter = records.filter(pred_iou_thresh=half)
    assert 0 < len(stricter) < len(records)
    assert_identical(stricter, generator(pred_iou_thresh=half).generate(small_picture()))
    half = middle(records, "stability_score")
    stable = records.filter(stability_score_thresh=half)
    assert [r["stability_score"] for r in stable] == [
        r["stability_score"] for r in records if r["stability_score"] >= half
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
        assert len(twin.filter(pred_iou_thresh=middle(records, "predicted_iou"))) < len(records)


def test_a_part_of_the_records_can_be_filtered():
    records = generator(output_mode="coco_rle").generate(small_picture(), keep_candidates=True)
    assert len(records) > 3
    for part in (records[:3], records[::-1][-3:][::-1], records.copy()[:3]):
        assert type(part) is type(records) and list(part) == list(records)[:3]
        assert part.original_size == records.original_size
        half = middle(part, "predicted_iou")
        assert list(part.filter(pred_iou_thresh=half)) == [
            r for r in part if r["predicted_iou"] > half
        ]
        with pytest.raises(ValueError, match="Without candidates"):  # nothing comes back
            part.filter(pred_iou_thresh=0)
    assert records[-1] == list(records)[-1]  # a record


@pytest.mark.parametrize("output_mode", ["coco_rle", "uncompressed_rle"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"crop_n_layers": 1, "crop_n_points_downscale_factor": 2, "min_mask_region_area": 25},
        {"use_m2m": True},
    ],
)
def test_run_lengths_go_through_json(output_mode, changes):
    records = generator(output_mode=output_mode, **changes).generate(small_picture())
    assert records
    for some in (records, records.filter(min_mask_region_area=30)):
        loaded = json.loads(json.dumps(some))
        assert loaded == some
        assert_identical(loaded, some)


@pytest.mark.parametrize("output_mode", mask_records.OUTPUT_MODES)
def test_records_become_a_coco_file_in_one_call(tmp_path, output_mode):
    records = generator(output_mode=output_mode).generate(small_picture())
    records.save_coco(tmp_path / "masks.json", "photo.jpg")
    (image,), _ = keras_sam.annotations.read_coco(tmp_path / "masks.json")
    assert (image.file_name, image.size) == ("photo.jpg", records.original_size)
    assert [r["area"] for r in image.records] == [r["area"] for r in records]
    for read, record in zip(image.records, records, strict=True):
        np.testing.assert_array_equal(mask_of(read), mask_of(record))
    records.save_coco(tmp_path / "outlines.json", "photo.jpg", polygons=True)
    (image,), _ = keras_sam.annotations.read_coco(tmp_path / "outlines.json")
    assert isinstance(image.records[0]["segmentation"], list)


def test_where_no_mask_is_left_it_is_said_once_which_thresholds_would_keep_ten(recwarn):
    picture = small_picture()
    demanding = generator(pred_iou_thresh=0.99, stability_score_thresh=0.99)
    candidates = generator().clicks_per_image * 3
    for _ in range(2):
        assert len(demanding.generate(picture, verbose=0)) == 0
    (said,) = [str(w.message) for w in recwarn if "No mask is left" in str(w.message)]
    fell = re.search(rf"of {candidates} candidates: (\d+) have .*`pred_iou_thresh=0.99`", said)
    assert 0 < int(fell[1]) <= candidates
    named = dict(re.findall(r"(pred_iou_thresh|stability_score_thresh)=([\d.]+)[,`] ?", said)[-2:])
    looser = generator(box_nms_thresh=1.0, **{name: float(x) for name, x in named.items()})
    assert 8 <= len(looser.generate(picture, verbose=0)) < 20


def test_where_masks_are_left_nothing_is_said(recwarn):
    assert len(generator().generate(small_picture(), verbose=0))
    assert not [w for w in recwarn if "No mask is left" in str(w.message)]


def test_the_temporary_file_goes_with_the_records(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    records = generator().generate(small_picture(), keep_candidates=True)
    file = records.candidates._file
    assert records.filter(pred_iou_thresh=middle(records, "predicted_iou"))
    del records
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="closed file"):
        file.close() or file.read()


def test_masks_that_wait_on_disk_give_the_same_records(monkeypatch):
    settings = {"pred_iou_thresh": 0, "stability_score_thresh": 0, "crop_n_layers": 1}
    expected = generator(**settings).generate(small_picture())
    monkeypatch.setattr(candidates, "_WAITING_IN_MEMORY", 1000)
    assert_identical(generator(**settings).generate(small_picture()), expected)
    assert len(expected) > 20


def test_a_disk_too_full_for_waiting_masks_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(candidates, "_WAITING_IN_MEMORY", 1000)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with pytest.raises(keras_sam.UnfinishedImagesError, match="Image 0 of 2.*missing"):
        generator().generate([small_picture(5), small_picture(6)], verbose=0)


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
    half = float(np.median(scores))
    generator(pred_iou_thresh=half).generate(small_picture())
    assert len(enlarged) == (scores > half).sum() == scores.size / 2


def test_all_batches_share_their_threads(monkeypatch):
    enlarge, threads = mask_records._enlarge, set()

    def note(logits, plan, thresholds):
        threads.add(threading.current_thread().name)  # which Python gives to one thread only
        return enlarge(logits, plan, thresholds)

    monkeypatch.setattr(mask_records, "_enlarge", note)
    generator(pred_iou_thresh=0, points_per_batch=2, crop_n_layers=1).generate(small_picture())
    assert 1 <= len(threads) <= mask_records._MAX_THREADS


def test_masks_that_wait_take_no_memory(monkeypatch):
    monkeypatch.setattr(candidates, "_WAITING_IN_MEMORY", 1000)
    size = (300, 400)
    crop = Crop((0, 0, 400, 300), ResizePlan(size, 256))
    thresholds = Thresholds(
        pred_iou_thresh=0, stability_score_thresh=0, output_mode="coco_rle"
    )  # all pass, and of masks as large as the image one is a record
    rng = np.random.default_rng(0)

    def noise(batches):
        for _ in range(batches):
            logits = rng.normal(0, 3, (16, 3, 64, 64)).astype("float32")
            yield Candidates(rng.random((16, 2)), rng.random((16, 3)).astype("float32"), logits)

    select_records([(crop, noise(1))], size, thresholds)  # fills the caches
    peaks = []
    for batches in (3, 9):
        tracemalloc.start()
        records = select_records([(crop, noise(batches))], size, thresholds)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(records) < 10
    # Their boxes, scores and places are in memory. Run lengths would take ten times as much.
    assert peaks[1] - peaks[0] < 2000 * 6 * 16 * 3


@pytest.mark.every_backend
def test_memory_does_not_grow_with_the_number_of_points():
    image = photograph((300, 400))
    enlarged = {"pred_iou_thresh": 0, "stability_score_thresh": 1.01}  # all, and none is a record
    # One prompt a call: tracemalloc looks up a line at every step of torch's recorded program, a
    # matter of minutes among the thousands of lines of eight prompts.
    enlarged["prompt_chunk"] = 1
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
    part, (x, y), stability = mask_records._enlarge(logits, plan, thresholds)
    inside = (slice(y, y + part.shape[0]), slice(x, x + part.shape[1]))
    sure = abs(whole - 0.25) > 1e-5
    np.testing.assert_array_equal(part[sure[inside]], whole[inside][sure[inside]] > 0.25)
    np.testing.assert_allclose(stability, stability_score(whole, 0.25, 0.5), rtol=1e-3)
    outside = np.ones(whole.shape, bool)
    outside[inside] = False
    assert whole[outside].max(initial=-9) <= -0.25 + 1e-6
    assert part.size < whole.size or seed


@pytest.mark.every_backend
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
    import supervision

    records = ours("grid")
    detections = supervision.Detections.from_sam(records)
    by_area = sorted(records, key=lambda r: r["area"], reverse=True)
    np.testing.assert_array_equal(detections.mask, [r["segmentation"] for r in by_area])
    np.testing.assert_array_equal(detections.xyxy[:, :2], [r["bbox"][:2] for r in by_area])


def test_pycocotools_reads_the_records():
    from pycocotools import mask as tools

    for record in ours("coco"):
        np.testing.assert_array_equal(
            tools.decode(record["segmentation"]).astype(bool), mask_of(record)
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
