"""Everything in a large picture: each object once, as if there were no tiles."""

import json

import numpy as np
import pytest
import zarr

import keras_sam
from keras_sam.embedding_cache import EmbeddingCache
from keras_sam.masks import decode_rle
from keras_sam.predictor import SAMPredictor
from keras_sam.tiles import TiledMaskGenerator, open_picture
from keras_sam.tiles.tile_folder import TileFolder
from tests.scenes import scene
from tests.tiny import tiny_segmenter

pytestmark = pytest.mark.once

PARAMETERS = {
    "points_per_side": 8,
    "pred_iou_thresh": 0.6,
    "stability_score_thresh": 0.7,
}
SIZE = (300, 420)


@pytest.fixture(scope="module")
def segmenter():
    return keras_sam.SAMImageSegmenter.from_preset("sam_tiny_demo", image_shape=(256, 256))


@pytest.fixture
def encoded(segmenter, monkeypatch):
    """The frames that are encoded."""
    encode, calls = segmenter.encode_frames, []

    def encode_frames(frames):
        calls.append(1)
        return encode(frames)

    monkeypatch.setattr(segmenter, "encode_frames", encode_frames)
    return calls


@pytest.fixture(scope="module")
def mosaic():
    """A picture of objects on every border of tiles, and their masks."""
    return scene(SIZE, (4, 5), 3, filled=1.0, parts=0.0, noise=3.0)


@pytest.fixture(scope="module")
def tiled(segmenter):
    return TiledMaskGenerator(segmenter, tile_shape=110, halo=40, **PARAMETERS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tiles") / "run"


@pytest.fixture(scope="module")
def records(tiled, mosaic, folder):
    return list(tiled.stream(mosaic[0], folder=folder))


def ious(masks, others):
    a, b = (np.stack([m.reshape(-1) for m in some]).astype("float32") for some in (masks, others))
    shared = a @ b.T
    return shared / (a.sum(1)[:, None] + b.sum(1)[None] - shared)


def duplicates(masks):
    """Pairs of masks that are nearly the same."""
    return int((np.triu(ious(masks, masks), 1) > 0.7).sum())


def cuts(masks, grid):
    """Masks with a straight edge of 10 pixels on a border of cores or windows."""
    count = 0
    for mask in masks:
        lines = []
        for tile in grid:
            for x1, y1, x2, y2 in (tile.core, tile.window):
                for x in {x1, x2} - {0, SIZE[1]}:
                    lines.append(mask[:, x - 1] != mask[:, x])
                for y in {y1, y2} - {0, SIZE[0]}:
                    lines.append(mask[y - 1] != mask[y])
        count += any(np.convolve(line, np.ones(10), "valid").max() > 9.5 for line in lines)
    return count


def test_each_object_is_found_once_and_none_is_cut(mosaic, records, tiled, folder):
    image, objects = mosaic
    grid = tiled.grid(image)
    borders = np.zeros(SIZE, bool)
    for tile in grid:
        x, y = tile.core[:2]
        borders[y, :] |= y > 0
        borders[:, x] |= x > 0
    assert len(grid) == 8
    assert sum((mask & borders).any() for mask in objects) >= 7
    masks = decode_rle([record["segmentation"] for record in records])
    found = ious(masks, objects)
    assert (found.max(axis=0) > 0.5).all()  # every object
    assert (found > 0.7).sum(axis=0).max() == 1  # none of them twice
    assert duplicates(masks) == 0
    assert cuts(masks, grid) == 0
    # What tiles find by themselves is full of both.
    alone = []
    for tile in grid:
        x1, y1, x2, y2 = tile.window
        path = folder / f"tile_{tile.row}_{tile.column}.json"
        for record in json.loads(path.read_text()):
            whole = np.zeros(SIZE, bool)
            whole[y1:y2, x1:x2] = decode_rle(record["segmentation"])
            alone.append(whole)
    assert duplicates(alone) > 20 and cuts(alone, grid) > 20


def test_records_are_of_the_picture(records):
    for record in records:
        mask = decode_rle(record["segmentation"])
        assert mask.shape == SIZE and record["area"] == mask.sum()
        x, y, width, height = record["bbox"]
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        assert (x, x + width) == (columns[0], columns[-1])
        assert (y, y + height) == (rows[0], rows[-1])
        left, top, w, h = record["crop_box"]
        for px, py in record["point_coords"]:
            assert left <= px <= left + w and top <= py <= top + h
    json.dumps(records)


def test_a_picture_that_fits_one_window_has_the_same_records(segmenter):
    image = scene((128, 100), (4, 3), 5)[0]
    plain = keras_sam.SAMAutomaticMaskGenerator(segmenter, output_mode="coco_rle", **PARAMETERS)
    expected = plain.generate(image)
    for tile, halo in ((128, 0), (100, 14), (1024, 256)):
        generator = TiledMaskGenerator(segmenter, tile, halo, **PARAMETERS)
        assert list(generator.stream(image)) == expected
    deep = image.astype("uint16") * 257  # 16 bits
    assert list(generator.stream(deep)) == plain.generate(deep)


def test_a_run_goes_on_with_the_tiles_that_are_missing(tiled, mosaic, records, folder, encoded):
    assert list(tiled.stream(mosaic[0], folder=folder)) == records and not encoded
    (folder / "tile_1_2.json").unlink()
    (folder / "tile_0_1.json").write_text("[{")  # cut off
    assert list(tiled.stream(mosaic[0], folder=folder)) == records
    assert len(encoded) == 2


def test_a_folder_of_another_run_is_refused(tiled, segmenter, mosaic, records, folder, tmp_path):
    other = TiledMaskGenerator(segmenter, 110, 30, **PARAMETERS)
    with pytest.raises(ValueError, match=r"`folder` must be new.*halo was \[40, 40\], is \[30"):
        other.stream(mosaic[0], folder=folder)
    with pytest.raises(ValueError, match=r"size was \[300, 420\]|picture was"):
        tiled.stream(mosaic[0][:, :300], folder=folder)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="which holds other files"):
        tiled.stream(mosaic[0], folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_another_picture_of_the_same_size_is_refused(tiled, tmp_path):
    first, second = (scene(SIZE, (2, 2), seed)[0] for seed in (1, 2))
    arrays = []
    for day, values in enumerate((first, second, first)):
        array = zarr.create_array(str(tmp_path / f"{day}" / "scan.zarr"), data=values)
        arrays.append((values, array, tmp_path / f"{day}" / "scan.zarr"))
    for kind, (earlier, other, same) in enumerate(zip(*arrays, strict=True)):
        out = tmp_path / f"tiles{kind}"
        tiled.stream(earlier, folder=out)
        with pytest.raises(ValueError, match=r"`folder` must be new.*picture was .*'content'"):
            tiled.stream(other, folder=out)
        tiled.stream(same, folder=out)
    np.save(tmp_path / "a.npy", first[:200, :200, 0])
    tiled.stream(open_picture(tmp_path / "a.npy", "YX"), folder=tmp_path / "axes")
    with pytest.raises(ValueError, match="picture was .*'axes': 'YX'"):
        tiled.stream(open_picture(tmp_path / "a.npy", "XY"), folder=tmp_path / "axes")
    tiled.stream(first.astype("float32"), folder=tmp_path / "float")
    with pytest.raises(ValueError, match="picture was"):
        tiled.stream(first, folder=tmp_path / "float")


def test_a_run_that_was_killed_at_its_start_begins_again(tmp_path):
    (tmp_path / ".tiles.json.0a1b2c3d.part").write_text('{"hal')
    TileFolder(tmp_path, {"halo": 5})
    assert json.loads((tmp_path / "tiles.json").read_text()) == {"halo": 5}
    (tmp_path / "tiles.json").rename(tmp_path / "notes.json")
    with pytest.raises(ValueError, match="which holds other files"):
        TileFolder(tmp_path, {"halo": 5})


def test_another_precision_is_another_model(tmp_path):
    picture = open_picture(np.zeros(SIZE, "uint8"))
    single, half = (
        TiledMaskGenerator(tiny_segmenter(dtype=dtype), 110, 40).settings(picture)
        for dtype in ("float32", "bfloat16")
    )
    assert (single["precision"], half["precision"]) == ("float32", "bfloat16")
    found = []
    for dtype in ("float32", "mixed_bfloat16", "float32"):  # whose weights are the same
        predictor = SAMPredictor(tiny_segmenter(dtype=dtype))
        cache = EmbeddingCache(tmp_path, predictor, 10**9)
        found.append(cache.load(predictor, b"a picture"))
        if not found[-1]:
            predictor.set_image(np.zeros((9, 9, 3), "uint8"))
            cache.save(predictor, b"a picture")
    assert found == [False, False, True]


def test_windows_without_content_are_not_segmented(tiled, encoded):
    image = np.full((*SIZE, 3), 90, "uint8")
    image[:60, :60] = scene((60, 60), (1, 1), 1)[0]
    records = list(tiled.stream(image))
    assert len(encoded) == 1
    assert all(record["crop_box"][:2] == [0, 0] for record in records)
    empty = np.full(SIZE, np.nan, "float32")
    assert list(tiled.stream(empty)) == []


def test_reading_is_by_windows(tiled):
    most = []

    class Watched:
        shape, dtype = (5000, 4000, 3), np.dtype("uint8")

        def __getitem__(self, index):
            most.append(np.prod([axis.stop - axis.start for axis in index]))
            return np.zeros([axis.stop - axis.start for axis in index], "uint8")

    assert list(tiled.stream(Watched())) == []
    assert len(most) == len(tiled.grid(Watched())) and max(most) == 190 * 190 * 3
