"""Photographs by name: nothing outside the folder, nothing too large, and upright."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from keras_sam.annotate import photo_folder
from keras_sam.annotate.photo_folder import PhotoFolder
from tests.tiny import photograph

pytestmark = pytest.mark.once


@pytest.fixture
def place(tmp_path):
    inside, outside = tmp_path / "photos", tmp_path / "outside"
    for folder in (inside, outside):
        folder.mkdir()
        Image.fromarray(photograph((30, 40))).save(folder / "a.png")
    return inside


def folder_of(place):
    return PhotoFolder(place, {path.name: path for path in place.iterdir()})


NAMES = [
    "../outside/a.png",
    "/etc/passwd",
    "%2e%2e/outside/a.png",
    "./a.png",
    "",
    "a.png\0",
    "b.png",
]


@pytest.mark.parametrize("name", NAMES)
def test_only_the_names_of_the_folder_lead_to_files(place, name):
    with pytest.raises(KeyError):
        folder_of(place).read(name)


def test_links_lead_to_files_of_the_folder_alone(place):
    (place / "in.png").symlink_to("a.png")
    (place / "out.png").symlink_to("../outside/a.png")
    (place / "gone.png").symlink_to("nowhere.png")
    folder = folder_of(place)
    assert folder.read("in.png") == folder.read("a.png")
    with pytest.raises(ValueError, match="outside the folder"):
        folder.read("out.png")
    with pytest.raises(ValueError, match="cannot be read"):
        folder.read("gone.png")
    (place / "a.png").unlink()  # between the start and the request
    (place / "a.png").symlink_to("../outside/a.png")
    with pytest.raises(ValueError, match="outside the folder"):
        folder.picture("a.png")


def test_a_pipe_and_a_path_within_a_file_are_no_photographs(place):
    os.mkfifo(place / "pipe.png")
    (place / "path.png").write_text(str(place.parent / "outside" / "a.png"))
    folder = folder_of(place)
    with pytest.raises(ValueError, match="no plain file"):
        folder.read("pipe.png")
    for read in (folder.size, folder.picture):
        with pytest.raises(ValueError, match="path.png cannot be read"):
            read("path.png")


def test_large_pictures_are_refused_before_they_are_decoded(place, monkeypatch):
    monkeypatch.setattr(photo_folder, "MAX_PIXELS", 1000)
    for read in (folder_of(place).size, folder_of(place).picture):
        with pytest.raises(ValueError, match="too many pixels"):
            read("a.png")
    monkeypatch.setattr(photo_folder, "MAX_BYTES", 100)
    with pytest.raises(ValueError, match="photographs of up to"):
        folder_of(place).read("a.png")


def test_the_size_of_a_tiff_that_pillow_does_not_read_is_known_before_it_is_decoded(
    place, monkeypatch
):
    tifffile = pytest.importorskip("tifffile")
    pixels = np.zeros((30, 40, 3), "float64")  # which pillow has no mode for
    for number in (1, 6):
        tag = (274, "H", 1, number, True)
        settings = {"photometric": "rgb", "extratags": [tag]}
        tifffile.imwrite(place / f"turned{number}.tif", pixels, **settings)
        with pytest.raises(OSError, match="identify"):
            Image.open(place / f"turned{number}.tif")

    def decoded(*_, **__):
        raise AssertionError("it was decoded")

    monkeypatch.setattr(tifffile.TiffPage, "asarray", decoded)
    folder = folder_of(place)
    assert [folder.size(f"turned{number}.tif") for number in (1, 6)] == [(30, 40), (40, 30)]
    monkeypatch.setattr(photo_folder, "MAX_PIXELS", 1000)
    for read in (folder_of(place).size, folder_of(place).picture):
        with pytest.raises(ValueError, match="too many pixels"):
            read("turned1.tif")


def test_pictures_are_what_the_model_sees(place):
    pixels = photograph((30, 40))
    turned = Image.Exif()
    turned[274] = 6
    for kind in ("jpg", "png", "webp", "tif"):
        Image.fromarray(pixels).save(place / f"turned.{kind}", exif=turned)
    Image.fromarray(pixels[..., 0].astype("uint16") * 200).save(place / "deep.png")
    Image.fromarray(np.dstack([pixels, pixels[..., :1]])).save(place / "alpha.png")
    folder = folder_of(place)
    for kind in ("jpg", "png", "webp", "tif"):
        assert folder.size(f"turned.{kind}") == (40, 30)
    for kind in ("png", "webp", "tif"):  # which not every browser turns, or shows
        with Image.open(io.BytesIO(folder.picture(f"turned.{kind}")[0])) as picture:
            assert (picture.format, picture.size) == ("JPEG", (30, 40))
    for name, kind in (("a.png", "image/png"), ("turned.jpg", "image/jpeg")):  # as they are
        assert folder.picture(name) == (folder.read(name), kind)
    for name in ("deep.png", "alpha.png"):  # browsers would show them otherwise
        content, kind = folder.picture(name)
        with Image.open(io.BytesIO(content)) as picture:
            assert (kind, picture.mode, picture.size) == ("image/jpeg", "RGB", (40, 30))
