"""`keras-sam everything`: what it writes, how it goes on, and what it refuses."""

import errno
import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

import keras_sam
from keras_sam import annotations
from keras_sam.cli import everything, options, photos, run_log
from keras_sam.cli.errors import CommandError
from keras_sam.cli.model import hash_files
from keras_sam.mask_generator import candidates
from keras_sam.mask_generator.records import MaskRecords, Thresholds
from tests.scenes import scene

pytestmark = pytest.mark.once

PRESET = "sam_tiny_demo"
SETTINGS = {"points_per_side": 4, "pred_iou_thresh": 0.45, "stability_score_thresh": 0.5}
MODEL = ("--model", PRESET, "--quiet")
FLAGS = [
    part for name, value in SETTINGS.items() for part in (f"--{name.replace('_', '-')}", str(value))
]
NAMES = ("a", "b", "c")


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """A folder of three photographs, of which none may be changed."""
    folder = tmp_path_factory.mktemp("drawn")
    for seed, name in enumerate(NAMES):
        pixels = scene((128, 100 + seed), (4, 3), seed + 5)[0]
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def folder(drawn, tmp_path):
    """A copy of the photographs, beside files that are none."""
    place = tmp_path / "photos"
    shutil.copytree(drawn, place)
    (place / "notes.txt").write_text("no photograph")
    (place / ".hidden.jpg").write_text("nor this")
    (place / "deeper").mkdir()
    return place


@pytest.fixture(scope="session")
def expected(drawn, loaded):
    """Of each photograph, the records that the generator itself makes."""
    segmenter = loaded.setdefault((PRESET,), keras_sam.SAMImageSegmenter.from_preset(PRESET))
    generator = keras_sam.SAMAutomaticMaskGenerator(segmenter, **SETTINGS)
    return {f"{name}.png": generator.generate(drawn / f"{name}.png") for name in NAMES}


@pytest.fixture
def encoded(monkeypatch, loaded, expected):
    """Counts the photographs that are encoded; `stop_at` is where Ctrl-C arrives."""

    class Encoded(list):
        stop_at = 0

    segmenter, calls = loaded[(PRESET,)], Encoded()
    encode = segmenter.encode_frames

    def encode_frames(frames):
        calls.append(1)
        if len(calls) == calls.stop_at:
            raise KeyboardInterrupt
        return encode(frames)

    monkeypatch.setattr(segmenter, "encode_frames", encode_frames)
    return calls


def contents(folder):
    """Every file below a folder with its bytes, but for the log, which holds times."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != run_log.FILE
    }


def read(format_, out, name, size):
    """What a format's reader finds of a photograph: its masks."""
    if format_ == "coco":
        images, _ = annotations.read_coco(out / everything.COCO_FILE)
        (image,) = (image for image in images if image.file_name == name)
    elif format_ == "sa1b":
        image = annotations.read_sa1b(out / Path(name).with_suffix(".json"))
    elif format_ == "yolo":
        image = annotations.read_yolo(out / Path(name).with_suffix(".txt"), size)
    elif format_ == "png":
        image = annotations.read_mask_folder(out / Path(name).stem)
    else:
        return annotations.read_label_map(out / name)
    rles = [annotations.segmentation_to_rle(r["segmentation"], size) for r in image.records]
    return keras_sam.masks.decode_rle(rles)


# What it writes


@pytest.mark.parametrize(
    "format_",
    [  # The records are the backend's, the formats are numpy.
        pytest.param(format_, marks=[pytest.mark.every_backend] * (format_ == "coco"))
        for format_ in everything.FORMATS
    ],
)
def test_results_are_the_generators(cli, folder, expected, tmp_path, format_):
    out = tmp_path / "new" / "out"
    code, stdout, err = cli("everything", folder, "--out", out, "--format", format_, *MODEL, *FLAGS)
    assert (code, err) == (0, "")
    total = sum(map(len, expected.values()))
    assert stdout == f"3 photographs segmented; {total} masks in all. Results: {out}\n"
    for name, records in expected.items():
        assert len(records) > 5
        found = read(format_, out, name, records.original_size)
        if format_ == "label-map":
            wanted = keras_sam.masks.masks_to_label_map(records)
        else:
            wanted = np.stack([record["segmentation"] for record in records])
        np.testing.assert_array_equal(found, wanted)


def test_sa1b_keeps_every_field(cli, folder, expected, tmp_path):
    call = ("everything", folder / "a.png", "--out", tmp_path / "out", "--format", "sa1b")
    assert cli(*call, *MODEL, *FLAGS)[0] == 0
    image = annotations.read_sa1b(tmp_path / "out" / "a.json")
    assert (image.file_name, image.size) == ("a.png", expected["a.png"].original_size)
    for record, wanted in zip(image.records, expected["a.png"], strict=True):
        for field in wanted.keys() - {"segmentation"}:
            np.testing.assert_allclose(record[field], wanted[field], rtol=0, atol=1e-6)


def test_coco_loads_in_pycocotools_as_polygons_too(cli, folder, expected, tmp_path):
    from pycocotools import coco

    call = ("everything", folder, "--out", tmp_path / "out", "--format", "coco", *MODEL, *FLAGS)
    for more in ((), ("--polygons", "--tolerance", "0.5")):
        assert cli(*call, *more)[0] == 0  # the second time, only the file is put together anew
        loaded_file = coco.COCO(str(tmp_path / "out" / everything.COCO_FILE))
        assert len(loaded_file.imgs) == 3
        assert len(loaded_file.anns) == sum(map(len, expected.values()))
        assert all(
            isinstance(a["segmentation"], list) == bool(more) for a in loaded_file.anns.values()
        )


def test_pictures_show_the_masks(cli, folder, expected, tmp_path):
    call = ("everything", folder / "a.png", "--out", tmp_path / "out", "--format", "yolo")
    assert cli(*call, *MODEL, *FLAGS, "--pictures", tmp_path / "drawn")[0] == 0
    picture = np.asarray(Image.open(tmp_path / "drawn" / "a.png"))
    wanted = keras_sam.visualization.overlay(folder / "a.png", expected["a.png"])
    np.testing.assert_array_equal(picture, wanted)
    (tmp_path / "drawn" / "a.png").unlink()
    code, stdout, _ = cli(*call, *MODEL, *FLAGS, "--pictures", tmp_path / "drawn")
    assert (code, "1 photographs segmented") == (0, stdout.split(";")[0])  # it was not complete
    assert (tmp_path / "drawn" / "a.png").exists()


def test_every_parameter_of_the_generator_is_an_option():
    signature = inspect.signature(keras_sam.SAMAutomaticMaskGenerator).parameters
    # What a mask is written as is the format; candidates serve `filter`, which is Python's.
    wanted = set(signature) - {"segmenter", "output_mode", "keep_candidates"}
    parameters = {parameter.name: parameter for parameter in options.PARAMETERS}
    assert parameters.keys() == wanted - {"point_grids", "use_m2m"}
    for name, parameter in parameters.items():
        if name != "prompt_chunk":  # which depends on the backend
            assert parameter.default == signature[name].default


def test_options_reach_the_generator(cli, folder, tmp_path, monkeypatch):
    made = {}

    class Generator(keras_sam.SAMAutomaticMaskGenerator):
        def __init__(self, segmenter, **parameters):
            made.update(parameters)
            raise ValueError("seen")

    monkeypatch.setattr("keras_sam.mask_generator.SAMAutomaticMaskGenerator", Generator)
    values = {
        "points_per_batch": 8,
        "pred_iou_thresh": 0.5,
        "stability_score_thresh": 0.25,
        "stability_score_offset": 0.75,
        "box_nms_thresh": 0.625,
        "crop_n_layers": 1,
        "crop_nms_thresh": 0.375,
        "crop_overlap_ratio": 0.125,
        "crop_n_points_downscale_factor": 2,
        "min_mask_region_area": 7.0,
        "prompt_chunk": 3,
    }
    flags = [x for name, value in values.items() for x in ("--" + name.replace("_", "-"), value)]
    (tmp_path / "grids.json").write_text("[[[0.5, 0.5]], [[0.25, 0.5], [0.75, 0.5]]]")
    code, _, err = cli(
        *("everything", folder, "--out", tmp_path / "out", "--format", "sa1b", *MODEL),
        *("--point-grids", tmp_path / "grids.json", "--use-m2m", *flags),
    )
    assert code == 2 and "seen" in err
    grids = [[[0.5, 0.5]], [[0.25, 0.5], [0.75, 0.5]]]
    fixed = {"point_grids": grids, "points_per_side": None, "output_mode": "coco_rle"}
    assert made == {**values, **fixed, "use_m2m": True}
    assert not (tmp_path / "out").exists()


def test_own_grids_and_crops_run(cli, folder, tmp_path):
    (tmp_path / "grids.json").write_text("[[[0.5, 0.5]], [[0.25, 0.5], [0.75, 0.5]]]")
    code, stdout, _ = cli(
        *("everything", folder / "a.png", "--out", tmp_path / "out", "--format", "sa1b", *MODEL),
        *("--point-grids", tmp_path / "grids.json", "--crop-n-layers", "1"),
        *("--pred-iou-thresh", "0", "--stability-score-thresh", "0", "--json"),
    )
    assert code == 0 and json.loads(stdout)["masks"] > 0
    records = annotations.read_sa1b(tmp_path / "out" / "a.json").records
    assert len({tuple(record["crop_box"]) for record in records}) > 1


def test_folders_in_the_folder_and_names_that_differ_in_their_ending_only(tmp_path):
    for name in ("a.jpg", "a.PNG", "b.jpg", "c.jpg", "c/d.jpg", "out/x.png", "skip.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = photos.find_photos([tmp_path], recursive=True, not_in=(tmp_path / "out",))
    assert {photo.name: photo.result for photo in found} == {
        "a.PNG": "a.PNG",
        "a.jpg": "a.jpg",
        "b.jpg": "b",
        "c.jpg": "c.jpg",  # beside the folder c
        "c/d.jpg": "c/d",
    }
    assert [photo.name for photo in found] == sorted(photo.name for photo in found)
    flat = photos.find_photos([tmp_path], recursive=False)
    assert [photo.name for photo in flat] == ["a.PNG", "a.jpg", "b.jpg", "c.jpg"]


def test_photographs_of_several_places_go_by_what_the_places_have_in_common(tmp_path, monkeypatch):
    for name in ("p/a.jpg", "p/b.jpg", "q/a.jpg", "c.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def names(*places):
        return {p.name: p.result for p in photos.find_photos(places, recursive=False)}

    assert names(tmp_path / "p" / "a.jpg", tmp_path / "p" / "b.jpg") == {"a.jpg": "a", "b.jpg": "b"}
    several = {"p/a.jpg": "p/a", "p/b.jpg": "p/b", "q/a.jpg": "q/a"}
    assert names(tmp_path / "q" / "a.jpg", tmp_path / "p") == several
    assert names(tmp_path / "p", tmp_path / "p" / "a.jpg") == {"a.jpg": "a", "b.jpg": "b"}
    monkeypatch.chdir(tmp_path / "p")
    assert names(Path("a.jpg"), Path("../c.jpg")) == {"c.jpg": "c", "p/a.jpg": "p/a"}
    with pytest.raises(CommandError, match="none.jpg: there is no such photograph"):
        names(Path("a.jpg"), Path("none.jpg"))


def test_several_photographs_in_one_call_and_in_a_file(cli, folder, tmp_path):
    rest = ("--out", tmp_path / "out", "--format", "label-map", *MODEL, *FLAGS)
    code, stdout, err = cli("everything", folder / "a.png", folder / "b.png", *rest)
    assert code == 0 and "2 photographs segmented" in stdout, err
    made = contents(tmp_path / "out")
    assert {"a.png", "b.png"} <= set(made)
    config = folder / "run.toml"
    config.write_text('photos = ["a.png", "b.png"]')
    code, stdout, err = cli("everything", *rest, "--config", config)
    assert code == 0 and "2 were done before" in stdout, err


# Going on


@pytest.mark.parametrize("format_", ["coco", "yolo", "png"])
def test_ctrl_c_keeps_what_is_finished_and_the_next_run_goes_on(
    cli, folder, tmp_path, encoded, format_
):
    call = ("everything", folder, "--format", format_, *MODEL, *FLAGS, "--json")
    assert cli(*call, "--out", tmp_path / "whole")[0] == 0
    encoded.clear()
    encoded.stop_at = 3
    code, stdout, err = cli(*call, "--out", tmp_path / "out")
    assert (code, err) == (130, "keras-sam everything: interrupted\n")
    summary = json.loads(stdout)
    assert (summary["segmented"], summary["interrupted"]) == (2, True)
    kept = contents(tmp_path / "out")
    whole = contents(tmp_path / "whole")
    assert kept and all(kept[name] == whole[name] for name in kept.keys() - {"annotations.json"})
    if format_ == "coco":
        assert len(annotations.read_coco(tmp_path / "out" / everything.COCO_FILE)[0]) == 2
    encoded.clear()
    encoded.stop_at = 0
    code, stdout, _ = cli(*call, "--out", tmp_path / "out")
    summary = json.loads(stdout)
    assert (code, summary["segmented"], summary["skipped"], len(encoded)) == (0, 1, 2, 1)
    assert contents(tmp_path / "out") == whole
    code, stdout, _ = cli(*call, "--out", tmp_path / "out")
    assert (code, json.loads(stdout)["skipped"], len(encoded)) == (0, 3, 1)  # no model is needed
    assert contents(tmp_path / "out") == whole


def test_what_was_cut_off_removed_or_changed_is_done_again(cli, folder, tmp_path, encoded):
    out = tmp_path / "out"
    call = ("everything", folder, "--out", out, "--format", "sa1b", *MODEL, *FLAGS, "--json")
    assert cli(*call)[0] == 0
    before = contents(out)

    log = (out / run_log.FILE).read_bytes()
    (out / run_log.FILE).write_bytes(log[:-20])  # killed while the last line was written
    encoded.clear()
    assert cli(*call)[0] == 0 and len(encoded) == 1
    assert cli(*call)[0] == 0 and len(encoded) == 1

    (out / "b.json").unlink()
    assert cli(*call)[0] == 0 and len(encoded) == 2
    assert contents(out) == before

    shutil.copy(folder / "a.png", folder / "b.png")
    assert cli(*call)[0] == 0 and len(encoded) == 3
    changed = contents(out)
    assert changed["b.json"] != before["b.json"] and changed["a.json"] == before["a.json"]


def test_a_killed_process_loses_nothing(folder, tmp_path):
    """As the system kills: without a word, somewhere in the middle."""
    out = tmp_path / "out"
    words = ["everything", folder, "--out", out, "--format", "sa1b", *MODEL, *FLAGS]
    slow = (
        "import sys, time; from keras_sam import annotations; from keras_sam.cli import main\n"
        "write = annotations.write_sa1b\n"
        "def slowly(path, image):\n    time.sleep(0.3 if image.file_name < 'b' else 60)\n"
        "    write(path, image)\n"
        f"annotations.write_sa1b = slowly\nsys.exit(main({[str(word) for word in words]}))"
    )
    environment = {**os.environ, "KERAS_BACKEND": keras.config.backend()}
    process = subprocess.Popen(
        [sys.executable, "-c", slow], env=environment, cwd=Path(__file__).parents[1]
    )
    try:
        deadline = time.monotonic() + 240
        while not (out / "a.json").exists() or len(_lines(out)) < 2:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert sorted(contents(out)) == ["a.json"]
    assert [json.loads(line).get("photo") for line in _lines(out)] == [None, "a.png"]


def _lines(out):
    log = out / run_log.FILE
    return log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def canned(monkeypatch, expected):
    """A generator without a model: one mask per photograph, whose width is its name."""
    calls = []

    class Generator:
        clicks_per_image = 16
        stop_at = None

        def __init__(self, segmenter, **parameters):
            pass

        def stream(self, images, progress):
            for path in images:
                if len(calls) == Generator.stop_at:
                    raise KeyboardInterrupt
                calls.append(path)
                progress(16)
                mask = np.zeros((2, 3), bool)
                mask[0, int(Path(path).stem) % 3] = True
                yield MaskRecords([{"segmentation": mask}], (2, 3), Thresholds())

    monkeypatch.setattr("keras_sam.mask_generator.SAMAutomaticMaskGenerator", Generator)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # only time is saved
    Generator.calls = calls
    return Generator


def test_a_thousand_photographs_interrupted_twice(cli, canned, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(1000):
        (folder / f"{number:04}.jpg").write_bytes(bytes([number % 256, number // 256]))
    call = ("everything", folder, "--out", tmp_path / "out", "--format", "coco", *MODEL, "--json")
    for stop_at, done, skipped in ((300, 300, 0), (700, 400, 300), (None, 300, 700)):
        canned.stop_at = stop_at
        code, stdout, _ = cli(*call)
        summary = json.loads(stdout)
        assert code == (0 if stop_at is None else 130)
        assert (summary["segmented"], summary["skipped"]) == (done, skipped)
        images, _ = annotations.read_coco(tmp_path / "out" / everything.COCO_FILE)
        assert len(images) == len(canned.calls) == summary["masks"] == done + skipped
    assert len(set(canned.calls)) == 1000
    assert [image.file_name for image in images] == [f"{number:04}.jpg" for number in range(1000)]


def test_mask_threshold(cli, folder, expected, tmp_path):
    call = ("everything", folder / "a.png", "--out", tmp_path / "out", "--format", "sa1b", *MODEL)
    assert cli(*call, *FLAGS, "--mask-threshold", "2")[0] == 0
    records = annotations.read_sa1b(tmp_path / "out" / "a.json").records
    area = [np.mean([record["area"] for record in some]) for some in (records, expected["a.png"])]
    assert area[0] < area[1]
    code, _, err = cli(*call, *FLAGS)
    assert code == 2 and "mask_threshold was 2.0, is None" in err


def test_results_of_other_settings_are_not_mixed(cli, folder, tmp_path, encoded):
    call = ("everything", folder, "--out", tmp_path / "out", *MODEL)
    assert cli(*call, "--format", "sa1b", *FLAGS)[0] == 0
    before = contents(tmp_path / "out")
    for changed, message in (
        (
            ("--format", "sa1b", *FLAGS, "--box-nms-thresh", "0.5"),
            "box_nms_thresh was None, is 0.5",  # None: the model's
        ),
        (("--format", "coco", *FLAGS), "format was sa1b, is coco"),
        (("--format", "sa1b"), "points_per_side was 4, is None"),
    ):
        code, _, err = cli(*call, *changed)
        assert code == 2 and message in err and "--overwrite" in err and err.count("\n") == 1
    assert contents(tmp_path / "out") == before
    encoded.clear()
    other = ("--format", "sa1b", *FLAGS, "--box-nms-thresh", "0.2")
    assert cli(*call, *other, "--overwrite")[0] == 0
    assert len(encoded) == 3 and contents(tmp_path / "out") != before
    same = ("--format", "sa1b", *FLAGS, "--box-nms-thresh", "0.2", "--points-per-batch", "3")
    assert cli(*call, *same)[0] == 0
    assert len(encoded) == 3  # what changes no result is no other setting


def test_another_source_does_not_replace_masks_of_the_same_name(cli, canned, tmp_path):
    one, two, out = (tmp_path / name for name in ("one", "two", "out"))
    for seed, place in enumerate((one, two)):
        place.mkdir()
        Image.fromarray(scene((64, 80), (2, 2), seed)[0]).save(place / "1.png")
    call = ("--out", out, "--format", "coco", *MODEL)
    assert cli("everything", one, *call)[0] == 0
    before = contents(out)
    code, _, err = cli("everything", two, *call)
    assert code == 2 and err.count("\n") == 1 and contents(out) == before
    assert f"holds the masks of {one / '1.png'} as 1.png, which those of {two / '1.png'}" in err
    shutil.rmtree(one)  # it was moved
    assert cli("everything", two, *call)[0] == 0
    # The results of a photograph in another form take the place of those that it had.
    (two / "1.png").rename(two / "1.webp")
    assert cli("everything", two, *call)[0] == 0
    images, _ = annotations.read_coco(out / everything.COCO_FILE)
    assert [image.file_name for image in images] == ["1.webp"]
    (two / "1.webp").rename(two / "1.png")
    done = len(canned.calls)
    assert cli("everything", two, *call)[0] == 0 and len(canned.calls) == done + 1


def test_a_model_that_was_trained_further_is_another_setting(tmp_path):
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "model.weights.h5").write_bytes(b"first")
    (tmp_path / "best" / ".notes").write_bytes(b"mine")
    first = hash_files(str(tmp_path / "best"))
    (tmp_path / "best" / ".notes").write_bytes(b"others")
    assert hash_files(str(tmp_path / "best")) == first != hash_files("sam_tiny_demo") is None
    (tmp_path / "best" / "model.weights.h5").write_bytes(b"later")
    assert hash_files(str(tmp_path / "best")) != first


@pytest.mark.parametrize(("format_", "file"), [("sa1b", "b.json"), ("coco", "annotations.json")])
def test_a_first_run_replaces_nothing(cli, folder, tmp_path, format_, file):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / file).write_text("somebody's")
    call = ("everything", folder, "--out", tmp_path / "out", "--format", format_, *MODEL, *FLAGS)
    code, _, err = cli(*call)
    assert code == 2 and file in err and "is there already" in err
    assert contents(tmp_path / "out") == {file: b"somebody's"}
    assert cli(*call, "--overwrite")[0] == 0
    assert (tmp_path / "out" / file).read_bytes() != b"somebody's"


def test_a_damaged_log_is_no_reason_to_start_over(cli, folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / run_log.FILE).write_text("no JSON\n")
    code, _, err = cli(
        "everything", folder, "--out", tmp_path / "out", "--format", "sa1b", *MODEL, *FLAGS
    )
    assert code == 2 and "is damaged" in err and "--overwrite" in err


# Bad input


def test_unreadable_photographs_are_named_at_the_end(cli, folder, expected, tmp_path):
    (folder / "aa.jpg").write_text("not a picture")
    (folder / "bb.png").write_bytes((folder / "b.png").read_bytes()[:800])
    (folder / "empty.jpg").write_bytes(b"")
    call = ("everything", folder, "--out", tmp_path / "out", "--format", "coco", *MODEL, *FLAGS)
    for segmented, skipped in ((3, 0), (0, 3)):  # they are tried again by the next run
        code, stdout, err = cli(*call, "--json")
        summary = json.loads(stdout)
        assert (code, summary["segmented"], summary["skipped"]) == (2, segmented, skipped)
        assert list(summary["unreadable"]) == ["aa.jpg", "bb.png", "empty.jpg"]
        assert summary["masks"] == sum(map(len, expected.values()))
        lines = err.splitlines()
        assert [line.split(": ")[2] for line in lines] == ["aa.jpg", "bb.png", "empty.jpg"]
        assert all("must be an image that pillow can read" in line for line in lines)
        images, _ = annotations.read_coco(tmp_path / "out" / everything.COCO_FILE)
        assert [image.file_name for image in images] == list(expected)


def test_crops_of_a_tiny_photograph(cli, folder, tmp_path):
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    code, stdout, err = cli(
        *("everything", folder, "--out", tmp_path / "out", "--format", "sa1b", *MODEL, *FLAGS),
        *("--crop-n-layers", "1", "--crop-n-points-downscale-factor", "2", "--json"),
    )
    assert code == 2 and json.loads(stdout)["segmented"] == 3
    assert err.count("\n") == 1 and "dot.png: The image is too small for 1 layers of crops" in err


@pytest.mark.parametrize("format_", everything.FORMATS)
def test_nothing_to_find_is_no_error(cli, tmp_path, format_):
    """1 x 1, all black, and thresholds that drop everything: results without masks."""
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (1, 1)).save(tmp_path / "photos" / "dot.png")
    Image.new("RGB", (100, 128)).save(tmp_path / "photos" / "black.png")
    code, stdout, err = cli(
        *("everything", tmp_path / "photos", "--out", tmp_path / "out", "--format", format_),
        *(*MODEL, *FLAGS, "--pred-iou-thresh", "1.5", "--json"),
    )
    summary = json.loads(stdout)
    assert (code, summary["segmented"], summary["masks"]) == (0, 2, 0)
    (line,) = err.splitlines()  # once for both
    assert line.startswith("keras-sam: warning: No mask is left of 48 candidates: 48 have")
    if format_ == "coco":
        images, _ = annotations.read_coco(tmp_path / "out" / everything.COCO_FILE)
        assert [image.records for image in images] == [[], []]
    elif format_ == "label-map":
        assert not annotations.read_label_map(tmp_path / "out" / "black.png").any()
    else:
        assert len(contents(tmp_path / "out")) == 2


def test_a_full_temporary_folder_is_not_the_photographs_fault(cli, folder, tmp_path, monkeypatch):
    call = ("everything", folder, "--format", "sa1b", *MODEL, *FLAGS, "--out", tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(candidates, "_WAITING_IN_MEMORY", 1)
        patch.setattr("tempfile.TemporaryFile", lambda *a, **k: Path("/dev/full").open("w+b"))  # noqa: SIM115
        code, stdout, err = cli(*call)
    assert code == 1 and err.count("\n") == 1
    assert "cannot write temporary files" in err and "No space left on device" in err
    assert "0 photographs segmented" in stdout and "3 are left" in stdout
    assert cli(*call)[0] == 0


def full_when(is_full, write):
    def write_or_fail(*args, **options):
        if is_full():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(*args, **options)

    return write_or_fail


@pytest.mark.parametrize("format_", ["coco", "png", "label-map"])
def test_a_full_disk_ends_the_run_and_keeps_what_is_finished(
    cli, folder, tmp_path, encoded, monkeypatch, format_
):
    call = ("everything", folder, "--format", format_, *MODEL, *FLAGS)
    assert cli(*call, "--out", tmp_path / "whole")[0] == 0
    whole = contents(tmp_path / "whole")
    encoded.clear()
    with monkeypatch.context() as patch:
        for module, name in ((os, "fsync"), (Image.Image, "save")):
            # The second photograph's results find no place.
            patch.setattr(module, name, full_when(lambda: len(encoded) == 2, getattr(module, name)))
        code, stdout, err = cli(*call, "--out", tmp_path / "out")
    assert code == 1 and err.count("\n") == 1
    assert "No space left on device" in err and "Traceback" not in err
    assert "1 photographs segmented" in stdout and "2 are left" in stdout
    finished = {name for name in whole if Path(name).name.startswith("a") and "b" not in name}
    kept = contents(tmp_path / "out")
    assert kept.keys() - {"annotations.json"} <= whole.keys()
    assert not any(".part" in name for name in kept)
    for name in finished - {"annotations.json"}:
        assert kept[name] == whole[name]
    encoded.clear()
    assert cli(*call, "--out", tmp_path / "out")[0] == 0
    assert len(encoded) == 2 and contents(tmp_path / "out") == whole


BAD_CALLS = [
    (["none", "OUT", "sa1b"], "none: there is no such photograph or folder"),
    (["PHOTOS/deeper", "OUT", "sa1b"], "the folder has no photographs (--recursive"),
    (["PHOTOS/deeper", "OUT", "sa1b", "--recursive"], "the folder has no photographs"),
    (["PHOTOS/notes.txt", "OUT", "sa1b"], "notes.txt"),
    (["PHOTOS", "--out", "PHOTOS/a.png", "--format", "sa1b"], "is a file, not a folder"),
    (["PHOTOS", "--out", "PHOTOS/a.png/x", "--format", "sa1b"], "is a file, not a folder"),
    (["PHOTOS", "OUT", "sa1b", "--pictures", "PHOTOS/a.png"], "is a file, not a folder"),
    (["PHOTOS", "OUT", "sa1b", "--pictures", "PHOTOS"], "taken for some"),
    (["PHOTOS", "--out", "PHOTOS", "--format", "label-map"], "taken for some"),
    (["PHOTOS/a.png", "--out", "PHOTOS", "--format", "png"], "taken for some"),
    (["PHOTOS", "OUT", "gif"], "invalid choice: 'gif'"),
    (["PHOTOS", "--format", "coco"], "required: --out"),
    (["PHOTOS", "OUT", "sa1b", "--points-per-side", "0"], "at least 1, received '0'"),
    (["PHOTOS", "OUT", "sa1b", "--points-per-side", "4.5"], "a whole number"),
    (["PHOTOS", "OUT", "sa1b", "--crop-n-layers", "-1"], "--crop-n-layers"),
    (["PHOTOS", "OUT", "sa1b", "--crop-overlap-ratio", "1"], "`crop_overlap_ratio` in [0, 1)"),
    (["PHOTOS", "OUT", "sa1b", "--pred-iou-thresh", "nan"], "received 'nan'"),
    (["PHOTOS", "OUT", "sa1b", "--polygons"], "--polygons belongs to --format coco"),
    (["PHOTOS", "OUT", "coco", "--tolerance", "1"], "--tolerance belongs to"),
    (["PHOTOS", "OUT", "yolo", "--tolerance", "-1"], "at least 0"),
    (["PHOTOS", "OUT", "sa1b", "--point-grids", "none.json"], "No such file"),
    (["PHOTOS", "OUT", "sa1b", "--point-grids", "PHOTOS/notes.txt"], "expected JSON, a list of"),
    (["PHOTOS", "OUT", "sa1b", "--point-grids", "PHOTOS/flat.json"], "received shapes"),
    (["PHOTOS", "OUT", "sa1b", "--point-grids", "PHOTOS/ten.json"], "not pixels"),
    (
        ["PHOTOS", "OUT", "sa1b", "--point-grids", "PHOTOS/ten.json", "--points-per-side", "3"],
        "cannot be combined",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD_CALLS)
def test_bad_calls(cli, folder, tmp_path, call, message):
    (folder / "flat.json").write_text("[[0.5, 0.5]]")
    (folder / "ten.json").write_text("[[[10, 10]]]")
    before = sorted(tmp_path.rglob("*"))
    if call[1] == "OUT":
        call = [call[0], "--out", tmp_path / "new" / "out", "--format", *call[2:]]
    call = [str(word).replace("PHOTOS", str(folder)) for word in call]
    code, out, err = cli("everything", *call, *MODEL)
    assert code == 2, err
    assert message in err and out == ""
    assert err.count("\n") == 1 and err.startswith("keras-sam everything: error: ")
    assert sorted(tmp_path.rglob("*")) == before


# What is shown


def test_progress_in_a_log_and_on_a_terminal(cli, folder, tmp_path, monkeypatch):
    loud = (*MODEL[:2], *FLAGS)
    (folder / "bad.jpg").write_text("not a picture")
    code, _, err = cli("everything", folder, "--out", tmp_path / "a", "--format", "sa1b", *loud)
    assert code == 2
    lines = [line for line in err.splitlines() if line[1:3] == "/4"]
    assert [line.split(": ")[0] for line in lines] == [
        "1/4 a.png",
        "2/4 b.png",
        "3/4 bad.jpg",
        "4/4 c.png",
    ]
    assert "masks, " in lines[0] and "could not be segmented" in lines[2]
    assert "\x1b" not in err
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    code, _, err = cli("everything", folder, "--out", tmp_path / "b", "--format", "sa1b", *loud)
    assert code == 2 and "1/4 a.png" in err and "left:" in err and "100%" in err
    assert "masks, " not in err


def test_what_the_model_recommends_is_used_unless_an_option_says_otherwise(
    cli, folder, loaded, monkeypatch, tmp_path
):
    segmenter = loaded.setdefault((PRESET,), keras_sam.SAMImageSegmenter.from_preset(PRESET))
    kept = {**SETTINGS, "points_per_side": 3}
    monkeypatch.setattr(segmenter, "generator_settings", kept)
    for flags, side in (((), 3), (("--points-per-side", "2"), 2)):
        out = tmp_path / f"out{side}"
        call = ("everything", folder / "a.png", "--out", out, "--format", "sa1b", *MODEL)
        assert cli(*call, *flags)[0] == 0
        records = annotations.read_sa1b(out / "a.json").records
        generator = keras_sam.SAMAutomaticMaskGenerator(
            segmenter, **{**kept, "points_per_side": side}
        )
        wanted = generator.generate(folder / "a.png")
        assert [r["area"] for r in records] == [r["area"] for r in wanted]
