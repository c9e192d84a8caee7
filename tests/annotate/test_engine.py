"""The engine: the answers are the predictor's, and each request gets what it gets alone."""

import os
import threading

import numpy as np
import pytest

import keras_sam
from keras_sam import masks
from keras_sam.annotate.engine import Engine, SupersededError
from keras_sam.annotate.photo_folder import PhotoFolder
from keras_sam.embedding_cache import EmbeddingCache
from tests.annotate.serving import draw_photographs

pytestmark = pytest.mark.once

EVERYTHING = {"points_per_side": 2, "pred_iou_thresh": 0, "stability_score_thresh": 0}
CLICK = {"points": [[45, 30]], "labels": [1]}
MORE = {"points": [[45, 30], [10, 10]], "labels": [1, 0]}
SECONDS = 60


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engine") / "photos"
    return PhotoFolder(folder, draw_photographs(folder))


@pytest.fixture(scope="module")
def engine(segmenter, photos):
    engine = Engine(segmenter, photos, generator=EVERYTHING)
    yield engine
    engine.close()


def masks_of(answer):
    return masks.decode_rle([candidate["segmentation"] for candidate in answer.candidates])


def test_answers_and_their_refinement_are_the_predictors(engine, segmenter, photos):
    predictor = keras_sam.SAMPredictor(segmenter)
    predictor.set_image(photos.folder / "a.png")
    expected, scores, logits = predictor.predict(**CLICK)
    first = engine.predict("a.png", **CLICK).result(SECONDS)
    np.testing.assert_array_equal(masks_of(first), expected)
    assert first.best == scores.argmax() and first.size == (60, 90)
    expected, *_ = predictor.predict(**MORE, masks=logits[1], multimask_output=False)
    refined = engine.predict("a.png", **MORE, refine=(first.number, 1)).result(SECONDS)
    np.testing.assert_array_equal(masks_of(refined), expected)
    painted = np.zeros((60, 90), bool)
    painted[20:40, 30:70] = True
    expected, *_ = predictor.predict(**MORE, masks=painted, multimask_output=False)
    corrected = engine.predict("a.png", **MORE, mask=masks.encode_rle(painted)).result(SECONDS)
    np.testing.assert_array_equal(masks_of(corrected), expected)
    forgotten = engine.predict("a.png", **MORE, refine=("no such", 0)).result(SECONDS)
    expected, *_ = predictor.predict(**MORE, multimask_output=False)
    np.testing.assert_array_equal(masks_of(forgotten), expected)


def test_everything_is_the_generators(engine, segmenter, photos):
    records = keras_sam.SAMAutomaticMaskGenerator(segmenter, **EVERYTHING).generate(
        photos.folder / "a.png"
    )
    proposals = engine.everything("a.png").result(SECONDS)
    found = sorted(masks.compress_rle(p["segmentation"])["counts"] for p in proposals)
    expected = sorted(masks.encode_rle(r["segmentation"])["counts"] for r in records)
    assert found == expected and found


def test_everything_in_crops_is_the_generators(segmenter, photos):
    settings = {**EVERYTHING, "crop_n_layers": 1}
    engine = Engine(segmenter, photos, generator=settings)
    try:
        proposals = engine.everything("c.png").result(SECONDS)
    finally:
        engine.close()
    records = keras_sam.SAMAutomaticMaskGenerator(segmenter, **settings).generate(
        photos.folder / "c.png"
    )
    assert sorted(p["area"] for p in proposals) == sorted(r["area"] for r in records)


def test_the_photograph_that_was_asked_for_last_comes_first(engine):
    hold, done = threading.Event(), []
    waiting = [engine._photos.submit(hold.wait, urgency=2)]
    for number, urgency in enumerate([1, 0, 1, 0]):
        waiting.append(engine._photos.submit(lambda n=number: done.append(n), urgency))
    hold.set()
    for future in waiting:
        future.result(SECONDS)
    assert done == [2, 0, 3, 1]


def test_a_photograph_that_changed_is_encoded_again(segmenter, tmp_path):
    photos = PhotoFolder(tmp_path, draw_photographs(tmp_path))
    engine = Engine(segmenter, photos)
    try:
        assert engine.predict("a.png", **CLICK).result(SECONDS).size == (60, 90)
        os.replace(tmp_path / "b.jpg", tmp_path / "a.png")
        assert engine.predict("a.png", **CLICK).result(SECONDS).size == (80, 50)
        assert engine.embed("a.png").result(SECONDS).source == "memory"
    finally:
        engine.close()


def test_of_the_waiting_clicks_of_a_canvas_the_newest_is_answered(engine):
    engine.embed("a.png").result(SECONDS)
    engine.embed("b.jpg").result(SECONDS)
    hold = threading.Event()
    engine._clicks.submit(hold.wait)
    clicks = [[[10, 10]], [[20, 20]], [[30, 30]]]
    own = [engine.predict("a.png", points=p, labels=[1], canvas="one") for p in clicks]
    other = engine.predict("b.jpg", points=clicks[0], labels=[1], canvas="two")
    hold.set()
    for future in own[:2]:
        with pytest.raises(SupersededError):
            future.result(SECONDS)
    alone = engine.predict("a.png", points=clicks[2], labels=[1]).result(SECONDS)
    np.testing.assert_array_equal(masks_of(own[2].result(SECONDS)), masks_of(alone))
    assert other.result(SECONDS).size == (80, 50)


@pytest.mark.parametrize(
    ("photo", "prompt", "error", "said"),
    [
        ("nowhere.png", CLICK, KeyError, "no photograph"),  # not in the folder
        ("broken.jpg", CLICK, ValueError, "broken.jpg"),  # no picture
        ("a.png", {}, ValueError, "."),  # no prompt
        ("a.png", {"points": [[1, 1]] * 300, "labels": [1] * 300}, ValueError, "256"),  # too many
        ("a.png", {"points": [[1, 1]], "labels": [7]}, ValueError, "label"),  # unknown label
    ],
)
def test_what_cannot_be_answered_is_said(engine, photo, prompt, error, said):
    with pytest.raises(error, match=said):
        engine.predict(photo, **prompt).result(SECONDS)


def test_embeddings_stay_on_disk_within_the_limit(segmenter, photos, tmp_path):
    def run(limit, *names):
        engine = Engine(segmenter, photos, lambda p: EmbeddingCache(tmp_path, p, limit))
        try:
            return [engine.embed(name).result(SECONDS).source for name in names]
        finally:
            engine.close()

    assert run(10**9, "a.png", "b.jpg", "a.png") == ["model", "model", "memory"]
    assert run(10**9, "a.png", "b.jpg") == ["disk", "disk"]
    ours = list(tmp_path.iterdir())
    one = max(path.stat().st_size for path in ours)
    theirs, killed = tmp_path / "own.safetensors", tmp_path / f".{ours[0].name}.0123abcd.part"
    for path in (theirs, killed):
        path.write_bytes(b"0")
        os.utime(path, (0, 0))
    assert run(one, "c.png") == ["model"]
    assert theirs.exists() and not killed.exists()
    theirs.unlink()
    (left,) = tmp_path.iterdir()  # those that were used before are gone
    left.write_bytes(left.read_bytes()[:-7])
    assert run(10**9, "c.png", "a.png") == ["model", "model"]  # the damaged one is replaced
    assert run(10**9, "c.png") == ["disk"]
