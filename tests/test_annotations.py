"""Masks on disk: every format written, read back, and opened by those who defined it."""

import csv
import json
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from keras_sam import annotations as files
from keras_sam import masks as tools
from keras_sam.annotations.mask_files import read_mask_file
from tests.mask_samples import blobs
from tests.test_files import contents, full_disk

pytestmark = pytest.mark.once

SIZE = (37, 53)


def stack(count=5, seed=0, size=SIZE):
    return blobs(np.random.default_rng(seed).random((count, *size)), passes=3)


def records(masks, seed=0):
    """Records as the mask generator makes them, with segmentations in all three output modes."""
    rng = np.random.default_rng(seed)
    made = []
    for number, mask in enumerate(masks):
        x1, y1, x2, y2 = tools.mask_to_box(mask).tolist()
        modes = [mask, tools.encode_rle(mask, compressed=False), tools.encode_rle(mask)]
        made.append(
            {
                "segmentation": modes[number % 3],
                "area": int(mask.sum()),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "predicted_iou": float(rng.random()),
                "point_coords": [[float(x) for x in rng.uniform(0, 30, 2)]],
                "stability_score": float(rng.random()),
                "crop_box": [0, 0, mask.shape[1], mask.shape[0]],
            }
        )
    return made


def annotated(masks=None, name="photo.jpg", image_id=None):
    masks = stack() if masks is None else masks
    return files.ImageAnnotations(name, masks.shape[1:], records(masks), image_id)


def masks_of(image):
    return [
        tools.decode_rle(files.segmentation_to_rle(one["segmentation"], image.size))
        for one in image.records
    ]


ANY_MASKS = arrays.arrays(
    bool, st.tuples(st.integers(1, 4), st.integers(1, 23), st.integers(1, 31)), fill=st.booleans()
)
SWEEP = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


# --- COCO ---


@pytest.mark.parametrize("polygons", [False, True])
def test_coco_loads_in_pycocotools(tmp_path, polygons, capsys):
    from pycocotools import coco

    masks = [stack(4, seed=1), stack(3, seed=2, size=(20, 64))]
    images = [annotated(masks[0], "a/1.jpg", 7), annotated(masks[1], "b.png")]
    files.write_coco(tmp_path / "instances.json", iter(images), polygons=polygons)
    loaded = coco.COCO(str(tmp_path / "instances.json"))
    capsys.readouterr()
    assert sorted(loaded.getImgIds()) == [7, 8]
    assert loaded.loadImgs([7])[0] == {"id": 7, "width": 53, "height": 37, "file_name": "a/1.jpg"}
    assert [category["name"] for category in loaded.loadCats(loaded.getCatIds())] == ["object"]
    for image_id, expected in zip([7, 8], masks, strict=True):
        entries = loaded.loadAnns(loaded.getAnnIds(imgIds=[image_id]))
        assert len(entries) == len(expected)
        for entry, mask in zip(entries, expected, strict=True):
            np.testing.assert_array_equal(loaded.annToMask(entry), mask)
            runs = loaded.annToRLE(entry)
            assert entry["area"] == coco.maskUtils.area(runs)
            np.testing.assert_array_equal(entry["bbox"], coco.maskUtils.toBbox(runs))
            assert isinstance(entry["segmentation"], list) == polygons
            assert entry["iscrowd"] == 0 and entry["id"] > 0


@SWEEP
@given(masks=ANY_MASKS, polygons=st.booleans())
def test_coco_round_trip(tmp_path, masks, polygons):
    image = files.ImageAnnotations("x.jpg", masks.shape[1:], records(masks))
    files.write_coco(tmp_path / "x.json", [image], polygons=polygons)
    (back,), categories = files.read_coco(tmp_path / "x.json")
    assert (back.file_name, back.size, back.image_id) == ("x.jpg", masks.shape[1:], 1)
    assert categories == {1: "object"}
    np.testing.assert_array_equal(masks_of(back), masks)
    for one, original in zip(back.records, image.records, strict=True):
        for key in ("predicted_iou", "stability_score", "point_coords", "crop_box"):
            assert one[key] == original[key]


def test_coco_keeps_categories_crowds_and_images_without_masks(tmp_path):
    first = records(stack(2))
    first[0] |= {"category_id": np.int64(3), "iscrowd": 1, "note": np.float32("nan")}
    first[1] |= {"category_id": 9}
    images = [
        files.ImageAnnotations("a.jpg", SIZE, first, image_id=5),
        files.ImageAnnotations("empty.jpg", (4, 6), [], image_id=2),
    ]
    files.write_coco(tmp_path / "x.json", images, {3: "cat", 9: "dog"}, polygons=True)
    back, categories = files.read_coco(tmp_path / "x.json")
    assert categories == {3: "cat", 9: "dog"}
    assert [image.image_id for image in back] == [5, 2]
    assert back[1].records == []
    crowd, dog = back[0].records
    assert (crowd["category_id"], crowd["iscrowd"], crowd["note"]) == (3, 1, None)
    assert isinstance(crowd["segmentation"], dict) and isinstance(dog["segmentation"], list)
    files.write_coco(tmp_path / "y.json", images)
    assert files.read_coco(tmp_path / "y.json")[1] == {3: "category 3", 9: "category 9"}


def test_an_empty_coco_file_is_valid(tmp_path):
    files.write_coco(tmp_path / "x.json", [])
    assert files.read_coco(tmp_path / "x.json") == ([], {1: "object"})


def test_simplified_polygons_are_shorter_and_nearly_the_same(tmp_path):
    y, x = np.mgrid[:90, :120]
    disc = (((x - 60) / 50) ** 2 + ((y - 45) / 35) ** 2 < 1)[None]
    sizes = []
    for tolerance in (0.0, 1.5):
        files.write_coco(tmp_path / "x.json", [annotated(disc)], polygons=True, tolerance=tolerance)
        (image,), _ = files.read_coco(tmp_path / "x.json")
        sizes.append(len(image.records[0]["segmentation"][0]))
        assert tools.mask_iou(np.stack(masks_of(image)), disc)[0, 0] > 0.97
    assert sizes[1] < sizes[0] / 4


def test_images_are_written_as_they_come(tmp_path):
    path = tmp_path / "x.json"

    def stream():
        for number in range(3):
            if number == 2:  # two images have been taken: they are in the temporary file already
                (partial,) = tmp_path.iterdir()
                assert partial != path
            yield annotated(stack(400, size=(20, 20)), f"{number}.jpg")

    files.write_coco(path, stream())
    assert [image.file_name for image in files.read_coco(path)[0]] == ["0.jpg", "1.jpg", "2.jpg"]


def test_coco_refuses_twins_unknown_categories_and_missing_sizes(tmp_path):
    path = tmp_path / "x.json"
    with pytest.raises(ValueError, match="ids of their own.*'a.jpg' and 'b.jpg'"):
        files.write_coco(path, [annotated(name=name, image_id=4) for name in ("a.jpg", "b.jpg")])
    with pytest.raises(ValueError, match=r"Received: \[2\], and a record of category 1"):
        files.write_coco(path, [annotated()], {2: "cat"})
    with pytest.raises(ValueError, match="must have a size"):
        files.write_coco(path, [files.ImageAnnotations("a.jpg", None)])
    wrong = files.ImageAnnotations("a.jpg", (5, 5), records(stack(1)))
    with pytest.raises(ValueError, match="its image's size"):
        files.write_coco(path, [wrong])
    assert contents(tmp_path) == {}


BAD_COCO = [
    ("[1, 2", "must be a JSON file"),  # cut off
    ("[]", "Missing: `images`, `annotations`"),  # another kind of file
    ('{"images": []}', "Missing: `annotations`"),  # half of it
    ('{"images": [{"id": 1}], "annotations": []}', "Missing: `width`, `height`, `file_name`"),
    ('{"images": [], "annotations": [{"id": 1}]}', "Missing: `image_id`"),  # of no image
    ('{"images": [], "annotations": [{"image_id": 3}]}', "image_id=3, which no image has"),
    (
        '{"images": [{"id": 1, "width": 2, "height": 3, "file_name": "a"}, '
        '{"id": 1, "width": 2, "height": 3, "file_name": "b"}], "annotations": []}',
        "ids of their own",
    ),
]


@pytest.mark.parametrize(("text", "words"), BAD_COCO)
def test_what_is_no_coco_file_is_refused(tmp_path, text, words):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=words):
        files.read_coco(tmp_path / "x.json")


# --- SA-1B ---


def test_sa1b_has_the_data_sets_fields(tmp_path):
    from pycocotools import mask as coco

    masks = stack()
    files.write_sa1b(tmp_path / "sa_7.json", annotated(masks, "sa_7.jpg", image_id=7))
    data = json.loads((tmp_path / "sa_7.json").read_text())
    assert data["image"] == {"image_id": 7, "width": 53, "height": 37, "file_name": "sa_7.jpg"}
    fields = "id segmentation area bbox predicted_iou point_coords stability_score crop_box"
    for number, (entry, mask) in enumerate(zip(data["annotations"], masks, strict=True)):
        assert set(entry) == set(fields.split())
        assert entry["id"] == number
        np.testing.assert_array_equal(coco.decode(entry["segmentation"]), mask)
        assert entry["area"] == mask.sum()


@SWEEP
@given(masks=ANY_MASKS)
def test_sa1b_round_trip(tmp_path, masks):
    image = files.ImageAnnotations("x.jpg", masks.shape[1:], records(masks), image_id=3)
    files.write_sa1b(tmp_path / "x.json", image)
    back = files.read_sa1b(tmp_path / "x.json")
    assert (back.file_name, back.size, back.image_id) == ("x.jpg", masks.shape[1:], 3)
    np.testing.assert_array_equal(masks_of(back), masks)
    for one, original in zip(back.records, image.records, strict=True):
        for key in original.keys() - {"segmentation"}:
            assert one[key] == original[key]


def test_sa1b_counts_what_a_record_does_not_say(tmp_path):
    masks = stack(2)
    bare = [{"segmentation": mask} for mask in masks]
    files.write_sa1b(tmp_path / "x.json", files.ImageAnnotations("x.jpg", SIZE, bare))
    for one, full in zip(files.read_sa1b(tmp_path / "x.json").records, records(masks), strict=True):
        assert (one["area"], one["bbox"]) == (full["area"], full["bbox"])


def test_what_is_no_sa1b_file_is_refused(tmp_path):
    path = tmp_path / "x.json"
    for text in ("[]", '{"image": {}, "annotations": []}', '{"images": [], "annotations": []}'):
        path.write_text(text)
        with pytest.raises(ValueError, match="must be in SA-1B's format"):
            files.read_sa1b(path)
    path.write_text("")
    with pytest.raises(ValueError, match="must be a JSON file"):
        files.read_sa1b(path)


# --- YOLO ---


@SWEEP
@given(masks=ANY_MASKS)
def test_yolo_round_trip(tmp_path, masks):
    files.write_yolo(tmp_path / "x.txt", annotated(masks))
    back = files.read_yolo(tmp_path / "x.txt", masks.shape[1:])
    filled = masks[masks.any(axis=(1, 2))]  # an empty mask has no outline
    assert len(back.records) == len(filled)
    for mask, expected in zip(masks_of(back), filled, strict=True):
        np.testing.assert_array_equal(mask, expected)
    assert back.file_name == "x"


def test_yolo_is_exact_on_images_as_large_as_scans(tmp_path):
    mask = np.zeros((1, 9973, 7001), bool)
    mask[0, 17:9901, 13:6997] = True
    mask[0, 5003, 3001] = mask[0, 9972, 7000] = False
    mask[0, 9972, 7000] = True
    files.write_yolo(tmp_path / "x.txt", annotated(mask))
    (back,) = masks_of(files.read_yolo(tmp_path / "x.txt", mask.shape[1:]))
    assert (back == mask[0]).all()


def test_yolo_classes_come_from_categories(tmp_path):
    image = annotated(stack(3))
    for record, category in zip(image.records, (4, 9, 4), strict=True):
        record["category_id"] = category
    files.write_yolo(tmp_path / "x.txt", image)
    back = files.read_yolo(tmp_path / "x.txt", SIZE, "photo.jpg")
    assert [record["category_id"] for record in back.records] == [4, 9, 4]
    assert back.file_name == "photo.jpg"
    files.write_yolo(tmp_path / "x.txt", image, classes={4: 0, 9: 1})
    lines = (tmp_path / "x.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["0", "1", "0"]
    with pytest.raises(ValueError, match="category 9 in 'photo.jpg'"):
        files.write_yolo(tmp_path / "x.txt", image, classes={4: 0})
    assert (
        len((tmp_path / "x.txt").read_text().splitlines()) == 3
    )  # the earlier file is still there


def test_yolo_of_no_masks_is_an_empty_file(tmp_path):
    files.write_yolo(tmp_path / "x.txt", files.ImageAnnotations("x.jpg", SIZE))
    assert (tmp_path / "x.txt").read_bytes() == b""
    assert files.read_yolo(tmp_path / "x.txt", SIZE).records == []


@pytest.mark.parametrize(
    "line",
    [
        "0 0.1 0.1 0.5 0.5",  # a box, not a ring
        "0 0.1 0.1 0.5 0.5 0.9",  # half a point
        "cat 0.1 0.1 0.5 0.5 0.9 0.1",  # a name instead of a number
        "0 0.1 0.1 0.5 x 0.9 0.1",  # not a number
        "0",  # a class alone
    ],
)
def test_yolo_lines_that_are_no_ring_are_refused_by_number(tmp_path, line):
    (tmp_path / "x.txt").write_text(f"0 0 0 1 0 1 1\n\n{line}\n")
    with pytest.raises(ValueError, match="Line 3 of .*x.txt. must be a class and at least 3"):
        files.read_yolo(tmp_path / "x.txt", SIZE)


# --- PNG ---


def test_mask_folder_has_the_layout_of_metas_command_line(tmp_path):
    masks = stack(3)
    image = annotated(masks)
    files.write_mask_folder(tmp_path / "photo", image)
    assert set(contents(tmp_path / "photo")) == {"0.png", "1.png", "2.png", "metadata.csv"}
    with open(tmp_path / "photo" / "metadata.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert ",".join(header) == (
        "id,area,bbox_x0,bbox_y0,bbox_w,bbox_h,point_input_x,point_input_y,predicted_iou,"
        "stability_score,crop_box_x0,crop_box_y0,crop_box_w,crop_box_h"
    )
    for number, (row, record) in enumerate(zip(rows, image.records, strict=True)):
        fields = ("predicted_iou", "stability_score")
        expected = [number, record["area"], *record["bbox"], *record["point_coords"][0]]
        expected += [*(record[key] for key in fields), *record["crop_box"]]
        assert row == [str(value) for value in expected]
        with Image.open(tmp_path / "photo" / f"{number}.png") as picture:
            assert picture.mode == "L"
            np.testing.assert_array_equal(np.asarray(picture), masks[number] * 255)


@SWEEP
@given(masks=ANY_MASKS)
def test_mask_folder_round_trip(tmp_path, masks):
    image = annotated(masks)
    files.write_mask_folder(tmp_path / "photo", image)
    back = files.read_mask_folder(tmp_path / "photo")
    assert (back.file_name, back.size) == ("photo", masks.shape[1:])
    np.testing.assert_array_equal(masks_of(back), masks)
    for one, original in zip(back.records, image.records, strict=True):
        assert {**one, "segmentation": 0} == {**original, "segmentation": 0}


def test_mask_folder_of_bare_records_and_of_none(tmp_path):
    masks = stack(2)
    bare = files.ImageAnnotations("x.jpg", SIZE, [{"segmentation": mask} for mask in masks])
    files.write_mask_folder(tmp_path / "bare", bare)
    back = files.read_mask_folder(tmp_path / "bare", "x.jpg")
    assert [set(one) for one in back.records] == [{"segmentation", "area", "bbox"}] * 2
    files.write_mask_folder(tmp_path / "none", files.ImageAnnotations("y.jpg", SIZE))
    empty = files.read_mask_folder(tmp_path / "none")
    assert (empty.size, empty.records) == (None, [])


def test_a_mask_folder_replaces_an_earlier_one_but_no_photographs(tmp_path):
    files.write_mask_folder(tmp_path / "out", annotated(stack(4)))
    files.write_mask_folder(tmp_path / "out", annotated(stack(2)))
    assert set(contents(tmp_path / "out")) == {"0.png", "1.png", "metadata.csv"}
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "0.png").write_bytes(b"a photograph")
    with pytest.raises(FileExistsError, match="holds other files"):
        files.write_mask_folder(tmp_path / "photos", annotated())
    assert contents(tmp_path / "photos") == {"0.png": b"a photograph"}


def test_broken_mask_folders_are_refused(tmp_path):
    folder = tmp_path / "out"
    with pytest.raises(FileNotFoundError):
        files.read_mask_folder(folder)
    files.write_mask_folder(folder, annotated(stack(2)))
    (folder / "1.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="1.png. must be an image"):
        files.read_mask_folder(folder)
    Image.new("L", (5, 5)).save(folder / "1.png")
    with pytest.raises(ValueError, match="must have one size"):
        files.read_mask_folder(folder)
    Image.new("RGB", (53, 37)).save(folder / "1.png")
    with pytest.raises(ValueError, match="one number per pixel. Received: mode RGB"):
        files.read_mask_folder(folder)
    for text in ("id,area\n0,many\n", "name\n0\n", "id,area\n0,5,6\n", "id,area\n0\n"):
        (folder / "metadata.csv").write_text(text)
        with pytest.raises(ValueError, match="must have the columns id, area"):
            files.read_mask_folder(folder)


def test_black_and_white_masks_of_other_programs_are_read(tmp_path):
    (mask,) = stack(1)
    files.write_mask_folder(tmp_path / "out", annotated(mask[None]))
    Image.fromarray(mask).save(tmp_path / "out" / "0.png")  # one bit per pixel
    np.testing.assert_array_equal(masks_of(files.read_mask_folder(tmp_path / "out")), [mask])


@pytest.mark.parametrize(
    ("largest", "mode"),
    [(1, "P"), (255, "P"), (256, "I;16"), (65535, "I;16")],  # a palette as long as it can be one
)
def test_label_map_round_trip(tmp_path, largest, mode):
    labels = np.random.default_rng(0).integers(0, largest + 1, SIZE)
    labels[0, 0] = largest
    files.write_label_map(tmp_path / "x.png", labels)
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.mode == mode
        assert picture.size == SIZE[::-1]
    back = files.read_label_map(tmp_path / "x.png")
    assert back.dtype == "int32"
    np.testing.assert_array_equal(back, labels)


def test_label_maps_have_the_colours_of_pascal_voc(tmp_path):
    files.write_label_map(tmp_path / "x.png", np.arange(256).reshape(16, 16))
    with Image.open(tmp_path / "x.png") as picture:
        colours = np.asarray(picture.convert("RGB")).reshape(-1, 3).tolist()
    assert colours[:4] == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    assert colours[15] == [192, 128, 128]  # person
    assert colours[255] == [224, 224, 192]  # void
    assert len({tuple(colour) for colour in colours}) == 256


def test_label_maps_out_of_range_and_pictures_are_refused(tmp_path):
    for labels, words in [
        (np.full(SIZE, 65536), "0..65535"),  # more than 16 bits
        (np.full(SIZE, -1), "0..65535"),  # negative
        (np.zeros(SIZE), "integer array"),  # floats
        (np.zeros((2, *SIZE), int), "integer array"),  # a stack
        (np.zeros((0, 4), int), "integer array"),  # no pixels
    ]:
        with pytest.raises(ValueError, match=words):
            files.write_label_map(tmp_path / "x.png", labels)
    assert contents(tmp_path) == {}
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    with pytest.raises(ValueError, match="must be a grey or indexed image"):
        files.read_label_map(tmp_path / "x.png")
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(ValueError, match="must be an image"):
        files.read_label_map(tmp_path / "x.png")


# --- all of them ---


def test_a_full_disk_leaves_no_partial_result_and_keeps_the_earlier_one(tmp_path):
    large = annotated(np.random.default_rng(0).random((3, 60, 90)) < 0.3)
    labels = np.random.default_rng(0).integers(0, 200, (60, 90))
    writers = {
        "coco.json": lambda path: files.write_coco(path, [large]),
        "sa1b.json": lambda path: files.write_sa1b(path, large),
        "yolo.txt": lambda path: files.write_yolo(path, large),
        "masks": lambda path: files.write_mask_folder(path, large),
        "labels.png": lambda path: files.write_label_map(path, labels),
    }
    for name, write in writers.items():
        with full_disk(limit=256), pytest.raises(OSError, match=f"{name}. could not be written"):
            write(tmp_path / name)
        assert contents(tmp_path) == {}, name
    for name, write in writers.items():
        write(tmp_path / name)
    before = contents(tmp_path)
    for name, write in writers.items():
        with full_disk(limit=256), pytest.raises(OSError, match="was left as it was"):
            write(tmp_path / name)
        assert contents(tmp_path) == before, name


def test_any_form_becomes_run_lengths_of_the_images_size():
    (mask,) = stack(1)
    rle = tools.encode_rle(mask)
    polygons = tools.polygons_to_coco(tools.mask_to_polygons(mask))
    for form in (mask, mask.astype("uint8"), rle, tools.decompress_rle(rle), polygons):
        assert files.segmentation_to_rle(form, SIZE) == rle
    empty = files.segmentation_to_rle([], SIZE)
    assert tools.mask_area(empty) == 0
    with pytest.raises(ValueError, match=r"its image's size \(5, 6\)"):
        files.segmentation_to_rle(mask, (5, 6))
    with pytest.raises(ValueError, match="its image's size"):
        files.segmentation_to_rle(rle, (5, 6))
    with pytest.raises(ValueError, match="a binary mask"):
        files.segmentation_to_rle(mask[None], SIZE)
    with pytest.raises(ValueError, match="two positive integers"):
        files.ImageAnnotations("x.jpg", (5, 0))


# Masks in TIFF


@pytest.mark.parametrize(
    "stored, opens",
    [
        (lambda mask: mask.astype("int64"), False),  # numbers that pillow has no mode for
        (lambda mask: mask.astype("float64") / 255, False),
        (lambda mask: mask.astype("float16"), False),
        (lambda mask: mask.astype("uint64"), False),
        (lambda mask: mask, True),
        (lambda mask: mask.astype("uint16") * 257, True),
        (lambda mask: np.stack([mask.astype("uint16") * 257] * 3, axis=-1), True),
    ],
)
def test_masks_in_tiff_are_read_where_pillow_cannot(tmp_path, stored, opens):
    tifffile = pytest.importorskip("tifffile")
    mask = np.zeros((40, 60), "uint8")
    mask[10:30, 15:45] = 255
    path = tmp_path / "mask.tif"
    tifffile.imwrite(path, stored(mask))
    if not opens:
        with pytest.raises(OSError, match="cannot identify"):
            Image.open(path)
    np.testing.assert_array_equal(read_mask_file(path).target(), mask // 255)


def test_label_maps_in_tiff_keep_their_numbers(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    labels = np.zeros((40, 60), "int64")
    labels[5:20, 5:30], labels[25:38, 30:55] = 3, 70000
    tifffile.imwrite(tmp_path / "labels.tif", labels)
    assert len(read_mask_file(tmp_path / "labels.tif").objects()) == 2


def test_a_mask_that_only_tifffile_reads_names_it(tmp_path, monkeypatch):
    tifffile = pytest.importorskip("tifffile")
    path = tmp_path / "mask.tif"
    tifffile.imwrite(path, np.ones((40, 60), "int64"))
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(ValueError, match=r"mask.tif.*pip install .keras_sam\[tiff\]"):
        read_mask_file(path)
    path.write_bytes(b"II*\0 and no more")
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"mask.tif"):
        read_mask_file(path)
