"""Pictures as people have them: files of every kind, and the values that cameras write."""

import functools
import io
import json
import sys
import warnings

import keras
import numpy as np
import pytest
from PIL import Image

import keras_sam
import keras_sam.cli
from keras_sam.images import load_image
from keras_sam.preprocessing import SAMImageConverter, SAMImageSegmenterPreprocessor
from keras_sam.training import MaskFolder, ObjectBatches
from tests.test_preprocessing import picture
from tests.tiny import tiny_segmenter

pytestmark = pytest.mark.once

RGB = picture(12, 17, seed=31)
TWELVE_BITS = RGB.astype("uint16") * 16  # 0..4080
BACKEND = keras.config.backend()
EXACT = SAMImageConverter(size=(12, 17))  # the pixels as they are


def encoded(image=RGB, kind="png", **options):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


def silently(function, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        return function(*args, **options)


# --- files ---


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a photo.png"
    path.write_bytes(encoded())
    return path


FORMS = {
    "bytes": lambda path: path.read_bytes(),
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "BytesIO": lambda path: io.BytesIO(path.read_bytes()),
    "BytesIO that was read": lambda path: _at_its_end(io.BytesIO(path.read_bytes())),
    "without seek": lambda path: _Stream(path.read_bytes()),
    "file address": lambda path: path.as_uri(),
    "array of a path": lambda path: np.array(str(path)),
}


def _at_its_end(file):
    file.read()
    return file


class _Stream:
    """What an HTTP client gives: it can be read, once."""

    def __init__(self, content):
        self.read = io.BytesIO(content).read


@pytest.mark.parametrize("form", FORMS)
def test_files_as_people_have_them(file, form):
    make = functools.partial(FORMS[form], file)
    np.testing.assert_array_equal(silently(load_image, make()), RGB)
    np.testing.assert_array_equal(EXACT(make()), RGB)
    np.testing.assert_array_equal(EXACT([make(), RGB]), np.stack([RGB, RGB]))
    np.testing.assert_array_equal(keras_sam.visualization.overlay(make()), RGB)


def test_an_open_file_stays_open(file):
    with file.open("rb") as opened:
        np.testing.assert_array_equal(EXACT(opened), RGB)
        assert not opened.closed
    with file.open(encoding="latin-1") as text, pytest.raises(ValueError, match='open.path, "rb"'):
        load_image(text)


def test_the_home_folder(file, monkeypatch):
    monkeypatch.setenv("HOME", str(file.parent))
    monkeypatch.setenv("USERPROFILE", str(file.parent))
    np.testing.assert_array_equal(load_image(f"~/{file.name}"), RGB)


@pytest.mark.parametrize("address", ["https://example.com/a.jpg", "s3://bucket/a.jpg"])
def test_an_address_is_not_downloaded(address):
    with pytest.raises(ValueError, match="on this machine.*get_file.*pass the path"):
        EXACT(address)


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "the file is empty"),
        (b"<!DOCTYPE html><html>404</html>\n", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "pillow-heif"),
        (encoded(kind="jpeg")[:300], "truncated"),
        (encoded(kind="tiff")[:300], "failed to read|tifffile"),
    ],
)
def test_what_a_file_holds_that_is_no_image(tmp_path, content, reason):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path.name}.*(?i:{reason})"):
        load_image(path)
    if b"\n" in content or b"\0" in content:
        with pytest.raises(ValueError, match=f"{len(content)} bytes"):
            load_image(content)


def test_the_predictor_the_generator_and_predict_read_open_files(file):
    segmenter = tiny_segmenter()
    predictor = keras_sam.SAMPredictor(segmenter)
    predictor.set_image(str(file))
    expected = predictor.image_embeddings
    predictor.set_image(io.BytesIO(file.read_bytes()))
    np.testing.assert_array_equal(predictor.image_embeddings, expected)
    prompts = {"points": [[[3, 4]]], "labels": [[1]]}
    from_path = segmenter.predict({"images": [file], **prompts})
    from_bytes = segmenter.predict({"images": [file.read_bytes()], **prompts})
    np.testing.assert_array_equal(from_bytes["masks"], from_path["masks"])
    generator = keras_sam.SAMAutomaticMaskGenerator(segmenter, points_per_side=1)
    assert generator.generate(io.BytesIO(file.read_bytes())).original_size == (12, 17)
    with pytest.raises(keras_sam.UnfinishedImagesError) as caught:
        generator.generate([RGB, b"\x89PNG\n" + bytes(5000)])
    assert len(str(caught.value)) < 1000  # not the bytes


@pytest.mark.parametrize("kind", ["gif", "tiff", "webp"])
def test_of_several_frames_the_first_is_used_which_is_said_once(tmp_path, kind):
    frames = [Image.fromarray(np.full((12, 17, 3), level, "uint8")) for level in (40, 200)]
    path = tmp_path / f"several.{kind}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    with pytest.warns(UserWarning, match="several frames or pages, of which the first"):
        first = EXACT(path)
    assert abs(first.mean() - 40) < 2
    silently(EXACT, path)
    with Image.open(path) as opened:
        opened.seek(1)  # a choice, so nothing is said
        assert abs(EXACT(opened).mean() - 200) < 2


# --- TIFF beyond pillow ---


@pytest.fixture
def tifffile():
    return pytest.importorskip("tifffile")


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("planes", [False, True])
def test_five_bands(tifffile, tmp_path, monkeypatch, dtype, planes):
    five = picture(12, 17, 5, seed=32)
    stored = five.astype("uint16") * 257 if dtype == "uint16" else five.astype(dtype)
    path = tmp_path / "five.tif"
    tifffile.imwrite(
        path,
        stored.transpose(2, 0, 1) if planes else stored,
        photometric="minisblack",
        planarconfig="separate" if planes else "contig",
    )
    for source in (path, path.read_bytes()):
        np.testing.assert_allclose(silently(load_image, source, num_channels=5), five, rtol=1e-6)
    with pytest.raises(ValueError, match=r"3 channels.*\(12, 17, 5\)"):
        load_image(path)
    monkeypatch.setitem(sys.modules, "tifffile", None)  # as if it was not installed
    with pytest.raises(ValueError, match=r'five.tif.*pip install "keras_sam\[tiff\]"'):
        load_image(path, num_channels=5)


def test_other_bands_beside_rgb_are_dropped_as_alpha_is(tifffile, tmp_path):
    five = picture(12, 17, 5, seed=33)
    for stored in (five, five.astype("uint16") * 257):
        tifffile.imwrite(tmp_path / "rgb.tif", stored, photometric="rgb", planarconfig="contig")
        np.testing.assert_allclose(load_image(tmp_path / "rgb.tif"), five[..., :3], rtol=1e-6)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_through_tifffile_is_turned_upright_as_by_pillow(tifffile, tmp_path, orientation):
    tag = (274, "H", 1, orientation, True)
    for name, stored in (("8.tif", RGB), ("16.tif", RGB.astype("uint16") * 257)):
        tifffile.imwrite(tmp_path / name, stored, photometric="rgb", extratags=[tag])
    by_pillow = load_image(tmp_path / "8.tif")
    np.testing.assert_allclose(load_image(tmp_path / "16.tif"), by_pillow, rtol=1e-6)


def test_sixteen_bits_per_colour_that_pillow_would_halve(tifffile, tmp_path):
    path = tmp_path / "camera.tif"
    tifffile.imwrite(path, TWELVE_BITS, photometric="rgb")
    pixels = silently(SAMImageConverter(size=(12, 17), value_range=(0, 4080)), path)
    np.testing.assert_allclose(pixels, RGB, atol=1e-4)


def test_the_upper_half_of_sixteen_bits_is_told(monkeypatch, tifffile, tmp_path):
    path = tmp_path / "camera.tif"
    tifffile.imwrite(path, TWELVE_BITS, photometric="rgb")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.warns(UserWarning, match=r"16 bits per colour.*nearly black.*keras_sam\[tiff\]"):
        load_image(path)


@pytest.mark.parametrize("bands", [1, 3])
@pytest.mark.parametrize("nodata", [-9999, float("nan")])
def test_what_a_geotiff_declares_to_be_no_value_is_black(tifffile, tmp_path, bands, nodata):
    """One band is read by pillow, three by tifffile."""
    stored = RGB.astype("float32")[..., :bands].squeeze()
    stored[:4] = nodata
    path = tmp_path / "satellite.tif"
    tifffile.imwrite(path, stored, extratags=[(42113, "s", 0, str(nodata), True)])
    for value_range in ("auto", (0, 255)):
        pixels = silently(EXACT, path, value_range=value_range)
        assert (pixels[:4] == 0).all()
        np.testing.assert_allclose(pixels[4:, :, 0], RGB[4:, :, 0], rtol=1e-5)


# --- values ---


@pytest.mark.parametrize(
    "image, value_range, expected",
    [
        (TWELVE_BITS, (0, 4080), RGB),  # a camera's 12 bits
        (TWELVE_BITS[..., 0], (0, 4080), RGB[..., :1].repeat(3, -1)),
        (RGB.astype("int16") * 5 - 1024, (-1024, 251), RGB),  # CT
        (RGB.astype("float32") * 10, [0, 2550], RGB),  # satellite
        (np.where(RGB > 99, -9999.0, RGB), (0, 255), np.where(RGB > 99, 0, RGB)),  # no value
        (np.where(RGB > 99, np.nan, RGB), (0, 255), np.where(RGB > 99, 0, RGB)),
        (np.where(RGB > 99, np.inf, RGB), (0, 255), np.where(RGB > 99, 255, RGB)),
        (np.ma.masked_greater(RGB * 9.0, 891), (0, 2295), np.where(RGB > 99, 0, RGB)),
        (RGB / 255, (0, 1), RGB),
        (RGB / 255, (0, 255), RGB / 255),  # nearly black, and meant so
        (RGB.astype("int64"), (0, 255), RGB),
        (RGB, (0, 4095), RGB),  # a JPEG beside them: eight bits are 0..255 already
        (RGB.astype("float64") + 1e9, (1e9, 1e9 + 255), None),  # more digits than float32 has
    ],
)
def test_values_in_a_range_become_0_to_255(image, value_range, expected):
    converter = SAMImageConverter(size=(12, 17), value_range=value_range)
    pixels = silently(converter, [image])[0]
    assert pixels.min() >= 0 and pixels.max() <= 255
    if expected is not None:
        np.testing.assert_allclose(pixels, expected, atol=1e-3)
    copy = SAMImageConverter.from_config(json.loads(json.dumps(converter.get_config())))
    assert copy.value_range == tuple(map(float, value_range))
    np.testing.assert_array_equal(copy([image])[0], pixels)
    np.testing.assert_array_equal(EXACT([image], value_range=value_range)[0], pixels)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x,  # a dull picture in eight bits
        lambda x: x.astype("uint16") * 11,
        lambda x: x.astype("int16") * 11 - 1000,
        lambda x: x * 0.001,
        lambda x: np.ma.masked_where(CORNER, np.where(CORNER, -1.0, x * 7.0)),
        lambda x: np.where(CORNER, np.nan, x * 7.0),
        lambda x: np.where(CORNER, -9999, x * 7.0),
        lambda x: np.where(CORNER, -32768, x.astype("int16")).astype("int16"),
        lambda x: np.where(CORNER, np.finfo("float32").min, x * 7.0).astype("float32"),
    ],
    ids=str,
)
def test_percentiles_are_those_of_each_image_without_missing_values(change):
    """All forms of a picture give the same pixels, but for the missing ones, which are black."""
    dull = 60 + picture(120, 170, seed=34) // 4
    low, high = np.percentile(dull[~CORNER], (0.5, 99.5))
    expected = np.clip((dull - low) * (255 / (high - low)), 0, 255)
    converter = SAMImageConverter(size=(120, 170), value_range="percentile")
    pixels = silently(converter, [change(dull), np.zeros((9, 9))])[0]
    np.testing.assert_allclose(pixels[~CORNER], expected[~CORNER], atol=12)
    assert np.percentile(pixels[~CORNER], 99) > 230 and np.percentile(pixels[~CORNER], 1) < 25


CORNER = np.zeros((120, 170, 3), bool)
CORNER[:20, :30] = True


def test_masked_values_are_black_in_every_type():
    for image in (RGB, RGB.astype("float32"), RGB.astype("int64"), RGB.astype("uint16") * 257):
        masked = np.ma.array(image, mask=RGB > 99)
        expected = np.where(RGB > 99, 0, RGB)
        np.testing.assert_allclose(silently(EXACT, [masked])[0], expected, rtol=1e-6)
        batch = silently(EXACT, np.ma.stack([masked, masked]), value_range="auto")
        np.testing.assert_allclose(batch[1], expected, rtol=1e-6)
    junk = np.ma.masked_invalid(np.where(RGB > 99, np.nan, RGB))
    np.testing.assert_allclose(silently(EXACT, [junk])[0], expected, rtol=1e-6)


def test_percentiles_of_what_has_no_contrast():
    converter = SAMImageConverter(size=(12, 17), value_range="percentile")
    for image in (np.full((12, 17, 3), 7), np.full((12, 17, 3), -9999.0)):
        assert np.isfinite(silently(converter, [image])).all()
    with pytest.raises(ValueError, match="not NaN or masked"):
        converter([np.full((12, 17, 3), np.nan)])


def test_few_bits_are_told_once_with_the_range(tmp_path):
    path = tmp_path / "camera.png"
    Image.fromarray(TWELVE_BITS[..., 0]).save(path)
    message = r"up to \d+.*\(0, 4095\).*percentile"
    with pytest.warns(UserWarning, match=message):
        pixels = EXACT([TWELVE_BITS])
    np.testing.assert_allclose(pixels[0], TWELVE_BITS / 257, rtol=1e-6)
    silently(EXACT, [TWELVE_BITS, path])
    silently(EXACT, [np.zeros((12, 17, 3), "uint16"), TWELVE_BITS * 16])  # black; all of the bits


def test_each_kind_of_picture_is_told_by_its_name(tmp_path):
    path = tmp_path / "dark.png"
    Image.fromarray(TWELVE_BITS[..., 0] // 16).save(path)
    with pytest.warns(UserWarning) as told:
        EXACT([TWELVE_BITS])
        EXACT([path])
        EXACT([TWELVE_BITS, path, Image.open(path)])
        EXACT([RGB * 257.0, RGB * 250.0, RGB * 9000.0])
    few_bits, others = told[:2], told[2:]
    assert "up to 40" in str(few_bits[0].message) and "(0..15): an array." in str(
        few_bits[0].message
    )
    assert "dark.png'. If they are all of its range" in str(few_bits[1].message)
    assert "(0, 255)" in str(few_bits[1].message)
    assert ["far outside 0..255: an array." in str(warning.message) for warning in others] == [
        True
    ] * 2


@pytest.mark.parametrize("value_range", ["minmax", (255, 0), (0, 0), (0,), 255, (0, np.nan), [[]]])
def test_value_ranges_that_are_none(value_range):
    with pytest.raises(ValueError, match="`value_range` must be"):
        SAMImageConverter(value_range=value_range)
    with pytest.raises(ValueError, match="`value_range` must be"):
        EXACT.value_range = value_range


def test_the_value_range_is_stored_with_the_preset(tmp_path):
    segmenter = tiny_segmenter()
    segmenter.preprocessor = SAMImageSegmenterPreprocessor.for_backbone(segmenter.backbone)
    assert "value_range" not in segmenter.preprocessor.image_converter.get_config()
    segmenter.preprocessor.image_converter.value_range = (0, 4095)
    segmenter.save_to_preset(str(tmp_path / "camera"))
    segmenter.save(tmp_path / "camera.keras")
    for loaded in (
        keras_sam.SAMImageSegmenter.from_preset(str(tmp_path / "camera")).preprocessor,
        keras.saving.load_model(tmp_path / "camera.keras").preprocessor,
        SAMImageSegmenterPreprocessor.from_preset(str(tmp_path / "camera")),
    ):
        assert loaded.image_converter.value_range == (0, 4095)
    for maker in (SAMImageConverter, SAMImageSegmenterPreprocessor):
        made = maker.from_preset(str(tmp_path / "camera"), value_range="percentile")
        assert getattr(made, "image_converter", made).value_range == "percentile"


def test_everything_takes_the_preprocessors_value_range(tmp_path):
    """The same picture in 0..255 and in twelve bits: one result from every way through."""
    Image.fromarray(RGB[..., 0].astype("float32")).save(tmp_path / "eight.tif")
    Image.fromarray(TWELVE_BITS[..., 0]).save(tmp_path / "twelve.png")
    segmenter = tiny_segmenter()
    segmenter.preprocessor = SAMImageSegmenterPreprocessor.for_backbone(segmenter.backbone)
    predictor = keras_sam.SAMPredictor(segmenter)
    options = {"points_per_side": 2, "pred_iou_thresh": -9, "stability_score_thresh": 0}
    generator = keras_sam.SAMAutomaticMaskGenerator(segmenter, crop_n_layers=1, **options)

    def results(path, value_range):
        segmenter.preprocessor.image_converter.value_range = value_range
        predictor.set_image(path)
        yield predictor.image_embeddings
        yield segmenter.encode([path])["image_embeddings"]
        yield segmenter.predict({"images": [path], "points": [[[3, 4]]], "labels": [[1]]})["masks"]
        yield [record["predicted_iou"] for record in generator.generate(path)]

    eight = list(silently(results, tmp_path / "eight.tif", "auto"))
    twelve = list(silently(results, tmp_path / "twelve.png", (0, 4080)))
    for one, other in zip(eight, twelve, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3)
    assert len(eight[-1]) > 0


def test_the_command_line_takes_the_presets_value_range(tmp_path, capsys):
    Image.fromarray(TWELVE_BITS[..., 0]).save(tmp_path / "twelve.png")
    segmenter = tiny_segmenter()
    segmenter.preprocessor = SAMImageSegmenterPreprocessor.for_backbone(segmenter.backbone)
    segmenter.preprocessor.image_converter.value_range = (0, 4080)
    segmenter.save_to_preset(tmp_path / "model")
    command = ["segment", "twelve.png", "--model", "model", "--box", "2,2,9,9", "--out", "out"]
    words = [str(tmp_path / w) if (tmp_path / w).exists() else w for w in command]
    assert not keras_sam.cli.main([*words[:-1], str(tmp_path / "out"), "--backend", BACKEND])
    with Image.open(tmp_path / "out" / "twelve_overlay.png") as overlay:
        assert np.asarray(overlay).mean() > RGB[..., 0].mean() / 2  # not black
    predictor = keras_sam.SAMPredictor(segmenter)
    predictor.set_image(tmp_path / "twelve.png")
    masks, _, _ = predictor.predict(boxes=[2, 2, 9, 9], multimask_output=False)
    with Image.open(tmp_path / "out" / "twelve_mask_0.png") as mask:
        np.testing.assert_array_equal(np.asarray(mask) > 0, masks[0])


def test_training_leaves_the_values_to_the_preprocessor(tmp_path):
    for folder in ("photos", "masks"):
        (tmp_path / folder).mkdir()
    Image.fromarray(TWELVE_BITS[..., 0]).save(tmp_path / "photos" / "a.png")
    mask = np.zeros((12, 17), "uint8")
    mask[3:9, 2:12] = 255
    Image.fromarray(mask).save(tmp_path / "masks" / "a.png")
    source = MaskFolder(tmp_path / "photos", tmp_path / "masks")
    converter = SAMImageConverter(size=(12, 17), value_range=(0, 4080))
    for options in ({}, {"scales": (1.0, 1.0)}):
        x, _ = silently(ObjectBatches(source, prompts="none", **options).__getitem__, 0)
        np.testing.assert_allclose(
            silently(converter, x["images"])[0][..., 0], RGB[..., 0], atol=0.1
        )


# --- floats within 0..1 ---


def test_floats_within_0_and_1_are_scaled_and_it_is_said_once():
    unit = (RGB / 255).astype("float32")
    with pytest.warns(UserWarning, match=r"0..1 and is multiplied by 255.*value_range=\(0, 255\)"):
        pixels = EXACT([unit, unit])
    np.testing.assert_allclose(pixels, np.stack([RGB, RGB]), rtol=1e-6)
    for image in (
        unit,
        unit.astype("float16"),
        unit.astype("float64"),
        Image.fromarray(unit[..., 0]),
    ):
        assert abs(silently(EXACT, [image])[0, ..., 0] - RGB[..., 0]).max() < 0.1


def test_each_image_is_scaled_by_its_own_values():
    """So that an image's masks do not depend on what else is in its batch."""
    unit, one_pixel = (RGB / 255).astype("float32"), np.ones((1, 1, 3))
    batch = np.stack([unit, RGB.astype("float32"), np.zeros_like(unit)])
    with pytest.warns(UserWarning, match="multiplied by 255"):
        pixels = EXACT(batch)
    np.testing.assert_allclose(pixels, np.stack([RGB, RGB, 0 * RGB]), rtol=1e-6)  # black is black
    assert (EXACT([one_pixel]) == 255).any()
    for dark in (RGB // 255, (RGB > 99).astype("int64")):  # integers are never scaled
        np.testing.assert_array_equal(EXACT([dark])[0], dark)
    slightly_above = unit + np.float32(1.5)
    np.testing.assert_array_equal(EXACT([slightly_above])[0], slightly_above)


@pytest.mark.parametrize(
    "image, message",
    [
        (RGB / 127.5 - 1, "within -0.9.*looks normalised.*Pass the image before that"),
        ((RGB - 120.0) / 57, "looks normalised"),
        (RGB * 2000.0 - 1000, "far outside 0..255.*value_range"),
        (RGB * 257.0, "far outside 0..255"),
    ],
)
def test_floats_that_look_wrong_are_told_once_and_stay(image, message):
    with pytest.warns(UserWarning, match=message):
        pixels = EXACT([image])
    np.testing.assert_allclose(pixels[0], image, rtol=1e-6)
    silently(EXACT, [image])


def test_the_pixels_of_a_models_own_frame_are_read_once():
    """A dark crop of a bright picture is no picture within 0..1."""
    pixels = np.full((64, 64, 3), 0.9, "float32")
    pixels[:, 40:] = 200
    segmenter = tiny_segmenter()
    generator = keras_sam.SAMAutomaticMaskGenerator(
        segmenter,
        points_per_side=1,
        crop_n_layers=1,
        pred_iou_thresh=0,
        stability_score_thresh=0,
    )
    converter = generator.predictor.preprocessor.image_converter
    seen = []
    convert = converter.convert
    converter.convert = lambda images, **options: (
        seen.append(convert(images, **options)) or seen[-1]
    )
    silently(generator.generate, pixels)
    assert any(frames.max() > 199 for frames, _ in seen[1:])
    darkest = min((frames[0, :8, :8].max() for frames, _ in seen), default=None)
    assert darkest < 1


# --- in tf.data ---


def test_a_converter_maps_single_images_batches_and_paths(file):
    tf = pytest.importorskip("tensorflow")
    converter = SAMImageConverter(size=(12, 34))
    expected = converter([RGB])[0]
    signature = tf.TensorSpec((None, None, 3), tf.uint8)
    images = tf.data.Dataset.from_generator(lambda: iter([RGB, RGB]), output_signature=signature)
    singles = images.map(converter)
    assert singles.element_spec.shape == (12, 34, 3)
    for pixels in singles:
        np.testing.assert_array_equal(pixels, expected)
    batches = images.batch(2).map(converter)
    assert batches.element_spec.shape == (None, 12, 34, 3)
    np.testing.assert_array_equal(next(iter(batches)), np.stack([expected, expected]))
    ragged = images.ragged_batch(2).map(converter)
    np.testing.assert_array_equal(next(iter(ragged))[1], expected)
    paths = tf.data.Dataset.from_tensor_slices([str(file)])
    assert paths.map(converter).element_spec.shape == (12, 34, 3)
    np.testing.assert_array_equal(next(iter(paths.map(converter))), expected)
    np.testing.assert_array_equal(next(iter(paths.batch(1).map(converter)))[0], expected)
    larger = images.map(lambda image: converter(image, pad_size=(24, 68)))
    assert larger.element_spec.shape == (24, 68, 3)
    click = {"points": tf.constant([[[3.0, 4.0]]]), "labels": tf.constant([[1]])}
    preprocessor = SAMImageSegmenterPreprocessor(converter)
    unit = images.map(lambda image: tf.cast(image, tf.float32) / 255)
    prepared = unit.batch(1).map(lambda batch: preprocessor({"images": batch, **click}))
    with pytest.warns(UserWarning, match="multiplied by 255"):
        np.testing.assert_allclose(next(iter(unit.map(converter))), expected, atol=1e-3)
    np.testing.assert_allclose(next(iter(prepared))["images"][0], expected, atol=1e-3)
