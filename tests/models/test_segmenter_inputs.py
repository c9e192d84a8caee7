"""What `SAMImageSegmenter` accepts, and that every form of it means the same."""

import copy
import pathlib
import warnings

import keras
import numpy as np
import pytest
from PIL import Image

import keras_sam
from tests.closeness import assert_different, assert_same, assert_same_outputs
from tests.tiny import photograph, tiny_segmenter

WIDE, TALL = (53, 80), (90, 41)  # odd, and one of each proportion; the model's frame is 112 x 144
PHOTO, OTHER = photograph(WIDE), photograph(TALL, seed=1)
FLIPPED = PHOTO[::-1].copy()
FRAME = (112, 144)
MASK = (28, 36)
K = 4


def predict(segmenter, **x):
    return segmenter.predict({"images": [PHOTO], **x}, verbose=0)


def encode(segmenter, images):
    return segmenter.encode(images)["image_embeddings"]


def logits(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 5, shape).astype("float32")


@pytest.fixture(scope="module")
def without_preprocessor(segmenter):
    return keras_sam.SAMImageSegmenter(segmenter.backbone)


# --- images ---


def oriented(array, orientation):
    """A pillow image that shows `array` once its EXIF orientation is applied."""
    stored = {3: np.rot90(array, 2), 6: np.rot90(array, 1), 8: np.rot90(array, -1)}[orientation]
    image = Image.fromarray(np.ascontiguousarray(stored))
    exif = image.getexif()
    exif[0x0112] = orientation
    image.info["exif"] = exif.tobytes()
    return image


def saved(image, folder, **options):
    path = folder / "photo.png"
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(path, **options)
    return path


def in_jax(array):
    return pytest.importorskip("jax").numpy.asarray(array)


def in_torch(array):
    tensor = pytest.importorskip("torch").tensor(array)
    return tensor.requires_grad_() if array.dtype.kind == "f" else tensor


def in_tensorflow(array):
    return pytest.importorskip("tensorflow").convert_to_tensor(array)


FLOATS = PHOTO.astype("float32")
GREY = PHOTO[..., 0]


@pytest.mark.parametrize(
    "make, pixels",
    [
        (lambda folder: PHOTO[None], PHOTO),  # an array (B, H0, W0, 3)
        (lambda folder: [PHOTO], PHOTO),  # a list of arrays
        (lambda folder: (PHOTO,), PHOTO),  # a tuple of them
        (lambda folder: PHOTO[None].tolist(), PHOTO),  # nested lists
        (lambda folder: [Image.fromarray(PHOTO)], PHOTO),  # a pillow image
        (lambda folder: [saved(PHOTO, folder)], PHOTO),  # a path
        (lambda folder: [str(saved(PHOTO, folder))], PHOTO),  # a path as a string
        (lambda folder: np.array([str(saved(PHOTO, folder))]), PHOTO),  # an array of paths
        (lambda folder: [oriented(PHOTO, 6)], PHOTO),  # a phone's photograph, upright
        (lambda folder: [saved(o := oriented(PHOTO, 8), folder, exif=o.info["exif"])], PHOTO),
        (lambda folder: PHOTO[None].astype("int64"), PHOTO),  # integers within 0..255
        (lambda folder: FLOATS[None], FLOATS),  # floats are not rescaled
        (lambda folder: FLOATS[None].astype("float64"), FLOATS),
        (lambda folder: [FLOATS.astype("float16")], FLOATS),  # whole numbers up to 255 are exact
        (lambda folder: PHOTO[None].astype("uint16") * 257, FLOATS),  # 16 bits are divided by 257
        (lambda folder: [GREY], np.stack([GREY] * 3, axis=-1)),  # grey is repeated
        (lambda folder: GREY[None, ..., None], np.stack([GREY] * 3, axis=-1)),  # (B, H0, W0, 1)
        (lambda folder: [np.dstack([PHOTO, GREY])], PHOTO),  # alpha is dropped
        (lambda folder: [Image.fromarray(np.dstack([PHOTO, GREY]))], PHOTO),
        (lambda folder: in_torch(FLOATS[None]), FLOATS),  # with a gradient to be tracked
        (lambda folder: [in_torch(PHOTO)], PHOTO),
        (lambda folder: in_jax(FLOATS[None]), FLOATS),
        (lambda folder: [in_jax(PHOTO)], PHOTO),
        (lambda folder: in_tensorflow(PHOTO[None]), PHOTO),
        (lambda folder: [in_tensorflow(FLOATS)], FLOATS),
        (lambda folder: keras.ops.convert_to_tensor(FLOATS[None]), FLOATS),  # the backend's own
        (lambda folder: keras.Variable(FLOATS[None]), FLOATS),
    ],
)
def test_images_of_every_form(segmenter, tmp_path, make, pixels):
    prompts = {"points": [[[30, 20]]], "labels": [[1]]}
    prepared = segmenter.prepare({"images": make(tmp_path), **prompts})
    expected = segmenter.prepare({"images": [pixels], **prompts})
    np.testing.assert_array_equal(prepared["images"], expected["images"])
    assert prepared["original_sizes"].tolist() == [[*WIDE]]
    np.testing.assert_array_equal(prepared["points"], expected["points"])


@pytest.mark.parametrize(
    "make",
    [
        lambda: [PHOTO],
        lambda: in_torch(FLOATS[None]),
        lambda: in_jax(FLOATS[None]),
        lambda: in_tensorflow(FLOATS[None]),
        lambda: keras.ops.convert_to_tensor(PHOTO[None]),
        lambda: [Image.fromarray(PHOTO)],
    ],
)
def test_images_of_every_form_are_predicted_and_encoded(segmenter, make):
    click = {"points": [[[30, 20]]], "labels": [[1]]}
    expected = segmenter.predict({"images": [PHOTO], **click}, verbose=0)
    outputs = segmenter.predict({"images": make(), **click}, verbose=0)
    # Floats are resized as floats, uint8 is rounded as pillow rounds: up to half a grey level.
    assert_same_outputs(outputs, expected, 0.02)
    assert_same(encode(segmenter, make()), encode(segmenter, [PHOTO]), 0.02)


def test_pixel_values_matter(segmenter):
    click = {"points": [[[30, 20]]], "labels": [[1]]}
    dark = segmenter.predict({"images": [PHOTO // 2], **click}, verbose=0)
    assert_different(dark["masks"], predict(segmenter, **click)["masks"], 0.05)


def test_a_float_image_within_0_and_1_is_scaled_which_is_said_once(segmenter):
    click = {"points": [[[30, 20]]], "labels": [[1]]}
    bright = segmenter.predict({"images": [FLOATS], **click}, verbose=0)
    with pytest.warns(UserWarning, match="within 0..1 and is multiplied by 255") as caught:
        outputs = segmenter.predict({"images": [FLOATS / 255], **click}, verbose=0)
        segmenter.predict({"images": [FLOATS / 255], **click}, verbose=0)
    assert [w.category for w in caught].count(UserWarning) == 1
    assert_same_outputs(outputs, bright, 1e-3)


@pytest.mark.parametrize(
    "size",
    [
        (1, 1),  # a single pixel
        (1, 50),  # a row of pixels, 3 high in the frame
        (50, 1),  # a column
        (3, 7),  # smaller than a patch
        FRAME,  # the frame itself
        (100, 10_000),  # a panorama
    ],
)
def test_images_of_every_size(segmenter, size):
    image = photograph(size)
    outputs = segmenter.predict(
        {"images": [image], "boxes": [[[0, 0, size[1], size[0]]]]}, verbose=0
    )
    assert outputs["masks"].shape == (1, 1, K, *MASK)
    assert np.isfinite(outputs["masks"]).all()
    plan = keras_sam.ResizePlan(size, FRAME)
    masks = keras_sam.restore_masks(outputs["masks"], [size], FRAME)
    assert masks.shape == (1, 1, K, *size)
    np.testing.assert_array_equal(masks[0], plan.masks_to_original(outputs["masks"][0]) > 0)


def test_images_of_different_sizes_in_one_call(segmenter):
    prompts = {"points": [[[30, 20]], [[30, 70]]], "labels": [[1], [0]]}
    together = segmenter.predict({"images": [PHOTO, OTHER], **prompts}, verbose=0)
    for i, image in enumerate((PHOTO, OTHER)):
        alone = segmenter.predict(
            {"images": [image], **{k: v[i : i + 1] for k, v in prompts.items()}}, verbose=0
        )
        for name in ("masks", "iou_pred"):
            assert_same(together[name][i], alone[name][0])


# --- prompts: the axis P ---

CLICK = {"points": [[[30, 20]]], "labels": [[1]]}
CORNERS = [[10, 5], [60, 40]]
BOX = [10, 5, 60, 40]
LOGITS = logits(1, 1, *MASK, 1)


@pytest.mark.parametrize(
    "prompts, lead",
    [
        (CLICK, ()),  # points (B, N, 2)
        ({"points": [[[30, 20], [5, 5]]], "labels": [[1, 0]]}, ()),  # two points of one object
        ({"boxes": [[CORNERS]]}, ()),  # boxes (B, 1, 2, 2)
        ({"masks": LOGITS}, ()),  # masks (B, 1, Lh, Lw, 1)
        ({"masks": logits(1, 1, *WIDE, 1)}, ()),  # of the image's size
        ({**CLICK, "boxes": [[CORNERS]]}, ()),
        ({**CLICK, "boxes": [[CORNERS]], "masks": LOGITS}, ()),  # all three, in that form
        ({"points": [[[[30, 20]]]], "labels": [[[1]]]}, (1,)),  # points (B, P, N, 2), P = 1
        ({"points": [[[[30, 20]], [[5, 5]]]], "labels": [[[1], [1]]]}, (2,)),
        ({"boxes": [[BOX]]}, (1,)),  # boxes (B, P, 4), P = 1
        ({"boxes": [[BOX, BOX]]}, (2,)),
        ({"boxes": [[CORNERS, CORNERS]]}, (2,)),  # boxes (B, P, 2, 2)
        ({"boxes": [[[BOX, BOX]]]}, (1,)),  # boxes (B, P, M, 4): two boxes of one object
        ({"boxes": [[[CORNERS, CORNERS]]]}, (1,)),  # its corners in pairs
        ({"masks": logits(1, 2, *MASK, 1)}, (2,)),
        ({"masks": [[LOGITS[0, 0], LOGITS[0, 0]]]}, (2,)),
        ({"masks": logits(1, 1, *MASK)}, (1,)),  # without the last axis it is no KerasHub mask
        ({**CLICK, "boxes": [[BOX]]}, (1,)),  # one of them has the axis
        ({"boxes": [[CORNERS]], "points": [[[[30, 20]]]], "labels": [[[1]]]}, (1,)),
    ],
)
def test_the_axis_of_objects_stays_unless_every_prompt_came_without(
    segmenter, without_preprocessor, prompts, lead
):
    outputs = predict(segmenter, **prompts)
    assert outputs["masks"].shape == (1, *lead, K, *MASK)
    assert outputs["iou_pred"].shape == (1, *lead, K)
    assert outputs["lone_click"].shape == (1, *lead)
    assert ("num_prompts" in outputs) == bool(lead)
    assert {name: array.dtype.name for name, array in outputs.items()} == {
        "masks": "float32",
        "iou_pred": "float32",
        "lone_click": "bool",
        **({"num_prompts": "int32"} if lead else {}),
        **dict.fromkeys(("original_sizes", "scaled_sizes", "model_sizes"), "int32"),
    }
    assert_same_outputs(segmenter.decode(segmenter.encode([PHOTO]), prompts), outputs)


# --- prompts: every form means the same ---


def as_arrays(prompts):
    return {name: np.asarray(value, "float32") for name, value in prompts.items()}


TWO_CLICKS = {"points": [[[[30, 20]], [[5, 40]]]], "labels": [[[1], [1]]]}


@pytest.mark.parametrize(
    "prompts, same",
    [
        (as_arrays(CLICK), CLICK),  # float labels that are whole
        ({k: np.asarray(v, "int64") for k, v in CLICK.items()}, CLICK),
        ({k: in_torch(v) for k, v in as_arrays(CLICK).items()}, CLICK),  # tracks gradients
        ({k: in_jax(v) for k, v in as_arrays(CLICK).items()}, CLICK),
        ({k: in_tensorflow(v) for k, v in as_arrays(CLICK).items()}, CLICK),
        ({"points": [[np.array([30, 20])]], "labels": [np.array([1])]}, CLICK),  # lists of arrays
        ({"points": [((30, 20),)], "labels": [(1,)]}, CLICK),  # tuples
        ({**CLICK, "boxes": None, "masks": None}, CLICK),  # None is nothing
        ({**CLICK, "boxes": np.zeros((1, 0, 2, 2)), "masks": np.zeros((1, 0, *MASK, 1))}, CLICK),
        ({"points": [[[30, 20], [0, 0]]], "labels": [[1, -1]]}, CLICK),  # KerasHub's padding point
        ({"points": [[[30, 20], [9, 9]]], "labels": [[1, -10]]}, CLICK),  # true padding
        ({"points": [[CORNERS]], "labels": [[[2, 3]]]}, {"boxes": [[BOX]]}),  # corners as points
        ({"boxes": [[CORNERS, CORNERS]]}, {"boxes": [[BOX, BOX]]}),
        ({"boxes": np.array([[BOX]], "int32")}, {"boxes": [[BOX]]}),
        ({"boxes": [[[BOX]]]}, {"boxes": [[BOX]]}),  # M = 1
        ({"boxes": [[[CORNERS]]]}, {"boxes": [[BOX]]}),
        (
            {"points": [[CORNERS + CORNERS]], "labels": [[[2, 3, 2, 3]]]},
            {"boxes": [[[BOX, BOX]]]},
        ),  # several boxes of one object are just more corner pairs
        ({"masks": [[LOGITS[0, 0], LOGITS[0, 0]]]}, {"masks": np.repeat(LOGITS, 2, axis=1)}),
        ({"masks": [[LOGITS[0, 0, ..., 0]]]}, {"masks": LOGITS[..., 0]}),
        ({**TWO_CLICKS, "masks": [[None, None]]}, TWO_CLICKS),
    ],
)
def test_prompts_of_every_form(segmenter, prompts, same):
    assert_same_outputs(predict(segmenter, **prompts), predict(segmenter, **same))


def test_kerashubs_dict_with_zero_length_axes(segmenter):
    everything = {
        "points": np.zeros((1, 0, 2)),
        "labels": np.zeros((1, 0)),
        "boxes": np.array([[CORNERS]], "float32"),
        "masks": np.zeros((1, 0, *MASK, 1)),
    }
    assert_same_outputs(predict(segmenter, **everything), predict(segmenter, boxes=[[CORNERS]]))


@pytest.mark.parametrize(
    "first, second",
    [
        (CLICK, {**CLICK, "labels": [[0]]}),  # foreground and background
        (CLICK, {**CLICK, "points": [[[31, 20]]]}),  # a pixel further
        ({"boxes": [[CORNERS]]}, {"boxes": [[[[10, 5], [60, 41]]]]}),
        (CLICK, {**CLICK, "boxes": [[CORNERS]]}),
        (CLICK, {**CLICK, "masks": LOGITS}),
        ({"masks": LOGITS}, {"masks": LOGITS * 0}),  # a mask of zeros is a mask
        ({**CLICK, "masks": LOGITS * 0}, CLICK),  # and not the same as none
        ({"boxes": [[[BOX, [0, 0, 9, 9]]]]}, {"boxes": [[[BOX]]]}),  # the second box counts
    ],
)
def test_every_prompt_matters(segmenter, first, second):
    first, second = predict(segmenter, **first), predict(segmenter, **second)
    shape = second["masks"].shape
    assert_different(first["masks"].reshape(shape), second["masks"], 1e-4)


def test_masks_of_the_models_frame_are_used_as_they_are_and_others_go_through_the_plan(segmenter):
    of_the_image = logits(1, 1, *WIDE, 1, seed=3)
    plan = keras_sam.ResizePlan(WIDE, FRAME)
    in_the_frame = plan.masks_to_model(of_the_image[..., 0], MASK)[..., None]
    assert_same_outputs(
        predict(segmenter, masks=of_the_image), predict(segmenter, masks=in_the_frame)
    )
    prepared = segmenter.prepare({"images": [PHOTO], "masks": LOGITS})
    np.testing.assert_array_equal(prepared["masks"], LOGITS)


@pytest.mark.parametrize(
    "prompts, tokens, wrong",
    [
        (CLICK, [1, -1], [1, -10]),  # a lone click: with it, not without
        ({"points": [[[30, 20], [5, 5]]], "labels": [[1, 0]]}, [1, 0, -1], [1, 0, -10]),
        ({**CLICK, "boxes": [[CORNERS]]}, [1, 2, 3], [1, 2, 3, -1]),  # a box: without it
        ({"boxes": [[CORNERS]]}, [2, 3], [2, 3, -1]),
        ({"points": [[[30, 20], [0, 0]]], "labels": [[1, -1]]}, [1, -1], [1, -1, -1]),  # not twice
    ],
)
def test_the_not_a_point_token(segmenter, prompts, tokens, wrong):
    """The tokens that the model gets, given to it one by one in canonical form."""
    embeddings = segmenter.encode([PHOTO])
    plan = keras_sam.ResizePlan(WIDE, FRAME)
    places = {1: (30, 20), 0: (5, 5), 2: CORNERS[0], 3: CORNERS[1], -1: (0, 0), -10: (0, 0)}

    def canonical(labels):
        points = plan.to_model([places[label] for label in labels])
        return {
            "points": points[None, None],
            "labels": np.array([[labels]], "int32"),
            "masks": np.zeros((1, 0, *MASK, 1), "float32"),
            "mask_given": np.zeros((1, 0), bool),
        }

    outputs = predict(segmenter, **prompts)["masks"]
    assert_same(segmenter.decode(embeddings, canonical(tokens))["masks"][:, 0], outputs)
    assert_different(segmenter.decode(embeddings, canonical(wrong))["masks"][:, 0], outputs, 1e-4)


# --- ragged calls ---

RAGGED = {
    "points": [[[[30, 20]], [[5, 5], [70, 9]]], [[[10, 80]]], None],
    "labels": [[[1], [1, 0]], [[0]], None],
    "boxes": [[None, BOX], [None], [[3, 3, 30, 30]]],
    "masks": [[LOGITS[0, 0], None], None, None],
}
RAGGED_IMAGES = [PHOTO, OTHER, PHOTO]
# (image, object) -> its prompts alone
ALONE = {
    (0, 0): {"points": [[[[30, 20]]]], "labels": [[[1]]], "masks": LOGITS},
    (0, 1): {"points": [[[[5, 5], [70, 9]]]], "labels": [[[1, 0]]], "boxes": [[BOX]]},
    (1, 0): {"points": [[[[10, 80]]]], "labels": [[[0]]]},
    (2, 0): {"boxes": [[[3, 3, 30, 30]]]},
}


@pytest.mark.parametrize("batch_size, prompt_chunk", [(1, 8), (2, 1)])
def test_a_ragged_call_is_each_prompt_alone(segmenter, batch_size, prompt_chunk):
    outputs = segmenter.predict(
        {"images": RAGGED_IMAGES, **RAGGED},
        batch_size=batch_size,
        prompt_chunk=prompt_chunk,
        verbose=0,
    )
    assert outputs["num_prompts"].tolist() == [2, 1, 1]
    assert outputs["lone_click"].tolist() == [[False, False], [True, False], [False, False]]
    for (image, number), prompts in ALONE.items():
        alone = segmenter.predict(
            {"images": RAGGED_IMAGES[image : image + 1], **prompts}, verbose=0
        )
        assert_same(outputs["masks"][image, number], alone["masks"][0, 0])
        assert_same(outputs["iou_pred"][image, number], alone["iou_pred"][0, 0])
    for image in (1, 2):  # what fills up to two prompts
        assert np.isnan(outputs["masks"][image, 1]).all()
        assert np.isnan(outputs["iou_pred"][image, 1]).all()


@pytest.mark.parametrize(
    "prompts, lead, counts",
    [
        ({"boxes": [[BOX, BOX], None]}, (2,), [2, 0]),  # nobody is in the second image
        ({"boxes": [[], [BOX]]}, (1,), [0, 1]),
        ({"boxes": [[CORNERS], [CORNERS, CORNERS]]}, (2,), [1, 2]),  # one object, then two
        ({"masks": [[LOGITS[0, 0]], [LOGITS[0, 0]] * 2]}, (2,), [1, 2]),
        ({"points": [[[[3, 3]]], None], "labels": [[[1]], None]}, (1,), [1, 0]),
        ({"points": [[[3, 3]], None], "labels": [[1], None], "boxes": [None, [BOX]]}, (1,), [1, 1]),
        ({"boxes": [[CORNERS], [CORNERS]]}, (), None),  # everybody has one object
    ],
)
def test_the_answer_does_not_depend_on_the_batch_size(segmenter, prompts, lead, counts):
    x = {"images": [PHOTO, OTHER], **prompts}
    one_by_one = segmenter.predict(x, batch_size=1, verbose=0)
    assert one_by_one["masks"].shape == (2, *lead, K, *MASK)
    if counts is not None:
        assert one_by_one["num_prompts"].tolist() == counts
        missing = np.arange(lead[0]) >= np.array(counts)[:, None]
        np.testing.assert_array_equal(np.isnan(one_by_one["iou_pred"]).all(axis=-1), missing)
        np.testing.assert_array_equal(np.isnan(one_by_one["iou_pred"]).any(axis=-1), missing)
    together = segmenter.predict(x, batch_size=2, verbose=0)
    assert_same_outputs(together, one_by_one)


def test_batch_size_none_is_one(segmenter):
    x = {"images": [PHOTO, OTHER], "boxes": [[BOX], [BOX]]}
    assert_same_outputs(
        segmenter.predict(x, batch_size=None, verbose=0), segmenter.predict(x, verbose=0)
    )


def test_chunks_do_not_matter(segmenter):
    rng = np.random.default_rng(5)
    corners = np.sort(rng.uniform(0, 50, (1, 5, 2, 2)), axis=2)
    expected = predict(segmenter, boxes=corners)
    for chunk in (1, 2, 100):
        outputs = segmenter.predict(
            {"images": [PHOTO], "boxes": corners}, prompt_chunk=chunk, verbose=0
        )
        assert_same_outputs(outputs, expected)


def test_points_may_lie_outside_the_image(segmenter):
    outputs = predict(segmenter, points=[[[-40, 1000]]], labels=[[1]])
    assert np.isfinite(outputs["masks"]).all()


def test_boxes_of_no_extent_are_allowed(segmenter):
    assert np.isfinite(predict(segmenter, boxes=[[[7, 7, 7, 7]]])["masks"]).all()


# --- in the model's own frame ---

IN_FRAME = photograph(FRAME, seed=2)


def test_without_a_preprocessor_the_model_works_in_its_own_frame(segmenter, without_preprocessor):
    x = {"images": IN_FRAME[None], "points": [[[100, 50]]], "labels": [[1]]}
    outputs = without_preprocessor.predict(x, verbose=0)
    # An image of the frame's size is neither scaled nor padded.
    assert_same_outputs(outputs, segmenter.predict(x, verbose=0))
    assert_same(encode(without_preprocessor, x["images"]), encode(segmenter, x["images"]))


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: [IN_FRAME],
        lambda folder: [Image.fromarray(IN_FRAME)],
        lambda folder: [saved(IN_FRAME, folder)],
        lambda folder: IN_FRAME[None].astype("float32"),
        lambda folder: in_torch(IN_FRAME[None].astype("float32")),
        lambda folder: keras.ops.convert_to_tensor(IN_FRAME[None]),
        lambda folder: IN_FRAME[None].astype("uint16") * 257,
    ],
)
def test_images_without_a_preprocessor(without_preprocessor, tmp_path, make):
    frames = without_preprocessor.prepare({"images": make(tmp_path), "boxes": [[BOX]]})["images"]
    np.testing.assert_array_equal(frames, IN_FRAME[None].astype("float32"))


def test_sizes_are_known_without_a_preprocessor_too(without_preprocessor):
    prepared = without_preprocessor.prepare({"images": [IN_FRAME] * 2, "boxes": [[BOX], [BOX]]})
    assert prepared["original_sizes"].tolist() == [[*FRAME]] * 2
    assert prepared["scaled_sizes"].tolist() == [[*FRAME]] * 2


# Few, for layers run op by op are slow on JAX and TensorFlow.
@pytest.mark.parametrize(
    "prompts",
    [
        {**CLICK, "boxes": np.zeros((1, 0, 2, 2)), "masks": np.zeros((1, 0, *MASK, 1))},
        {"boxes": [[[BOX, [0, 0, 9, 9]]]]},
        {"masks": LOGITS},
        {"points": [[[[30, 20]], [[5, 5]]]], "labels": [[[1], [0]]], "boxes": [[BOX, BOX]]},
    ],
)
def test_calling_it_on_tensors_is_predicting_without_a_preprocessor(without_preprocessor, prompts):
    x = {"images": IN_FRAME[None].astype("float32"), **as_arrays(prompts)}
    expected = without_preprocessor.predict(x, verbose=0)
    tensors = {name: keras.ops.convert_to_tensor(value) for name, value in x.items()}
    outputs = without_preprocessor(tensors)
    assert set(outputs) == {"masks", "iou_pred"}
    for name, value in outputs.items():
        assert_same(keras.ops.convert_to_numpy(value), expected[name])


# --- a preprocessor of the user's own ---


class WholeImage(keras_sam.SAMImageSegmenterPreprocessor):
    """Boxes the whole image where no box is given, and knows a key of its own."""

    def call(self, x, **settings):
        size = [0, 0, WIDE[1], WIDE[0]] if "text" in x else BOX
        return super().call({"images": x["images"], "boxes": [[size]] * len(x["images"])})


class CallsOnly(keras_sam.SAMImageSegmenterPreprocessor):
    def __call__(self, x, **settings):
        return super().__call__({"images": x["images"], "boxes": [[BOX]] * len(x["images"])})


@pytest.mark.parametrize("cls", [WholeImage, CallsOnly])
def test_a_custom_preprocessor_gets_the_dict_and_may_make_the_prompts(segmenter, cls):
    ours = segmenter.preprocessor
    custom = keras_sam.SAMImageSegmenter(
        segmenter.backbone, cls(ours.image_converter, mask_size=ours.mask_size)
    )
    expected = segmenter.predict({"images": [PHOTO], "boxes": [[BOX]]}, verbose=0)
    for x in ({"images": [PHOTO]}, [{"images": [PHOTO]}], {"images": [PHOTO], **CLICK}):
        assert_same_outputs(custom.predict(x, verbose=0), expected)
    prepared = custom.prepare({"images": [PHOTO]})
    assert prepared["labels"].tolist() == [[[2, 3]]]
    if cls is WholeImage:
        whole = custom.predict({"images": [PHOTO], "text": ["all of it"]}, verbose=0)
        assert_different(whole["masks"], expected["masks"])


# --- canonical inputs ---


def test_prepared_batches_are_predicted_as_they_are(segmenter, without_preprocessor):
    x = {"images": RAGGED_IMAGES, **RAGGED}
    prepared = segmenter.prepare(x)
    assert set(prepared) == {
        "images", "points", "labels", "masks", "mask_given", "num_prompts", "single_object",
        "original_sizes", "scaled_sizes",
    }  # fmt: skip
    assert prepared["original_sizes"].tolist() == [[*WIDE], [*TALL], [*WIDE]]
    # The long side fills the frame's, the short one rounds half up.
    assert prepared["scaled_sizes"].tolist() == [[95, 144], [112, 51], [95, 144]]
    expected = segmenter.predict(x, verbose=0)
    assert_same_outputs(segmenter.predict(prepared, verbose=0), expected)
    assert_same_outputs(without_preprocessor.predict(prepared, verbose=0), expected)
    canonical = {k: prepared[k] for k in ("images", "points", "labels", "masks", "mask_given")}
    counted = segmenter.predict(canonical, verbose=0)  # it counts itself
    for outputs in (counted, expected):
        for name in ("original_sizes", "scaled_sizes"):  # which it does not know
            del outputs[name]
    assert_same_outputs(counted, expected)
    again = segmenter.prepare(prepared)
    assert all(np.array_equal(again[name], prepared[name]) for name in prepared)
    decoded = segmenter.decode(segmenter.encode(RAGGED_IMAGES), prepared)
    assert_same_outputs({name: decoded[name] for name in expected}, expected)


def test_a_prepared_click_keeps_its_form(segmenter, without_preprocessor):
    expected = predict(segmenter, **CLICK)
    prepared = segmenter.prepare({"images": [PHOTO], **CLICK})
    assert_same_outputs(segmenter.predict(prepared, verbose=0), expected)
    in_frame = without_preprocessor.prepare({"images": [IN_FRAME], **CLICK})
    assert without_preprocessor.predict(in_frame, verbose=0)["masks"].shape == (1, K, *MASK)


# --- what people type first ---


@pytest.mark.parametrize(
    "prompts",
    [
        {"points": [30, 20]},
        {"points": [[30, 20]], "labels": [1]},
        {"points": [[30, 20], [5, 5]], "labels": [1, 0]},
        {"boxes": BOX},
        {"boxes": [BOX, [1, 1, 20, 20]]},
        {"boxes": np.zeros((0, 4))},
        {"masks": LOGITS[0, 0]},
        {"masks": LOGITS[0, 0, ..., 0] > 0},
    ],
)
def test_one_picture_without_a_list(segmenter, without_preprocessor, tmp_path, prompts):
    """Its prompts are as for a predictor, and the outputs those of a batch of one."""
    predictor = keras_sam.SAMPredictor(segmenter)
    predictor.set_image(PHOTO)
    _, scores, logits = predictor.predict(**prompts, multimask_output=True)
    for image in (PHOTO, Image.fromarray(PHOTO), saved(PHOTO, tmp_path)):
        outputs = segmenter.predict({"images": image, **prompts}, verbose=0)
        assert_same(outputs["iou_pred"][0][..., 1:], scores)
        assert_same(outputs["masks"][0][..., 1:, :, :], logits)
        assert outputs["original_sizes"].tolist() == [[*WIDE]]
    in_frame = {"images": IN_FRAME, **prompts}
    assert_same_outputs(
        without_preprocessor.predict(in_frame, verbose=0), segmenter.predict(in_frame, verbose=0)
    )
    elements = segmenter.predict([{"images": PHOTO, **prompts}] * 2, verbose=0)  # not batched
    assert_same(elements["masks"][1], elements["masks"][0])
    assert_same(elements["masks"][0][..., 1:, :, :], logits)


def test_one_picture_is_encoded(segmenter, tmp_path):
    expected = segmenter.encode([PHOTO])
    for image in (PHOTO, Image.fromarray(PHOTO), str(saved(PHOTO, tmp_path))):
        assert_same_outputs(segmenter.encode(image), expected)


@pytest.mark.parametrize("boxes", [np.zeros((2, 0, 4)), [[], []], [None, None]])
def test_no_boxes_give_no_masks(segmenter, boxes):
    images = [PHOTO, OTHER]
    decoded = segmenter.decode(segmenter.encode(images), {"boxes": boxes})
    x = {"images": images, "boxes": boxes}
    for outputs in (segmenter.predict(x, verbose=0), segmenter.predict([x], verbose=0), decoded):
        assert outputs["masks"].shape == (2, 0, K, *MASK)
        assert outputs["iou_pred"].shape == (2, 0, K)
        assert outputs["lone_click"].shape == (2, 0)
        assert outputs["num_prompts"].tolist() == [0, 0]
        assert outputs["masks"].dtype == outputs["iou_pred"].dtype == np.float32
        masks = keras_sam.restore_masks(outputs)
        assert [m.shape for m in masks] == [(0, K, *WIDE), (0, K, *TALL)]
    some = segmenter.decode(segmenter.encode(images), {"boxes": boxes}, multimask_output=False)
    assert some["masks"].shape == (2, 0, 1, *MASK)


def test_a_picture_on_which_a_detector_found_nothing_gets_no_mask(segmenter):
    outputs = segmenter.predict({"images": [PHOTO, PHOTO], "boxes": [[BOX], []]}, verbose=0)
    for chosen in (outputs, keras_sam.best_mask(outputs)):
        assert [len(masks) for masks in keras_sam.restore_masks(chosen)] == [1, 0]


# --- data sets ---

BATCHES = [
    {"images": PHOTO[None], "boxes": np.array([[BOX]], "float32")},
    {"images": FLIPPED[None], "boxes": np.array([[BOX, [0, 0, 9, 9]]], "float32")},
]


@pytest.fixture(scope="module")
def of_batches(segmenter):
    x = {"images": [PHOTO, FLIPPED], "boxes": [[BOX], [BOX, [0, 0, 9, 9]]]}
    return segmenter.predict(x, verbose=0)


class InMemory(keras.utils.PyDataset):
    def __init__(self, batches, length="as long as it is"):
        super().__init__()
        self.batches = batches
        self.length = len(batches) if length == "as long as it is" else length

    @property
    def num_batches(self):
        return self.length

    def __getitem__(self, index):
        return self.batches[index % len(self.batches)]


def tf_dataset(batches):
    tf = pytest.importorskip("tensorflow")
    signature = {
        "images": tf.TensorSpec((None, None, None, 3), "uint8"),
        "boxes": tf.TensorSpec((None, None, 4), "float32"),
    }
    return tf.data.Dataset.from_generator(lambda: iter(batches), output_signature=signature)


def data_loader(batches):
    torch = pytest.importorskip("torch")
    return torch.utils.data.DataLoader(batches, batch_size=None)


@pytest.mark.parametrize(
    "make",
    [
        lambda batches: batches,  # a list of batches
        lambda batches: iter(batches),  # a generator
        lambda batches: [(batch,) for batch in batches],  # tuples of inputs alone
        lambda batches: [(batch, {"masks": None}) for batch in batches],  # with targets
        lambda batches: [[batch, None, 1.0] for batch in batches],  # and weights
        InMemory,
        lambda batches: InMemory([(batch, 0) for batch in batches]),
        tf_dataset,
        data_loader,
        lambda batches: map(dict, batches),  # any iterable
    ],
)
def test_data_sets_of_every_kind(segmenter, of_batches, make):
    assert_same_outputs(segmenter.predict(make(BATCHES), verbose=0), of_batches)


def test_a_pipeline_that_prepares_its_batches(segmenter, of_batches):
    prepared = tf_dataset(BATCHES).map(segmenter.preprocessor)
    assert_same_outputs(segmenter.predict(prepared, verbose=0), of_batches)


def test_a_pipeline_of_ragged_batches(segmenter):
    tf = pytest.importorskip("tensorflow")
    images = [PHOTO, OTHER]
    boxes = [[BOX], [BOX, [0, 0, 9, 9]]]
    dataset = tf.data.Dataset.from_generator(
        lambda: ({"images": i, "boxes": np.float32(b)} for i, b in zip(images, boxes)),
        output_signature={
            "images": tf.TensorSpec((None, None, 3), "uint8"),
            "boxes": tf.TensorSpec((None, 4), "float32"),
        },
    )
    expected = segmenter.predict({"images": images, "boxes": boxes}, verbose=0)
    for batch_size in (1, 2):
        outputs = segmenter.predict(dataset.ragged_batch(batch_size), verbose=0)
        assert_same_outputs(outputs, expected)
    whole = next(iter(dataset.ragged_batch(2)))  # ragged tensors in a dict
    assert_same_outputs(segmenter.predict(whole, verbose=0), expected)


def test_a_torch_loader_of_images_of_different_sizes(segmenter):
    torch = pytest.importorskip("torch")
    rows = [(PHOTO, [BOX]), (OTHER, [BOX, [0, 0, 9, 9]])]

    def collate(rows):
        images, boxes = zip(*rows)
        return {"images": list(images), "boxes": list(boxes)}

    loader = torch.utils.data.DataLoader(rows, batch_size=1, collate_fn=collate)
    expected = segmenter.predict(
        {"images": [PHOTO, OTHER], "boxes": [row[1] for row in rows]}, verbose=0
    )
    assert_same_outputs(segmenter.predict(loader, verbose=0), expected)


def test_images_without_objects_in_a_data_set(segmenter):
    nobody = {"images": PHOTO[None], "boxes": np.zeros((1, 0, 4), "float32")}
    outputs = segmenter.predict([BATCHES[0], nobody], verbose=0)
    assert outputs["num_prompts"].tolist() == [1, 0]
    assert np.isnan(outputs["iou_pred"][1]).all()
    assert_same(outputs["masks"][:1], segmenter.predict(BATCHES[0], verbose=0)["masks"])


def test_an_image_whose_prompts_are_all_padding(segmenter):
    x = {"images": [PHOTO, PHOTO], "points": np.full((2, 3, 1, 2), 20.0)}
    x["labels"] = np.array([[[1], [1], [-10]], [[-10]] * 3])
    together = segmenter.predict(x, batch_size=2, verbose=0)
    alone = segmenter.predict(x, batch_size=1, verbose=0)
    assert together["masks"].shape == alone["masks"].shape == (2, 3, K, *MASK)
    assert alone["num_prompts"].tolist() == [2, 0]
    assert np.isnan(alone["iou_pred"][1]).all() and np.isnan(alone["masks"][0, 2]).all()
    assert_same_outputs(alone, together)


def test_a_call_that_is_cut_short_has_the_prompt_sets_of_its_images(segmenter):
    x = {"images": [PHOTO, PHOTO], "boxes": [[BOX], [BOX, BOX, BOX]]}
    assert segmenter.predict(x, steps=1, verbose=0)["masks"].shape[:2] == (1, 1)


def test_a_batch_in_the_form_of_one_object_among_others(segmenter):
    click = {"images": PHOTO[None], **CLICK}
    outputs = segmenter.predict([click, BATCHES[1]], verbose=0)
    assert outputs["masks"].shape == (2, 2, K, *MASK)
    assert outputs["num_prompts"].tolist() == [1, 2]
    assert_same(outputs["masks"][0, 0], segmenter.predict(click, verbose=0)["masks"][0])


# --- verbose, steps, callbacks ---


class Recorder(keras.callbacks.Callback):
    def __init__(self, stop_after=None):
        super().__init__()
        self.events, self.outputs, self.stop_after = [], [], stop_after

    def on_predict_begin(self, logs=None):
        self.events.append("begin")

    def on_predict_batch_begin(self, batch, logs=None):
        self.events.append(f"batch {batch}")

    def on_predict_batch_end(self, batch, logs=None):
        self.events.append(f"end of {batch}")
        self.outputs.append(logs)
        if batch == self.stop_after:
            self.model.stop_predicting = True

    def on_predict_end(self, logs=None):
        self.events.append("end")


THREE = {"images": [PHOTO] * 3, "points": [[[30, 20]], [[5, 5]], [[7, 9]]], "labels": [[1]] * 3}


def test_callbacks_are_kerass_own(segmenter):
    recorder = Recorder()
    outputs = segmenter.predict(THREE, batch_size=2, callbacks=[recorder], verbose=0)
    assert recorder.events == ["begin", "batch 0", "end of 0", "batch 1", "end of 1", "end"]
    assert recorder.model is segmenter
    assert recorder.params["steps"] == 2
    joined = {k: np.concatenate([o[k] for o in recorder.outputs]) for k in recorder.outputs[0]}
    assert_same_outputs(outputs, joined)


def test_a_list_of_callbacks_that_exists_already(segmenter):
    recorder = Recorder()
    ready = keras.callbacks.CallbackList([recorder], model=segmenter, steps=3)
    segmenter.predict(THREE, callbacks=ready, verbose=0)
    assert recorder.events[-1] == "end" and len(recorder.outputs) == 3


def test_a_callback_may_stop(segmenter):
    recorder = Recorder(stop_after=1)
    outputs = segmenter.predict(THREE, callbacks=[recorder], verbose=0)
    assert outputs["masks"].shape == (2, K, *MASK)
    assert recorder.events[-1] == "end"
    assert len(segmenter.predict(THREE, verbose=0)["masks"]) == 3  # only that time


@pytest.mark.parametrize("verbose, shown", [(0, False), (1, True), (2, True), ("auto", True)])
def test_verbose(segmenter, capsys, verbose, shown):
    segmenter.predict(THREE, verbose=verbose)
    printed = capsys.readouterr().out
    assert ("3/3" in printed) == shown
    assert shown or printed == ""


def test_steps_take_no_more_than_they_need(segmenter):
    taken = []

    def endless():
        while True:
            taken.append(len(taken))
            yield BATCHES[0]

    outputs = segmenter.predict(endless(), steps=2, verbose=0)
    assert len(outputs["masks"]) == 2
    assert taken == [0, 1]
    assert len(segmenter.predict(THREE, steps=1, verbose=0)["masks"]) == 1
    assert len(segmenter.predict(THREE, steps=99, verbose=0)["masks"]) == 3
    assert len(segmenter.predict(InMemory(BATCHES, None), steps=3, verbose=0)["masks"]) == 3
    repeated = tf_dataset(BATCHES).repeat()
    assert len(segmenter.predict(repeated, steps=3, verbose=0)["masks"]) == 3


# --- encode and decode ---


def test_sizes_are_those_of_the_outputs(segmenter):
    assert segmenter.image_shape == (*FRAME, 3)
    assert segmenter.embedding_size == (7, 9)
    assert segmenter.mask_size == MASK
    embeddings = encode(segmenter, [PHOTO, OTHER])
    assert embeddings.shape == (2, *segmenter.embedding_size, 16)
    assert embeddings.dtype == np.float32
    assert predict(segmenter, **CLICK)["masks"].shape[2:] == segmenter.mask_size


def test_decoding_what_was_encoded_is_predicting(segmenter):
    images = RAGGED_IMAGES
    sizes = [image.shape[:2] for image in images]
    expected = segmenter.predict({"images": images, **RAGGED}, verbose=0)
    encoded = segmenter.encode(images, batch_size=2)
    assert set(encoded) == {"image_embeddings", "original_sizes", "scaled_sizes"}
    assert encoded["original_sizes"].tolist() == [list(size) for size in sizes]
    assert_same_outputs(segmenter.decode(encoded, RAGGED), expected)
    embeddings = encoded["image_embeddings"]
    for original_sizes in (sizes, np.array(sizes), [keras_sam.ResizePlan(s, FRAME) for s in sizes]):
        outputs = segmenter.decode(embeddings, RAGGED, original_sizes=original_sizes)
        assert_same_outputs(outputs, expected)
    for make in (in_torch, in_jax, in_tensorflow, keras.ops.convert_to_tensor):
        outputs = segmenter.decode(make(embeddings), RAGGED, original_sizes=sizes)
        assert_same_outputs(outputs, expected)


def test_embeddings_without_sizes_are_refused(segmenter):
    embeddings = encode(segmenter, [PHOTO])
    for bare in (embeddings, {"image_embeddings": embeddings}):
        with pytest.raises(ValueError, match="`original_sizes` must be given.*`encode_frames`"):
            segmenter.decode(bare, CLICK)


def test_prompts_for_encoded_frames_are_in_the_model_frame(segmenter):
    frames = segmenter.prepare({"images": [PHOTO], **CLICK})["images"]
    plan = keras_sam.ResizePlan(WIDE, FRAME)
    in_frame = {**CLICK, "points": plan.to_model(CLICK["points"])}
    decoded, expected = (
        segmenter.decode(segmenter.encode_frames(frames), in_frame),
        predict(segmenter, **CLICK),
    )
    for name in ("masks", "iou_pred"):
        assert_same(decoded[name], expected[name])


@pytest.mark.parametrize(
    "settings",
    [
        {"size": FRAME},
        {"size": (60, 80), "pad_size": FRAME},  # smaller than the frame
        {"do_resize": False, "size": FRAME, "pad_size": FRAME},  # padded alone
    ],
)
@pytest.mark.parametrize("size", [(53, 80), (80, 53), (3, 100), (1, 50), (90, 144)])
def test_the_sizes_of_an_encoded_image_say_how_it_was_scaled(segmenter, settings, size):
    """Another segmenter, without that preprocessor, decodes and restores all the same."""
    converter = keras_sam.SAMImageConverter(pad_value=0, **settings)
    preprocessor = keras_sam.SAMImageSegmenterPreprocessor(converter, mask_size=MASK)
    scaling = keras_sam.SAMImageSegmenter(segmenter.backbone, preprocessor)
    image, box = photograph(size), [[[5.0, 0.0, 30.0, float(size[0])]]]
    expected = scaling.predict({"images": [image], "boxes": box}, verbose=0)
    outputs = segmenter.decode(scaling.encode([image]), {"boxes": box})
    assert_same_outputs(outputs, expected)
    plan = converter.plan(size)
    np.testing.assert_array_equal(
        keras_sam.restore_masks(outputs)[0], plan.masks_to_original(outputs["masks"][0], 0.0)
    )


def test_frames_are_encoded_as_they_are(segmenter):
    prepared = segmenter.prepare({"images": [PHOTO, OTHER], "boxes": [[BOX], [BOX]]})["images"]
    expected = encode(segmenter, [PHOTO, OTHER])
    for frames in (prepared, keras.ops.convert_to_tensor(prepared)):
        encoded = segmenter.encode_frames(frames, 2)
        assert_same(encoded["image_embeddings"], expected)
        assert encoded["original_sizes"].tolist() == [[*FRAME]] * 2


def test_hidden_states_and_attention_maps(segmenter):
    images = [PHOTO, OTHER]
    expected = encode(segmenter, images)
    inside = segmenter.encode(images, return_hidden_states=True, return_attentions=True)
    sizes = {"original_sizes", "scaled_sizes"}
    assert set(inside) == {"image_embeddings", "hidden_states", "attentions", *sizes}
    assert_same(inside["image_embeddings"], expected)
    assert [s.shape for s in inside["hidden_states"]] == [(2, 7, 9, 24)] * 4  # patches, 3 blocks
    assert [a.shape for a in inside["attentions"]] == [
        (2 * 2 * 3, 3, 16, 16),  # 7 x 9 patches are 2 x 3 windows of 4 x 4
        (2, 3, 63, 63),  # the global block
        (2 * 2 * 3, 3, 16, 16),
    ]
    for attention in inside["attentions"]:
        assert attention.dtype == np.float32
        np.testing.assert_allclose(attention.sum(axis=-1), 1, atol=1e-5)
    only_states = segmenter.encode(images, return_hidden_states=True)
    assert set(only_states) == {"image_embeddings", "hidden_states", *sizes}
    for one, other in zip(only_states["hidden_states"], inside["hidden_states"]):
        assert_same(one, other)


def test_attention_maps_and_hooks_of_the_decoder(segmenter):
    embeddings = segmenter.encode([PHOTO])
    prompts = {**TWO_CLICKS, "masks": [[LOGITS[0, 0], None]]}
    plain = segmenter.decode(embeddings, prompts, original_sizes=[WIDE])
    inside = segmenter.decode(embeddings, prompts, original_sizes=[WIDE], return_attentions=True)
    attentions = inside.pop("attentions")
    assert_same_outputs(inside, plain)
    tokens = 1 + K + 2  # quality, masks, the click and its not-a-point
    maps = [block["token_to_image"] for block in attentions if "token_to_image" in block]
    assert maps and all(m.shape == (1, 2, 2, tokens, 63) for m in maps)
    rng = np.random.default_rng(0)
    nothing = {
        "attention_similarity": np.zeros((1, 2, 1, 1, 63), "float32"),
        "target_embedding": np.zeros((1, 1, 1, 16), "float32"),
    }
    something = {
        "attention_similarity": rng.normal(0, 3, (1, 2, 1, 1, 63)).astype("float32"),
        "target_embedding": rng.normal(0, 1, (1, 1, 1, 16)).astype("float32"),
    }

    def hooked(**hooks):
        return segmenter.decode(embeddings, prompts, original_sizes=[WIDE], **nothing | hooks)

    assert_same_outputs(hooked(), plain)
    for name, value in something.items():
        assert_different(hooked(**{name: value})["masks"], plain["masks"], 1e-3)


# --- back to the original images ---


def test_masks_go_back_to_the_images(segmenter):
    x = {"images": [PHOTO, OTHER], "boxes": [[BOX], [BOX, [0, 0, 9, 9]]]}
    outputs = segmenter.predict(x, verbose=0)
    sizes = segmenter.prepare(x)["original_sizes"]
    with warnings.catch_warnings():
        warnings.simplefilter(
            "error", RuntimeWarning
        )  # the NaN of the object that is missing is no trouble
        masks = keras_sam.restore_masks(outputs["masks"], sizes, segmenter.image_shape[:2])
        of_outputs = keras_sam.restore_masks(outputs)
    for one, other, count in zip(of_outputs, masks, (1, 2), strict=True):
        np.testing.assert_array_equal(one, other[:count])  # the rest is padding
    best = keras_sam.restore_masks(keras_sam.select_masks(outputs, False))
    assert [m.shape for m in best] == [(1, 1, *WIDE), (2, 1, *TALL)]
    best = keras_sam.restore_masks(keras_sam.best_mask(outputs))
    assert [m.shape[0] for m in best] == [1, 2]
    assert [m.shape for m in masks] == [(2, K, *WIDE), (2, K, *TALL)]
    assert not masks[0][1].any()
    predictor = keras_sam.SAMPredictor(segmenter)
    for image, boxes, restored in zip(x["images"], x["boxes"], masks):
        predictor.set_image(image)
        expected, _, _ = predictor.predict(boxes=boxes, multimask_output=True)
        np.testing.assert_array_equal(restored[: len(boxes), 1:], expected)


# --- nothing is changed, nothing is remembered ---


def test_the_callers_dict_and_arrays_stay_as_they_are(segmenter, without_preprocessor):
    x = {
        "images": [PHOTO.astype("float32"), OTHER.copy()],
        "points": np.float64([[[30, 20], [5, 5]]] * 2),
        "labels": np.int64([[1, -10], [0, 1]]),
        "boxes": [[CORNERS], None],
        "masks": [None, [logits(*TALL, 1)]],
    }
    before = copy.deepcopy(x)
    segmenter.predict(x, batch_size=2, verbose=0)
    segmenter.predict([x], verbose=0)
    segmenter.prepare(x)
    segmenter.encode(x["images"])
    prompts = {name: value for name, value in x.items() if name != "images"}
    segmenter.decode(np.zeros((2, 7, 9, 16)), prompts, original_sizes=[WIDE, TALL])
    frames = np.stack([IN_FRAME.astype("float32")] * 2)
    in_frame = {"images": frames, "points": x["points"], "labels": x["labels"]}
    frames_before = frames.copy()
    without_preprocessor.predict(in_frame, verbose=0)
    without_preprocessor.encode_frames(frames)
    np.testing.assert_array_equal(frames, frames_before)
    assert list(x) == list(before)
    for name in x:
        kept, was = keras.tree.flatten(x[name]), keras.tree.flatten(before[name])
        assert len(kept) == len(was)
        for one, other in zip(kept, was):
            assert type(one) is type(other)
            np.testing.assert_array_equal(one, other)


def test_outputs_can_be_written_to_and_belong_to_the_caller(segmenter):
    first = predict(segmenter, **CLICK)
    kept = {name: value.copy() for name, value in first.items()}
    for value in first.values():
        value[...] = 0
    assert_same_outputs(predict(segmenter, **CLICK), kept)
    embeddings = encode(segmenter, [PHOTO])
    kept = embeddings.copy()
    embeddings[...] = 0
    assert_same(encode(segmenter, [PHOTO]), kept)


def test_interleaved_images_give_what_each_gives_alone(segmenter):
    alone = [segmenter.predict({"images": [i], **CLICK}, verbose=0) for i in (PHOTO, OTHER)]
    for _ in range(2):
        for image, expected in zip((PHOTO, OTHER), alone):
            outputs = segmenter.predict({"images": [image], **CLICK}, verbose=0)
            np.testing.assert_array_equal(outputs["masks"], expected["masks"])


def test_paths_may_be_anything_with_a_path(segmenter, tmp_path):
    path = saved(PHOTO, tmp_path)
    assert isinstance(path, pathlib.Path)
    assert_same_outputs(
        segmenter.predict({"images": [path], **CLICK}, verbose=0), predict(segmenter, **CLICK)
    )


def test_other_numbers_of_channels():
    segmenter = tiny_segmenter(image_shape=(32, 48, 5), num_layers=2)
    image = photograph((20, 30), channels=5)
    x = {"images": image[None], "boxes": [[[3, 3, 20, 15]]]}
    outputs = segmenter.predict(x, verbose=0)
    assert outputs["masks"].shape == (1, 1, K, 8, 12)
    swapped = segmenter.predict({**x, "images": image[None, ..., ::-1]}, verbose=0)
    assert_different(swapped["masks"], outputs["masks"], 1e-3)
