"""`keras-sam everything --tile`: what it writes, how it goes on after SIGKILL, what it refuses."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import rasterio
import tifffile
import zarr

import keras_sam
from keras_sam import annotations
from keras_sam.masks import decode_rle, masks_to_label_map
from keras_sam.tiles import TiledMaskGenerator
from keras_sam.tiles.tile_folder import TileFolder
from tests.scenes import scene
from tests.tiles.test_pictures import cut_in_half

pytestmark = pytest.mark.once

SIZE = (120, 200)
SETTINGS = {"points_per_side": 4, "pred_iou_thresh": 0.45, "stability_score_thresh": 0.5}
FLAGS = [
    part for name, value in SETTINGS.items() for part in (f"--{name.replace('_', '-')}", str(value))
]
MODEL = ("--model", "sam_tiny_demo", "--image-shape", "256", "--quiet", *FLAGS)
TILES = ("--tile", "60", "--halo", "20")
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def drawn():
    return scene(SIZE, (3, 4), 3, filled=1.0)[0]


@pytest.fixture
def scan(drawn, tmp_path):
    """A georeferenced picture of six tiles."""
    return write_scan(tmp_path / "scan.tif", drawn, "EPSG:32633")


def write_scan(path, pixels, crs):
    about = {"driver": "GTiff", "height": SIZE[0], "width": SIZE[1], "count": 3, "dtype": "uint8"}
    transform = rasterio.Affine(0.5, 0, 400000, 0, -0.5, 5000000)
    with rasterio.open(
        path,
        "w",
        crs=crs,
        transform=transform,
        **{**about, "height": len(pixels), "width": pixels.shape[1]},
    ) as file:
        file.write(np.moveaxis(pixels, -1, 0))
    return path


@pytest.fixture
def segmenter(loaded):
    load = keras_sam.SAMImageSegmenter.from_preset
    key = ("sam_tiny_demo", ("image_shape", (256, 256)))
    return loaded.setdefault(key, load("sam_tiny_demo", image_shape=(256, 256)))


@pytest.fixture
def encoded(monkeypatch, segmenter):
    """The frames that are encoded."""
    encode, calls = segmenter.encode_frames, []
    monkeypatch.setattr(
        segmenter, "encode_frames", lambda frames: calls.append(1) or encode(frames)
    )
    return calls


def test_every_format_has_the_generators_masks_and_needs_the_tiles_once(
    cli, scan, segmenter, encoded, drawn, tmp_path
):
    expected = list(TiledMaskGenerator(segmenter, 60, 20, **SETTINGS).stream(drawn))
    assert len(expected) > 10 and len(encoded) == 6
    labels = masks_to_label_map(expected)
    out = tmp_path / "out"
    for form in ("coco", "zarr", "tiff", "geojson", "gpkg"):
        call = ("everything", scan, "--out", out, "--format", form, *TILES, *MODEL)
        code, stdout, err = cli(*call)
        assert (code, err) == (0, "")
        assert stdout == f"1 pictures segmented; {len(expected)} masks in all. Results: {out}\n"
    assert len(encoded) == 12  # by each of the two generators
    (image,) = annotations.read_coco(out / "scan.json")[0]
    assert (image.file_name, image.size) == ("scan.tif", SIZE)
    assert [r["segmentation"] for r in image.records] == [r["segmentation"] for r in expected]
    np.testing.assert_array_equal(zarr.open_array(str(out / "scan_labels.zarr"))[:], labels)
    with rasterio.open(out / "scan_labels.tif") as file:
        assert file.crs == "EPSG:32633"
        np.testing.assert_array_equal(file.read(1), labels)
    features = json.loads((out / "scan.geojson").read_text())["features"]
    assert [f["properties"]["area"] for f in features] == [r["area"] for r in expected]
    names = {"scan.json", "scan_labels.zarr", "scan_labels.tif", "scan.geojson", "scan.gpkg"}
    assert {path.name for path in out.iterdir()} == names | {"scan_tiles"}
    _, stdout, _ = cli(*call, "--json")
    assert json.loads(stdout)["skipped"] == 1 and json.loads(stdout)["masks"] == len(expected)


def test_a_killed_run_goes_on_with_the_tiles_that_are_missing(
    cli, scan, encoded, tmp_path, monkeypatch
):
    out, other = tmp_path / "out", tmp_path / "other"
    call = ["everything", scan, "--format", "zarr", *TILES, *MODEL, "--out"]
    killed_after(2, [*call, out], out / "scan_tiles")
    assert [path.name for path in out.iterdir() if path.suffix != ".part"] == ["scan_tiles"]
    monkeypatch.setattr("keras_sam.files._LEFTOVERS_AFTER", 0)
    done = len(list((out / "scan_tiles").glob("tile_*.json")))
    assert 2 <= done < 6
    assert cli(*call, out)[0] == 0
    assert len(encoded) == 6 - done
    assert {path.name for path in out.iterdir()} == {"scan_tiles", "scan_labels.zarr"}
    assert cli(*call, other)[0] == 0
    a, b = (zarr.open_array(str(f / "scan_labels.zarr"))[:] for f in (out, other))
    assert a.max() > 10
    np.testing.assert_array_equal(a, b)


def killed_after(tiles, words, folder):
    """Runs a command, whose tiles take a second each, and kills it when some are done."""
    slow = (
        "import sys, time\nfrom keras_sam.cli import main\n"
        "from keras_sam.tiles import tile_folder\n"
        "write = tile_folder.TileFolder.write\n"
        "def slowly(*arguments):\n    write(*arguments)\n    time.sleep(1)\n"
        f"tile_folder.TileFolder.write = slowly\nsys.exit(main({[str(word) for word in words]}))"
    )
    environment = {**os.environ, "KERAS_BACKEND": keras.config.backend()}
    process = subprocess.Popen([sys.executable, "-c", slow], env=environment, cwd=ROOT)
    try:
        deadline = time.monotonic() + 240
        while len(list(folder.glob("tile_*.json"))) < tiles:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def test_results_of_another_run_are_kept(cli, scan, encoded, tmp_path):
    out = tmp_path / "out"
    call = ["everything", scan, "--out", out, "--format", "coco", "--tile", "60", *MODEL]
    assert cli(*call, "--halo", "20")[0] == 0
    before = (out / "scan.json").read_bytes()
    code, _, err = cli(*call, "--halo", "10")
    assert code == 2 and "halo was [20, 20], is [10, 10]" in err and "--overwrite" in err
    assert err.count("\n") == 1 and (out / "scan.json").read_bytes() == before
    assert cli(*call, "--halo", "10", "--overwrite")[0] == 0
    assert (out / "scan.json").read_bytes() != before


BAD = [
    (("--tile", "60", "--halo", "61"), r"--halo must not be larger than --tile"),
    (("--tile", "60", "--halo", "-1"), "expected a whole number, at least 0, received '-1'"),
    (("--halo", "20"), "--halo needs --tile"),
    ((), "--format zarr needs --tile"),
    (("--tile", "60", "--channels", "0,1"), "expected one channel or R,G,B"),
    (("--tile", "60", "--channels", "0,1,3"), r"`channels` must be one or three of 0\.\.2"),
    (("--tile", "60", "--format", "yolo"), "--format yolo is not for --tile"),
    (("--tile", "60", "--pictures", "shown"), "--pictures cannot be combined with --tile"),
]


@pytest.mark.parametrize(("words", "message"), BAD)
def test_a_call_that_makes_no_sense_is_refused(cli, scan, tmp_path, words, message):
    out = tmp_path / "out"
    code, _, err = cli("everything", scan, "--out", out, "--format", "zarr", *MODEL, *words)
    assert code == 2 and err.count("\n") == 1 and not out.exists()
    assert re.search(message, err), err


def no_system(tmp_path):
    return write_scan(tmp_path / "plain.tif", np.zeros((*SIZE, 3), "uint8"), None)


def unnamed(tmp_path):
    zarr.create_array(str(tmp_path / "cells.zarr"), shape=(6, 90, 80), dtype="uint8")
    return tmp_path / "cells.zarr"


@pytest.mark.parametrize(
    ("make", "form", "words"),
    [
        (cut_in_half, "zarr", "cut off at"),
        (no_system, "gpkg", "A GeoPackage needs the picture's coordinate reference system"),
        (unnamed, "tiff", "`axes` must be given"),
        (lambda folder: folder / "none.tif", "coco", "There is no picture at"),
    ],
)
def test_a_picture_that_cannot_be_used_is_refused(cli, tmp_path, make, form, words):
    out = tmp_path / "out"
    call = ("everything", make(tmp_path), "--out", out, "--format", form, *TILES, *MODEL)
    code, _, err = cli(*call)
    assert code == 2 and err.count("\n") == 1 and words in err and not out.exists()


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="open files are seen on Linux")
def test_one_picture_is_open_at_a_time(cli, drawn, tmp_path, monkeypatch):
    scans = [write_scan(tmp_path / f"scan{n}.tif", drawn[:60, :60], None) for n in range(3)]
    tifffile.imwrite(tmp_path / "plain.tif", drawn[:60, :60])
    seen, read = [], TileFolder.read

    def watched(folder, tile):
        links = [os.path.realpath(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")]
        seen.append([name for link in links if (name := Path(link).name).endswith(".tif")])
        return read(folder, tile)

    monkeypatch.setattr(TileFolder, "read", watched)
    call = ("everything", *scans, tmp_path / "plain.tif", "--out", tmp_path / "out")
    assert cli(*call, "--format", "coco", *TILES, *MODEL)[0] == 0
    assert [*map(set, seen)] == [{"scan0.tif"}, {"scan1.tif"}, {"scan2.tif"}, {"plain.tif"}]


def test_a_picture_that_cannot_be_read_is_named(cli, drawn, tmp_path):
    path, out = tmp_path / "scan.tif", tmp_path / "out"
    geotiff = {"driver": "GTiff", "height": SIZE[0], "width": SIZE[1], "count": 3, "dtype": "uint8"}
    with rasterio.open(path, "w", compress="lzw", crs="EPSG:32633", **geotiff) as file:
        file.write(np.moveaxis(drawn, -1, 0))
    content = bytearray(path.read_bytes())
    content[len(content) // 2 :] = b"\xff" * len(content[len(content) // 2 :])
    path.write_bytes(content)
    call = ("everything", path, "--out", out, "--format", "coco", *TILES, *MODEL)
    code, _, err = cli(*call)
    assert code == 1 and err.count("\n") == 1 and not (out / "scan.json").exists()
    assert f"cannot read '{path}'" in err and "write" not in err


def test_axes_and_channels_of_an_array_and_the_default_halo(cli, drawn, segmenter, tmp_path):
    cells = zarr.create_array(str(tmp_path / "cells.zarr"), shape=(5, *SIZE), dtype="uint8")
    cells[:] = np.moveaxis(drawn[..., [0, 0, 1, 2, 2]], -1, 0)
    call = ("everything", tmp_path / "cells.zarr", "--out", tmp_path / "out", "--format", "coco")
    more = ("--tile", "80", "--axes", "CYX", "--channels", "1,2,4")
    assert cli(*call, *more, *MODEL)[0] == 0
    expected = list(TiledMaskGenerator(segmenter, 80, 20, **SETTINGS).stream(drawn))
    (image,) = annotations.read_coco(tmp_path / "out" / "cells.json")[0]
    found = decode_rle([record["segmentation"] for record in image.records])
    np.testing.assert_array_equal(found, decode_rle([r["segmentation"] for r in expected]))
