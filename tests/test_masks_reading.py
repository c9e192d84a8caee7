"""What people draw, export and save as a mask, and the object that it is read as."""

import io

import numpy as np
import pytest
from PIL import Image, ImageFilter

from keras_sam import notices
from keras_sam.masks.reading import read_mask, tell_of

pytestmark = pytest.mark.once

SIZE = (45, 60)


def rectangle(x1, y1, x2, y2):
    mask = np.zeros(SIZE, bool)
    mask[y1:y2, x1:x2] = True
    return mask


OBJECT = rectangle(15, 10, 40, 30)
OTHER = rectangle(48, 32, 58, 43)
VOID = rectangle(0, 0, 12, 45)
NOWHERE = np.zeros(SIZE, bool)
PHOTO = np.random.default_rng(5).integers(0, 256, (*SIZE, 3), "uint8")


def numbers(*painted, ground=0, dtype="uint8"):
    """A picture of one number per region."""
    values = np.full(SIZE, ground, dtype)
    for region, value in painted:
        values[region] = value
    return values


def coloured(colour, ground=(0, 0, 0)):
    return np.where(OBJECT[..., None], np.uint8(colour), np.uint8(ground))


def with_alpha(colours, alpha):
    return np.dstack([colours, np.uint8(alpha)])


def through(pixels, **options):
    """Written and read in a lossy format."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, **options)
    return np.asarray(Image.open(file))


WHITE = numbers((OBJECT, 255))


def blurred(radius):
    return np.asarray(Image.fromarray(WHITE).filter(ImageFilter.GaussianBlur(radius)))


def stray(value, *places):
    pixels = WHITE.copy()
    for place in places:
        pixels[place] = value
    return pixels


LINE = numbers((rectangle(5, 40, 50, 41), 1), (VOID, 255))
NO_LINE_IN_VOID = rectangle(5, 40, 50, 41) & ~VOID

# What is read, and the object and the void in it.
CASES = {
    "bool": (OBJECT, OBJECT, NOWHERE),
    "0 and 1": (numbers((OBJECT, 1)), OBJECT, NOWHERE),
    "0 and 255": (WHITE, OBJECT, NOWHERE),
    "nothing": (numbers(), NOWHERE, NOWHERE),
    "1 beside void": (numbers((OBJECT, 1), (VOID, 255)), OBJECT, VOID),
    "a line of 1 beside void": (LINE, NO_LINE_IN_VOID & (LINE == 1), LINE == 255),
    "64 bits": (numbers((OBJECT, 1), (VOID, 255), dtype="int64"), OBJECT, VOID),
    "a class beside void": (numbers((OBJECT, 15), (VOID, 255)), OBJECT, VOID),  # as PASCAL VOC
    "classes": (numbers((OBJECT, 3), (OTHER, 200)), OBJECT | OTHER, NOWHERE),
    "thin classes": (numbers((rectangle(5, 5, 50, 6), 200)), rectangle(5, 5, 50, 6), NOWHERE),
    "16 bits": (numbers((OBJECT, 255), (OTHER, 1), dtype="uint16"), OBJECT | OTHER, NOWHERE),
    "16 bits, white": (numbers((OBJECT, 65535), dtype="uint16"), OBJECT, NOWHERE),
    "16 bits, soft": (blurred(1).astype("uint16") * 257, blurred(1) >= 128, NOWHERE),
    "floats": (OBJECT.astype("float32"), OBJECT, NOWHERE),
    "floats of 255": (WHITE.astype("float64"), OBJECT, NOWHERE),
    "soft floats": (blurred(1).astype("float32") / 255, blurred(1) >= 128, NOWHERE),
    "sharp edges between pixels": (numbers((OBJECT, 255), (rectangle(15, 9, 40, 10), 90)),)
    + (OBJECT & ~rectangle(15, 9, 40, 10), NOWHERE),
    "soft edges": (blurred(0.7), blurred(0.7) >= 128, NOWHERE),
    "softer edges": (blurred(2), blurred(2) >= 128, NOWHERE),
    "a stray 1": (stray(1, (2, 2)), OBJECT, NOWHERE),
    "a stray 1 inside": (stray(1, (20, 20)), WHITE * (stray(1, (20, 20)) > 1) > 0, NOWHERE),
    "a few stray 1": (stray(1, (2, 2), (5, 50), (44, 3)), OBJECT, NOWHERE),
    "a stray 254": (stray(254, (20, 20)), OBJECT, NOWHERE),
    "white of 254": (numbers((OBJECT, 254), (OTHER, 255)), OBJECT | OTHER, NOWHERE),
    "black and white of video": (numbers((OBJECT, 235), ground=16), OBJECT, NOWHERE),
    "one channel": (WHITE[..., None], OBJECT, NOWHERE),
    "green": (coloured((0, 255, 0)), OBJECT, NOWHERE),
    "blue": (coloured((0, 0, 255)), OBJECT, NOWHERE),
    "dark red": (coloured((128, 0, 0)), OBJECT, NOWHERE),
    "white": (coloured((255, 255, 255)), OBJECT, NOWHERE),
    "red on white": (coloured((255, 0, 0), (255, 255, 255)), OBJECT, NOWHERE),
    "alpha of black": (with_alpha(coloured((0, 0, 0)), WHITE), OBJECT, NOWHERE),
    "alpha of white": (with_alpha(coloured((255, 255, 255), (255, 255, 255)), WHITE),)
    + (OBJECT, NOWHERE),
    "alpha of grey": (np.dstack([numbers(), WHITE]), OBJECT, NOWHERE),
    "black on a transparent white": (
        with_alpha(coloured((0, 0, 0), (255, 255, 255)), WHITE),
        OBJECT,
        NOWHERE,
    ),
    "a photograph that is cut out": (with_alpha(PHOTO, WHITE), OBJECT, NOWHERE),
    "opaque green": (with_alpha(coloured((0, 255, 0)), numbers(ground=255)), OBJECT, NOWHERE),
    "transparent round green": (with_alpha(coloured((0, 255, 0)), WHITE), OBJECT, NOWHERE),
}


@pytest.mark.parametrize("pixels, inside, void", CASES.values(), ids=CASES)
def test_a_mask_is_read_as_what_it_shows(pixels, inside, void):
    target = read_mask(pixels).target()
    np.testing.assert_array_equal(target == 1, inside)
    np.testing.assert_array_equal(target == 255, void)


@pytest.mark.parametrize("quality", [20, 40, 63, 70, 75, 85, 90, 95, 100])
@pytest.mark.parametrize("pixels", [WHITE, coloured((0, 255, 0))], ids=["white", "green"])
def test_a_mask_survives_jpeg(pixels, quality):
    """At some qualities black comes back as 1, at others white as 254."""
    lossy = through(pixels, format="JPEG", quality=quality)
    for read in (read_mask(lossy), read_mask(lossy, lossy=True)):  # as a PNG since, and as it is
        target = read.target()
        assert (target != 255).all()
        assert np.count_nonzero((target == 1) != OBJECT) <= 20


def test_each_label_and_each_colour_is_an_object():
    values = numbers((OBJECT, 7), (OTHER, 3), (VOID, 255))
    objects = read_mask(values).objects()  # in the order of their numbers
    np.testing.assert_array_equal(objects == 1, [OTHER, OBJECT])
    np.testing.assert_array_equal(objects == 255, [VOID, VOID])
    wide = values.astype("uint16")
    np.testing.assert_array_equal(read_mask(wide).objects() == 1, [OTHER, OBJECT, VOID])
    colours = np.array([(0, 0, 0), (0, 0, 255), (255, 255, 0)], "uint8")
    picture = colours[numbers((OBJECT, 2), (OTHER, 1))]
    np.testing.assert_array_equal(read_mask(picture).objects() == 1, [OTHER, OBJECT])
    assert read_mask(WHITE).objects().shape == (1, *SIZE)  # black and white is one object
    assert read_mask(numbers()).objects().shape == (0, *SIZE)


def test_void_may_be_said():
    pixels = numbers((OBJECT, 128), (VOID, 255))  # a trimap, or two classes
    with pytest.raises(ValueError, match="does not say whether 255 is void.*`void=None`"):
        read_mask(pixels)
    np.testing.assert_array_equal(read_mask(pixels, void=255).target() == 255, VOID)
    np.testing.assert_array_equal(read_mask(pixels, void=None).target() == 1, OBJECT | VOID)
    np.testing.assert_array_equal(read_mask(pixels, void=128).target() == 1, VOID)
    np.testing.assert_array_equal(read_mask(WHITE, void=255).target() == 255, OBJECT)
    with pytest.raises(ValueError, match="`void` must be a number.*'white'"):
        read_mask(pixels, void="white")


@pytest.mark.parametrize(
    "pixels, message",
    [
        (PHOTO[..., 0], "neither dark nor bright"),
        (PHOTO, "neither dark nor bright"),
        (OBJECT * 8.0 - 4, r"-4.0..4.0. Threshold logits"),
        (np.where(OBJECT, np.nan, 0.0), "nan"),
        (np.where(OBJECT, -1, 0), "smallest=-1"),
        (np.zeros((*SIZE, 5), "uint8"), "1 to 4 channels"),
        (np.zeros((0, 4), "uint8"), "at least one pixel"),
    ],
    ids=["a photograph", "in colour", "logits", "not a number", "negative", "channels", "empty"],
)
def test_what_is_no_mask_is_refused(pixels, message):
    with pytest.raises(ValueError, match=message):
        read_mask(pixels)


def test_a_label_map_in_jpeg_is_refused_or_black_and_white():
    grey = through(numbers((OBJECT, 100), (OTHER, 150)), format="JPEG", quality=90)
    with pytest.raises(ValueError, match="save the label map without loss"):
        read_mask(grey, lossy=True)


def test_what_was_chosen_is_said_once(monkeypatch, recwarn):
    monkeypatch.setattr(notices, "_given", set())
    inverted = np.where(rectangle(20, 20, 30, 30), 0, 255).astype("uint8")
    for _ in range(2):
        tell_of(read_mask(WHITE), "plain.png")
        tell_of(read_mask(blurred(1)), "soft.png")
        tell_of(read_mask(with_alpha(PHOTO, WHITE)), "cut.png")
        tell_of(read_mask(inverted), "inverted.png")
    said = [str(warning.message) for warning in recwarn]
    assert len(said) == 3
    assert "soft.png is black and white with values between" in said[0]
    assert "cut.png is read from its alpha" in said[1]
    assert "inverted.png covers 96 % of it and touches all of its borders" in said[2]
