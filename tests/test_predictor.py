"""`SAMPredictor`: one image encoded once, prompt after prompt, and its embedding in a file."""

import copy
import json
import os
import threading

import keras
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

import keras_sam
from tests.closeness import assert_different, assert_same
from tests.tiny import photograph, tiny_segmenter

SIZE, OTHER_SIZE = (53, 80), (90, 41)
PHOTO, OTHER = photograph(SIZE), photograph(OTHER_SIZE, seed=1)
FRAME, MASK = (112, 144), (28, 36)
CLICK = {"points": [[30, 20]], "labels": [1]}
BOX, SMALL_BOX = [10, 5, 60, 40], [0, 0, 9, 9]


@pytest.fixture
def predictor(segmenter):
    predictor = keras_sam.SAMPredictor(segmenter)
    predictor.set_image(PHOTO)
    return predictor


@pytest.fixture(scope="module")
def refined(segmenter):
    """Logits of an earlier answer, `(3, Lh, Lw)`."""
    predictor = keras_sam.SAMPredictor(segmenter)
    predictor.set_image(PHOTO)
    return predictor.predict(**CLICK)[2]


def assert_same_answer(actual, expected):
    masks, scores, logits = actual
    assert_same(scores, expected[1])
    assert_same(logits, expected[2])
    assert masks.shape == expected[0].shape
    assert masks.dtype == expected[0].dtype
    assert np.mean(masks != expected[0]) < 1e-3  # a logit next to the threshold may turn


# --- images ---


def saved(image, folder, **options):
    path = folder / "photo.png"
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(path, **options)
    return path


def sideways(array):
    """A pillow image as a phone stores it, with the orientation that turns it upright."""
    image = Image.fromarray(np.ascontiguousarray(np.rot90(array, 1)))
    exif = image.getexif()
    exif[0x0112] = 6
    image.info["exif"] = exif.tobytes()
    return image


@pytest.mark.parametrize(
    "make, settings",
    [
        (lambda folder: PHOTO, {}),
        (lambda folder: Image.fromarray(PHOTO), {}),
        (lambda folder: saved(PHOTO, folder), {}),
        (lambda folder: str(saved(PHOTO, folder)), {}),
        (lambda folder: PHOTO.tolist(), {}),
        (lambda folder: keras.ops.convert_to_tensor(PHOTO), {}),
        (lambda folder: np.dstack([PHOTO, PHOTO[..., 0]]), {}),  # alpha is dropped
        (lambda folder: sideways(PHOTO), {}),  # clicks land where they were made
        (lambda folder: saved(s := sideways(PHOTO), folder, exif=s.info["exif"]), {}),
        (lambda folder: PHOTO[..., ::-1], {"channel_order": "bgr"}),  # as OpenCV reads
        (lambda folder: PHOTO, {"channel_order": "rgb"}),
        (lambda folder: saved(PHOTO, folder), {"channel_order": "bgr"}),  # files say theirs
    ],
)
def test_images_of_every_form(segmenter, predictor, tmp_path, make, settings):
    expected = predictor.image_embeddings
    assert_same(expected, segmenter.encode([PHOTO])["image_embeddings"])
    predictor.reset()
    predictor.set_image(make(tmp_path), **settings)
    assert predictor.is_image_set
    assert predictor.original_sizes == [SIZE]
    assert_same(predictor.image_embeddings, expected)


def test_the_order_of_the_channels_matters(predictor):
    expected = predictor.image_embeddings
    predictor.set_image(PHOTO, channel_order="bgr")
    assert_different(predictor.image_embeddings, expected)


def test_the_preprocessors_channel_order_is_the_default(segmenter, predictor):
    preprocessor = type(segmenter.preprocessor).from_config(segmenter.preprocessor.get_config())
    preprocessor.image_converter.channel_order = "bgr"
    bgr = keras_sam.SAMPredictor(segmenter, preprocessor)
    bgr.set_image(PHOTO[..., ::-1])
    assert_same(bgr.image_embeddings, predictor.image_embeddings)
    bgr.set_image(PHOTO, channel_order="rgb")
    assert_same(bgr.image_embeddings, predictor.image_embeddings)


def test_a_segmenter_without_a_preprocessor_gets_one(segmenter, predictor):
    bare = keras_sam.SAMPredictor(keras_sam.SAMImageSegmenter(segmenter.backbone))
    bare.set_image(PHOTO)
    assert_same(bare.image_embeddings, predictor.image_embeddings)
    assert_same_answer(bare.predict(**CLICK), predictor.predict(**CLICK))


@pytest.mark.parametrize("size", [(1, 1), (1, 50), FRAME, (100, 10_000)])
def test_images_of_every_size(predictor, size):
    predictor.set_image(photograph(size))
    masks, scores, logits = predictor.predict(boxes=[0, 0, size[1], size[0]])
    assert masks.shape == (3, *size)
    assert np.isfinite(scores).all() and np.isfinite(logits).all()


# --- what predict returns ---


@pytest.mark.parametrize(
    "prompts, lead",
    [
        (CLICK, ()),  # points (N, 2)
        ({"points": [[30, 20], [5, 5]], "labels": [1, 0]}, ()),
        ({"boxes": BOX}, ()),  # a box (4,)
        ({**CLICK, "boxes": BOX}, ()),
        ({"points": [[[30, 20]]], "labels": [[1]]}, (1,)),  # points (P, N, 2), P = 1
        ({"points": [[[30, 20]], [[5, 5]]], "labels": [[1], [1]]}, (2,)),
        ({"points": [[[30, 20]], [[5, 5], [9, 9]]], "labels": [[1], [1, 0]]}, (2,)),  # ragged
        ({"boxes": [BOX]}, (1,)),  # boxes (P, 4)
        ({"boxes": [BOX, SMALL_BOX]}, (2,)),
        ({"boxes": [[BOX, SMALL_BOX]]}, (1,)),  # boxes (P, M, 4): two boxes of one object
        ({"boxes": [[[10, 5], [60, 40]]]}, (1,)),  # boxes (P, 2, 2)
        ({**CLICK, "boxes": [BOX]}, (1,)),  # one of them has the axis
        ({"points": [[[30, 20]], None], "labels": [[1], None], "boxes": [None, BOX]}, (2,)),
    ],
)
@pytest.mark.parametrize("multimask_output, count", [(True, 3), (False, 1), ("auto", 1)])
def test_shapes_and_types(predictor, prompts, lead, multimask_output, count):
    masks, scores, logits = predictor.predict(**prompts, multimask_output=multimask_output)
    assert masks.shape == (*lead, count, *SIZE) and masks.dtype == bool
    assert scores.shape == (*lead, count) and scores.dtype == np.float32
    assert logits.shape == (*lead, count, *MASK) and logits.dtype == np.float32


def test_three_candidates_are_the_default(predictor):
    assert_same_answer(
        predictor.predict(**CLICK), predictor.predict(**CLICK, multimask_output=True)
    )


@pytest.mark.parametrize("multimask_output", [True, False, "auto"])
@pytest.mark.parametrize("prompts", [CLICK, {"boxes": BOX}])
def test_it_is_what_the_segmenter_predicts(segmenter, predictor, prompts, multimask_output):
    batch = {"points": [CLICK["points"]], "labels": [CLICK["labels"]]}
    if "boxes" in prompts:
        batch = {"boxes": np.reshape(BOX, (1, 1, 2, 2))}
    outputs = segmenter.predict({"images": [PHOTO], **batch}, verbose=0)
    outputs = keras_sam.select_masks(outputs, multimask_output)
    expected = (
        keras_sam.restore_masks(outputs["masks"], [SIZE], FRAME)[0],
        outputs["iou_pred"][0],
        outputs["masks"][0],
    )
    answer = predictor.predict(**prompts, multimask_output=multimask_output)
    assert_same_answer(answer, expected)
    assert 0 < expected[0].mean() < 1, "masks that are all or nothing tell nothing"


def test_masks_are_the_enlarged_logits_above_the_threshold(segmenter, predictor):
    masks, _, logits = predictor.predict(**CLICK)
    plan = keras_sam.ResizePlan(SIZE, FRAME)
    full, scores, again = predictor.predict(**CLICK, return_logits=True)
    assert full.dtype == np.float32
    assert_same(full, plan.masks_to_original(logits))
    assert_same(again, logits)
    np.testing.assert_array_equal(full > 0, masks)
    level = float(np.median(full))
    higher, _, _ = predictor.predict(**CLICK, mask_threshold=level)
    np.testing.assert_array_equal(higher, full > level)
    assert (higher != masks).any()
    # Without the argument it is the segmenter's.
    own = keras_sam.SAMImageSegmenter(segmenter.backbone, mask_threshold=level)
    strict = keras_sam.SAMPredictor(own)
    strict.set_image(PHOTO)
    np.testing.assert_array_equal(strict.predict(**CLICK)[0], higher)
    np.testing.assert_array_equal(strict.predict(**CLICK, mask_threshold=0)[0], masks)


# --- batches of prompts ---


def test_several_boxes_are_one_box_at_a_time(predictor):
    boxes = [BOX, SMALL_BOX, [40, 20, 79, 52]]
    together = predictor.predict(boxes=np.array(boxes))
    in_chunks = predictor.predict(boxes=boxes, prompt_chunk=1)
    assert_same_answer(in_chunks, together)
    for i, box in enumerate(boxes):
        assert_same_answer(tuple(part[i] for part in together), predictor.predict(boxes=box))


def test_ragged_prompts_are_one_prompt_at_a_time(predictor, refined):
    together = predictor.predict(
        points=[[[30, 20]], [[5, 5], [70, 9], [9, 50]], None],
        labels=[[1], [1, 0, 1], None],
        boxes=[None, BOX, SMALL_BOX],
        masks=[refined[0], None, None],
    )
    alone = [
        predictor.predict(points=[[30, 20]], labels=[1], masks=refined[0]),
        predictor.predict(points=[[5, 5], [70, 9], [9, 50]], labels=[1, 0, 1], boxes=BOX),
        predictor.predict(boxes=SMALL_BOX),
    ]
    for i, expected in enumerate(alone):
        assert_same_answer(tuple(part[i] for part in together), expected)


@pytest.mark.parametrize(
    "prompts, same",
    [
        ({"boxes": np.array(BOX, "int64")}, {"boxes": BOX}),
        ({"boxes": tuple(BOX)}, {"boxes": BOX}),
        ({"boxes": keras.ops.convert_to_tensor(np.float32(BOX))}, {"boxes": BOX}),
        ({"boxes": [[[10, 5], [60, 40]]]}, {"boxes": [BOX]}),  # corners
        ({"points": [[10, 5], [60, 40]], "labels": [2, 3]}, {"boxes": BOX}),  # corners as points
        ({"points": [[30, 20], [0, 0]], "labels": [1, -1]}, CLICK),  # a not-a-point of the user's
        ({"points": np.array([[30, 20]]), "labels": np.array([1.0])}, CLICK),
        ({**CLICK, "boxes": None, "masks": None}, CLICK),
        ({**CLICK, "boxes": [], "masks": []}, CLICK),  # empty is none
        ({**CLICK, "boxes": np.zeros((0, 4))}, CLICK),  # no detections
    ],
)
def test_prompts_of_every_form(predictor, prompts, same):
    assert_same_answer(predictor.predict(**prompts), predictor.predict(**same))


# --- refinement ---


def test_refining_with_the_best_logits(predictor):
    masks, scores, logits = predictor.predict(**CLICK)
    logits = 100 * logits  # a random model's are next to 0, where all masks look alike
    best = logits[np.argmax(scores)]
    answer = predictor.predict(**CLICK, masks=best, multimask_output=False)
    assert answer[0].shape == (1, *SIZE)  # one object still, without an axis for it
    plain = predictor.predict(**CLICK, multimask_output=False)
    assert_different(answer[2], plain[2])
    worst = predictor.predict(**CLICK, masks=logits[np.argmin(scores)], multimask_output=False)
    assert_different(answer[2], worst[2])


@pytest.mark.parametrize(
    "make",
    [
        lambda mask: mask[None],  # (1, L, L), as Meta's predictor takes it
        lambda mask: mask[..., None],  # (L, L, 1), as `mask_to_logits` returns it
        lambda mask: mask[None, ..., None],
        lambda mask: mask.tolist(),
        lambda mask: mask.astype("float64"),
        lambda mask: keras.ops.convert_to_tensor(mask),
    ],
)
def test_mask_prompts_of_every_form(predictor, refined, make):
    expected = predictor.predict(**CLICK, masks=refined[1])
    assert_same_answer(predictor.predict(**CLICK, masks=make(refined[1])), expected)
    assert expected[0].shape == (3, *SIZE)


def test_mask_prompts_for_several_objects(predictor, refined):
    prompts = {"points": [[[30, 20]], [[5, 5]]], "labels": [[1], [1]]}
    together = predictor.predict(**prompts, masks=refined[:2])
    for i, point in enumerate(([30, 20], [5, 5])):
        alone = predictor.predict(points=[point], labels=[1], masks=refined[i])
        assert_same_answer(tuple(part[i] for part in together), alone)
    assert_same_answer(predictor.predict(**prompts, masks=refined[:2, ..., None]), together)
    assert_same_answer(predictor.predict(**prompts, masks=list(refined[:2])), together)


def test_masks_of_the_original_size(predictor):
    logits = np.random.default_rng(0).normal(0, 4, SIZE).astype("float32")
    small = predictor.preprocess_masks(logits)
    assert small.shape == MASK and small.dtype == np.float32
    np.testing.assert_array_equal(
        small, keras_sam.ResizePlan(SIZE, FRAME).masks_to_model(logits, MASK)
    )
    expected = predictor.predict(**CLICK, masks=small)
    for masks in (logits, logits[None], logits[..., None]):
        assert_same_answer(predictor.predict(**CLICK, masks=masks), expected)
    several = predictor.preprocess_masks(np.stack([logits, -logits]))
    np.testing.assert_array_equal(several[0], small)


def test_any_binary_mask_as_a_prompt(predictor):
    mask = np.zeros(SIZE, bool)
    mask[10:30, 20:60] = True
    logits = keras_sam.mask_to_logits(mask, FRAME)
    assert logits.shape == (*MASK, 1)
    alone = predictor.predict(masks=logits, multimask_output=False)
    assert alone[0].shape == (1, *SIZE)
    two = keras_sam.mask_to_logits(np.stack([mask, ~mask]), FRAME)
    together = predictor.predict(masks=two, multimask_output=False)
    assert together[0].shape == (2, 1, *SIZE)
    assert_same_answer(tuple(part[0] for part in together), alone)


# --- several images ---


def test_several_images(segmenter, predictor, capsys):
    alone = [predictor.predict(**CLICK)]
    predictor.set_image(OTHER)
    alone.append(predictor.predict(**CLICK))
    predictor.set_images([PHOTO, Image.fromarray(OTHER)], verbose=0)
    assert capsys.readouterr().out == ""
    assert predictor.original_sizes == [SIZE, OTHER_SIZE]
    assert_same(predictor.image_embeddings, segmenter.encode([PHOTO, OTHER])["image_embeddings"])
    for index in (0, 1, 0):  # interleaved
        assert_same_answer(predictor.predict(**CLICK, image_index=index), alone[index])
    mask = np.ones(OTHER_SIZE, "float32")
    assert predictor.preprocess_masks(mask, image_index=1).shape == MASK
    with pytest.raises(ValueError, match=r"\(\.\.\., 53, 80\)"):
        predictor.preprocess_masks(mask, image_index=0)


def test_a_batch_in_one_array(predictor):
    predictor.set_images(np.stack([PHOTO, PHOTO[::-1]]), verbose=0)
    assert predictor.original_sizes == [SIZE, SIZE]


@pytest.mark.parametrize(
    "images, verbose, shown", [(2, "auto", True), (2, 1, True), (2, 0, False), (1, "auto", False)]
)
def test_progress_over_several_images(predictor, capsys, images, verbose, shown):
    predictor.set_images([PHOTO] * images, verbose=verbose)
    assert (f"{images}/{images}" in capsys.readouterr().out) == shown


@pytest.mark.parametrize("index", [-1, 2, 7])
def test_images_that_are_not_there(predictor, index):
    predictor.set_images([PHOTO, OTHER], verbose=0)
    for call in (
        lambda: predictor.predict(**CLICK, image_index=index),
        lambda: predictor.preprocess_masks(np.zeros(SIZE, "float32"), image_index=index),
    ):
        with pytest.raises(IndexError, match=f"must be 0 to 1.*image_index={index}"):
            call()


# --- state ---


def assert_empty(predictor, folder):
    assert not predictor.is_image_set
    for use in (
        lambda: predictor.predict(**CLICK),
        lambda: predictor.preprocess_masks(np.zeros(SIZE, "float32")),
        lambda: predictor.save_embedding(folder / "never.safetensors"),
        lambda: predictor.image_embeddings,
        lambda: predictor.original_sizes,
    ):
        with pytest.raises(RuntimeError, match="No image is set: call `set_image`"):
            use()
    assert list(folder.iterdir()) == []


def test_before_the_first_image_and_after_a_reset(segmenter, predictor, tmp_path):
    assert_empty(keras_sam.SAMPredictor(segmenter), tmp_path)
    predictor.reset()
    assert_empty(predictor, tmp_path)
    predictor.reset()  # again is no error
    predictor.set_image(PHOTO)
    assert predictor.predict(**CLICK)[0].shape == (3, *SIZE)


@pytest.mark.parametrize(
    "image, error",
    [
        (np.full((9, 9, 3), np.nan, "float32"), ValueError),
        (PHOTO[..., :2], ValueError),  # channels
        (np.zeros((0, 9, 3), "uint8"), ValueError),  # empty
        (np.zeros((1, 4000, 3), "uint8"), ValueError),  # too thin
        (PHOTO[None, None], ValueError),
        (np.stack([PHOTO, PHOTO]), ValueError),  # a batch
        ("nothing.png", FileNotFoundError),
        (None, ValueError),
        (__file__, ValueError),  # no image
    ],
)
def test_no_old_image_stays_behind_a_failing_one(predictor, tmp_path, image, error):
    with pytest.raises(error, match=r"Received|no image file"):
        predictor.set_image(image)
    assert_empty(predictor, tmp_path)


@pytest.mark.parametrize("images", [PHOTO, "photo.png", [], np.zeros((0, 9, 9, 3)), None, 5])
def test_what_is_no_batch_of_images(predictor, tmp_path, images):
    with pytest.raises(ValueError, match="`images` must.*Received"):
        predictor.set_images(images)
    assert_empty(predictor, tmp_path)


def test_an_unknown_channel_order(predictor, tmp_path):
    with pytest.raises(ValueError, match="`channel_order` must be one of"):
        predictor.set_image(PHOTO, channel_order="RGB")
    assert_empty(predictor, tmp_path)


def test_an_interrupt_between_two_images_leaves_none(segmenter, predictor, tmp_path, monkeypatch):
    encoded = []

    def encode(frames):
        if encoded:
            raise KeyboardInterrupt
        encoded.append(1)
        return {"image_embeddings": np.zeros((1, 7, 9, 16), "float32")}

    monkeypatch.setattr(segmenter, "encode_frames", encode)
    with pytest.raises(KeyboardInterrupt):
        predictor.set_images([PHOTO, OTHER], verbose=0)
    assert_empty(predictor, tmp_path)


def test_the_embeddings_cannot_be_changed_by_accident(predictor):
    with pytest.raises(ValueError, match="read-only"):
        predictor.image_embeddings[0] = 0


def test_answers_belong_to_the_caller(predictor):
    expected = predictor.predict(**CLICK)
    kept = tuple(part.copy() for part in expected)
    for part in expected:
        part[...] = 0
    assert_same_answer(predictor.predict(**CLICK), kept)


def test_the_callers_prompts_stay_as_they_are(predictor):
    prompts = {
        "points": np.float64([[[30, 20]], [[5, 5]]]),
        "labels": [[1], [-10]],
        "boxes": [None, [BOX]],
        "masks": [np.ones(SIZE, "float32"), None],
    }
    before = copy.deepcopy(prompts)
    image = PHOTO.astype("float64")
    predictor.set_image(image)
    predictor.predict(**prompts)
    np.testing.assert_array_equal(image, PHOTO)
    np.testing.assert_array_equal(prompts["points"], before["points"])
    np.testing.assert_array_equal(prompts["masks"][0], before["masks"][0])
    assert prompts["masks"][1] is None
    assert (prompts["labels"], prompts["boxes"]) == (before["labels"], before["boxes"])


# --- what people type first ---


@pytest.mark.parametrize("image", [PHOTO[None], keras.ops.convert_to_tensor(PHOTO[None])])
def test_a_batch_of_one_image_is_the_image(segmenter, predictor, image):
    expected = predictor.predict(**CLICK)
    other = keras_sam.SAMPredictor(segmenter)
    other.set_image(image)
    assert other.original_sizes == [SIZE]
    assert_same_answer(other.predict(**CLICK), expected)


@pytest.mark.parametrize(
    "prompts",
    [
        {"points": [30, 20], "labels": [1]},
        {"points": [30, 20], "labels": 1},
        {"points": [30, 20]},
        {"points": np.array([[30, 20]])},
    ],
)
def test_a_click_in_few_words(predictor, prompts):
    expected = predictor.predict(points=[[30, 20]], labels=[1])
    assert_same_answer(predictor.predict(**prompts), expected)


@pytest.mark.parametrize("boxes", [np.zeros((0, 4)), np.zeros((0, 2, 2)), []])
@pytest.mark.parametrize("multimask_output, count", [(True, 3), (False, 1), ("auto", 1)])
def test_no_boxes_give_no_masks(predictor, boxes, multimask_output, count):
    masks, scores, logits = predictor.predict(boxes=boxes, multimask_output=multimask_output)
    assert (masks.shape, masks.dtype) == ((0, count, *SIZE), bool)
    assert (scores.shape, logits.shape) == ((0, count), (0, count, *MASK))
    assert scores.dtype == logits.dtype == np.float32
    floats, _, _ = predictor.predict(boxes=boxes, return_logits=True)
    assert (floats.shape, floats.dtype) == ((0, 3, *SIZE), np.float32)


def test_a_bool_mask_is_a_prompt(segmenter, predictor):
    mask = np.zeros(SIZE, bool)
    mask[10:40, 20:60] = True
    logits = keras_sam.mask_to_logits(mask, segmenter)
    assert logits.shape == (*MASK, 1)
    expected = predictor.predict(masks=logits)
    assert_same_answer(predictor.predict(masks=mask), expected)
    together = predictor.predict(masks=np.stack([mask, ~mask]))
    assert_same_answer(tuple(part[0] for part in together), expected)


@pytest.mark.parametrize(
    "name, message",
    [
        ("box", "no argument `box`; here it is `boxes`"),
        ("point_coords", "no argument `point_coords`; here it is `points`"),
        ("mask_input", "no argument `mask_input`; here it is `masks`"),
        ("wobble", r"no argument `wobble`\. It takes `points`, "),
    ],
)
def test_arguments_of_other_systems_are_named(predictor, name, message):
    with pytest.raises(TypeError, match=message):
        predictor.predict(**{**CLICK, name: None})


def test_a_preset_by_its_name(segmenter, predictor, tmp_path):
    segmenter.save_to_preset(tmp_path / "mine")
    for name in (tmp_path / "mine", str(tmp_path / "mine")):
        loaded = keras_sam.SAMPredictor(name)
        loaded.set_image(PHOTO)
        assert_same_answer(loaded.predict(**CLICK), predictor.predict(**CLICK))
    assert keras_sam.SAMAutomaticMaskGenerator(tmp_path / "mine").segmenter.mask_size == MASK


@pytest.mark.parametrize("make", [keras_sam.SAMPredictor, keras_sam.SAMAutomaticMaskGenerator])
def test_what_is_no_segmenter(segmenter, make):
    for wrong in (None, 5, segmenter.backbone, [segmenter]):
        with pytest.raises(ValueError, match="`segmenter` must be a `SAMImageSegmenter`.*eceived"):
            make(wrong)
    with pytest.raises(ValueError, match="A preset must be.*Received: 'no_such_preset'"):
        make("no_such_preset")


# --- bad prompts, in the words of one image ---


@pytest.mark.parametrize(
    "prompts, message",
    [
        ({}, "At least one prompt is needed"),
        ({"points": [], "labels": []}, "At least one prompt is needed"),
        ({"labels": [1]}, r"must come with `points`.*`labels` \(shape=\(1,\)\) without `points`"),
        ({"points": [3, 3, 3]}, r"`points` must have shape \(2,\).*shape=\(3,\)"),
        ({"points": [[3, 3, 3]], "labels": [1]}, r"`points` must have shape.*\(N, 2\).*\(1, 3\)"),
        ({"points": [[[[3, 3]]]], "labels": [[[1]]]}, r"`points` must have shape.*\(N, 2\)"),
        ({"points": [[3, 3]] * 2, "labels": 1}, r"`labels` must have shape \(N,\).*shape=\(\)"),
        (
            {"points": [[3, 3]], "labels": [1, 1]},
            r"`labels` must have.*\(2,\) with.*shape=\(1, 2\)",
        ),
        ({"points": [[3, 3]], "labels": [[1]]}, r"`labels` must have.*\(1, 1\) with"),
        ({"points": [[3, 3]], "labels": [4]}, r"`labels` must be one of.*Received: 4"),
        ({"points": [[3, np.nan]], "labels": [1]}, "`points` must be finite.*nan"),
        ({"points": [["a", 3]], "labels": [1]}, "`points` must hold numbers.*'a'"),
        ({"boxes": [1, 2, 3]}, r"`boxes` must have shape \(4,\).*shape=\(3,\)"),
        ({"boxes": [[1, 2], [3, 4]]}, r"`boxes` must have shape \(4,\).*shape=\(2, 2\)"),
        ({"boxes": [[1, 2, 3]]}, r"`boxes` must have shape \(4,\).*shape=\(1, 3\)"),
        ({"boxes": np.ones((1, 1, 1, 4))}, r"`boxes` must have shape \(4,\).*\(1, 1, 1, 4\)"),
        ({"boxes": [9, 2, 3, 4]}, r"x1 <= x2.*\[9.0, 2.0, 3.0, 4.0\]"),
        ({"boxes": [1, 2, np.inf, 4]}, "`boxes` must be finite.*inf"),
        (
            {"masks": np.ones((9, 9))},
            r"`masks` must have the size.*\(28, 36\).*\(53, 80\).*\(9, 9\)",
        ),
        ({"masks": np.ones(9)}, r"`masks` must have shape \(L, L\).*shape=\(9,\)"),
        (
            {"masks": np.repeat(np.arange(1, 54, dtype="uint8") // 27 + 1, 80).reshape(SIZE)},
            r"`masks` must hold one object each.*\[1, 2\].*`labels == 1`",
        ),
        ({"masks": np.full(MASK, np.nan)}, "`masks` must be finite"),
        (
            {**CLICK, "masks": np.ones((3, *MASK))},
            "same number of objects.*'points': 1, 'masks': 3.*pass one, `logits.np.argmax",
        ),
        ({**CLICK, "boxes": [BOX, BOX]}, "same number of objects.*'points': 1, 'boxes': 2"),
        ({**CLICK, "multimask_output": "yes"}, "`multimask_output` must be True, False"),
        ({**CLICK, "prompt_chunk": 0}, "`prompt_chunk` must be an integer of at least 1"),
    ],
)
def test_bad_prompts(predictor, prompts, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        predictor.predict(**prompts)
    assert predictor.is_image_set


@pytest.mark.parametrize(
    "masks, message",
    [
        (np.ones(MASK), r"`masks` must have shape \(\.\.\., 53, 80\)"),  # already in the frame
        (np.ones(SIZE, bool), "`masks` must be finite float logits.*bool.*into `predict` as"),
        (np.full(SIZE, np.inf), "`masks` must be finite float logits"),
    ],
)
def test_bad_masks_to_preprocess(predictor, masks, message):
    with pytest.raises(ValueError, match=message):
        predictor.preprocess_masks(masks)


# --- embeddings in files ---


@pytest.fixture
def file(predictor, tmp_path):
    path = tmp_path / "photo.safetensors"
    predictor.save_embedding(path)
    return path


def test_a_saved_embedding_needs_no_encoder(segmenter, predictor, file, monkeypatch):
    expected = predictor.predict(**CLICK)
    monkeypatch.setattr(segmenter, "encode_frames", None)  # it cannot be called
    for path in (file, str(file)):
        fresh = keras_sam.SAMPredictor(segmenter)
        fresh.load_embedding(path)
        assert fresh.original_sizes == [SIZE]
        np.testing.assert_array_equal(fresh.image_embeddings, predictor.image_embeddings)
        assert_same_answer(fresh.predict(**CLICK), expected)
    assert [p.name for p in file.parent.iterdir()] == [file.name]


def test_several_images_in_a_file(segmenter, predictor, tmp_path):
    predictor.set_images([PHOTO, OTHER], verbose=0)
    expected = predictor.predict(**CLICK, image_index=1)
    predictor.save_embedding(tmp_path / "two")
    fresh = keras_sam.SAMPredictor(segmenter)
    fresh.load_embedding(tmp_path / "two")
    assert fresh.original_sizes == [SIZE, OTHER_SIZE]
    assert_same_answer(fresh.predict(**CLICK, image_index=1), expected)


def test_a_model_with_the_same_weights_takes_it(segmenter, predictor, file, tmp_path):
    segmenter.save(tmp_path / "model.keras")
    twin = keras_sam.SAMPredictor(keras.saving.load_model(tmp_path / "model.keras"))
    twin.load_embedding(file)
    assert_same_answer(twin.predict(**CLICK), predictor.predict(**CLICK))


def small(**settings):
    """A predictor of a small model; the same weights unless `settings` say otherwise."""
    segmenter = tiny_segmenter(
        **{"image_shape": (32, 48, 3), "num_layers": 1, "use_rel_pos": False, **settings}
    )
    return keras_sam.SAMPredictor(segmenter)


@pytest.fixture(scope="module")
def small_file(tmp_path_factory):
    predictor = small()
    predictor.set_image(PHOTO)
    path = tmp_path_factory.mktemp("embedding") / "small"
    predictor.save_embedding(path)
    return path


def test_the_small_models_file_is_its_own(small_file):
    small().load_embedding(small_file)


@pytest.mark.parametrize(
    "settings",
    [
        {"seed": 8},  # other weights
        {"num_heads": 2},  # the same weights, read in another way
        {"window_size": 2},
        {"global_attention_layer_indices": [0]},
        {"pixel_mean": (1.0, 2.0, 3.0)},
        {"activation": "relu"},
        {"image_shape": (48, 32, 3)},  # another frame
        {"num_layers": 2},
    ],
)
def test_another_models_embedding_is_refused(small_file, settings):
    other = small(**settings)
    other.set_image(PHOTO)
    expected = other.predict(**CLICK)
    with pytest.raises(ValueError, match="made by another model.*Encode the image again"):
        other.load_embedding(small_file)
    assert_same_answer(other.predict(**CLICK), expected)  # the image that was set stays


def test_one_changed_weight_is_another_model(small_file):
    other = small()
    weight = other.segmenter.image_encoder.weights[-1]
    weight.assign(weight + 1e-3)
    with pytest.raises(ValueError, match="made by another model"):
        other.load_embedding(small_file)


def test_the_decoder_is_not_in_the_embedding(small_file):
    tuned = small()
    tuned.segmenter.mask_decoder.mask_tokens.assign(tuned.segmenter.mask_decoder.mask_tokens * 2)
    tuned.load_embedding(small_file)
    assert tuned.predict(**CLICK)[0].shape == (3, *SIZE)


def test_another_preprocessing_is_refused(segmenter, file):
    config = segmenter.preprocessor.get_config()
    preprocessor = type(segmenter.preprocessor).from_config(config)
    preprocessor.image_converter.do_resize = False
    unscaled = keras_sam.SAMPredictor(segmenter, preprocessor)
    with pytest.raises(ValueError, match="scaled in another way.*Encode the image again"):
        unscaled.load_embedding(file)
    assert not unscaled.is_image_set


def test_any_functional_model_may_be_the_encoder(tmp_path):
    images = keras.Input((32, 48, 3))
    patches = keras.layers.Conv2D(16, 16, strides=16)(images)
    backbone = small().segmenter.backbone
    foreign = keras_sam.SAMBackbone(
        keras.Model(images, patches), backbone.prompt_encoder, backbone.mask_decoder
    )
    preprocessor = keras_sam.SAMImageSegmenterPreprocessor(
        keras_sam.SAMImageConverter((32, 48)), mask_size=(8, 12)
    )
    predictor = keras_sam.SAMPredictor(keras_sam.SAMImageSegmenter(foreign, preprocessor))
    predictor.set_image(PHOTO)
    expected = predictor.predict(**CLICK)
    predictor.save_embedding(tmp_path / "foreign")
    predictor.reset()
    predictor.load_embedding(tmp_path / "foreign")
    assert_same_answer(predictor.predict(**CLICK), expected)
    bias = foreign.image_encoder.weights[1]
    bias.assign(bias + 1)
    with pytest.raises(ValueError, match="made by another model"):
        predictor.load_embedding(tmp_path / "foreign")


def rewritten(content, **changes):
    """The file with other tensors or another text of its own in it."""
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length])["__metadata__"]
    tensors = safetensors.numpy.load(content)
    for name, value in changes.items():
        if value is None:
            tensors.pop(name, None)
            metadata.pop(name, None)
        elif isinstance(value, str):
            metadata[name] = value
        else:
            tensors[name] = value
    return safetensors.numpy.save(tensors, metadata)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:4],  # cut in the length
        lambda content: content[:60],  # in the header
        lambda content: content[:-1],  # one byte short
        lambda content: content[: len(content) // 2],
        lambda content: content + b"more",
        lambda content: b"\xff" * 8 + content[8:],
        lambda content: b"GIF89a, or whatever else",
        lambda content: safetensors.numpy.save({"weight": np.zeros(3)}),  # some other safetensors
        lambda content: rewritten(content, format="keras_sam image embedding 99"),
        lambda content: rewritten(content, original_sizes=None),
        lambda content: rewritten(content, original_sizes=np.array([[53, 80], [1, 1]])),
        lambda content: rewritten(content, image_embeddings=np.zeros((1, 9, 7, 16), "float32")),
        lambda content: rewritten(content, image_embeddings=np.zeros((7, 9, 16), "float32")),
        lambda content: rewritten(content, original_sizes=np.array([[0, 80]])),
        lambda content: rewritten(content, more=np.zeros(3)),
        lambda content: rewritten(content, model=None),
    ],
)
def test_damaged_files_are_refused_and_the_image_stays(predictor, file, damage):
    content = file.read_bytes()
    predictor.load_embedding(file)
    expected = predictor.predict(**CLICK)
    file.write_bytes(damage(content))
    with pytest.raises(ValueError, match=r"Received|another model"):
        predictor.load_embedding(file)
    assert_same_answer(predictor.predict(**CLICK), expected)


def test_files_that_cannot_be_read_or_written(predictor, tmp_path):
    expected = predictor.predict(**CLICK)
    (tmp_path / "a file").write_text("here already")
    (tmp_path / "folder").mkdir()
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(FileNotFoundError, match="nothing"):
        predictor.load_embedding(tmp_path / "nothing")
    with pytest.raises(OSError, match="folder"):
        predictor.load_embedding(tmp_path / "folder")
    for path in ("a file/photo", "folder"):
        with pytest.raises(OSError, match=path.split("/")[0]):
            predictor.save_embedding(tmp_path / path)
    assert sorted(os.listdir(tmp_path)) == before
    assert os.listdir(tmp_path / "folder") == []
    assert_same_answer(predictor.predict(**CLICK), expected)


@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt])
def test_nothing_is_half_written(predictor, file, monkeypatch, error):
    content = file.read_bytes()
    predictor.set_image(OTHER)

    def fail(source, target):
        raise error

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(type(error) if isinstance(error, OSError) else error):
        predictor.save_embedding(file)
    assert file.read_bytes() == content
    assert [p.name for p in file.parent.iterdir()] == [file.name]


# --- several predictors ---


def test_two_predictors_of_one_segmenter_do_not_meet(segmenter):
    first, second = keras_sam.SAMPredictor(segmenter), keras_sam.SAMPredictor(segmenter)
    first.set_image(PHOTO)
    alone = first.predict(**CLICK)
    second.set_image(OTHER)
    of_other = second.predict(**CLICK)
    assert of_other[0].shape == (3, *OTHER_SIZE)
    assert_same_answer(first.predict(**CLICK), alone)
    assert_same_answer(second.predict(**CLICK), of_other)


def test_two_threads_with_a_predictor_each(segmenter, refined):
    """Each encodes, clicks and refines, over and over, and gets what it gets alone."""
    images = [PHOTO, OTHER]

    def session(image):
        predictor = keras_sam.SAMPredictor(segmenter)
        predictor.set_image(image)
        return [
            predictor.predict(**CLICK),
            predictor.predict(**CLICK, masks=refined[0]),
            predictor.predict(boxes=[BOX, SMALL_BOX]),
            (predictor._fingerprint(),),
        ]

    alone = [session(image) for image in images]
    results, errors = [[], []], []

    def work(which):
        try:
            for _ in range(4):
                results[which].append(session(images[which]))
        except Exception as error:  # noqa: BLE001 - shown by the assertion below
            errors.append(error)

    threads = [threading.Thread(target=work, args=(which,)) for which in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    for which in (0, 1):
        assert len(results[which]) == 4
        for rounds in results[which]:
            for answer, expected in zip(rounds[:3], alone[which][:3]):
                assert_same_answer(answer, expected)
            assert rounds[3] == alone[which][3]
