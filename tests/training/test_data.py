"""Sources in the layouts that people have, and batches that are the same for everybody."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from keras_sam import masks as mask_tools
from keras_sam import notices
from keras_sam.annotations import read_coco
from keras_sam.geometry import ResizePlan
from keras_sam.preprocessing.targets import targets_to_frames
from keras_sam.training import CocoObjects, MaskFolder, ObjectBatches, SA1BFolder
from keras_sam.training.data import flip, jitter_scale, sample_box, sample_point
from tests.tiny import photograph

pytestmark = pytest.mark.once

ROOT = Path(__file__).resolve().parents[2]
SIZE = (40, 60)


def rectangle(x1, y1, x2, y2):
    mask = np.zeros(SIZE, "uint8")
    mask[y1:y2, x1:x2] = 1
    return mask


@pytest.fixture
def folder(tmp_path):
    """Two photographs: with a label map and SA-1B's JSON beside the first."""
    images, masks = tmp_path / "images", tmp_path / "masks"
    images.mkdir()
    masks.mkdir()
    for i, name in enumerate(("a", "b")):
        Image.fromarray(photograph(SIZE, i)).save(images / f"{name}.png")
    label_map = rectangle(5, 5, 20, 20) * 3 + rectangle(30, 10, 50, 30) * 7
    label_map[35:] = 255
    Image.fromarray(label_map).save(masks / "a.png")
    Image.fromarray(rectangle(10, 10, 30, 30) * 255).save(masks / "b.png")
    return tmp_path


def test_a_black_and_white_mask_is_one_object(folder):
    image, targets = MaskFolder(folder / "images", folder / "masks")[1]
    np.testing.assert_array_equal(image, photograph(SIZE, 1))
    np.testing.assert_array_equal(targets, rectangle(10, 10, 30, 30)[None])


def test_a_label_map_has_an_object_per_value_and_void(folder):
    _, targets = MaskFolder(folder / "images", folder / "masks", label_map=True)[0]
    assert targets.shape == (2, *SIZE)
    np.testing.assert_array_equal(targets[0] == 1, rectangle(5, 5, 20, 20))
    assert (targets[:, 35:] == 255).all()
    _, targets = MaskFolder(folder / "images", folder / "masks", label_map=True, void=None)[0]
    assert targets.shape == (3, *SIZE)
    np.testing.assert_array_equal(targets[2], rectangle(0, 35, 60, 40))


RED = rectangle(10, 10, 30, 30)[..., None] * np.uint8([255, 0, 0])


def indexed(mask, palette):
    """A file of indices into a palette."""
    picture = Image.frombytes("P", mask.shape[::-1], mask.astype("uint8").tobytes())
    picture.putpalette(palette)
    return picture


def turned(mask):
    """Stored on its side, with an orientation that turns it upright."""
    exif = Image.Exif()
    exif[274] = 6
    return Image.fromarray(np.rot90(mask)), {"exif": exif}


@pytest.mark.parametrize(
    "picture, options",
    [
        (indexed(1 - rectangle(10, 10, 30, 30), [255, 255, 255, 0, 0, 0]), {}),
        (Image.fromarray(RED[..., [0, 0, 0]]).quantize(2), {}),
        (Image.fromarray(RED).quantize(2), {}),
        (indexed(rectangle(10, 10, 30, 30) * 15, [0, 0, 0] + 15 * [192, 128, 128]), {}),
        (indexed(rectangle(10, 10, 30, 30), [0, 0, 0, 9, 9, 9]), {"transparency": 0}),
        (Image.fromarray(rectangle(10, 10, 30, 30) == 1), {}),
        (Image.fromarray(rectangle(10, 10, 30, 30).astype("uint16") * 300), {}),
        (Image.fromarray(rectangle(10, 10, 30, 30).astype("int32") * 70000), {"format": "TIFF"}),
        (Image.fromarray(rectangle(10, 10, 30, 30).astype("float32")), {"format": "TIFF"}),
        (Image.fromarray(RED).convert("CMYK"), {"format": "TIFF"}),
        turned(rectangle(10, 10, 30, 30) * 255),
    ],
    ids=[
        "white is index 0",
        "quantized black and white",
        "quantized red",
        "PASCAL VOC",
        "transparent index",
        "one bit",
        "16 bits",
        "32 bits",
        "floats",
        "CMYK",
        "turned by EXIF",
    ],
)
def test_files_of_masks_are_read_by_what_they_show(folder, picture, options):
    picture.save(folder / "masks" / "b.png", **{"format": "PNG", **options})
    _, targets = MaskFolder(folder / "images", folder / "masks")[1]
    np.testing.assert_array_equal(targets, rectangle(10, 10, 30, 30)[None])


@pytest.mark.parametrize(
    "name, image",
    [
        ("b.tif", "b.jpg"),
        ("b.bmp", "b.jpg"),
        ("b.PNG", "b.jpg"),
        ("b_mask.png", "b.png"),
        ("b-mask.jpg", "b.jpg"),
        ("b_mask.webp", "b.tif"),
        ("b.jpg.png", "b.jpg"),  # as tools that append an ending
        ("b.jpg", "b.png"),
        ("b.webp", "b.png"),
        ("b.avif", "b.png"),
    ],
)
@pytest.mark.parametrize("together", [False, True], ids=["two folders", "one folder"])
def test_masks_are_found_by_the_names_that_people_give_them(tmp_path, name, image, together):
    if together and name in ("b.jpg", "b.webp", "b.avif"):
        name, image = image, name  # in one folder, the format of cameras is that of the photograph
    masks = tmp_path / ("images" if together else "masks")
    for folder in (tmp_path / "images", masks):
        folder.mkdir(exist_ok=True)
    Image.fromarray(photograph(SIZE, 1)).save(tmp_path / "images" / image)
    Image.fromarray(rectangle(10, 10, 30, 30) * 255).convert("RGB").save(masks / name)
    source = MaskFolder(tmp_path / "images", masks)
    assert [source.path(i).name for i in range(len(source))] == [image]
    difference = source[0][1][0] != rectangle(10, 10, 30, 30)
    assert np.count_nonzero(difference) <= 4  # of lossy formats


def test_several_masks_of_an_image_are_refused(folder):
    Image.fromarray(rectangle(0, 0, 9, 9)).save(folder / "masks" / "b.tif")
    with pytest.raises(ValueError, match=r"one mask.*b\.png has b\.png and b\.tif"):
        MaskFolder(folder / "images", folder / "masks")


def test_a_mask_that_pillow_cannot_read_says_what_to_do(folder):
    (folder / "masks" / "b.png").rename(folder / "masks" / "b.heic")
    (folder / "masks" / "b.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    with pytest.raises(ValueError, match=r"b\.heic.*pillow-heif.*PNG"):
        MaskFolder(folder / "images", folder / "masks")[1]
    Image.fromarray(photograph(SIZE, 0)).save(folder / "masks" / "a.png")
    with pytest.raises(ValueError, match=r"a\.png cannot be read as a mask.*black and white"):
        MaskFolder(folder / "images", folder / "masks")[0]


def save_turned(path, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(np.rot90(photograph(SIZE, 1))).save(path, exif=exif)


def test_masks_of_a_picture_before_it_is_turned_upright_are_named(folder):
    save_turned(folder / "images" / "b.png", 6)  # upright it has SIZE
    stored = np.rot90(rectangle(10, 10, 30, 30) * 255)
    Image.fromarray(stored).save(folder / "masks" / "b.png")
    with pytest.raises(ValueError, match=r"\(40, 60\).*\(60, 40\).*EXIF orientation \(6\)"):
        MaskFolder(folder / "images", folder / "masks")[1]


def coco_file(folder, annotations, name="b.png"):
    content = {
        "images": [{"id": 9, "file_name": name, "height": SIZE[0], "width": SIZE[1]}],
        "annotations": [{"id": i, "image_id": 9, **a} for i, a in enumerate(annotations)],
    }
    path = folder / "coco.json"
    path.write_text(json.dumps(content))
    return path


def test_coco_polygons_run_lengths_and_crowds(folder):
    run_lengths = mask_tools.encode_rle(rectangle(30, 10, 50, 30).astype(bool))
    compressed = mask_tools.compress_rle(run_lengths)
    crowd = mask_tools.encode_rle(rectangle(0, 0, 60, 8).astype(bool))
    path = coco_file(
        folder,
        [
            {"segmentation": [[5, 5, 20, 5, 20, 20, 5, 20]], "iscrowd": 0},
            {"segmentation": {k: as_json(v) for k, v in run_lengths.items()}},
            {"segmentation": {k: as_json(v) for k, v in compressed.items()}},
            {"segmentation": {k: as_json(v) for k, v in crowd.items()}, "iscrowd": 1},
        ],
    )
    _, targets = CocoObjects(path, folder / "images")[0]
    np.testing.assert_array_equal(targets[0] == 1, rectangle(5, 5, 20, 20))
    np.testing.assert_array_equal(targets[1] == 1, rectangle(30, 10, 50, 30))
    np.testing.assert_array_equal(targets[2], targets[1])
    assert (targets[1, :8] == 255).all()  # the crowd is void
    assert (targets[0, 5:8, 5:20] == 1).all()  # but not where the object itself is


def as_json(value):
    if isinstance(value, bytes):
        return value.decode()
    return np.asarray(value).tolist() if not isinstance(value, str) else value


def test_sa1b(folder):
    record = {"segmentation": mask_tools.encode_rle(rectangle(1, 2, 30, 20).astype(bool))}
    record["segmentation"] = {k: as_json(v) for k, v in record["segmentation"].items()}
    (folder / "images" / "a.json").write_text(json.dumps({"annotations": [record]}))
    source = SA1BFolder(folder / "images")
    assert len(source) == 1  # b.png has no JSON
    np.testing.assert_array_equal(source[0][1], rectangle(1, 2, 30, 20)[None])


@pytest.mark.parametrize("ending", [".heic", ".AVIF", ".jfif"])
def test_photographs_of_phones_count_as_images(folder, ending):
    (folder / "images" / "a.png").rename(folder / "images" / f"a{ending}")
    (folder / "images" / "notes.txt").write_text("no image")
    source = MaskFolder(folder / "images", folder / "masks")
    assert [source.path(i).name for i in range(len(source))] == [f"a{ending}", "b.png"]
    np.testing.assert_array_equal(source[0][0], photograph(SIZE, 0))  # read by its content


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda f: MaskFolder(f / "masks" / "..", f / "masks"), "a folder with images"),
        (lambda f: MaskFolder(f / "images", f), r"Missing in .*: a\.png, b\.png"),
        (lambda f: SA1BFolder(f / "images"), "JSON file of the same name"),
        (lambda f: CocoObjects(coco_file(f, [], "gone.png"), f / "images"), r"gone\.png"),
        (lambda f: CocoObjects(f / "images" / "a.png", f), "valid JSON|decode"),
        (lambda f: CocoObjects(f, f / "a.json"), "must be a JSON file.*Received: the folder"),
    ],
    ids=["no image", "no masks", "no JSON", "a missing image", "no COCO file", "swapped"],
)
def test_bad_folders(folder, make, message):
    with pytest.raises(ValueError, match=message):
        make(folder)


class Memory:
    """A source of four pictures whose objects are known."""

    def __init__(self, broken=()):
        self.broken = broken

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index in self.broken:
            raise OSError("truncated file")
        targets = [rectangle(5 * index, 5, 20 + 5 * index, 25), rectangle(0, 0, 60, 40)]
        return photograph(SIZE, index), np.stack([*targets, rectangle(0, 0, 0, 0)])


def test_objects_that_are_empty_or_fill_the_image_are_left_out():
    _, y = ObjectBatches(Memory(), batch_size=4)[0]
    assert [t.shape for t in y["masks"]] == [(1, *SIZE)] * 4


@pytest.mark.parametrize("prompts", ["points", "boxes", "points or boxes"])
def test_prompts_fit_the_augmented_targets(prompts):
    data = ObjectBatches(Memory(), batch_size=4, prompts=prompts, flips=True, scales=(0.7, 1.5))
    for index in range(3):
        data.epoch = index
        x, y = data[0]
        for i, targets in enumerate(y["masks"]):
            assert x["images"][i].shape[:2] == targets.shape[1:]
            if "points" in x:
                px, py = x["points"][i][0][0].astype(int)
                assert targets[0][py, px] == 1
            else:
                x1, y1, x2, y2 = x["boxes"][i][0]
                ys, xs = np.nonzero(targets[0] == 1)
                sides = np.ptp(xs) + 1, np.ptp(ys) + 1
                assert abs((x1 + x2) / 2 - xs.mean()) < 0.5 * sides[0] + 1
                assert abs((y1 + y2) / 2 - ys.mean()) < 0.5 * sides[1] + 1


def test_batches_depend_on_seed_and_epoch_alone():
    def batch(seed, epoch):
        data = ObjectBatches(Memory(), 2, "boxes", flips=True, scales=(0.5, 2.0), seed=seed)
        data.epoch = epoch
        return keras.tree.flatten(data[1])

    for a, b in zip(batch(3, 1), batch(3, 1), strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(a.shape != b.shape or (a != b).any() for a, b in zip(batch(3, 1), batch(3, 2)))
    assert any(a.shape != b.shape or (a != b).any() for a, b in zip(batch(3, 1), batch(4, 1)))


def test_a_broken_image_is_named_and_skipped_only_if_asked():
    with pytest.raises(
        ValueError, match=r"image 2 cannot be read: truncated file.*skip_unreadable"
    ):
        for i in range(4):
            ObjectBatches(Memory(broken=[2]), shuffle=False)[i]
    with pytest.warns(UserWarning, match="image 2 is left out"):
        x, _ = ObjectBatches(Memory(broken=[2]), batch_size=4, skip_unreadable=True)[0]
    assert len(x["images"]) == 3


def test_a_truncated_file_is_named(folder):
    path = folder / "images" / "a.png"
    path.write_bytes(path.read_bytes()[:300])
    data = ObjectBatches(MaskFolder(folder / "images", folder / "masks"), 2, shuffle=False)
    with pytest.raises(ValueError, match=r"a\.png cannot be read: .*skip_unreadable"):
        data[0]
    (folder / "masks" / "b.png").unlink()
    path.unlink()
    with pytest.raises(ValueError, match=r"b\.png cannot be read: .*No such file"):
        ObjectBatches(_Kept(data.source), 2, shuffle=False)[0]


class _Kept:
    """The second item of a source."""

    def __init__(self, source):
        self._source = source

    def __len__(self):
        return 1

    def path(self, index):
        return self._source.path(1)

    def __getitem__(self, index):
        return self._source[1]


def test_an_image_without_objects_is_left_out_and_a_batch_of_them_is_an_error(folder):
    path = coco_file(folder, [])
    source = CocoObjects(path, folder / "images")
    image, targets = source[0]
    assert image.shape == (*SIZE, 3) and targets.shape == (0, *SIZE)
    with pytest.raises(ValueError, match=r"No image of this batch.*b\.png.*Leave them out"):
        ObjectBatches(source)[0]

    class Mixed(Memory):
        def __getitem__(self, index):
            return super().__getitem__(index) if index else (image, targets)

    x, y = ObjectBatches(Mixed(), batch_size=4)[0]
    assert len(x["images"]) == len(y["masks"]) == 3


COCO_RING = [10, 10, 30, 10, 30, 30, 10, 30]


@pytest.mark.parametrize(
    "segmentation",
    [
        [COCO_RING],
        COCO_RING,
        [COCO_RING[i : i + 2] for i in range(0, 8, 2)],
        [[str(n) for n in COCO_RING]],
        [str(n) for n in COCO_RING],
        ["10,10 30,10 30,30 10,30"],
    ],
    ids=["rings", "flat", "points", "text", "flat text", "one text"],
)
def test_coco_polygons_as_people_write_them(folder, segmentation):
    source = CocoObjects(coco_file(folder, [{"segmentation": segmentation}]), folder / "images")
    np.testing.assert_array_equal(source[0][1], rectangle(10, 10, 30, 30)[None])


@pytest.fixture
def said(monkeypatch, recwarn):
    """What was said once, in this test."""
    monkeypatch.setattr(notices, "_given", set())
    return lambda: [str(w.message) for w in recwarn if issubclass(w.category, UserWarning)]


@pytest.mark.parametrize("given, wanted", [(9, "9"), ("9", 9), (9.0, "009"), ("b", "b")])
def test_coco_ids_are_compared_as_numbers_too(folder, said, given, wanted):
    path = coco_file(folder, [{"segmentation": [COCO_RING], "image_id": given}])
    content = json.loads(path.read_text())
    content["images"][0]["id"] = wanted
    path.write_text(json.dumps(content))
    source = CocoObjects(path, folder / "images")
    np.testing.assert_array_equal(source[0][1], rectangle(10, 10, 30, 30)[None])
    (image,), _ = read_coco(path)
    assert len(image.records) == 1
    assert said() == []


def test_what_is_left_out_of_a_coco_file_is_counted_once(folder, said):
    path = coco_file(
        folder,
        [
            {"segmentation": [COCO_RING, [1, 2, 3, 4], [5, 6]]},
            {"segmentation": [COCO_RING], "image_id": 77},
            {"segmentation": [COCO_RING], "image_id": None},
            {"segmentation": None, "bbox": [1, 2, 3, 4]},
            {"segmentation": [[]]},
            {"segmentation": [[1, 2, 3, 4]]},
            {"bbox": [1, 2, 3, 4]},
        ],
    )
    for _ in range(2):
        source = CocoObjects(path, folder / "images")
    np.testing.assert_array_equal(source[0][1], rectangle(10, 10, 30, 30)[None])
    (text,) = said()
    assert "images that it does not list (2)" in text
    assert "annotations without a mask (4)" in text
    assert "rings of fewer than three points (3)" in text


def test_coco_numbers_as_text(folder):
    path = coco_file(folder, [{"segmentation": [COCO_RING], "iscrowd": "0"}])
    content = json.loads(path.read_text())
    content["images"][0] |= {"height": "40", "width": "60"}
    path.write_text(json.dumps(content))
    _, targets = CocoObjects(path, folder / "images")[0]
    np.testing.assert_array_equal(targets, rectangle(10, 10, 30, 30)[None])


def test_coco_boxes_are_no_targets(folder):
    path = coco_file(folder, [{"bbox": [1, 2, 3, 4], "segmentation": []}, {"bbox": [1, 2, 3, 4]}])
    with pytest.raises(ValueError, match="boxes but no masks.*SAMPredictor"):
        CocoObjects(path, folder / "images")


@pytest.mark.parametrize(
    "segmentation",
    [[COCO_RING], mask_tools.encode_rle(rectangle(10, 10, 30, 30), compressed=False)],
    ids=["polygons", "run lengths"],
)
def test_coco_sizes_are_those_of_the_pictures(folder, segmentation):
    path = coco_file(folder, [{"segmentation": segmentation}])
    larger = photograph((80, 180), 1)
    Image.fromarray(larger).save(folder / "images" / "b.png")
    with pytest.raises(ValueError, match=r"\(80, 180\).*Received: \(40, 60\).*`rescale=True`"):
        CocoObjects(path, folder / "images")[0]
    _, targets = CocoObjects(path, folder / "images", rescale=True)[0]
    wanted = rectangle(10, 10, 30, 30).repeat(2, axis=0).repeat(3, axis=1)
    np.testing.assert_array_equal(targets, wanted[None])


@pytest.mark.parametrize("orientation, words", [(6, r"orientation \(6\) turns"), (1, "was lost")])
def test_a_swap_of_coco_width_and_height_is_named(folder, orientation, words):
    path = coco_file(folder, [{"segmentation": [COCO_RING]}])
    content = json.loads(path.read_text())
    content["images"][0] |= {"height": SIZE[1], "width": SIZE[0]}
    path.write_text(json.dumps(content))
    if orientation == 6:
        save_turned(folder / "images" / "b.png", 6)
    for rescale in (False, True):  # what is turned cannot be scaled
        with pytest.raises(ValueError, match=f"swapped.*{words}"):
            CocoObjects(path, folder / "images", rescale=rescale)[0]


@pytest.mark.parametrize(
    "file_name, there",
    [
        ("train/b.png", "train/b.png"),
        ("train/b.png", "b.png"),
        ("train\\b.png", "train/b.png"),
        ("C:\\data\\train\\b.png", "b.png"),
        ("/data/train/b.png", "b.png"),
    ],
)
def test_coco_file_names_of_other_folders_and_machines(folder, file_name, there):
    path = coco_file(folder, [{"segmentation": [COCO_RING]}], file_name)
    (folder / "images" / there).parent.mkdir(exist_ok=True)
    (folder / "images" / "b.png").rename(folder / "images" / there)
    source = CocoObjects(path, folder / "images")
    np.testing.assert_array_equal(source[0][1], rectangle(10, 10, 30, 30)[None])


def test_one_file_is_not_taken_for_two_images_of_its_name(folder):
    path = coco_file(folder, [], "train/b.png")
    content = json.loads(path.read_text())
    content["images"].append({**content["images"][0], "id": 10, "file_name": "test/b.png"})
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="2 of 2 images.*missing"):
        CocoObjects(path, folder / "images")


def test_targets_of_a_source_of_ones_own_are_read_by_the_same_rule():
    white = rectangle(10, 10, 30, 30)[..., None] * 255
    for targets in (white[..., 0], white, white[..., 0][None], [white[..., 0] / 255.0]):
        _, y = ObjectBatches([(photograph(SIZE, 1), targets)])[0]
        np.testing.assert_array_equal(y["masks"][0], rectangle(10, 10, 30, 30)[None])


def test_void_of_a_source_stays_void(folder):
    """A source says what is void: an object of two pixels beside a crowd is no stray value."""
    crowd = mask_tools.encode_rle(rectangle(0, 0, 60, 8), compressed=False)
    tiny = mask_tools.encode_rle(rectangle(40, 20, 42, 21), compressed=False)
    path = coco_file(folder, [{"segmentation": tiny}, {"segmentation": crowd, "iscrowd": 1}])
    _, y = ObjectBatches(CocoObjects(path, folder / "images"))[0]
    plan = ResizePlan(SIZE, 60)
    frames = targets_to_frames(y, [plan], (60, 60))
    np.testing.assert_array_equal(frames[0, 0, :40], y["masks"][0][0])
    assert y["masks"][0][0].max() == 255 and (y["masks"][0][0] == 1).sum() == 2


@pytest.mark.parametrize(
    "segmentation, message",
    [
        ({"size": [10, 10], "counts": [100]}, r"image's size \(40, 60\).*\[10, 10\]"),
        ({"size": list(SIZE), "counts": [5, 5]}, "`counts`|sum|run lengths"),
        ([[1, 2, 3]], "polygon"),
    ],
    ids=["another size", "too few runs", "half a polygon"],
)
def test_a_damaged_annotation_is_named_with_its_image(folder, segmentation, message):
    source = CocoObjects(coco_file(folder, [{"segmentation": segmentation}]), folder / "images")
    with pytest.raises(ValueError, match=rf"b\.png cannot be read: .*({message})"):
        ObjectBatches(source)[0]


def test_flip_and_jitter_move_image_and_targets_together():
    target = rectangle(10, 5, 31, 26)
    image = np.repeat(target[..., None] * 255, 3, axis=-1)
    for seed in range(12):
        rng = np.random.default_rng(seed)
        changed, targets = jitter_scale(*flip(image, target[None]), rng)
        assert changed.shape[:2] == targets.shape[1:]
        inside = changed[..., 0] > 127
        if inside.any() and targets[0].any():
            middles = [np.mean(np.nonzero(m), axis=1) for m in (inside, targets[0])]
            assert np.abs(middles[0] - middles[1]).max() <= 0.5  # pixels
        # Nearest and antialiased scaling may differ where the boundary is, nowhere else.
        assert np.count_nonzero(inside != targets[0]) <= 2 * sum(np.ptp(np.nonzero(inside), axis=1))


def test_samplers_stay_on_the_object_and_in_the_image():
    rng, target = np.random.default_rng(1), rectangle(50, 30, 60, 40)  # in a corner
    for _ in range(50):
        x, y = sample_point(target, rng).astype(int)
        assert target[y, x] == 1
        x1, y1, x2, y2 = sample_box(target, rng)
        assert 0 <= x1 <= x2 <= 60 and 0 <= y1 <= y2 <= 40


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"prompts": "text"}, "'text'"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        ObjectBatches(Memory(), **settings)


PROGRAM = """
import json
import keras
from keras_sam.training import MaskFolder, ObjectBatches
from tests.training.steps import small_segmenter

segmenter = small_segmenter()
start = segmenter.get_weights()
losses = []
for workers in (0, 2):
    segmenter.set_weights(start)
    segmenter.compile(optimizer=keras.optimizers.SGD(0.0), run_eagerly=True)
    data = ObjectBatches(
        MaskFolder("images", "masks", label_map=True), prompts="points or boxes", seed=3,
        flips=True, scales=(0.8, 1.2), workers=workers, use_multiprocessing=workers > 0,
    )
    assert data.use_multiprocessing == (workers > 0)
    losses.append([segmenter.evaluate(data, verbose=0)[0] for data.epoch in (0, 1)])
print(json.dumps(losses))
"""


def run_program(folder, seconds=150):
    """What PROGRAM prints, or None where it hangs; whatever it has started ends with it."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return None
    assert process.returncode == 0, errors
    return output


def test_processes_that_load_change_nothing(folder):
    """In a process of its own, because one that has run for long has threads that hold locks.

    Even there, a fork at the wrong moment may hang: Python warns of it. Then it is tried again.
    """
    attempts = (run_program(folder) for _ in range(3))
    output = next(filter(None, attempts), None)
    assert output is not None, "the worker processes hung three times"
    alone, with_processes = json.loads(output.splitlines()[-1])
    np.testing.assert_allclose(with_processes, alone, rtol=1e-5)
    assert abs(alone[0] - alone[1]) > 1e-3  # what is drawn differs from epoch to epoch
