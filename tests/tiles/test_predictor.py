"""Prompts in a large picture: the tile that holds them, coarser levels, embeddings on disk."""

import numpy as np
import pytest

import keras_sam
from keras_sam.masks import decode_rle, encode_rle
from keras_sam.tiles import TiledPredictor, open_picture
from keras_sam.tiles.predictor import _coarse, _run_lengths
from tests.scenes import scene
from tests.tiny import tiny_segmenter

pytestmark = pytest.mark.once

SIZE = (300, 420)


@pytest.fixture(scope="module")
def segmenter():
    return tiny_segmenter()


@pytest.fixture
def encoded(segmenter, monkeypatch):
    """The frames that are encoded."""
    encode, calls = segmenter.encode_frames, []
    monkeypatch.setattr(
        segmenter, "encode_frames", lambda frames: calls.append(1) or encode(frames)
    )
    return calls


def picture(seed=0):
    return np.random.default_rng(seed).integers(0, 255, (*SIZE, 3), "uint8")


def test_a_tile_answers_as_a_predictor_does_for_its_window(segmenter):
    predictor = TiledPredictor(segmenter, tile_shape=100, halo=20)
    predictor.set_image(picture())
    points, labels = [[205, 130], [190, 150]], [1, 0]
    found = predictor.predict(points, labels, boxes=[180, 110, 230, 160], level=0)
    x1, y1, x2, y2 = found.window
    assert (x1, y1, x2, y2) == (100, 100, 240, 240)
    plain = keras_sam.SAMPredictor(segmenter)
    plain.set_image(picture()[y1:y2, x1:x2])
    box = [180 - x1, 110 - y1, 230 - x1, 160 - y1]
    masks, scores, logits = plain.predict(np.subtract(points, [x1, y1]), labels, box)
    np.testing.assert_array_equal(found.scores, scores)
    np.testing.assert_array_equal(found.logits, logits)
    whole = np.zeros((3, *SIZE), bool)
    whole[:, y1:y2, x1:x2] = masks
    for k in range(3):
        np.testing.assert_array_equal(decode_rle(found.run_lengths()[k]), whole[k])
        a, b, c, d = found.boxes[k]
        np.testing.assert_array_equal(found.crop(k), whole[k, b:d, a:c])
        assert found.crop(k).sum() == whole[k].sum()


def test_an_object_larger_than_a_tile_goes_to_a_coarser_level(segmenter):
    predictor = TiledPredictor(segmenter, tile_shape=64, halo=32)
    predictor.set_image(picture())
    box = np.array([90, 60, 330, 240])
    found = predictor.predict(boxes=box, multimask_output=False)
    assert (found.level, found.window) == (2, (0, 0, 420, 300))
    plain = keras_sam.SAMPredictor(segmenter)
    plain.set_image(_coarse(open_picture(picture()), found.window, 2))
    (mask,), scores, _ = plain.predict(boxes=box / 4, multimask_output=False)
    np.testing.assert_array_equal(found.scores, scores)
    full = np.repeat(np.repeat(mask, 4, axis=0), 4, axis=1)
    np.testing.assert_array_equal(decode_rle(found.run_lengths()[0]), full[:300, :420])
    # A click fits any window, but a mask of random weights is as large as what the model sees.
    clicked = predictor.predict(points=[[210, 150]], multimask_output=False)
    assert clicked.level == 2


def test_tiles_are_encoded_when_needed_and_kept_on_disk_within_a_limit(
    segmenter, encoded, tmp_path
):
    def click(predictor, *places):
        return [predictor.predict(points=[place], level=0).window for place in places]

    places = [(50, 50), (210, 130), (55, 52)]
    predictor = TiledPredictor(segmenter, 100, 20, cache=tmp_path)
    predictor.set_image(picture())
    assert encoded == []
    windows = click(predictor, *places)
    assert len(encoded) == 2 and windows[0] == windows[2] != windows[1]
    other = TiledPredictor(segmenter, 100, 20, cache=tmp_path)
    other.set_image(picture())
    click(other, *places)
    assert len(encoded) == 2
    other.set_image(picture(1))  # another picture is another content
    click(other, places[0])
    assert len(encoded) == 3
    size = max(file.stat().st_size for file in tmp_path.iterdir())
    small = TiledPredictor(segmenter, 100, 20, cache=tmp_path, cache_gb=2.5 * size / 1e9)
    small.set_image(picture(2))
    click(small, *places, (300, 250), (10, 250))
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 2.5 * size


def test_a_prediction_is_refined_in_its_window(segmenter):
    predictor = TiledPredictor(segmenter, tile_shape=100, halo=20)
    predictor.set_image(picture())
    first = predictor.predict(points=[[210, 130]], level=1)
    again = predictor.predict(points=[[210, 130], [150, 150]], labels=[1, 0], refine=first)
    assert (again.level, again.window) == (1, first.window)
    plain = predictor.predict(points=[[210, 130], [150, 150]], labels=[1, 0], level=1)
    assert not np.array_equal(again.logits, plain.logits)


def test_a_predictor_that_others_use_too_answers_for_the_own_picture(segmenter):
    shared = keras_sam.SAMPredictor(segmenter)
    first, second = (TiledPredictor(shared, tile_shape=100, halo=20) for _ in range(2))
    first.set_image(picture(0))
    second.set_image(picture(1))
    click = {"points": [[210, 130]], "level": 0}
    expected = first.predict(**click).logits
    for disturb in (
        lambda: second.predict(**click),
        lambda: shared.set_image(picture(2)),
        shared.reset,
    ):
        disturb()
        np.testing.assert_array_equal(first.predict(**click).logits, expected)
    assert not np.array_equal(second.predict(**click).logits, expected)


def test_a_prediction_of_other_tiles_or_another_picture_is_not_refined(segmenter):
    predictor, other = (TiledPredictor(segmenter, tile, 20) for tile in (100, 60))
    for each in (predictor, other):
        each.set_image(picture())
    small = TiledPredictor(segmenter, 100, 20)
    small.set_image(picture()[:290])
    for found in (
        other.predict(points=[[210, 130]], level=0),
        small.predict(points=[[50, 30]], level=0),
    ):
        with pytest.raises(ValueError, match=r"`refine` must be .* picture has \(300, 420\)"):
            predictor.predict(points=[[50, 30]], refine=found)


@pytest.mark.parametrize("scale", [1, 2, 8])
def test_run_lengths_of_a_coarse_mask_are_those_of_the_enlarged_one(scale):
    _, masks = scene((40, 50), (3, 3), 5)
    size = (40 * scale + 3, 50 * scale + 1)
    for mask in [*masks, np.ones((40, 50), bool)]:
        full = np.repeat(np.repeat(mask, scale, axis=0), scale, axis=1)
        full = full[:, : 50 * scale - scale // 2][: 40 * scale - scale // 2]  # at the edges
        box = (1, 3, 1 + full.shape[1], 3 + full.shape[0])
        assert _run_lengths(mask, box, scale, size) == encode_rle(
            full, crop_box=box, original_size=size
        )


def test_a_coarse_level_has_the_means_of_the_pixels(monkeypatch):
    values = np.random.default_rng(0).integers(0, 2**16, (37, 50, 3), "uint16")
    monkeypatch.setattr("keras_sam.tiles.predictor._BLOCK", 16)
    coarse = _coarse(open_picture(values), (4, 1, 50, 37), 2)
    expected = values[1:37, 4:48].reshape(9, 4, 11, 4, 3).mean(axis=(1, 3))
    np.testing.assert_array_equal(coarse[:, :11], np.rint(expected))
    assert coarse.shape == (9, 12, 3)


def test_what_is_no_prompt_of_one_object_is_refused(segmenter):
    predictor = TiledPredictor(segmenter, tile_shape=100, halo=20)
    with pytest.raises(RuntimeError, match="No picture is set"):
        predictor.predict(points=[1, 2])
    predictor.set_image(picture())
    for prompts, words in (
        ({"boxes": [[1, 2, 3, 4], [5, 6, 7, 8]]}, "prompts of 2 objects"),
        ({"points": [[421, 20]]}, r"must lie in the picture, 0\.\.420 by 0\.\.300"),
        ({"points": [[1, 20]], "level": 5}, r"`level` must be 0 to \d"),
        ({}, "At least one prompt is needed"),
    ):
        with pytest.raises(ValueError, match=words):
            predictor.predict(**prompts)
