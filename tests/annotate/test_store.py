"""The store: what is in the file, when it is there, and what is never overwritten or lost."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keras_sam import masks
from keras_sam.annotate import store as store_module
from keras_sam.annotate.store import AnnotationStore
from keras_sam.training import CocoObjects

pytestmark = pytest.mark.once
ROOT = Path(__file__).resolve().parents[2]
SIZE = (6, 9)


def mask_of(y=1, x=2):
    mask = np.zeros(SIZE, bool)
    mask[y : y + 2, x : x + 3] = True
    return mask


def record(category=1, **where):
    return {"segmentation": masks.encode_rle(mask_of(**where)), "category_id": category}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("a.png", "deep/b.png"):
        Image.fromarray(np.zeros((*SIZE, 3), "uint8")).save(tmp_path / name)
    return tmp_path


def open_store(folder, **settings):
    settings = {"labels": ["cat", "dog"], **settings}
    return AnnotationStore(folder / "out.json", ["a.png", "deep/b.png"], **settings)


@pytest.mark.parametrize("polygons", [False, True])
def test_others_read_the_file(folder, polygons):
    coco = pytest.importorskip("pycocotools.coco")
    store = open_store(folder, polygons=polygons)
    first = store.add("deep/b.png", SIZE, record(2))
    store.add("a.png", SIZE, record(1, y=3))
    dropped = store.add("a.png", SIZE, record(1))
    store.remove(dropped["id"])
    read = coco.COCO(str(folder / "out.json"))
    assert [c["name"] for c in read.loadCats(read.getCatIds())] == ["cat", "dog"]
    np.testing.assert_array_equal(read.annToMask(read.anns[first["id"]]), mask_of())
    source = CocoObjects(folder / "out.json", folder)
    objects = {source.path(i).name: source[i][1] for i in range(len(source))}
    np.testing.assert_array_equal(objects["b.png"], mask_of()[None])
    np.testing.assert_array_equal(objects["a.png"], mask_of(y=3)[None])
    assert isinstance(read.anns[first["id"]]["segmentation"], list if polygons else dict)


def test_it_goes_on_where_it_was(folder):
    store = open_store(folder)
    kept = store.add("a.png", SIZE, {**record(2), "score": 0.5})
    again = open_store(folder, labels=["bird"])
    assert again.objects("a.png", SIZE) == [kept]
    assert [label["name"] for label in again.labels] == ["cat", "dog", "bird"]
    assert again.add("a.png", SIZE, record(3))["id"] == kept["id"] + 1
    assert again.counts() == {"a.png": 2, "deep/b.png": 0}
    again.replace(kept["id"], {"category_id": 1})
    changed = again.replace(kept["id"], {"segmentation": record(y=3)["segmentation"]})
    assert (changed["category_id"], changed["bbox"]) == (1, [2, 3, 3, 2])


def test_the_score_of_a_mask_goes_with_it(folder):
    store = open_store(folder)
    scores = {"score": 0.5, "predicted_iou": 0.6, "stability_score": 0.7}
    kept = store.add("a.png", SIZE, {**record(), **scores, "by": "someone"})
    relabelled = store.replace(kept["id"], {"category_id": 2})
    assert relabelled == {**kept, "category_id": 2}
    corrected = store.replace(kept["id"], {"segmentation": record(y=3)["segmentation"]})
    assert not corrected.keys() & scores.keys() and corrected["by"] == "someone"
    predicted = {"segmentation": kept["segmentation"], "score": 0.9}
    assert store.replace(kept["id"], predicted)["score"] == 0.9
    undone = {"segmentation": kept["segmentation"], **scores}
    assert store.replace(kept["id"], undone) == relabelled


FOREIGN = {
    "info": {"year": 2020},
    "licenses": [{"id": 1, "name": "own"}],
    "images": [
        {"id": "7", "file_name": r"C:\photos\a.png", "width": 9, "height": 6, "license": 1},
        {"id": "8", "file_name": "elsewhere.png", "width": 9, "height": 6},
    ],
    "annotations": [
        {"id": 5, "image_id": "7", "category_id": 3, "bbox": [1, 1, 2, 2]},
        {
            "id": 6,
            "image_id": 7,
            "category_id": 3,
            "iscrowd": 0,
            "by": "someone",
            "segmentation": [[1, 1, 4, 1, 4, 3, 1, 3]],
        },
        {"id": 9, "image_id": "8", "category_id": 3, "segmentation": {"size": [6, 9]}},
        {"id": 10, "image_id": "nowhere", "category_id": 3},
    ],
    "categories": [{"id": 3, "name": "coin", "supercategory": "thing"}],
}


def test_what_other_programs_wrote_stays(folder):
    (folder / "out.json").write_text(json.dumps(FOREIGN))
    store = open_store(folder, labels=["coin"])
    (shown,) = store.objects("a.png", SIZE)
    assert shown["id"] == 6
    assert masks.mask_area(shown["segmentation"]) == 6
    added = store.add("a.png", SIZE, record(3))
    assert (added["id"], added["image_id"]) == (11, "7")
    content = json.loads((folder / "out.json").read_text())
    for key in ("info", "licenses", "images", "categories"):
        assert content[key] == FOREIGN[key]
    by_id = {entry["id"]: entry for entry in content["annotations"]}
    for entry in FOREIGN["annotations"]:
        assert {**by_id[entry["id"]], "image_id": None} == {**entry, "image_id": None}
    for number in (5, 6, 9, 11):
        store.remove(number)
    assert store.restore(6) == shown and store.restore(5)["bbox"] == [1, 1, 2, 2]
    for number in (6, 9):  # there again, and of an image of another folder
        with pytest.raises(KeyError, match=str(number)):
            store.restore(number)
    entries = json.loads((folder / "out.json").read_text())["annotations"]
    assert {**entries[-2], "image_id": None} == {**FOREIGN["annotations"][1], "image_id": None}
    assert [i["id"] for i in json.loads((folder / "out.json").read_text())["images"]] == ["7", "8"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "COCO"),  # of another kind
        ("{", "JSON"),  # cut off
        ('{"images": [{"id": 1}], "annotations": []}', "file_name"),  # unusable
        ('{"categories": [{"name": "cat"}]}', "`categories`.*`id`"),
        ('{"categories": {"1": "cat"}}', "`categories`.*list"),
        ('{"categories": [{"id": "7", "name": "cat"}]}', "`categories`.*whole number as `id`"),
        ('{"categories": [{"id": 1.5, "name": "cat"}]}', "`categories`.*whole number as `id`"),
        (
            '{"annotations": [{"image_id": 1, "category_id": "7"}]}',
            "`annotations`.*whole number as `category_id`",
        ),
        (
            '{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": [1]}]}',
            "image_id",
        ),
    ],
)
def test_a_file_of_another_kind_is_refused(folder, content, said):
    (folder / "out.json").write_text(content)
    with pytest.raises(ValueError, match=said):
        open_store(folder)
    assert (folder / "out.json").read_text() == content


def test_a_file_of_another_kind_is_not_loaded_in_part(folder):
    store = open_store(folder)
    kept = store.add("a.png", SIZE, record())
    (folder / "out.json").write_text('{"images": [], "categories": [{"name": "cow"}]}')
    with pytest.raises(ValueError, match="categories"):
        store.reload()
    assert store.objects("a.png", SIZE) == [kept] and store.counts()["a.png"] == 1
    assert [label["name"] for label in store.labels] == ["cat", "dog"]


def test_an_image_of_the_whole_name_is_the_photograph_s(folder):
    sides = {"width": SIZE[1], "height": SIZE[0]}
    names = {1: "elsewhere/a.png", 2: "a.png", 3: "other/b.png", 4: "more/b.png"}
    images = [{"id": number, "file_name": name, **sides} for number, name in names.items()]
    masks = [{"id": n, "image_id": n, **record(y=n % 4)} for n in names]
    content = {"images": images, "annotations": masks, "categories": [{"id": 1, "name": "cat"}]}
    (folder / "out.json").write_text(json.dumps(content))
    store = open_store(folder)
    # `b.png` is a part of one photograph's name alone, and the first image of that name is taken.
    for photo, number in (("a.png", 2), ("deep/b.png", 3)):
        assert [shown["id"] for shown in store.objects(photo, SIZE)] == [number]


def test_boxes_without_masks_are_not_counted_and_ids_stay_apart(folder):
    content = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 2, 2]},
            {"id": 2, "image_id": "2", "category_id": 1, **record()},  # its image is not there
        ],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (folder / "out.json").write_text(json.dumps(content))
    store = open_store(folder)
    assert store.counts() == {"a.png": 0, "deep/b.png": 0}
    assert store.add("deep/b.png", SIZE, record())["image_id"] == 3
    assert open_store(folder).counts() == {"a.png": 0, "deep/b.png": 1}


def test_what_was_removed_comes_back_with_its_image(folder):
    store = open_store(folder)
    first, second = (store.add("a.png", SIZE, record(y=y)) for y in (1, 3))
    for entry in (first, second):
        store.remove(entry["id"])
    other = store.add("deep/b.png", SIZE, record())  # its image takes the number
    assert other["image_id"] == first["image_id"] and other["id"] == 3
    restored = [store.restore(entry["id"]) for entry in (first, second)]
    assert restored == [{**entry, "image_id": 2} for entry in (first, second)]
    assert open_store(folder).objects("a.png", SIZE) == restored


def test_an_object_of_an_image_that_is_not_listed_stays_as_it_is(folder):
    (folder / "out.json").write_text(json.dumps(FOREIGN))
    store = open_store(folder)
    before = store.coco()
    with pytest.raises(KeyError, match=r"Object 10 belongs to an image that out\.json"):
        store.remove(10)
    with pytest.raises(KeyError, match=r"Object 10 belongs to an image that out\.json"):
        store.replace(10, {"category_id": 3})
    assert store.coco() == before


def test_an_image_without_a_size_is_said_until_it_is_known(folder):
    content = {**FOREIGN, "images": [{"id": 7, "file_name": "a.png"}]}
    (folder / "out.json").write_text(json.dumps(content))
    store = open_store(folder)
    with pytest.raises(ValueError, match=r"how large a\.png is"):
        store.images()
    store.objects("a.png", SIZE)
    assert [image.size for image in store.images()] == [SIZE]


def test_a_listed_image_without_annotations_gets_the_size_of_its_photograph(folder):
    images = [{"id": 1, "file_name": "a.png", "width": 5, "height": 5}]
    (folder / "out.json").write_text(json.dumps({"images": images, "annotations": []}))
    store = open_store(folder)
    assert store.objects("a.png", SIZE) == []
    number = store.add("a.png", SIZE, record())["id"]
    with pytest.raises(ValueError, match=r"annotations of a\.png for 9 x 6 pixels.*5 x 5"):
        store.objects("a.png", (5, 5))
    (image,) = json.loads((folder / "out.json").read_text())["images"]
    assert (image["height"], image["width"], number) == (*SIZE, 1)


def test_a_file_that_another_program_changed_is_not_overwritten(folder):
    store = open_store(folder)
    store.add("a.png", SIZE, record())
    theirs = (folder / "out.json").read_text().replace("cat", "cow")
    (folder / "out.json").write_text(theirs)
    store.add("a.png", SIZE, record(y=3))
    assert (store.state.saved, store.state.problem) == (False, "changed")
    assert (folder / "out.json").read_text() == theirs
    assert len(store.objects("a.png", SIZE)) == 2  # in memory
    assert store.save().problem == "changed"  # trying again does not help
    other = open_store(folder)
    assert store.save(overwrite=True).saved
    assert len(open_store(folder).objects("a.png", SIZE)) == 2
    other.add("a.png", SIZE, record())
    assert other.state.problem == "changed"
    assert other.reload().saved and len(other.objects("a.png", SIZE)) == 2


def test_a_file_that_was_only_touched_is_the_same(folder):
    store = open_store(folder)
    store.add("a.png", SIZE, record())
    (folder / "out.json").write_bytes((folder / "out.json").read_bytes())
    store.add("a.png", SIZE, record(y=3))
    assert store.state.saved


def test_a_file_is_read_once(folder, monkeypatch):
    """What is parsed is what later changes are told from, whatever is written meanwhile."""
    open_store(folder).add("a.png", SIZE, record())
    parse, written = json.loads, []

    def parse_and_write(text, **settings):
        if not written:
            written.append((folder / "out.json").read_bytes().replace(b"cat", b"cow"))
            (folder / "out.json").write_bytes(written[0])
        return parse(text, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(json, "loads", parse_and_write)
        store = open_store(folder)
    store.add("a.png", SIZE, record(y=3))
    assert store.labels[0]["name"] == "cat" and store.state.problem == "changed"
    assert (folder / "out.json").read_bytes() == written[0]


def test_what_cannot_be_written_stays_in_memory(folder, monkeypatch):
    store = open_store(folder)
    store.add("a.png", SIZE, record())
    before = (folder / "out.json").read_bytes()

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store_module, "whole_file", full)
        store.add("a.png", SIZE, record(y=3))
        assert (store.state.saved, store.state.problem) == (False, "failed")
        assert "No space left" in store.state.message
    assert (folder / "out.json").read_bytes() == before
    assert store.save().saved
    assert len(open_store(folder).objects("a.png", SIZE)) == 2


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"segmentation": {"size": [6, 9], "counts": [54]}}, ValueError, "empty"),  # no pixel
        ({"segmentation": {"size": [9, 6], "counts": [1, 53]}}, ValueError, "size"),  # swapped
        ({"segmentation": {"size": [6, 9], "counts": [1, 99]}}, ValueError, "fill"),  # too long
        ({"category_id": 4}, ValueError, "category_id"),  # unknown label
    ],
)
def test_unusable_objects_are_refused_and_change_nothing(folder, change, error, said):
    store = open_store(folder)
    with pytest.raises(error, match=said):
        store.add("a.png", SIZE, {**record(), **change})
    assert store.counts() == {"a.png": 0, "deep/b.png": 0}
    assert not (folder / "out.json").exists()


# Keeps masks, and says so of each once it is kept.
KEEPS = """
import sys
from keras_sam.annotate.store import AnnotationStore
store = AnnotationStore(sys.argv[1], ["a.png"], ["cat"])
while True:
    mask = {"size": [6, 9], "counts": [3, 7, 44]}
    print(store.add("a.png", (6, 9), {"segmentation": mask, "category_id": 1})["id"], flush=True)
"""


def test_a_killed_program_loses_no_mask(tmp_path):
    out, told = tmp_path / "out.json", 0
    for turn in range(4):
        command = [sys.executable, "-c", KEEPS, str(out)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline()  # it has begun
        time.sleep(0.03 * (turn + 1))
        process.send_signal(signal.SIGKILL)
        lines = process.stdout.read().splitlines()
        process.wait()
        complete = [int(line) for line in lines if line.isdigit()]
        told = max([told, *complete])
        kept = {entry["id"] for entry in json.loads(out.read_text())["annotations"]}
        assert kept >= set(range(1, told))  # the last number may be cut off in the pipe
    assert told > 4


def test_what_killed_programs_left_is_removed(folder):
    old, new = folder / ".out.json.0123abcd.part", folder / ".out.json.4567cdef.part"
    for path in (old, new):
        path.write_text("half")
    os.utime(old, (0, 0))
    open_store(folder)
    assert (old.exists(), new.exists()) == (False, True)
