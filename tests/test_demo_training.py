"""The drawn scenes that `sam_tiny_demo` learnt from, and the tool that trained it."""

import csv
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

import keras_sam
from tools import (
    demo_compositions,
    demo_photographs,
    demo_scenes,
    photograph_regions,
    train_demo_preset,
)

pytestmark = pytest.mark.once


@pytest.mark.parametrize("kind", demo_scenes.KINDS)
def test_scenes_depend_on_their_seed_alone_and_objects_are_where_they_say(kind):
    image, masks = demo_scenes.scene((1, 2), kind)
    again, same = demo_scenes.scene((1, 2), kind)
    other, _ = demo_scenes.scene((1, 3), kind)
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(masks, same)
    assert image.shape != other.shape or (image != other).any()
    assert image.dtype == masks.dtype == np.uint8 and max(image.shape) == demo_scenes.SIDE
    assert masks.shape[1:] == image.shape[:2] and set(np.unique(masks)) == {0, 1}
    areas = masks.sum(axis=(1, 2), dtype=int)
    assert areas.min() >= demo_scenes.SMALLEST
    # No two are the same, and a pixel belongs to one object and at most one of its parts.
    assert len({mask.tobytes() for mask in masks}) == len(masks)
    assert masks.sum(axis=0).max() <= 2


def test_compositions_depend_on_their_seed_alone_and_hold_objects_of_every_size():
    areas = []
    for seed in range(3):
        image, masks = demo_compositions.composition((1, seed))
        again, same = demo_compositions.composition((1, seed))
        np.testing.assert_array_equal(image, again)
        np.testing.assert_array_equal(masks, same)
        assert image.dtype == masks.dtype == np.uint8
        assert max(image.shape) == demo_compositions.SIDE and masks.shape[1:] == image.shape[:2]
        assert set(np.unique(masks)) == {0, 1}
        # A pixel belongs to one object, one of its parts and one part of that, at most.
        assert masks.sum(axis=0).max() <= 3
        pixels = masks.sum(axis=(1, 2), dtype=int)
        assert pixels.min() >= demo_compositions.SMALLEST
        areas += (pixels / image[..., 0].size).tolist()
    assert max(areas) <= demo_compositions.LARGEST
    assert max(areas) > 0.2 and min(areas) < 0.02


def test_scenes_of_photographs_hold_the_regions_that_stand_out(tmp_path):
    """A picture with a known ring, plate and ground, and a cut-out with a known outline."""
    y, x = np.mgrid[:150, :200]
    noise = np.random.default_rng(0).normal(0, 3, (150, 200, 1))
    image = np.full((150, 200, 3), (40, 120, 60)) + noise
    plate, dot = np.hypot(y - 70, x - 60) < 45, np.hypot(y - 70, x - 60) < 18
    box = (abs(y - 80) < 40) & (abs(x - 150) < 30)
    for place, colour in ((plate, (200, 60, 50)), (dot, (240, 230, 90)), (box, (60, 60, 190))):
        image[place] = colour + noise[place]
    image = np.uint8(np.clip(image, 0, 255))
    found = photograph_regions.regions(image).astype(bool)
    for wanted in (plate, dot, box, ~plate & ~box):
        assert max(photograph_regions._iou(wanted, mask) for mask in found) > 0.9
    source, prepared = tmp_path / "source", tmp_path / "prepared"
    source.mkdir()
    Image.fromarray(image).save(source / "photograph.png")
    cutout = np.dstack([image[20:120, 10:110], np.uint8(255 * plate[20:120, 10:110])])
    Image.fromarray(cutout).save(source / "cutout.png")
    demo_photographs.prepare(source, prepared)
    scenes = demo_photographs.Photographs(prepared)
    for seed in range(3):
        image, masks = scenes.scene((1, seed))
        again, same = scenes.scene((1, seed))
        np.testing.assert_array_equal(image, again)
        np.testing.assert_array_equal(masks, same)
        assert image.dtype == masks.dtype == np.uint8
        assert max(image.shape) == demo_photographs.SIDE and masks.shape[1:] == image.shape[:2]
        assert set(np.unique(masks)) == {0, 1}
        areas = masks.sum(axis=(1, 2), dtype=int)
        assert areas.min() >= demo_photographs.SMALLEST
        assert areas.max() <= demo_photographs.LARGEST * image[..., 0].size


def test_unseen_photographs_stay_unseen():
    from skimage import data

    names = (*demo_scenes._GREY_PHOTOGRAPHS, *demo_scenes._COLOUR_PHOTOGRAPHS)
    assert not {"coins", "chelsea", "astronaut", "coffee", "rocket"} & set(names)
    seen = [image[..., 0].tobytes() for image in demo_scenes.photographs()]
    assert data.coins().tobytes() not in seen


def test_a_frame_twice_as_large_sees_what_the_small_one_saw():
    small, large = train_demo_preset.build(64), train_demo_preset.build(128)
    values = {v.path: train_demo_preset.array(v) for v in small.weights}
    train_demo_preset.assign(large, values)
    image = np.random.default_rng(0).integers(0, 255, (1, 64, 64, 3)).astype("float32")
    twice = image.repeat(2, axis=1).repeat(2, axis=2)
    found = [
        train_demo_preset.array(model.image_encoder.get_layer("patch_embedding")(pixels))
        for model, pixels in ((small, image), (large, twice))
    ]
    np.testing.assert_allclose(*found, rtol=1e-3, atol=1e-2)


def test_training_goes_on_and_ends_in_a_preset(tmp_path, monkeypatch):
    if keras.config.backend() != "torch":
        pytest.skip("the tool runs on torch, whose programs need no minutes to compile")
    part = train_demo_preset.Part
    parts = (
        part(64, 1e-6, 1.0, (2.0, 0.6), ((1.0, 0, 2, 0.3),), batch=1, easy=2.0),
        part(128, 1e-6, 1.0, (8.0, 0.4), ((1.0, 1, 2, 0.4),), batch=1),
        part(256, 1e-6, 1.0, (8.0, 0.4), ((1.0, 1, 2, 0.4),), tokens=32, batch=1),
    )
    preset = tmp_path / "preset"
    call = ["train_demo_preset", str(tmp_path / "work"), "--preset", str(preset)]
    monkeypatch.setattr(sys, "argv", call)
    for name, value in (("SIDE", 128), ("STEPS", 1)):
        monkeypatch.setattr(train_demo_preset, name, value)
    monkeypatch.setattr(train_demo_preset.build, "__defaults__", (256, 32, None))
    for known in (parts[:1], parts):  # stopped after the first part, and started again
        monkeypatch.setattr(train_demo_preset, "PARTS", known)
        train_demo_preset.main()
    with open(tmp_path / "work" / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["part"], row["step"]) for row in rows] == [("0", "1"), ("1", "1"), ("2", "1")]
    segmenter = keras_sam.SAMImageSegmenter.from_preset(preset)
    assert segmenter.image_shape == (256, 256, 3)
    assert Path(preset / "model.weights.h5").stat().st_size < 2.2 * segmenter.count_params()

    # The last part alone, from a preset.
    again = [*call[:1], str(tmp_path / "last"), "--preset", str(tmp_path / "other")]
    monkeypatch.setattr(sys, "argv", [*again, "--start", str(preset)])
    train_demo_preset.main()
    with open(tmp_path / "last" / "log.csv", newline="") as file:
        assert [row["part"] for row in csv.DictReader(file)] == ["2"]
    assert (tmp_path / "other" / "config.json").is_file()
