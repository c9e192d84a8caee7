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
from keras_sam.training import CocoObjects, MaskFolder, ObjectBatches, SA1BFolder
from keras_sam.training.data import flip, jitter_scale, sample_box, sample_point
from tests.tiny import photograph

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
    ],
    ids=["no image", "no masks", "no JSON", "a missing image", "no COCO file"],
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
