"""`keras-sam evaluate`: the table, the files beside it, and what it refuses."""

import csv
import json
import sys

import numpy as np
import pytest
from PIL import Image, ImageFilter

import keras_sam
from keras_sam import evaluation
from tests.datasets import write_data_set

pytestmark = pytest.mark.once

PRESET = "sam_tiny_demo"
MODEL = ("--model", PRESET, "--quiet")
FEW = ("--clicks", "1,2", "--max-clicks", "2")


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return write_data_set(tmp_path_factory.mktemp("measured"))


@pytest.fixture(scope="session")
def predictor(loaded):
    key = (PRESET,)
    if key not in loaded:
        loaded[key] = keras_sam.SAMImageSegmenter.from_preset(*key)
    return keras_sam.SAMPredictor(loaded[key])


@pytest.fixture(scope="session")
def expected(data, predictor):
    """What the library itself measures."""
    pairs = zip(data.images, data.objects, strict=True)
    return evaluation.evaluate(predictor, pairs, clicks=(1, 2), max_clicks=2)


@pytest.mark.parametrize("layout", ["masks", "coco", "sa1b"])
def test_every_layout_is_measured_alike(cli, data, expected, layout):
    code, out, err = cli("evaluate", *data.options(layout), *MODEL, *FEW, "--json")
    assert (code, err) == (0, "")
    summary = json.loads(out)
    assert (summary["images"], summary["objects"]) == (2, len(expected.objects))
    for name, value in expected.summary.items():
        assert summary[name] == pytest.approx(value, abs=1e-3), name


def test_masks_of_any_kind_are_measured_alike(cli, data, tmp_path):
    """One object per picture: an indexed mask, one in colour that went through JPEG, and soft."""
    kinds = {"ones": {}, "green": {}, "soft": {}}
    for kind in kinds:
        (tmp_path / kind).mkdir()
    for name, objects in zip(("p0", "p1"), data.objects, strict=True):
        mask = np.kron(objects[0][::4, ::4], np.ones((4, 4), "uint8"))
        picture = Image.fromarray(mask * 255)
        Image.fromarray(mask).save(tmp_path / "ones" / f"{name}.png")
        green = Image.merge(
            "RGB", (Image.new("L", picture.size), picture, picture.point(lambda v: 0))
        )
        green.save(tmp_path / "green" / f"{name}_mask.jpg", quality=95, subsampling=0)
        picture.filter(ImageFilter.GaussianBlur(0.4)).save(tmp_path / "soft" / f"{name}.tif")
    summaries = []
    for kind in kinds:
        words = ("--data", data.folder / "photos", "--masks", tmp_path / kind)
        code, out, err = cli("evaluate", *words, *MODEL, *FEW, "--json")
        assert code == 0, err
        assert not err or "black and white with values between" in err  # said once
        summaries.append(json.loads(out))
    assert summaries[0]["objects"] == 2
    assert summaries[1] == summaries[2] == summaries[0]


def test_void_and_the_size_of_the_pictures_may_be_said(cli, data, tmp_path):
    """Grey masks of two numbers, and a COCO file for pictures of half the size."""
    for name in ("p0", "p1"):
        values = np.zeros((60, 80), "uint8")
        values[10:30, 10:40], values[40:50, 50:70] = 128, 255
        Image.fromarray(values).save(tmp_path / f"{name}.png")
    words = ("evaluate", *MODEL, *FEW, "--json", "--data", data.folder / "photos")
    code, _, err = cli(*words, "--masks", tmp_path)
    assert code != 0 and "--void none" in err
    for void, objects in (("none", 4), ("255", 2)):
        code, out, err = cli(*words, "--masks", tmp_path, "--label-map", "--void", void)
        assert (code, err, json.loads(out)["objects"]) == (0, "", objects)
    (tmp_path / "large").mkdir()
    for name, image in zip(("p0", "p1"), data.images, strict=True):
        large = np.kron(image, np.ones((2, 2, 1), "uint8"))
        Image.fromarray(large).save(tmp_path / "large" / f"{name}.png")
    words = ("evaluate", *MODEL, *FEW, "--json", "--data", data.folder / "coco.json")
    code, _, err = cli(*words, "--images", tmp_path / "large")
    assert code != 0 and "--rescale" in err
    code, out, err = cli(*words, "--images", tmp_path / "large", "--rescale")
    assert (code, err) == (0, "") and json.loads(out)["objects"] > 0


def test_table_and_files(cli, data, expected, tmp_path):
    out_folder = tmp_path / "report"
    code, out, err = cli(
        "evaluate", *data.options("masks"), *MODEL, *FEW, "--out", out_folder, "--plot"
    )
    assert (code, err) == (0, "")
    table = dict(line.rsplit(maxsplit=1) for line in out.splitlines())
    assert float(table["mIoU, 1 click"]) == pytest.approx(expected.summary["miou@1"], abs=1e-3)
    assert float(table["mIoU from the box"]) == pytest.approx(
        expected.summary["box_miou"], abs=2e-3
    )
    assert table["objects"] == str(len(expected.objects))
    with open(out_folder / "objects.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [f"p{row['image']}.png" for row in expected.objects]
    found = [float(row["box_iou"]) for row in rows]
    np.testing.assert_allclose(found, [row["box_iou"] for row in expected.objects], atol=2e-3)
    assert json.loads((out_folder / "summary.json").read_text())["data"].endswith("photos")
    assert Image.open(out_folder / "miou.png").width > 500
    again = ("evaluate", *data.options("masks"), *MODEL, *FEW, "--out", out_folder, "--limit", "1")
    code, _, err = cli(*again)
    assert code == 2 and "objects.csv is there already; --overwrite replaces it" in err
    assert json.loads((out_folder / "summary.json").read_text())["images"] == 2
    assert cli(*again, "--overwrite")[0] == 0
    assert json.loads((out_folder / "summary.json").read_text())["images"] == 1


def test_the_mask_threshold_is_the_models(cli, data):
    call = ("evaluate", *data.options("masks"), *MODEL, *FEW, "--limit", "1", "--json")
    plain, none = (json.loads(cli(*call, *x)[1]) for x in ((), ("--mask-threshold", "1e6")))
    assert (plain["mask_threshold"], none["mask_threshold"]) == (0, 1e6)
    assert plain["box_miou"] > none["box_miou"] == 0


def test_everything_counts_what_is_found(cli, data, predictor):
    settings = {"points_per_side": 4, "pred_iou_thresh": 0.3, "stability_score_thresh": 0.3}
    flags = [w for k, v in settings.items() for w in (f"--{k.replace('_', '-')}", v)]
    words = ("evaluate", *data.options("masks"), *MODEL, *FEW, "--json", "--limit", "1")
    code, out, err = cli(*words, "--everything", *flags)
    assert (code, err) == (0, "")
    generator = keras_sam.SAMAutomaticMaskGenerator(predictor.segmenter, **settings)
    records = generator.generate(data.images[0])
    masks = [record["segmentation"] for record in records]
    targets = [target == 1 for target in data.objects[0]]
    best = [max(evaluation.mask_iou(m, t) for m in masks) for t in targets]
    scores = [record["predicted_iou"] for record in records]
    summary = json.loads(out)
    assert summary["recall@70"] == pytest.approx(np.mean(np.array(best) >= 0.7), abs=1e-4)
    wanted = evaluation.average_recall(masks, scores, targets)
    assert summary["ar@1000"] == pytest.approx(wanted, abs=1e-4)
    assert summary["recall@70"] > 0


def test_images_that_cannot_be_read_are_named_and_left_out_only_if_asked(cli, data, tmp_path):
    broken = write_data_set(tmp_path / "broken")
    (broken.folder / "photos" / "p0.png").write_bytes(b"no picture")
    words = ("evaluate", *broken.options("masks"), "--model", PRESET, *FEW)
    code, out, err = cli(*words, "--quiet")
    assert (code, out) == (2, "")
    assert "p0.png" in err and "--skip-unreadable" in err and err.count("\n") == 1
    code, out, err = cli(*words, "--skip-unreadable", "--json")
    assert code == 0 and "left out: p0.png" in err
    summary = json.loads(out)
    assert summary["images"] == 1 and list(summary["left_out"]) == ["p0.png"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "required: --data"),
        (("--data", "none.json"), "no such file or folder"),
        (("--data", "DIR/photos"), "JSON file of the same name"),
        (("--data", "DIR/photos", "--masks", "DIR/none"), "--masks DIR/none: there is no such"),
        (("--data", "DIR/photos", "--masks", "DIR/pairs2"), "no such folder"),
        (("--data", "DIR/masks", "--masks", "DIR"), "must have a mask for every image"),
        (("--data", "DIR/photos", "--label-map"), "--label-map says how to read --masks"),
        (("--data", "DIR/photos", "--void", "255"), "--void says how to read --masks"),
        (("--data", "DIR/photos", "--rescale"), "--rescale is for a COCO file"),
        (("--data", "DIR/photos", "--images", "DIR"), "--images belongs to a COCO file"),
        (("--data", "DIR/coco.json", "--masks", "DIR"), "--masks belongs to a folder"),
        (("--data", "DIR/coco.json"), "2 of 2 images of"),
        (("--data", "DIR/photos/p0.png"), "no valid JSON"),
        (("--data", "DIR/empty.json"), "must be a COCO file"),
        (("--data", "DIR/nothing.json"), "`data` holds no object"),
        (("--data", "DIR/pairs", "--clicks", "2,1"), "expected rising numbers"),
        (("--data", "DIR/pairs", "--clicks", "0"), "at least 1"),
        (("--data", "DIR/pairs", "--plot"), "--plot needs --out"),
        (("--data", "DIR/pairs", "--points-per-side", "4"), "belongs to --everything"),
        (("--data", "DIR/pairs", "--out", "DIR/coco.json"), "is a file, not a folder"),
    ],
)
def test_bad_calls(cli, data, words, message):
    (data.folder / "empty.json").write_text("{}")
    (data.folder / "nothing.json").write_text('{"images": [], "annotations": []}')
    folder = str(data.folder)
    before = sorted(data.folder.rglob("*"))
    code, out, err = cli("evaluate", *MODEL, *(w.replace("DIR", folder) for w in words))
    assert (code, out) == (2, ""), err
    assert message.replace("DIR", folder) in err and err.count("\n") == 1
    assert sorted(data.folder.rglob("*")) == before


def test_a_plot_without_matplotlib(cli, data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    words = ("evaluate", *data.options("masks"), *MODEL, "--out", tmp_path / "out", "--plot")
    code, _, err = cli(*words)
    assert code == 1 and 'pip install "keras-sam[plot]"' in err
    assert not (tmp_path / "out").exists()
