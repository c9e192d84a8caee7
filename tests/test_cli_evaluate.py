"""`keras-sam evaluate`: the table, the files beside it, and what it refuses."""

import csv
import json
import sys

import numpy as np
import pytest
from PIL import Image

import keras_sam
from keras_sam import evaluation
from tests.datasets import write_data_set

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
