"""What `SAMImageSegmenter` refuses: one clear error each, before anything is computed."""

import copy
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

import keras_sam
from tests.tiny import photograph, tiny_backbone

pytestmark = pytest.mark.once

SIZE = (53, 80)
PHOTO = photograph(SIZE)
NAN_PHOTO = PHOTO.astype("float32")
NAN_PHOTO[3, 4, 0] = np.nan
INF_PHOTO = np.where(np.isnan(NAN_PHOTO), np.inf, NAN_PHOTO)
MASK = (28, 36)

GOOD = {"images": [PHOTO, PHOTO], "points": [[[30, 20]], [[5, 5]]], "labels": [[1], [1]]}
IMAGES = {"images": [PHOTO, PHOTO]}
BOX = [10, 5, 60, 40]


@pytest.fixture(scope="module")
def without_preprocessor(segmenter):
    return keras_sam.SAMImageSegmenter(segmenter.backbone)


@pytest.fixture
def no_encoder(segmenter, monkeypatch):
    """Fails the test if an image is encoded."""

    def encode(images):
        pytest.fail("an image was encoded before the error")

    monkeypatch.setattr(segmenter._programs, "encode", encode)


def unchanged(kept, before):
    kept, before = keras.tree.flatten(kept), keras.tree.flatten(before)
    assert len(kept) == len(before)
    for one, other in zip(kept, before):
        assert type(one) is type(other)
        if isinstance(one, np.ndarray):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
        else:
            assert one == other or one is other  # NaN equals nothing


IN_THE_PROMPTS = [
    # --- nothing to go by ---
    ({}, "At least one prompt is needed: `points` with `labels`, `boxes` or `masks`"),
    ({"points": None, "labels": None}, "At least one prompt is needed"),  # nothing but Nones
    ({"points": np.zeros((2, 0, 2)), "labels": np.zeros((2, 0))}, "At least one prompt is needed"),
    ({"masks": [[], []]}, "At least one prompt is needed.*SAMAutomaticMaskGen"),
    ({"points": [[[1, 1]], None], "labels": [[1], None]}, "At least one prompt.*image 1"),
    ({"points": [[[1, 1]]] * 2, "labels": [[1], [-10]]}, "At least one prompt.*image 1"),  # padding
    ({"boxes": [[BOX, None, BOX], [BOX]]}, "At least one prompt.*object 1 of image 0"),  # a hole
    # --- halves ---
    ({"labels": GOOD["labels"]}, "`labels` must come with `points`.*without `points`"),
    # --- labels ---
    ({**GOOD, "labels": [[1], [7]]}, r"`labels` must be one of \(-10, -1, 0, 1, 2, 3\).*eived: 7"),
    ({**GOOD, "labels": [[1], [0.5]]}, "`labels` must be one of.*Received: 0.5"),
    ({**GOOD, "labels": [[1], [np.nan]]}, "`labels` must be one of.*Received: nan"),
    ({**GOOD, "labels": [[1, 1], [1, 1]]}, r"`labels` must have shape.*\(2, 2\) with points of"),
    ({**GOOD, "labels": [1, 1, 1]}, "`labels` must have one entry per image, 2.*3 entries"),
    ({**GOOD, "labels": 1}, r"`labels` must have shape.*Received: shape=\(\)"),
    ({**GOOD, "labels": [["fg"], ["bg"]]}, "`labels` must hold numbers.*'fg'"),
    # --- points ---
    ({**GOOD, "points": [30, 20]}, r"`points` must have shape.*shape=\(2,\)"),
    ({**GOOD, "points": np.ones((2, 1, 3))}, r"`points` must have shape.*shape=\(2, 1, 3\)"),
    ({**GOOD, "points": [[[30, np.nan]], [[5, 5]]]}, "`points` must be finite.*Received: nan"),
    ({**GOOD, "points": [[[30, 20]], [[-np.inf, 5]]]}, "`points` must be finite.*Received: -inf"),
    ({**GOOD, "points": [[["30", 20]], [[5, 5]]]}, "`points` must hold numbers.*'30'"),
    ({**GOOD, "points": "30,20"}, "`points` must hold numbers.*str '30,20'"),
    ({**GOOD, "points": 5}, r"`points` must have shape.*Received: shape=\(\)"),
    ({**GOOD, "points": [[[30, 20]]] * 3}, "`points` must have one entry per image, 2.*3 entries"),
    # --- boxes ---
    ({"boxes": BOX[:2]}, r"`boxes` must have shape \(B, P, 4\).*Received: shape=\(2,\)"),
    ({"boxes": [[[1, 2, 3]]] * 2}, r"`boxes` must have shape.*shape=\(2, 1, 3\)"),
    ({"boxes": [[[60, 5, 10, 40]], [BOX]]}, r"`boxes` must have x1 <= x2.*\[60.0, 5.0, 10.0, 40"),
    ({"boxes": [[[10, 40, 60, 5]], [BOX]]}, "`boxes` must have x1 <= x2 and y1 <= y2.*Swap"),
    ({"boxes": [[[1, 2, np.nan, 4]], [BOX]]}, "`boxes` must be finite.*Received: nan"),
    ({"boxes": [[[1, 2, np.inf, 4]], [BOX]]}, "`boxes` must be finite.*Received: inf"),
    ({"boxes": [[BOX]]}, "`boxes` must have one entry per image, 2.*1 entries"),
    ({"boxes": [[BOX], "all"]}, "`boxes` must hold numbers.*'all'"),
    # --- masks ---
    (
        {"masks": np.repeat(np.arange(56, dtype="uint8") // 14, 36).reshape(2, 1, *MASK, 1) + 1},
        "`masks` must hold one object each",
    ),
    ({"masks": np.full((2, 1, *MASK, 1), np.nan)}, "`masks` must be finite.*Received: nan"),
    ({"masks": np.zeros((2, *MASK))}, r"`masks` must have shape.*shape=\(2, 28, 36\)"),
    ({"masks": np.zeros((1, 1, *MASK, 1))}, "`masks` must have one entry per image, 2.*1 entries"),
    # --- how many objects ---
    (
        {**GOOD, "boxes": [[BOX, BOX]] * 2},
        "same number of objects.*'points': 1, 'boxes': 2.*image 0",
    ),
    (
        {"boxes": [[BOX], [BOX]], "masks": [None, np.zeros((2, *MASK, 1))]},
        "same number of objects.*'boxes': 1, 'masks': 2.*image 1",
    ),
]


@pytest.mark.parametrize("prompts, message", IN_THE_PROMPTS)
@pytest.mark.usefixtures("no_encoder")
def test_bad_prompts(segmenter, prompts, message):
    x = {**IMAGES, **prompts}
    before = copy.deepcopy(x)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        segmenter.predict(x, verbose=0)
    unchanged(x, before)


@pytest.mark.parametrize("prompts, message", IN_THE_PROMPTS)
def test_bad_prompts_of_decode(segmenter, prompts, message):
    prompts = {name: value for name, value in prompts.items() if name != "images"}
    before = copy.deepcopy(prompts)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        segmenter.decode(np.zeros((2, 7, 9, 16)), prompts, original_sizes=[SIZE, SIZE])
    unchanged(prompts, before)


@pytest.mark.parametrize(
    "mask, message",
    [
        (
            np.zeros((1, 1, 9, 9, 1)),
            r"`masks` must have the size.*\(28, 36\).*\(53, 80\).*\(9, 9\)",
        ),
        (np.zeros((1, 1, 36, 28, 1)), r"`masks` must have the size.*Received: \(36, 28\)"),
        (np.zeros((1, 1, 80, 53, 1)), r"`masks` must have the size.*Received: \(80, 53\)"),
        (np.zeros((1, 1, 112, 144, 1)), r"`masks` must have the size.*Received: \(112, 144\)"),
    ],
)
def test_masks_of_no_known_size(segmenter, mask, message):
    with pytest.raises(ValueError, match=message):
        segmenter.predict({"images": [PHOTO], "masks": mask}, verbose=0)


@pytest.mark.parametrize(
    "images, message",
    [
        ([NAN_PHOTO, PHOTO], "An image must be finite.*1 values that are NaN or infinite"),
        ([INF_PHOTO, PHOTO], "An image must be finite"),
        ([np.zeros((0, 5, 3), "uint8"), PHOTO], r"at least one pixel.*shape=\(0, 5, 3\)"),
        (np.zeros((2, 0, 0, 3), "uint8"), "at least one pixel"),
        ([Image.new("RGB", (0, 3)), PHOTO], "at least one pixel"),
        ([PHOTO[..., :2], PHOTO], r"An image must have 3 channels.*shape=\(53, 80, 2\)"),
        ([np.zeros((53, 80, 5), "uint8"), PHOTO], "An image must have 3 channels"),
        ([PHOTO.transpose(2, 0, 1), PHOTO], "An image must have 3 channels.*channels_first"),
        (
            [PHOTO[None], PHOTO[None]],
            r"must have shape.*\(1, 53, 80, 3\). This is a batch",
        ),
        ([PHOTO > 99, PHOTO], "An image must be uint8.*dtype=bool"),
        ([PHOTO.astype("int32") * 9, PHOTO], "must have values within 0..255"),
        ([PHOTO.astype("complex64"), PHOTO], "An image must hold numbers.*complex64"),
        ([np.zeros((1, 4000, 3), "uint8"), PHOTO], "too long and thin.*Crop the image or pad"),
        ([None, PHOTO], "Received: None, which is what `cv2.imread` returns"),
        ([str(Path(__file__).parent), PHOTO], "must be one file. Received: the folder"),
        ([{"a": 1}, PHOTO], "image"),
        ([], "`images` must hold at least one image. Received: an empty batch"),
        (np.zeros((0, 53, 80, 3), "uint8"), "`images` must hold at least one image"),
        (None, "`images` must hold at least one image. Received: None"),
        (5, "`images` must be a batch.*Received: int"),
        ([PHOTO], "must have one entry per image, 1.*2 entries"),  # fewer images than prompts
        (np.zeros((3, 53, 80, 3), "uint8"), "must have one entry per image, 3.*2 entries"),
    ],
)
def test_bad_images(segmenter, images, message):
    x = {**GOOD, "images": images}
    before = copy.deepcopy(x)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        segmenter.predict(x, verbose=0)
    unchanged(x, before)


@pytest.mark.parametrize("images", [[NAN_PHOTO], [PHOTO[..., :2]], NAN_PHOTO, [], None, 5])
def test_bad_images_of_encode(segmenter, without_preprocessor, images):
    for model in (segmenter, without_preprocessor):
        with pytest.raises(ValueError, match="image.*Received"):
            model.encode(images)


def test_files_that_do_not_exist(segmenter, tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no image file at"):
        segmenter.predict({**GOOD, "images": [tmp_path / "nothing.png"] * 2}, verbose=0)
    with pytest.raises(FileNotFoundError, match="Relative paths start at .*"):
        segmenter.predict({**GOOD, "images": ["nothing.png"] * 2}, verbose=0)


@pytest.mark.parametrize(
    "x, message",
    [
        ({"points": [[[1, 1]]], "labels": [[1]]}, "must have the key 'images'.*'labels', 'points'"),
        ({}, "must have the key 'images'"),
        (
            {"image_embeddings": np.zeros((2, 7, 9, 16)), "boxes": [[BOX], [BOX]]},
            "must have the key 'images'.*'boxes', 'image_embeddings'",
        ),
        ({**GOOD, "box": [[BOX], [BOX]]}, "no keys but.*Received also: .'box'.*'box' is 'boxes'"),
        ({**GOOD, "box": BOX}, "no keys but.*Received also: .'box'.*'box' is 'boxes'"),
        ({**IMAGES, "input_points": GOOD["points"], "labels": [[1], [1]]}, "'points'"),
        ({**IMAGES, "point_coords": [[1, 1]]}, "'point_coords' is 'points'"),
        ({**GOOD, "boxs": BOX}, "'boxs' is 'boxes'"),  # a typo
        ({**GOOD, "extra": 3}, r"Received also: \['extra'\]\.$"),
        ([{**GOOD, "box": BOX}], "'box' is 'boxes'"),  # a data set
        (None, "`x` must be a dict.*Received: NoneType"),
        (7, "`x` must be a dict.*Received: int"),
        (
            "photo.png",
            "`x` must be a dict.*Received: str 'photo.png'. Pass images with their prompts",
        ),
        (PHOTO[None], r"`x` must be a dict.*ndarray of shape \(1, 53, 80, 3\). Pass images with"),
        (Image.fromarray(PHOTO), "`x` must be a dict.*Received: Image. Pass images with"),
        (["a.jpg", "b.jpg"], "`x` must be a dict.*list of images, 2 in all.*SAMPredictor"),
        ([PHOTO, PHOTO], '`x` must be a dict.*list of images.*{"images": .*"points": '),  # no dict
        (iter([PHOTO]), "A data set must give dicts.*ndarray of shape.*Pass images with"),
        ({"image": PHOTO, "points": [5, 5]}, "the key 'images'.*Here 'image' is 'images'"),
        ({"Images": PHOTO, "points": [5, 5]}, "the key 'images'.*Here 'Images' is 'images'"),
        ({"input_images": PHOTO}, "the key 'images'.*Here 'input_images' is 'images'"),
        ([], "`x` must hold at least one batch. Received: list"),
        (iter([]), "`x` must hold at least one batch.*has to be made again"),
        ([({"points": 1},)], "must have the key 'images'"),
        ([(PHOTO, 1)], "A data set must give dicts.*Pass images with their prompts"),
        ([GOOD, 5], "A data set must give dicts.*Received: int"),  # not the first
        ([IMAGES], "At least one prompt is needed"),
        (
            {**IMAGES, "mask_given": np.zeros((2, 0), bool)},
            "must have all of.*Received none of: .'points', 'labels', 'masks'",
        ),
    ],
)
def test_what_is_no_batch(segmenter, x, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        segmenter.predict(x, verbose=0)


def test_what_prepare_refuses(segmenter):
    x = {"image_embeddings": np.zeros((2, 7, 9, 16)), "boxes": [[BOX], [BOX]]}
    with pytest.raises(ValueError, match="must have the key 'images'"):
        segmenter.prepare(x)


@pytest.mark.parametrize("images", [None, []])
def test_canonical_prompts_without_images(segmenter, images):
    x = {**segmenter.prepare(GOOD), "images": images}
    with pytest.raises(ValueError, match="`images` must hold at least one image"):
        segmenter.predict(x, verbose=0)


@pytest.mark.usefixtures("no_encoder")
def test_the_prompts_of_a_whole_dict_are_read_before_the_first_image_is(segmenter):
    images = ["this file does not exist.png"] * 9
    boxes = [[BOX]] * 8 + [[[60, 5, 10, 40]]]
    with pytest.raises(ValueError, match="x1 <= x2"):
        segmenter.predict({"images": images, "boxes": boxes}, verbose=0)


class Endless(keras.utils.PyDataset):
    num_batches = None

    def __getitem__(self, index):
        return GOOD


def test_endless_data_sets_need_steps(segmenter):
    tf = pytest.importorskip("tensorflow")
    pipeline = tf.data.Dataset.from_tensors({"images": PHOTO[None]}).repeat()
    for endless in (Endless(), pipeline):
        with pytest.raises(ValueError, match="`x` never ends: pass `steps`"):
            segmenter.predict(endless, verbose=0)


@pytest.mark.parametrize("value", [0, -1, 1.5, "all"])
@pytest.mark.parametrize("name", ["batch_size", "prompt_chunk", "steps"])
@pytest.mark.usefixtures("no_encoder")
def test_numbers_that_must_be_positive(segmenter, name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be an integer of at least 1.*{value}"):
        segmenter.predict(GOOD, verbose=0, **{name: value})
    if name == "batch_size":
        with pytest.raises(ValueError, match="`batch_size` must be"):
            segmenter.encode([PHOTO], batch_size=value)
        with pytest.raises(ValueError, match="`batch_size` must be"):
            segmenter.encode_frames(np.zeros((1, 112, 144, 3)), batch_size=value)
    if name == "prompt_chunk":
        with pytest.raises(ValueError, match="`prompt_chunk` must be"):
            segmenter.decode(np.zeros((1, 7, 9, 16)), {"boxes": [[BOX]]}, prompt_chunk=value)


# --- in the model's own frame ---


@pytest.mark.parametrize(
    "images, message",
    [
        ([PHOTO], r"`images` must be 112 pixels high and 144 wide.*shape=\(53, 80, 3\).*preproc"),
        (np.zeros((1, 144, 112, 3)), r"`images` must be 112 pixels high.*\(144, 112, 3\)"),
        (np.zeros((1, 112, 144, 2)), "An image must have 3 channels"),
        (np.full((1, 112, 144, 3), np.nan), "An image must be finite"),
        ([], "`images` must hold at least one image"),
        (None, "`images` must hold at least one image"),
    ],
)
def test_bad_images_without_a_preprocessor(without_preprocessor, images, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        without_preprocessor.predict({"images": images, "boxes": [[BOX]]}, verbose=0)


@pytest.mark.parametrize("prompts, message", IN_THE_PROMPTS)
def test_bad_prompts_without_a_preprocessor(without_preprocessor, prompts, message):
    frames = np.zeros((2, 112, 144, 3), "uint8")
    with pytest.raises(ValueError, match=f"(?s){message}"):
        without_preprocessor.predict({**prompts, "images": frames}, verbose=0)


def test_a_key_that_means_nothing_without_a_preprocessor(without_preprocessor):
    x = {"images": np.zeros((1, 112, 144, 3)), "boxes": [[BOX]], "point": [[[3, 3]]]}
    with pytest.raises(ValueError, match="must have no keys but.*'point'"):
        without_preprocessor.predict(x, verbose=0)


@pytest.mark.every_backend
@pytest.mark.parametrize(
    "prompts, message",
    [
        ({}, "No prompt was given"),
        ({"points": np.ones((1, 1, 2)), "box": np.ones((1, 4))}, "Here 'box' is 'boxes'"),
        ({"input_boxes": np.ones((1, 1, 4))}, "Here 'input_boxes' is 'boxes'"),
        ({"labels": np.ones((1, 1))}, "`labels` came without `points`"),
        ({"points": np.ones((1, 2)), "labels": np.ones((1,))}, r"`points` must have shape"),
        ({"points": np.ones((1, 1, 2)), "labels": np.ones((1, 1, 1))}, "`labels` must have shape"),
        ({"boxes": np.ones((1, 4))}, "`boxes` must have shape"),
        ({"boxes": np.ones((1, 1, 3))}, r"`boxes` must have shape.*\(1, 1, 3\)"),
        ({"masks": np.ones((1, 1, 9, 9, 1))}, r"`masks` must be logits of shape \(B, P, 28, 36, 1"),
        ({"masks": np.ones((1, 28, 36, 1))}, "`masks` must have shape"),
        (
            {"boxes": np.ones((1, 2, 4)), "masks": np.ones((1, 3, 28, 36, 1))},
            r"must agree on the number of prompt sets.*\[2, 3\]",
        ),
    ],
)
def test_bad_tensors_in_a_direct_call(without_preprocessor, prompts, message):
    x = {"images": np.zeros((1, 112, 144, 3)), **prompts}
    tensors = {k: keras.ops.convert_to_tensor(v.astype("float32")) for k, v in x.items()}
    with pytest.raises(ValueError, match=f"(?s){message}"):
        without_preprocessor(tensors)


# --- encode_frames and decode ---


@pytest.mark.parametrize(
    "frames",
    [np.zeros((1, 53, 80, 3)), np.zeros((112, 144, 3)), np.zeros((0, 112, 144, 3)), np.zeros(3)],
)
def test_frames_of_another_shape(segmenter, frames):
    with pytest.raises(ValueError, match=r"`frames` must have shape \(B, 112, 144, 3\).*Received"):
        segmenter.encode_frames(frames)
    with pytest.raises(ValueError, match=r"`images` must have shape \(B, 112, 144, 3\).*Received"):
        canonical = {"points": np.zeros((1, 1, 1, 2)), "labels": np.zeros((1, 1, 1))}
        canonical |= {"masks": np.zeros((1, 0, 28, 36, 1)), "mask_given": np.zeros((1, 0))}
        segmenter.prepare({**canonical, "images": frames})


@pytest.mark.parametrize(
    "embeddings",
    [
        np.zeros((1, 9, 7, 16)),
        np.zeros((7, 9, 16)),
        np.zeros((0, 7, 9, 16)),
        np.zeros((1, 7, 9, 8)),
    ],
)
def test_embeddings_of_another_shape(segmenter, embeddings):
    with pytest.raises(ValueError, match=r"`image_embeddings` must have shape \(B, 7, 9, 16\)"):
        segmenter.decode(embeddings, {"boxes": [[BOX]]})


@pytest.mark.parametrize(
    "sizes",
    [
        [SIZE],  # one for two images
        SIZE,  # a size alone
        [SIZE, SIZE, SIZE],
        [(53, 80, 3)] * 2,  # shapes
        [(53.0, 80.5)] * 2,  # fractions of a pixel
        "original",
        5,
    ],
)
def test_original_sizes_that_do_not_fit(segmenter, sizes):
    with pytest.raises(ValueError, match=r"`original_sizes` must have one \(height, width\)"):
        segmenter.decode(np.zeros((2, 7, 9, 16)), {"boxes": [[BOX]] * 2}, original_sizes=sizes)


def test_prompts_must_be_a_dict(segmenter):
    with pytest.raises(ValueError, match="`prompts` must be a dict"):
        segmenter.decode(np.zeros((1, 7, 9, 16)), [[BOX]])


# --- a preprocessor that does not fit ---


def test_a_preprocessor_of_another_frame():
    backbone = tiny_backbone(image_shape=(32, 48, 3), num_layers=1)
    fitting = keras_sam.SAMImageSegmenterPreprocessor.for_backbone(backbone)
    keras_sam.SAMImageSegmenter(backbone, fitting)
    for converter, mask_size in (
        (keras_sam.SAMImageConverter(size=1024), (8, 12)),  # the default frame
        (keras_sam.SAMImageConverter(size=(48, 32)), (8, 12)),  # transposed
        (fitting.image_converter, (12, 8)),  # its masks are
        (
            keras_sam.SAMImageConverter(size=(32, 48), num_channels=1, image_mean=0, image_std=1),
            (8, 12),
        ),
    ):
        wrong = keras_sam.SAMImageSegmenterPreprocessor(converter, mask_size=mask_size)
        with pytest.raises(ValueError, match=r"`preprocessor` must make images \(32, 48, 3\)"):
            keras_sam.SAMImageSegmenter(backbone, wrong)
        with pytest.raises(ValueError, match="`preprocessor` must make images"):
            keras_sam.SAMPredictor(keras_sam.SAMImageSegmenter(backbone), wrong)


# --- after an error ---


@pytest.mark.every_backend
def test_after_an_error_everything_goes_on_as_before(segmenter):
    expected = segmenter.predict(GOOD, verbose=0)

    class Impatient(keras.callbacks.Callback):
        def on_predict_batch_end(self, batch, logs=None):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        segmenter.predict(GOOD, callbacks=[Impatient()], verbose=0)
    with pytest.raises(ValueError, match="A data set must give dicts"):
        segmenter.predict([GOOD, 5], verbose=0)
    outputs = segmenter.predict(GOOD, verbose=0)
    np.testing.assert_array_equal(outputs["masks"], expected["masks"])


# --- what has another type ---


@pytest.mark.parametrize("wrong", ["sam_base_sa1b", None, 5])
def test_what_is_no_backbone(segmenter, wrong):
    with pytest.raises(ValueError, match=r"`backbone` must be a `SAMBackbone`.*from_preset\(name"):
        keras_sam.SAMImageSegmenter(wrong)
    with pytest.raises(ValueError, match="`backbone` must be a `SAMBackbone`"):
        keras_sam.SAMImageSegmenter(segmenter.image_encoder)


def test_what_is_no_segmenter_to_train(tmp_path):
    source = [(PHOTO, np.ones((1, *SIZE), "uint8"))]
    for make in (
        keras_sam.training.SAMTrainer,
        lambda segmenter: keras_sam.training.CachedEmbeddings(segmenter, source, tmp_path),
    ):
        with pytest.raises(ValueError, match="`segmenter` must be a `SAMImageSegmenter`.*'sam_b"):
            make("sam_base_sa1b")


@pytest.mark.parametrize("image_shape", [512, "512", (512,), (512, 512, 3, 1)])
def test_image_shapes_that_are_none(segmenter, tmp_path, image_shape):
    segmenter.save_to_preset(tmp_path)
    makers = [
        segmenter.at_image_shape,
        lambda shape: keras_sam.SAMImageSegmenter.from_preset(tmp_path, image_shape=shape),
        lambda shape: keras_sam.SAMImageConverter.from_preset(tmp_path, image_shape=shape),
        lambda shape: keras_sam.ViTDetBackbone(24, 2, 40, 3, [1], image_shape=shape),
    ]
    for make in makers:
        with pytest.raises(ValueError, match=r"`image_shape` must be \(H, W.*Received: image_sh"):
            make(image_shape)


def test_images_beside_canonical_prompts_are_in_the_models_frame(segmenter):
    made = segmenter.preprocessor({"images": [PHOTO], "points": [[[30, 20]]]})
    sizes = r"\(B, 112, 144, 3\), images in the model frame.*Received: shape=\(1, 53, 80, 3\)"
    for call in (lambda x: segmenter.predict(x, verbose=0), segmenter.prepare):
        with pytest.raises(ValueError, match=sizes):
            call({**made, "images": PHOTO[None]})
