"""Images and prompts on their way to the model, and masks on their way back."""

import copy
import json
import warnings
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
from PIL import Image

import keras_sam
from keras_sam.geometry import ResizePlan
from keras_sam.images import load_image
from keras_sam.outputs import restore_masks
from keras_sam.preprocessing import SAMImageConverter, SAMImageSegmenterPreprocessor
from tests.meta_oracle import import_segment_anything

MEAN = np.float32([123.675, 116.28, 103.53])
STD = np.float32([58.395, 57.12, 57.375])


def picture(height, width, channels=3, seed=0, dtype="uint8"):
    """A smooth picture with noise, so that filters and channels can be told apart."""
    y, x = np.mgrid[:height, :width][..., None] / max(height, width)
    waves = 127 + 100 * np.sin(9 * x + np.arange(channels)) * np.cos(7 * y)
    noise = np.random.default_rng(seed).normal(0, 15, (height, width, channels))
    return np.clip(waves + noise, 0, 255).astype(dtype)


@pytest.fixture
def preprocessor():
    return SAMImageSegmenterPreprocessor(SAMImageConverter(size=(64, 96)))


# --- pixels: against Meta and transformers ---

ODD_SIZES = [
    (333, 500),  # one-pixel rounding
    (500, 333),  # portrait
    (428, 640),  # one-pixel rounding
    (1200, 1800),  # reduced
    (1, 1),  # one pixel
    (90, 10000),  # panorama
]


@pytest.mark.parametrize("size", ODD_SIZES)
def test_pixels_are_metas_once_the_model_has_normalised_them(size):
    import_segment_anything()
    from types import SimpleNamespace

    import torch
    from segment_anything.modeling import Sam
    from segment_anything.utils.transforms import ResizeLongestSide

    image = picture(*size)
    scaled = ResizeLongestSide(1024).apply_image(image)
    stand_in = SimpleNamespace(
        pixel_mean=torch.tensor(MEAN)[:, None, None],
        pixel_std=torch.tensor(STD)[:, None, None],
        image_encoder=SimpleNamespace(img_size=1024),
    )
    metas = Sam.preprocess(stand_in, torch.tensor(scaled.transpose(2, 0, 1))).numpy()
    ours = (SAMImageConverter()(image[None])[0] - MEAN) / STD
    np.testing.assert_allclose(ours.transpose(2, 0, 1), metas, atol=1e-6)
    height, width = ResizePlan(size).scaled_size
    assert (ours[height:] == 0).all() and (ours[:, width:] == 0).all()  # the padding, exactly


# Without the single pixel, whose axes transformers cannot tell apart.
@pytest.mark.parametrize("size", [size for size in ODD_SIZES if size != (1, 1)])
def test_normalised_output_equals_transformers(size):
    processor = _transformers_processor()
    image = picture(*size, seed=1)
    theirs = processor(image, return_tensors="np")
    converter = SAMImageConverter(do_rescale=True, do_normalize=True)
    ours, plans = converter.convert([image])
    np.testing.assert_allclose(ours.transpose(0, 3, 1, 2), theirs["pixel_values"], atol=2e-6)
    assert plans[0].scaled_size == tuple(theirs["reshaped_input_sizes"][0])
    assert plans[0].original_size == tuple(theirs["original_sizes"][0])


@pytest.mark.parametrize(
    "ours, theirs",
    [
        ({"do_normalize": True}, {"do_rescale": False}),  # units of the mean are then the user's
        ({"do_rescale": True}, {"do_normalize": False}),
        ({"do_rescale": True, "rescale_factor": 0.5}, {"do_normalize": False}),
        (
            {"do_rescale": True, "do_normalize": True, "image_mean": (0.1, 0.2, 0.3)},
            {},
        ),
        ({"do_rescale": True, "do_normalize": True, "image_std": (0.1, 0.2, 0.3)}, {}),
        ({"do_rescale": True, "do_normalize": True, "resample": "bicubic"}, {"resample": 3}),
        ({"do_rescale": True, "do_normalize": True, "resample": "nearest"}, {"resample": 0}),
        (
            {"do_rescale": True, "do_normalize": True, "size": {"longest_edge": 128}},
            {"pad_size": {"height": 128, "width": 128}},
        ),
        (
            {
                "do_rescale": True,
                "do_normalize": True,
                "size": {"longest_edge": 64},
                "pad_size": {"height": 80, "width": 72},
            },
            {},
        ),  # scaled to one size, padded to another
        (
            {"do_rescale": True, "do_normalize": True, "do_resize": False, "pad_size": 100},
            {"pad_size": {"height": 100, "width": 100}},
        ),
        ({"do_rescale": True, "do_normalize": True, "do_pad": False}, {}),
    ],
)
def test_every_setting_means_what_it_means_in_transformers(ours, theirs):
    image = picture(61, 90, seed=2)
    settings = {"size": {"longest_edge": 128}, **ours}
    theirs = {**ours, **theirs}
    theirs.setdefault("size", {"longest_edge": 128})
    theirs.setdefault("pad_size", {"height": 128, "width": 128})
    if isinstance(theirs.get("resample"), str):
        raise AssertionError("transformers takes pillow's code")
    expected = _transformers_processor()(
        image, return_tensors="np", **{"do_rescale": False, "do_normalize": False, **theirs}
    )["pixel_values"]
    converter = SAMImageConverter(**settings)
    if converter.do_pad and not converter.do_normalize:
        converter = SAMImageConverter(**settings, pad_value=0)  # theirs, always
    atol = 1e-5 * max(1, np.abs(expected).max())
    np.testing.assert_allclose(converter(image).transpose(2, 0, 1), expected[0], atol=atol)


def _transformers_processor():
    """The numpy and pillow form of `SamImageProcessor`; the other one needs torchvision."""
    try:
        from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil
    except ImportError:  # transformers 4 has only this form, under the plain name
        from transformers import SamImageProcessor as SamImageProcessorPil
    return SamImageProcessorPil()


def test_the_padding_is_the_mean_colour_in_the_units_of_the_output():
    image = picture(20, 64)
    corner = {
        "plain": SAMImageConverter(size=64)(image)[-1, -1],
        "rescaled": SAMImageConverter(size=64, do_rescale=True)(image)[-1, -1],
        "normalised": SAMImageConverter(size=64, do_rescale=True, do_normalize=True)(image)[-1, -1],
        "chosen": SAMImageConverter(size=64, pad_value=(1, 2, 3))(image)[-1, -1],
    }
    np.testing.assert_array_equal(corner["plain"], MEAN)
    np.testing.assert_array_equal(corner["rescaled"], np.float32([0.485, 0.456, 0.406]))
    np.testing.assert_array_equal(corner["normalised"], [0, 0, 0])
    np.testing.assert_array_equal(corner["chosen"], [1, 2, 3])


def test_settings_of_one_call_do_not_stay():
    converter = SAMImageConverter(size=64)
    image = picture(30, 50)
    before = converter(image)
    assert converter(image, do_resize=False).shape == (64, 64, 3)
    np.testing.assert_array_equal(converter(image, do_resize=False)[:30, :50], image)
    assert converter(image, do_pad=False).shape == (38, 64, 3)
    np.testing.assert_array_equal(converter(image, do_pad=False), before[:38])
    assert converter([image], size=32, pad_size=None).shape == (1, 32, 32, 3)
    np.testing.assert_array_equal(
        converter(image, do_rescale=True, do_normalize=True, resample="box"),
        SAMImageConverter(size=64, do_rescale=True, do_normalize=True, resample="box")(image),
    )
    np.testing.assert_array_equal(converter(image), before)
    with pytest.raises(ValueError, match="do_sharpen"):
        converter(image, do_sharpen=True)


def test_non_square_frames_and_all_forms_of_size():
    image = picture(30, 50)
    for size in ((64, 96), [64, 96], {"height": 64, "width": 96}):
        converter = SAMImageConverter(size=size)
        assert converter.plan((30, 50)).scaled_size == (58, 96)
        assert converter([image]).shape == (1, 64, 96, 3)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"size": 0}, "`size` must be two positive integers"),
        ({"size": {"shortest_edge": 5}}, "`size` must be.*shortest_edge"),
        ({"size": 64, "pad_size": 32}, r"`pad_size` must not be smaller.*\(32, 32\)"),
        ({"resample": "area"}, "`resample` must be one of.*'area'"),
        ({"image_mean": (1, 2)}, r"`image_mean` must be.*per channel, 3.*\(1, 2\)"),
        ({"num_channels": 4}, "`image_mean` must be.*per channel, 4"),
        ({"pad_value": (1, 2, 3, 4)}, "`pad_value` must be.*per channel, 3"),
        ({"channel_order": "gbr"}, "`channel_order` must be one of.*'gbr'"),
        ({"data_format": "NCHW"}, "`data_format` must be one of.*'NCHW'"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SAMImageConverter(**settings)


# --- what counts as an image ---


def test_lists_of_different_sizes_are_each_image_alone():
    converter = SAMImageConverter(size=64)
    images = [picture(30, 50, seed=3), picture(70, 20, seed=4), picture(64, 64, seed=5)]
    together = converter(images)
    for image, result in zip(images, together, strict=True):
        np.testing.assert_array_equal(converter(image), result)
    with pytest.raises(ValueError, match="Without `do_pad`.*one scaled size"):
        converter(images, do_pad=False)


def _image_forms():
    """Rows of (name, what the user passes, the RGB values that it means)."""
    rgb = picture(12, 17, seed=6)
    grey = rgb[..., 0]
    alpha = np.random.default_rng(7).integers(0, 2, (12, 17, 1), dtype="uint8") * 255
    repeated = np.repeat(grey[..., None], 3, axis=-1)
    sixteen = np.random.default_rng(8).integers(0, 65536, (12, 17), dtype="uint16")
    sixteen_rgb = np.repeat(sixteen[..., None] / np.float32(257), 3, axis=-1)
    palette = Image.fromarray(rgb).quantize(16)
    palette_rgb = np.asarray(palette.convert("RGB"))
    transparent = palette.copy()
    transparent.info["transparency"] = bytes(range(16))
    two_level = Image.fromarray(((grey > 127) * 255).astype("uint8")).convert("1")
    cmyk = Image.fromarray(rgb).convert("CMYK")
    return [
        ("uint8", rgb, rgb),
        ("float 0..255", rgb.astype("float64"), rgb),
        ("float16", rgb.astype("float16"), rgb),
        ("int64 within 0..255", rgb.astype("int64"), rgb),
        ("nested lists", rgb.tolist(), rgb),
        ("grey without channels", grey, repeated),
        ("grey with one channel", grey[..., None], repeated),
        ("alpha is dropped, not blended", np.concatenate([rgb, alpha], -1), rgb),
        ("uint16 is divided by 257", sixteen, sixteen_rgb),
        ("uint16 colours", np.repeat(sixteen[..., None], 3, -1), sixteen_rgb),
        ("pillow RGB", Image.fromarray(rgb), rgb),
        ("pillow L", Image.fromarray(grey), repeated),
        ("pillow RGBA", Image.fromarray(np.concatenate([rgb, alpha], -1)), rgb),
        ("pillow LA", Image.fromarray(np.concatenate([grey[..., None], alpha], -1)), repeated),
        ("pillow P", palette, palette_rgb),
        ("pillow P with transparency", transparent, palette_rgb),
        ("pillow 1", two_level, np.asarray(two_level.convert("RGB"))),
        (
            "pillow La",
            Image.fromarray(np.stack([grey, grey * 0 + 255], -1)).convert("La"),
            repeated,
        ),
        ("pillow CMYK", cmyk, np.asarray(cmyk.convert("RGB"))),
        ("pillow I;16", Image.fromarray(sixteen), sixteen_rgb),
        ("pillow F", Image.fromarray(grey.astype("float32")), repeated),
    ]


@pytest.mark.parametrize("form", _image_forms(), ids=lambda form: form[0])
def test_images_of_every_form(form):
    _, image, expected = form
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load_image(image)
        converted = SAMImageConverter(size=(12, 17))([image])
    assert loaded.shape == (12, 17, 3)
    np.testing.assert_allclose(loaded, expected, rtol=1e-6)
    np.testing.assert_allclose(converted[0], expected, rtol=1e-6)


@pytest.mark.parametrize(
    "suffix, mode",
    [("png", "RGB"), ("png", "L"), ("png", "RGBA"), ("png", "I;16"), ("bmp", "RGB"), ("gif", "P")],
)
def test_files_are_their_pixels(tmp_path, suffix, mode):
    rgb = picture(12, 17, seed=9)
    image = {
        "RGB": lambda: Image.fromarray(rgb),
        "L": lambda: Image.fromarray(rgb[..., 0]),
        "RGBA": lambda: Image.fromarray(np.concatenate([rgb, rgb[..., :1]], -1)),
        "I;16": lambda: Image.fromarray(rgb[..., 0].astype("uint16") * 256 + 3),
        "P": lambda: Image.fromarray(rgb).quantize(16),
    }[mode]()
    path = tmp_path / f"picture.{suffix}"
    image.save(path)
    expected = load_image(image)
    for form in (path, str(path), str(path).encode()):
        np.testing.assert_array_equal(load_image(form), expected)
    converter = SAMImageConverter(size=(12, 17))
    np.testing.assert_allclose(converter([path, image])[0], expected, rtol=1e-6)
    np.testing.assert_allclose(converter(path), expected, rtol=1e-6)  # one image, no batch axis


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_phones_click_lands_where_it_was_made(tmp_path, orientation):
    """The viewer turns the picture by its EXIF entry; the click is made on what it shows."""
    upright = np.zeros((24, 40, 3), "uint8")
    upright[3:6, 30:36] = (255, 0, 0)
    undo = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "phone.png"
    Image.fromarray(np.ascontiguousarray(undo(upright))).save(path, exif=exif)
    with Image.open(path) as opened:
        assert opened.size == ((24, 40) if orientation > 4 else (40, 24))
        for image in (path, opened):
            np.testing.assert_array_equal(load_image(image), upright)
            preprocessor = SAMImageSegmenterPreprocessor(SAMImageConverter(size=80))
            x = preprocessor({"images": [image], "points": [[[33, 4.5]]], "labels": [[1]]})
            assert x["original_sizes"].tolist() == [[24, 40]]
            column, row = x["points"][0, 0, 0].astype(int)
            assert x["images"][0, row, column].tolist() == [255, 0, 0]


def test_bgr_arrays_are_turned_and_files_are_not(tmp_path):
    rgb = picture(12, 17, seed=10)
    bgra = np.concatenate([rgb[..., ::-1], np.full((12, 17, 1), 9, "uint8")], -1)
    converter = SAMImageConverter(size=(12, 17), channel_order="bgr")
    for image in (rgb[..., ::-1], bgra, Image.fromarray(rgb)):
        np.testing.assert_array_equal(load_image(image, channel_order="bgr"), rgb)
        np.testing.assert_array_equal(converter(image), rgb)
    Image.fromarray(rgb).save(tmp_path / "rgb.png")
    np.testing.assert_array_equal(converter(tmp_path / "rgb.png"), rgb)


def test_channels_first_arrays():
    rgb = picture(12, 17, seed=11)
    converter = SAMImageConverter(size=(12, 17), data_format="channels_first")
    np.testing.assert_array_equal(converter(rgb.transpose(2, 0, 1)), rgb)
    np.testing.assert_array_equal(converter(rgb.transpose(2, 0, 1)[None]), rgb[None])
    np.testing.assert_array_equal(converter(rgb[..., 0])[..., 2], rgb[..., 0])
    np.testing.assert_array_equal(converter([Image.fromarray(rgb)])[0], rgb)


def test_models_of_other_channels():
    five = picture(12, 17, 5, seed=12)
    converter = SAMImageConverter(
        size=20, num_channels=5, image_mean=[0.1, 0.2, 0.3, 0.4, 0.5], image_std=0.2
    )
    pixels = converter(five)
    assert pixels.shape == (20, 20, 5)
    np.testing.assert_allclose(pixels[-1, -1], [25.5, 51, 76.5, 102, 127.5], rtol=1e-6)
    four = picture(12, 17, 4, seed=13)
    kept = SAMImageConverter(size=(12, 17), num_channels=4, image_mean=0, image_std=1)(four)
    np.testing.assert_array_equal(kept, four)  # the fourth channel of such a model is no alpha
    one = SAMImageConverter(size=(12, 17), num_channels=1, image_mean=0.5, image_std=1)
    np.testing.assert_array_equal(one(four[..., 0])[..., 0], four[..., 0])


def test_tensors_of_the_running_backend_are_images(preprocessor):
    images = picture(20, 30, seed=14)[None].repeat(2, 0)
    points = {"points": np.full((2, 1, 2), 3.0), "labels": np.ones((2, 1))}
    expected = preprocessor({"images": images, **points})
    tensors = {k: keras.ops.convert_to_tensor(v) for k, v in {"images": images, **points}.items()}
    listed = {"images": list(tensors["images"]), **points}
    for x in (tensors, listed):
        result = preprocessor(x)
        assert all(isinstance(value, np.ndarray) for value in result.values())
        for name, value in expected.items():
            np.testing.assert_array_equal(result[name], value, err_msg=name)


def test_black_and_the_overshoot_of_a_filter_are_usual():
    image = picture(12, 17, seed=15).astype("float32") - 5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels = SAMImageConverter(size=(12, 17))([np.zeros((12, 17, 3)), image])
    np.testing.assert_array_equal(pixels[1], image)


@pytest.mark.parametrize(
    "image, message",
    [
        (np.zeros((0, 5, 3), "uint8"), r"at least one pixel.*\(0, 5, 3\)"),
        (np.zeros((5, 0), "uint8"), "at least one pixel"),
        (np.zeros((5, 6, 0)), "at least one pixel"),
        (np.full((5, 6, 3), np.nan), "must be finite.*90 values.*nan_to_num"),
        (np.full((5, 6, 3), np.inf, "float32"), "must be finite"),
        (np.full((5, 6, 3), 1e39), "must be finite"),  # too large for float32
        (np.zeros((5, 6, 2)), r"3 channels, or 1 \(grey\), or 4.*\(5, 6, 2\)"),
        (np.zeros((5, 6, 5)), r"3 channels, or 1.*\(5, 6, 5\).*Select or convert"),
        (np.zeros((3, 50, 60)), r"3 channels.*\(3, 50, 60\).*channels_first"),
        (np.zeros(5), r"\(height, width, channels\).*\(5,\)"),
        (np.zeros((1, 5, 6, 3)), r"\(height, width, channels\).*\(1, 5, 6, 3\)"),
        (np.ones((5, 6, 3), bool), r"dtype=bool.*255"),
        (np.full((5, 6, 3), 256), "within 0..255.*256..256.*uint16"),
        (np.full((5, 6, 3), -1), "within 0..255.*-1..-1"),
        (np.zeros((5, 6, 3), "complex64"), "dtype=complex64"),
        (np.array([["a", "b"]]), "must hold numbers"),
        ([[1, 2], [3]], "must be an array.*Received: list"),
        (None, "(must hold numbers|must be an array|height, width)"),
        (Image.new("RGB", (0, 6)), "at least one pixel"),
    ],
)
def test_what_is_no_image_is_refused(image, message):
    with pytest.raises(ValueError, match=message):
        load_image(image)
    with pytest.raises(ValueError, match=message):
        SAMImageConverter(size=64)([picture(5, 6), image])


def test_unreadable_files_are_refused(tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nnot really")
    text = tmp_path / "text.jpg"
    text.write_text("hello")
    whole = tmp_path / "whole.png"
    Image.fromarray(picture(50, 60)).save(whole)
    cut = tmp_path / "cut.png"
    cut.write_bytes(whole.read_bytes()[:2000])
    for path in (broken, text, cut):
        with pytest.raises(ValueError, match=f"must be an image that pillow can read.*{path.name}"):
            load_image(path)
    with pytest.raises(ValueError, match=f"must be one file.*the folder.*{tmp_path.name}"):
        load_image(tmp_path)
    with pytest.raises(FileNotFoundError, match="no image file at.*absent.png"):
        load_image(tmp_path / "absent.png")


def test_impossible_images_are_refused():
    converter = SAMImageConverter()
    with pytest.raises(ValueError, match=r"too long and thin.*\(1, 4000\)"):
        converter([picture(1, 4000)])
    with pytest.raises(ValueError, match=r"must fit.*\(10, 2000\)"):
        converter([picture(10, 2000)], do_resize=False)
    for nothing in ([], np.zeros((0, 5, 5, 3))):
        with pytest.raises(ValueError, match="at least one image.*empty batch"):
            converter(nothing)
    with pytest.raises(ValueError, match="must have shape.*B, H0, W0, C"):
        converter(np.zeros((1, 1, 5, 5, 3)))


# --- the dict ---


def test_the_preprocessors_output():
    preprocessor = SAMImageSegmenterPreprocessor(SAMImageConverter(size=(64, 96)))
    image, other = picture(32, 96), picture(128, 50)
    x = preprocessor(
        {
            "images": [image, other],
            "points": [[[10, 20], [30, 40]], [[50, 128]]],
            "labels": [[1, 0], [1]],
        }
    )
    assert {name: (value.shape, value.dtype.name) for name, value in x.items()} == {
        "images": ((2, 64, 96, 3), "float32"),
        "points": ((2, 1, 3, 2), "float32"),
        "labels": ((2, 1, 3), "int32"),
        "masks": ((2, 0, 16, 24, 1), "float32"),
        "mask_given": ((2, 0), "bool"),
        "num_prompts": ((2,), "int32"),
        "single_object": ((2,), "bool"),
        "original_sizes": ((2, 2), "int32"),
        "scaled_sizes": ((2, 2), "int32"),
    }
    assert x["original_sizes"].tolist() == [[32, 96], [128, 50]]
    assert x["scaled_sizes"].tolist() == [[32, 96], [64, 25]]
    np.testing.assert_array_equal(x["images"][0, :32], image)
    assert x["points"][1, 0, 0].tolist() == [25, 64]  # the far corner of the scaled image
    assert x["single_object"].all()


def test_masks_of_the_original_frame_meet_the_mask_size():
    preprocessor = SAMImageSegmenterPreprocessor(SAMImageConverter(size=64), mask_size=32)
    logits = np.full((1, 1, 50, 100, 1), 4.0, "float32")
    x = preprocessor({"images": picture(50, 100)[None], "masks": logits})
    assert x["masks"].shape == (1, 1, 32, 32, 1)
    np.testing.assert_allclose(x["masks"][0, 0, :16], 4, rtol=1e-6)
    assert (x["masks"][0, 0, 16:] < -6).all()


def test_targets_and_weights_are_handed_through(preprocessor):
    x = {"images": picture(20, 30)[None], "boxes": [[[1, 1, 9, 9]]]}
    y, weights = {"masks": np.ones((1, 20, 30))}, np.ones(1)
    assert isinstance(preprocessor(x), dict)
    assert preprocessor(x, y)[1] is y
    assert len(preprocessor(x, y)) == 2
    assert preprocessor(x, y, weights)[2] is weights
    assert preprocessor(x, y=y, sample_weight=weights)[1] is y


def test_the_callers_dict_and_arrays_stay_as_they_are(preprocessor):
    x = {
        "images": [picture(20, 30), picture(9, 7, 4)],
        "points": np.full((2, 1, 2), 4.0),
        "labels": np.ones((2, 1)),
    }
    before = copy.deepcopy(x)
    for array in (*x["images"], x["points"], x["labels"]):
        array.setflags(write=False)
    result = preprocessor(x)
    for value in result.values():
        value[...] = 1  # no memory is shared
    assert list(x) == list(before) and len(x["images"]) == 2
    for name in ("points", "labels"):
        np.testing.assert_array_equal(x[name], before[name])
    for image, old in zip(x["images"], before["images"], strict=True):
        np.testing.assert_array_equal(image, old)


@pytest.mark.parametrize(
    "x, message",
    [
        ([1, 2], "`x` must be a dict.*Received: list"),
        ({"points": [[[1, 1]]], "labels": [[1]]}, r"key 'images'.*\['labels', 'points'\]"),
        (
            {"images": picture(5, 6)[None], "box": [[1, 1, 2, 2]]},
            r"no keys but.*Received also: \['box'\]\. Here 'box' is 'boxes'",
        ),
        ({"images": 5, "boxes": [[[1, 1, 2, 2]]]}, "`images` must be a batch"),
        ({"images": picture(5, 6), "boxes": [[2, 1, 1, 2]]}, "x1 <= x2"),
        ({"images": picture(5, 6)[None]}, "At least one prompt is needed"),
        ({"images": picture(5, 6)[None], "boxes": [[[1, 1, 2, 2]]] * 2}, "one entry per image, 1"),
    ],
)
def test_bad_dicts_are_refused(preprocessor, x, message):
    with pytest.raises(ValueError, match=message):
        preprocessor(x)


@pytest.mark.parametrize(
    "prompts, batched",
    [
        ({"points": [5, 6]}, {"points": [[[5, 6]]], "labels": [[1]]}),
        ({"points": [[5, 6], [7, 8]], "labels": [1, 0]}, None),
        ({"points": [[[5, 6]], [[7, 8]]], "labels": [[1], [0]]}, None),  # two objects
        ({"boxes": [1, 2, 9, 9]}, {"boxes": [[[[1, 2], [9, 9]]]]}),
        ({"boxes": [[1, 2, 9, 9], [3, 4, 8, 8]]}, None),
        ({"boxes": np.zeros((0, 4))}, None),
        ({"masks": np.ones((16, 24), "float32")}, {"masks": np.ones((1, 1, 16, 24, 1))}),
        ({"masks": np.ones((16, 24, 1), "float32")}, {"masks": np.ones((1, 1, 16, 24, 1))}),
    ],
)
@pytest.mark.parametrize("kind", ["array", "pillow", "path"])
def test_one_image_gives_an_output_without_a_batch(preprocessor, tmp_path, kind, prompts, batched):
    array = picture(20, 30)
    Image.fromarray(array).save(tmp_path / "image.png")
    image = {
        "array": array,
        "pillow": Image.fromarray(array),
        "path": tmp_path / "image.png",
    }[kind]
    expected = preprocessor(
        {"images": [array], **(batched or {name: [value] for name, value in prompts.items()})}
    )
    one = preprocessor({"images": image, **prompts})
    assert set(one) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(one[name], value[0], err_msg=name)


def test_settings_of_one_call_reach_the_converter(preprocessor):
    x = {"images": picture(20, 30)[None], "points": [[[30, 20]]], "labels": [[1]]}
    assert preprocessor(x, do_resize=False)["points"][0, 0, 0].tolist() == [30, 20]
    assert preprocessor(x)["points"][0, 0, 0].tolist() == [96, 64]
    flipped = preprocessor(x, channel_order="bgr")["images"][0, :, :, ::-1]
    np.testing.assert_array_equal(flipped, preprocessor(x)["images"][0])


def test_layers_go_through_json():
    converter = SAMImageConverter(
        size=(64, 96),
        pad_size=100,
        resample=3,
        do_rescale=True,
        image_mean=(0.1, 0.2, 0.3, 0.4),
        image_std=0.25,
        num_channels=4,
        pad_value=(1, 2, 3, 4.5),
        channel_order="bgr",
        name="reader",
    )
    preprocessor = SAMImageSegmenterPreprocessor(converter, mask_size=(20, 30), name="input")
    text = json.dumps(keras.saving.serialize_keras_object(preprocessor))
    assert json.loads(text)["registered_name"] == "keras_sam>SAMImageSegmenterPreprocessor"
    loaded = keras.saving.deserialize_keras_object(json.loads(text))
    assert type(loaded) is SAMImageSegmenterPreprocessor
    assert type(loaded.image_converter) is SAMImageConverter
    assert loaded.get_config() == preprocessor.get_config()
    x = {"images": picture(40, 30, 4)[None], "boxes": [[[1, 2, 3, 4]]]}
    for name, value in preprocessor(x).items():
        np.testing.assert_array_equal(loaded(x)[name], value, err_msg=name)
    again = SAMImageConverter.from_config(converter.get_config())
    np.testing.assert_array_equal(again(x["images"]), converter(x["images"]))


def test_layers_have_no_weights_and_are_built():
    preprocessor = SAMImageSegmenterPreprocessor()
    assert preprocessor.built and preprocessor.weights == []
    assert preprocessor.mask_size == (256, 256)


def test_threads_and_interleaved_images_give_what_each_gives_alone(preprocessor):
    inputs = [
        {
            "images": [picture(10 + 7 * i, 60 - 3 * i, seed=i)],
            "points": [[[i, i + 1]] * (i + 1)],
            "labels": [[1] * (i + 1)],
        }
        for i in range(8)
    ]
    alone = [preprocessor(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(preprocessor, inputs * 3))
    for i, result in enumerate(together):
        for name, value in alone[i % 8].items():
            np.testing.assert_array_equal(result[name], value, err_msg=name)


# --- tf.data ---


def _assert_same(tensors, arrays):
    assert set(tensors) == set(arrays)
    for name, value in arrays.items():
        np.testing.assert_array_equal(tensors[name], value, err_msg=name)
        assert tensors[name].dtype.name == value.dtype.name, name


def test_tf_data_gives_the_same_with_static_shapes(preprocessor):
    tf = pytest.importorskip("tensorflow")
    x = {
        "images": np.stack([picture(20, 30, seed=i) for i in range(4)]),
        "points": np.arange(16.0).reshape(4, 2, 2),
        "labels": np.ones((4, 2), "int64"),
    }
    dataset = tf.data.Dataset.from_tensor_slices(x).batch(2, drop_remainder=True)
    mapped = dataset.map(preprocessor)
    shapes = {name: tuple(spec.shape) for name, spec in mapped.element_spec.items()}
    assert shapes == {
        "images": (2, 64, 96, 3),
        "points": (2, None, None, 2),
        "labels": (2, None, None),
        "masks": (2, None, 16, 24, 1),
        "mask_given": (2, None),
        "num_prompts": (2,),
        "single_object": (2,),
        "original_sizes": (2, 2),
        "scaled_sizes": (2, 2),
    }
    for i, batch in enumerate(mapped):
        _assert_same(batch, preprocessor({k: v[2 * i : 2 * i + 2] for k, v in x.items()}))


def test_tf_data_hands_targets_through(preprocessor):
    tf = pytest.importorskip("tensorflow")
    x = {"images": picture(20, 30)[None], "boxes": np.ones((1, 1, 4))}
    dataset = tf.data.Dataset.from_tensors((x, np.ones((1, 20, 30)), np.ones(1)))
    inputs, y, weights = next(iter(dataset.map(preprocessor)))
    _assert_same(inputs, preprocessor(x))
    assert y.shape == (1, 20, 30) and weights.shape == (1,)


def test_tf_data_takes_images_of_different_sizes_and_ragged_prompts(preprocessor):
    tf = pytest.importorskip("tensorflow")
    examples = [
        {
            "images": picture(10 + i, 40 - 5 * i, seed=i),
            "points": np.full((i + 1, 2), i, "float32"),
            "labels": np.ones(i + 1, "int32"),
        }
        for i in range(3)
    ]
    spec = {
        "images": tf.TensorSpec((None, None, 3), "uint8"),
        "points": tf.TensorSpec((None, 2), "float32"),
        "labels": tf.TensorSpec((None,), "int32"),
    }
    dataset = tf.data.Dataset.from_generator(lambda: iter(examples), output_signature=spec)
    batches = list(dataset.ragged_batch(2).map(preprocessor))
    for batch, part in zip(batches, (examples[:2], examples[2:]), strict=True):
        x = {name: [example[name] for example in part] for name in spec}
        _assert_same(batch, preprocessor(x))
    eager = next(iter(dataset.ragged_batch(2)))  # ragged tensors outside of the graph
    _assert_same(
        {k: tf.constant(v) for k, v in preprocessor(eager).items()},
        preprocessor({name: [example[name] for example in examples[:2]] for name in spec}),
    )


def test_tf_data_takes_paths(preprocessor, tmp_path):
    tf = pytest.importorskip("tensorflow")
    paths = []
    for i in range(2):
        paths.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(picture(10 + i, 20, seed=i)).save(paths[-1])
    x = {"images": paths, "boxes": np.ones((2, 1, 4))}
    batch = next(iter(tf.data.Dataset.from_tensor_slices(x).batch(2).map(preprocessor)))
    _assert_same(batch, preprocessor(x))


@pytest.mark.parametrize("kind", ["array", "path", "unknown"])
def test_tf_data_maps_one_image_after_the_other(preprocessor, tmp_path, kind):
    tf = pytest.importorskip("tensorflow")
    arrays = [picture(10 + i, 20, seed=i) for i in range(4)]
    paths = [str(tmp_path / f"{i}.png") for i in range(4)]
    for path, array in zip(paths, arrays, strict=True):
        Image.fromarray(array).save(path)
    boxes = np.float32([[[1, 2, 9, 9], [3, 3, 7, 8]]] * 4)
    dataset = tf.data.Dataset.from_tensor_slices({"images": paths, "boxes": boxes})
    if kind != "path":
        read = tf.io.decode_png if kind == "array" else tf.io.decode_image  # of unknown rank
        dataset = dataset.map(lambda x: {**x, "images": read(tf.io.read_file(x["images"]))})
    mapped = dataset.map(preprocessor)
    if kind != "unknown":
        shapes = {name: tuple(spec.shape) for name, spec in mapped.element_spec.items()}
        assert shapes["images"] == (64, 96, 3) and shapes["points"] == (None, None, 2)
        assert shapes["num_prompts"] == () and shapes["original_sizes"] == (2,)
    expected = preprocessor({"images": arrays, "boxes": boxes})
    for i, element in enumerate(mapped):
        _assert_same(element, {name: value[i] for name, value in expected.items()})
    batches = list(mapped.batch(3))
    _assert_same(batches[0], {name: value[:3] for name, value in expected.items()})
    _assert_same(batches[1], {name: value[3:] for name, value in expected.items()})


def test_tf_data_says_what_is_wrong(preprocessor):
    tf = pytest.importorskip("tensorflow")
    x = {"images": picture(20, 30)[None], "boxes": np.float32([[[9, 9, 1, 1]]])}
    with pytest.raises(ValueError, match="no keys but.*'box' is 'boxes'"):
        tf.data.Dataset.from_tensors({**x, "box": x["boxes"]}).map(preprocessor)
    with pytest.raises(tf.errors.InvalidArgumentError, match="`boxes` must have x1 <= x2"):
        next(iter(tf.data.Dataset.from_tensors(x).map(preprocessor)))


# --- the way back ---


def test_masks_of_images_of_one_size_are_an_array():
    logits = np.random.default_rng(16).normal(size=(2, 3, 16, 16)).astype("float32")
    masks = restore_masks(logits, [(30, 50), (30, 50)], 64)
    assert masks.shape == (2, 3, 30, 50) and masks.dtype == bool
    floats = restore_masks(logits, np.array([[30, 50], [30, 50]]), 64, binarize=False)
    assert floats.dtype == np.float32
    np.testing.assert_array_equal(masks, floats > 0)
    expected = ResizePlan((30, 50), 64).masks_to_original(logits)
    np.testing.assert_allclose(floats, expected, atol=1e-6)
    higher = restore_masks(logits, [(30, 50), (30, 50)], 64, mask_threshold=0.5)
    np.testing.assert_array_equal(higher, floats > 0.5)
    assert higher.sum() < masks.sum()


def test_masks_of_images_of_different_sizes_are_a_list():
    logits = np.random.default_rng(17).normal(size=(2, 5, 3, 16, 24)).astype("float32")
    sizes = [(30, 50), (41, 7)]
    masks = restore_masks(logits, sizes, (64, 96))
    assert [m.shape for m in masks] == [(5, 3, 30, 50), (5, 3, 41, 7)]
    for mask, size, one in zip(masks, sizes, logits, strict=True):
        expected = ResizePlan(size, (64, 96)).masks_to_original(one) > 0
        np.testing.assert_array_equal(mask, expected)


def test_masks_are_thresholded_after_they_are_enlarged():
    """Thresholding first would leave blocks; a straight edge would not run between pixels."""
    logits = np.tile(np.linspace(-1, 1.1, 16, dtype="float32"), (1, 1, 16, 1))
    mask = restore_masks(logits, [(64, 64)], 64)[0, 0]
    zero = 1 / 2.1 * 15  # where the ramp crosses 0, in mask pixels
    assert mask[10].argmax() == round((zero + 0.5) * 4 - 0.5 + 0.49)


def test_masks_come_back_from_tensors_and_pipelines(preprocessor):
    logits = np.random.default_rng(18).normal(size=(1, 4, 16, 24)).astype("float32")
    x = preprocessor({"images": [picture(21, 33)], "boxes": [[[1, 1, 9, 9]]]})
    expected = restore_masks(logits, x["original_sizes"], (64, 96))
    assert expected.shape == (1, 4, 21, 33)
    tensor = keras.ops.convert_to_tensor(logits)
    sizes = keras.ops.convert_to_tensor(x["original_sizes"])
    np.testing.assert_array_equal(restore_masks(tensor, sizes, (64, 96)), expected)
    padded = restore_masks(logits, [(21, 33)], (64, 96), binarize=False, pad_only=True)
    np.testing.assert_allclose(
        padded, ResizePlan((21, 33), (64, 96), pad_only=True).masks_to_original(logits), atol=1e-6
    )


@pytest.mark.parametrize(
    "logits, sizes, message",
    [
        (np.zeros((3, 16, 16)), [(5, 5)], r"`logits` must have shape.*\(3, 16, 16\)"),
        (np.zeros((2, 3, 16, 16)), [(5, 5)], r"`original_sizes`.*\(2, 2\).*\(1, 2\)"),
        (np.zeros((1, 3, 16, 16)), (5, 5), r"`original_sizes`.*\(1, 2\).*\(2,\)"),
        (np.zeros((1, 3, 16, 16)), [(1, 4000)], "too long and thin"),
        (np.zeros((1, 3, 16, 16)), None, "`original_sizes` and `model_size` must be given"),
        ({"masks": np.zeros((1, 3, 16, 16))}, None, "must be given, unless `logits` is what"),
    ],
)
def test_masks_that_do_not_fit_are_refused(logits, sizes, message):
    with pytest.raises(ValueError, match=message):
        restore_masks(logits, sizes, 64)


# --- from presets ---


def test_preprocessor_and_converter_come_from_presets(tmp_path):
    for name, size, masks in (("sam_base_sa1b", (1024, 1024), (256, 256)),):
        preprocessor = SAMImageSegmenterPreprocessor.from_preset(name)
        assert preprocessor.image_converter.pad_size == size and preprocessor.mask_size == masks
        assert SAMImageConverter.from_preset(name).pad_size == size
    small = SAMImageSegmenterPreprocessor.from_preset("sam_tiny_demo", image_shape=(64, 96))
    assert small.image_converter.pad_size == (64, 96) and small.mask_size == (16, 24)
    bgr = SAMImageConverter.from_preset("sam_tiny_demo", channel_order="bgr")
    plain = SAMImageConverter.from_preset("sam_tiny_demo")
    image = picture(20, 30)
    np.testing.assert_array_equal(bgr(image[..., ::-1]), plain(image))
    segmenter = keras_sam.SAMImageSegmenter.from_preset("sam_tiny_demo")
    own, loaded = segmenter.preprocessor, SAMImageSegmenterPreprocessor.from_preset("sam_tiny_demo")
    own.image_converter.channel_order = "bgr"  # a setting that is saved
    segmenter.save_to_preset(tmp_path / "bgr")
    saved = SAMImageSegmenterPreprocessor.from_preset(tmp_path / "bgr")
    assert saved.image_converter.channel_order == "bgr" and saved.mask_size == loaded.mask_size
    assert SAMImageConverter.from_preset(tmp_path / "bgr").channel_order == "bgr"
    with pytest.raises(ValueError, match="A preset must be a built-in name.*'sam_bas'"):
        SAMImageSegmenterPreprocessor.from_preset("sam_bas")


def outputs_of(*sizes, frame=(112, 144)):
    plans = [keras_sam.ResizePlan(size, frame) for size in sizes]
    return {
        "masks": np.zeros((len(sizes), 2, 28, 36), "float32"),
        "original_sizes": np.array([plan.original_size for plan in plans]),
        "scaled_sizes": np.array([plan.scaled_size for plan in plans]),
        "model_sizes": np.array([frame] * len(sizes)),
    }


@pytest.mark.parametrize(
    "size, given",
    [
        ((53, 80), Image.new("L", (80, 53)).size),  # pillow's (width, height)
        ((80, 53), (53, 80)),
        ((53, 80), (800, 530)),  # of the picture before it was made smaller
        ((100, 103), (103, 100)),
    ],
)
def test_width_and_height_in_place_of_height_and_width(size, given):
    outputs = outputs_of((60, 60), size)
    with pytest.raises(ValueError, match=r"\(height, width\) of each.*pass `image.size\[::-1\]`"):
        keras_sam.restore_masks(outputs, [(60, 60), given], (112, 144))
    masks = keras_sam.restore_masks(outputs, [(60, 60), given[::-1]], (112, 144))
    assert masks[1].shape == (2, *given[::-1])


@pytest.mark.parametrize(
    "size, given",
    [
        ((53, 80), (530, 800)),  # the picture before it was made smaller
        ((53, 80), (1061, 1599)),  # with its own rounding
        ((60, 60), (600, 600)),
        ((53, 80), (60, 60)),  # nothing that is known to be wrong
    ],
)
def test_sizes_that_are_not_swapped_are_taken(size, given):
    masks = keras_sam.restore_masks(outputs_of(size), [given], (112, 144))
    assert masks.shape == (1, 2, *given)
