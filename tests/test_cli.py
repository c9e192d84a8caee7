"""The `keras-sam` command: what it writes, what it refuses, and what it leaves behind."""

import errno
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

import keras_sam
from keras_sam.backend_choice import BACKENDS
from keras_sam.cli import main, model, parse_arguments, segment
from keras_sam.cli.errors import CommandError
from keras_sam.cli.model import choose_backend
from keras_sam.cli.output import format_table, output_files
from keras_sam.cli.progress import Progress
from keras_sam.cli.prompt_files import read_prompts
from tests.meta_oracle import import_segment_anything, small_meta

pytestmark = pytest.mark.once

H0, W0 = 53, 80


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A small random model in a .pth file that Meta's own code wrote."""
    import_segment_anything()
    import torch

    torch.manual_seed(7)
    model = small_meta()
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.pth"
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture
def photo(tmp_path):
    rows, columns = np.mgrid[:H0, :W0]
    pixels = np.stack([rows * 4, columns * 3, (rows - columns) ** 2 % 256], axis=-1)
    path = tmp_path / "photo.png"
    Image.fromarray(pixels.astype("uint8")).save(path)
    return path


@pytest.fixture(scope="session")
def predictor(checkpoint, loaded):
    key = (str(checkpoint),)
    if key not in loaded:
        loaded[key] = keras_sam.SAMImageSegmenter.from_preset(*key)
    return keras_sam.SAMPredictor(loaded[key])


def run_python(code, **environment):
    """Runs code in a process of its own."""
    root = Path(keras_sam.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), **environment}
    environment = {name: value for name, value in environment.items() if value is not None}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )


def read_mask(path):
    pixels = np.asarray(Image.open(path))
    assert set(np.unique(pixels)) <= {0, 255}
    return pixels == 255


# Starting


def test_help_is_quick_and_imports_no_keras():
    result = run_python(
        "import sys; from keras_sam.cli import main\n"
        "code = main(['--help']) or main(['segment', '--help'])\n"
        "heavy = {'keras', 'jax', 'torch', 'tensorflow', 'openvino', 'rich', 'matplotlib'}\n"
        "assert code == 0 and not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    assert result.returncode == 0, result.stderr
    help_text = " ".join(result.stdout.split())
    for words in (
        "segment",
        "everything",
        "presets",
        "convert",
        "--point",
        "several boxes are several objects",
    ):
        assert words in help_text


def test_a_wrong_call_fails_before_keras_is_imported(tmp_path):
    result = run_python(
        "import sys; from keras_sam.cli import main\n"
        "code = main(['segment', 'none.jpg', '--model', 'sam_base_sa1b', '--point', '1,2',"
        " '--out', 'x'])\n"
        "assert code == 2 and 'keras' not in sys.modules"
    )
    assert result.returncode == 0, result.stderr
    assert "none.jpg" in result.stderr


@pytest.mark.parametrize("command", ["segment", "everything"])
def test_photographs_by_address_and_in_the_home_folder(command, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    name = {"segment": "photo", "everything": "photos"}[command]
    rest = ["--model", "sam_base_sa1b", "--out", "out"]
    rest += ["--format", "png"] if command == "everything" else []
    args = parse_arguments([command, "~/a.jpg", *rest])
    photograph = tmp_path / "a.jpg"
    assert getattr(args, name) == (photograph if command == "segment" else [photograph])
    config = tmp_path / "run.toml"
    config.write_text(f'{name} = "http://host/a.jpg"')
    for call in ([command, "https://host/a.jpg", *rest], [command, *rest, "--config", str(config)]):
        with pytest.raises(CommandError, match=r"on this machine.* Received: https?://host/a.jpg"):
            parse_arguments(call)


def test_version_and_python_m():
    result = run_python(
        "import runpy, sys; sys.argv = ['x', '--version']; "
        "runpy.run_module('keras_sam', run_name='__main__')"
    )
    assert (result.returncode, result.stdout) == (0, f"keras-sam {keras_sam.__version__}\n")


# Choosing the backend


@pytest.fixture
def installed(monkeypatch):
    """Pretends that exactly these backends are installed, in a process without Keras."""
    monkeypatch.delitem(sys.modules, "keras")
    monkeypatch.setenv("KERAS_BACKEND", "")

    def pretend(*names):
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: object() if name in names else None
        )

    return pretend


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (("jax", "torch", "tensorflow"), "jax"),
        (("tensorflow", "torch"), "torch"),
        (("tensorflow",), "tensorflow"),
        (("openvino",), "openvino"),
    ],
)
def test_the_first_installed_backend_is_taken(installed, names, chosen):
    installed(*names)
    assert choose_backend() == chosen
    assert os.environ["KERAS_BACKEND"] == chosen


def test_one_photograph_is_segmented_by_the_backend_that_starts_soonest(installed):
    installed("jax", "torch", "tensorflow")
    assert choose_backend(order=segment._ORDER) == "torch"
    installed("jax", "openvino")
    del os.environ["KERAS_BACKEND"]
    assert choose_backend(order=segment._ORDER) == "openvino"


def test_what_was_asked_for_comes_before_what_is_installed(installed, monkeypatch):
    installed("jax", "torch", "tensorflow")
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    assert choose_backend() == "tensorflow"
    assert choose_backend("torch") == "torch"
    assert os.environ["KERAS_BACKEND"] == "torch"


@pytest.mark.parametrize(
    ("names", "environment", "option", "code", "message"),
    [
        ((), "", None, 1, "no Keras backend is installed"),
        (("jax",), "", "torch", 2, 'not installed.*pip install "keras-sam\\[torch\\]"'),
        (("jax",), "torch", None, 2, "KERAS_BACKEND asks for torch"),
        (("jax",), "theano", None, 2, "KERAS_BACKEND must be one of.*theano"),
    ],
)
def test_no_such_backend(installed, monkeypatch, names, environment, option, code, message):
    installed(*names)
    monkeypatch.setenv("KERAS_BACKEND", environment)
    with pytest.raises(CommandError, match=message) as caught:
        choose_backend(option)
    assert caught.value.code == code


def test_without_any_backend_the_command_says_so(photo, checkpoint, tmp_path):
    result = run_python(
        "import importlib.util, sys; find_spec = importlib.util.find_spec\n"
        f"hidden = {set(BACKENDS)}\n"
        "importlib.util.find_spec = lambda n, *a: None if n in hidden else find_spec(n, *a)\n"
        "from keras_sam.cli import main\n"
        f"sys.exit(main(['segment', {str(photo)!r}, '--model', {str(checkpoint)!r},"
        f" '--point', '1,2', '--out', {str(tmp_path / 'out')!r}]))",
        KERAS_BACKEND=None,
    )
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1 and "keras-sam[jax]" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_backend_without_keras_is_no_backend(photo, checkpoint, tmp_path):
    result = run_python(
        "import sys; sys.modules['keras'] = None\n"
        "from keras_sam.cli import main\n"
        f"sys.exit(main(['segment', {str(photo)!r}, '--model', {str(checkpoint)!r}, '--backend',"
        f" 'torch', '--point', '1,2', '--quiet', '--out', {str(tmp_path / 'out')!r}]))",
        KERAS_BACKEND=None,
    )
    assert result.returncode == 1
    assert "Keras is not installed" in result.stderr and "keras-sam[torch]" in result.stderr
    assert result.stderr.count("\n") == 1


def test_another_backend_than_the_running_one_is_refused(cli, photo, checkpoint, tmp_path):
    other = next(name for name in BACKENDS if name != keras.config.backend())
    code, _, err = cli(
        *("segment", photo, "--model", checkpoint, "--point", "1,2"),
        *("--out", tmp_path / "out", "--backend", other),
    )
    assert code in (1, 2) and other in err


# Bad input: exit code 2, one line, nothing written

BAD_CALLS = [
    ([], "required: COMMAND"),
    (["paint"], "invalid choice: 'paint'"),
    (["segment"], "required: PHOTO"),
    (["segment", "PHOTO", "MODEL", "OUT"], "no prompt: give at least one --point"),
    (["segment", "PHOTO", "OUT", "--point", "1,2"], "required: --model"),
    (["segment", "PHOTO", "MODEL", "--point", "1,2"], "required: --out"),
    (["segment", "PHOTO", "MODEL", "OUT", "--preset", "x", "--point", "1,2"], "not allowed with"),
    (["segment", "none.jpg", "MODEL", "OUT", "--point", "1,2"], "none.jpg"),
    (["segment", "DIR", "MODEL", "OUT", "--point", "1,2"], "is a folder, not a photograph"),
    (["segment", "DIR/text.jpg", "MODEL", "OUT", "--point", "1,2"], "text.jpg"),
    (["segment", "DIR/cut.jpg", "MODEL", "OUT", "--point", "1,2"], "cut.jpg"),
    (["segment", "DIR/empty.jpg", "MODEL", "OUT", "--point", "1,2"], "empty.jpg"),
    (["segment", "PHOTO", "MODEL", "OUT", "--point", "1"], "expected X,Y or X,Y,LABEL"),
    (["segment", "PHOTO", "MODEL", "OUT", "--point", "1,two"], "received '1,two'"),
    (["segment", "PHOTO", "MODEL", "OUT", "--point", "1,nan"], "received '1,nan'"),
    (["segment", "PHOTO", "MODEL", "OUT", "--point", "1,2,3"], "label must be 1"),
    (["segment", "PHOTO", "MODEL", "OUT", "--point", "1,2,1,1"], "received '1,2,1,1'"),
    (["segment", "PHOTO", "MODEL", "OUT", "--box", "1,2,3"], "expected X1,Y1,X2,Y2"),
    (["segment", "PHOTO", "MODEL", "OUT", "--box", "9,2,3,8"], "upside down"),
    (["segment", "PHOTO", "MODEL", "OUT", "--box", "1,8,3,2"], "upside down"),
    (
        [
            "segment",
            "PHOTO",
            "MODEL",
            "OUT",
            "--box",
            "1,2,3,4",
            "--box",
            "5,6,7,8",
            "--point",
            "1,2",
        ],
        "several --box are one object each",
    ),
    (["segment", "PHOTO", "OUT", "--model", "sam_giant", "--point", "1,2"], "sam_base_sa1b"),
    (
        ["segment", "PHOTO", "OUT", "--model", "none.pth", "--point", "1,2"],
        "--model none.pth: no such",
    ),
    (["segment", "PHOTO", "OUT", "--model", "DIR/cut.pth", "--point", "1,2"], "cut.pth"),
    (["segment", "PHOTO", "OUT", "--model", "DIR/text.pth", "--point", "1,2"], "text.pth"),
    (["segment", "PHOTO", "MODEL", "--out", "PHOTO", "--point", "1,2"], "is a file, not a folder"),
    (["segment", "PHOTO", "MODEL", "--out", "PHOTO/x/y", "--point", "1,2"], "is a file, not a"),
    (["segment", "PHOTO", "MODEL", "OUT", "--mask", "none.png"], "none.png"),
    (["segment", "PHOTO", "MODEL", "OUT", "--mask", "DIR/small.png"], "photograph's size, 80 x 53"),
    (["segment", "PHOTO", "MODEL", "OUT", "--mask", "PHOTO"], "must be black"),
    (["segment", "PHOTO", "MODEL", "OUT", "--mask", "DIR/text.npy"], "text.npy"),
    (["segment", "PHOTO", "MODEL", "OUT", "--mask", "DIR/objects.npy"], "objects.npy"),
    (["segment", "PHOTO", "MODEL", "OUT", "--mask", "DIR/nan.npy"], "finite"),
    (["segment", "PHOTO", "MODEL", "OUT", "--mask", "DIR/odd.npy"], "`masks`"),
    (["segment", "PHOTO", "MODEL", "OUT", "--point", "1,2", "--mask-threshold", "nan"], "a number"),
    (["segment", "PHOTO", "MODEL", "OUT", "--point", "1,2", "--image-shape", "0"], "SIDE or"),
    (["segment", "PHOTO", "MODEL", "OUT", "--point", "1,2", "--image-shape", "a"], "received 'a'"),
    (["segment", "PHOTO", "MODEL", "OUT", "--point", "1,2", "--dtype", "int3"], "invalid choice"),
    (["segment", "PHOTO", "MODEL", "OUT", "--point", "1,2", "--backend", "mlx"], "invalid choice"),
    (["segment", "PHOTO", "MODEL", "OUT", "--point", "1,2", "--device", "abacus"], "gpu:0"),
    (["segment", "PHOTO", "MODEL", "OUT", "--point", "1,2", "--device", "gpu:97"], "has no gpu:97"),
    (["segment", "PHOTO", "MODEL", "OUT", "--poin", "1,2"], "unrecognized arguments"),
    (["segment", "PHOTO", "MODEL", "OUT", "--prompts", "none.json"], "none.json"),
    (["segment", "PHOTO", "MODEL", "OUT", "--prompts", "PHOTO"], "expected a .json or .csv file"),
    (
        ["segment", "PHOTO", "MODEL", "OUT", "--prompts", "DIR/p.json", "--point", "1,2"],
        "cannot be combined",
    ),
]


@pytest.fixture
def bad_files(tmp_path, photo, checkpoint):
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "empty.jpg").write_bytes(b"")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), "uint8")
    Image.fromarray(noise).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:2000])
    (tmp_path / "cut.pth").write_bytes(checkpoint.read_bytes()[:100_000])
    (tmp_path / "text.pth").write_text("not a checkpoint")
    Image.new("L", (9, 9)).save(tmp_path / "small.png")
    (tmp_path / "text.npy").write_text("not an array")
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    np.save(tmp_path / "nan.npy", np.full((28, 28), np.nan))
    np.save(tmp_path / "odd.npy", np.zeros((3, 5)))
    (tmp_path / "p.json").write_text('[{"points": [[1, 2]]}]')
    return tmp_path


@pytest.mark.parametrize(("call", "message"), BAD_CALLS)
def test_bad_calls(cli, bad_files, photo, checkpoint, call, message):
    before = sorted(bad_files.rglob("*"))
    replaced = []
    for argument in call:
        if argument == "MODEL":
            replaced += ["--model", checkpoint]
        elif argument == "OUT":
            replaced += ["--out", bad_files / "new" / "out"]
        else:
            argument = argument.replace("PHOTO", str(photo)) if argument[0] != "-" else argument
            replaced.append(argument.replace("DIR", str(bad_files)))
    code, out, err = cli(*replaced, *(["--quiet"] if "segment" in call else []))
    assert code == 2, err
    assert message in err
    assert err.count("\n") == 1 and err.startswith("keras-sam") and "error: " in err
    assert out == ""
    assert sorted(bad_files.rglob("*")) == before


def test_a_folder_without_permission(cli, photo, checkpoint, tmp_path, monkeypatch):
    # The suite may run as root, who may write everywhere, so the system's answer is replaced.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    code, _, err = cli(
        *("segment", photo, "--model", checkpoint, "--point", "1,2"),
        *("--out", tmp_path / "out"),
    )
    assert code == 2 and "no permission to write in" in err
    assert not (tmp_path / "out").exists()


def test_debug_lets_the_traceback_through(photo, checkpoint, tmp_path):
    with pytest.raises(CommandError, match="no prompt"):
        main(
            [
                "segment",
                str(photo),
                "--model",
                str(checkpoint),
                "--out",
                str(tmp_path),
                "--debug",
            ]
        )


def test_unexpected_errors_and_interruptions_are_one_line_too(cli, monkeypatch, photo, tmp_path):
    call = ("segment", photo, "--model", "sam_base_sa1b", "--point", "1,2", "--out", tmp_path)

    def fail(*_):
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr("keras_sam.cli.segment._read_photograph", fail)
    code, _, err = cli(*call)
    assert code == 1
    assert err == (
        "keras-sam segment: error: RuntimeError: first line second line (--debug shows where)\n"
    )

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("keras_sam.cli.segment._read_photograph", interrupt)
    assert cli(*call)[::2] == (130, "keras-sam segment: interrupted\n")


# Segmenting


def check_result(folder, document, predictor, prompts_per_object, **options):
    """Compares the files with what the predictor returns for each object alone."""
    assert len(document["objects"]) == len(prompts_per_object)
    for entry, prompts in zip(document["objects"], prompts_per_object, strict=True):
        masks, scores, _ = predictor.predict(**prompts, **options)
        assert len(entry["masks"]) == len(masks)
        for written, mask, score in zip(entry["masks"], masks, scores, strict=True):
            drawn = read_mask(folder / written["file"])
            assert drawn.shape == (H0, W0)
            # Alike prompts are decoded together, which rounds the last bits differently.
            assert (drawn != mask).mean() <= 1e-3
            assert written["score"] == pytest.approx(float(score), abs=1e-4)
            assert written["area"] == drawn.sum()
            rows, columns = np.nonzero(drawn)
            left, top, width, height = written["bbox"]
            if rows.size:
                assert (left, top) == (columns.min(), rows.min())
                assert (left + width - 1, top + height - 1) == (columns.max(), rows.max())
        scores = [written["score"] for written in entry["masks"]]
        best = [written["best"] for written in entry["masks"]]
        assert best == [index == int(np.argmax(scores)) for index in range(len(best))]


@pytest.mark.every_backend
def test_a_click(cli, photo, checkpoint, predictor, tmp_path):
    out = tmp_path / "new" / "out"
    code, stdout, err = cli(
        *("segment", photo, "--model", checkpoint, "--point", "41.5,20"), "--out", out
    )
    assert code == 0, err
    assert sorted(path.name for path in out.iterdir()) == [
        "photo.json",
        "photo_candidates.png",
        "photo_mask_0.png",
        "photo_mask_1.png",
        "photo_mask_2.png",
        "photo_overlay.png",
    ]
    document = json.loads((out / "photo.json").read_text())
    predictor.set_image(photo)
    check_result(out, document, predictor, [{"points": [[41.5, 20]], "labels": [1]}])
    assert (document["photo"], document["height"], document["width"]) == ("photo.png", H0, W0)
    assert document["objects"][0]["points"] == [[41.5, 20.0]]
    assert document["objects"][0]["labels"] == [1]
    assert document["backend"] == keras.config.backend()
    assert document["dtype"] == "float32" and document["image_shape"] == [112, 112]
    assert document["mask_threshold"] == 0
    assert [step.split()[0] for step in document["seconds"]] == [
        *("Starting", "Loading", "Encoding", "Segmenting")
    ]
    for name in ("overlay", "candidates"):
        assert str(out / document[name]) in stdout
    overlay = np.asarray(Image.open(out / "photo_overlay.png"))
    best = next(mask for mask in document["objects"][0]["masks"] if mask["best"])
    expected = keras_sam.visualization.overlay(
        photo, read_mask(out / best["file"]), points=[[41.5, 20]], scores=[best["score"]]
    )
    np.testing.assert_array_equal(overlay, expected)
    assert np.asarray(Image.open(out / "photo_candidates.png")).shape[1] > 3 * W0
    for path in out.glob("*.png"):
        data = path.read_bytes()
        stream = data.index(b"IDAT") + 4
        assert data[stream : stream + 2] == b"\x78\x01"  # zlib's mark of the fastest level
    assert "Encoding photo.png" in err
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    again = ("segment", photo, "--model", checkpoint, "--out", out, "--box", "10,5,70,45")
    code, _, err = cli(*again)
    assert code == 2 and f"{out / 'photo.json'} is there already; --overwrite replaces it" in err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert cli(*again, "--overwrite")[0] == 0
    assert (out / "photo.json").read_bytes() != before["photo.json"]


def test_points_a_box_and_a_mask_are_one_object(cli, photo, checkpoint, predictor, tmp_path):
    mask = np.zeros((H0, W0), bool)
    mask[10:40, 20:60] = True
    Image.fromarray(mask).save(tmp_path / "rough.png")
    code, _, err = cli(
        *("segment", photo, "--model", checkpoint, "--out", tmp_path / "out"),
        *("--point", "40,20", "--point", "-3,5,0", "--box", "10,5,70,45"),
        *("--mask", tmp_path / "rough.png", "--quiet"),
    )
    assert (code, err) == (0, "")
    document = json.loads((tmp_path / "out" / "photo.json").read_text())
    predictor.set_image(photo)
    logits = keras_sam.mask_to_logits(mask, 112)[..., 0]
    prompts = {
        "points": [[40, 20], [-3, 5]],
        "labels": [1, 0],
        "boxes": [10, 5, 70, 45],
        "masks": logits,
    }
    check_result(tmp_path / "out", document, predictor, [prompts], multimask_output=False)
    assert not (tmp_path / "out" / "photo_candidates.png").exists()

    np.save(tmp_path / "logits.npy", logits)
    code, _, err = cli(
        *("segment", photo, "--model", checkpoint, "--out", tmp_path / "npy"),
        *("--point", "40,20", "--point=-3,5,0", "--box=10,5,70,45"),
        *("--mask", tmp_path / "logits.npy"),
    )
    assert code == 0, err
    np.testing.assert_array_equal(
        read_mask(tmp_path / "npy" / "photo_mask_0.png"),
        read_mask(tmp_path / "out" / "photo_mask_0.png"),
    )


def test_several_boxes_are_one_object_each(cli, photo, checkpoint, predictor, tmp_path):
    boxes = [[10, 5, 70, 45], [0, 0, 20, 30], [30, 30, 30, 30]]
    options = [part for box in boxes for part in ("--box", ",".join(map(str, box)))]
    code, _, err = cli("segment", photo, "--model", checkpoint, "--out", tmp_path / "out", *options)
    assert code == 0, err
    document = json.loads((tmp_path / "out" / "photo.json").read_text())
    predictor.set_image(photo)
    check_result(
        *(tmp_path / "out", document, predictor, [{"boxes": box} for box in boxes]),
        multimask_output=False,
    )


def test_multimask_and_threshold(cli, photo, checkpoint, predictor, tmp_path):
    call = ("segment", photo, "--model", checkpoint, "--out", tmp_path / "out")
    predictor.set_image(photo)
    masks, _, _ = predictor.predict(
        points=[[40, 20]], labels=[1], multimask_output=False, return_logits=True
    )
    threshold = float(np.quantile(masks, 0.75))
    code, _, err = cli(*call, "--point", "40,20", "--no-multimask", "--mask-threshold", threshold)
    assert code == 0, err
    document = json.loads((tmp_path / "out" / "photo.json").read_text())
    click = {"points": [[40, 20]], "labels": [1]}
    check_result(
        *(tmp_path / "out", document, predictor, [click]),
        multimask_output=False,
        mask_threshold=threshold,
    )
    assert document["objects"][0]["masks"][0]["area"] == pytest.approx(H0 * W0 / 4, rel=0.02)
    assert document["mask_threshold"] == pytest.approx(threshold)
    code, _, err = cli(*call, "--box", "10,5,70,45", "--multimask", "--overwrite")
    assert code == 0, err
    document = json.loads((tmp_path / "out" / "photo.json").read_text())
    check_result(tmp_path / "out", document, predictor, [{"boxes": [10, 5, 70, 45]}])


def test_prompt_files(cli, photo, checkpoint, predictor, tmp_path):
    (tmp_path / "prompts.json").write_text(
        json.dumps(
            [
                {"name": "a", "points": [[40, 20]]},
                {"name": "b", "box": [10, 5, 70, 45]},
                {"name": "c", "points": [[40, 20], [5, 5]], "labels": [1, 0]},
                {"name": "d", "points": [[70, 50]], "labels": [1]},
                {"name": "e", "points": [[1, 50]], "box": [0, 0, 20, 50.5]},
            ]
        )
    )
    (tmp_path / "prompts.csv").write_text(
        "object,x,y,label,x1,y1,x2,y2\n"
        "a,40,20,,,,,\n"
        "b,,,,10,5,70,45\n"
        "c,40,20,1,,,,\n"
        "c,5,5,0,,,,\n"
        "d,70,50,1,,,,\n"
        "e,1,50,1,0,0,20,50.5\n"
    )
    click = {"points": [[40, 20]], "labels": [1]}
    two = {"points": [[40, 20], [5, 5]], "labels": [1, 0]}
    documents = []
    for kind in ("json", "csv"):
        out = tmp_path / kind
        code, _, err = cli(
            *("segment", photo, "--model", checkpoint, "--out", out),
            *("--prompts", tmp_path / f"prompts.{kind}"),
        )
        assert code == 0, err
        documents.append(json.loads((out / "photo.json").read_text()))
        assert all(seconds >= 0 for seconds in documents[-1].pop("seconds").values())
    assert documents[0] == documents[1]
    predictor.set_image(photo)
    multimask = [True, False, False, True, False]
    prompts = [
        click,
        {"boxes": [10, 5, 70, 45]},
        two,
        {"points": [[70, 50]], "labels": [1]},
        {"points": [[1, 50]], "labels": [1], "boxes": [0, 0, 20, 50.5]},
    ]
    assert [entry["name"] for entry in documents[0]["objects"]] == list("abcde")
    for entry, prompt, three in zip(documents[0]["objects"], prompts, multimask, strict=True):
        check_result(
            *(tmp_path / "json", {"objects": [entry]}, predictor, [prompt]), multimask_output=three
        )
    files = [mask["file"] for entry in documents[0]["objects"] for mask in entry["masks"]]
    assert files == [f"photo_mask_{number}.png" for number in range(9)]


def test_masks_of_prompt_files_lie_beside_them(tmp_path):
    (tmp_path / "prompts.json").write_text('[{"mask": "rough.png"}]')
    assert read_prompts(tmp_path / "prompts.json")[0].mask == tmp_path / "rough.png"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.json", "[", "not JSON"),
        ("p.json", "{}", "expected a list of objects"),
        ("p.json", "[]", "holds no prompt"),
        ("p.json", "[{}]", "object 0: has neither points nor a box nor a mask"),
        ("p.json", "[3]", "object 0: expected a dict"),
        ("p.json", '[{"point": [1, 2]}]', "object 0: expected a dict with name, points"),
        ("p.json", '[{"points": [1, 2]}]', "list of"),
        ("p.json", '[{"points": [[1, 2, 1]]}]', "expected X,Y or X,Y,LABEL in pixels"),
        ("p.json", '[{"points": [[1, NaN]]}]', "expected X,Y or X,Y,LABEL"),
        ("p.json", '[{"points": [[1, 2]], "labels": [7]}]', r"label must be 1 \(foreground\) or 0"),
        ("p.json", '[{"points": [[1, 2]], "labels": []}]', "one label per point"),
        ("p.json", '[{"box": [1, 2, 3]}]', "expected X1,Y1,X2,Y2 in pixels"),
        ("p.json", '[{"box": [9, 2, 3, 8]}]', "upside down"),
        ("p.json", '[{"mask": 3}]', "mask must be the path"),
        ("p.json", '[{"name": "a", "box": [1,2,3,4]}, {"name": "a", "box": [1,2,3,4]}]', "'a'"),
        ("p.csv", "", "holds no prompt"),
        ("p.csv", "a,b\n1,2\n", "line 2: the columns may be object, x, y"),
        ("p.csv", "x,y\n1,2,3\n", "line 2: the columns may be"),  # a value without a column
        ("p.csv", "x,y\n1,\n", "line 2: expected X,Y"),
        ("p.csv", "object,x,y\n,,\n", "line 2: has neither"),
        ("p.csv", "x1,y1,x2,y2\n1,2,3,\n", "line 2: expected X1,Y1,X2,Y2"),
        ("p.csv", "object,x1,y1,x2,y2\na,1,2,3,4\na,1,2,3,4\n", "line 3: object 'a' has a box"),
        ("p.csv", b"\xff\xfe\x00", "p.csv"),
        ("p.txt", "", "expected a .json or .csv file"),
    ],
)
def test_bad_prompt_files(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CommandError, match=message) as caught:
        read_prompts(path)
    assert caught.value.code == 2 and str(path) in str(caught.value)


@pytest.mark.every_backend
def test_other_input_sizes_and_dtypes(cli, photo, checkpoint, tmp_path):
    code, _, err = cli(
        *("segment", photo, "--model", checkpoint, "--out", tmp_path / "out"),
        *("--point", "40,20", "--image-shape", "96,144", "--dtype", "bfloat16"),
        *("--device", "cpu"),
    )
    assert code == 0, err
    document = json.loads((tmp_path / "out" / "photo.json").read_text())
    assert document["image_shape"] == [96, 144] and document["dtype"] == "bfloat16"
    assert read_mask(tmp_path / "out" / "photo_mask_0.png").shape == (H0, W0)


def test_a_process_of_its_own(photo, checkpoint, tmp_path):
    """As a user calls it: the backend is chosen before Keras is there."""
    arguments = [
        *("segment", str(photo), "--model", str(checkpoint), "--point", "40,20"),
        *("--out", str(tmp_path / "out"), "--backend", keras.config.backend(), "--device", "cpu"),
    ]
    result = run_python(
        f"import sys; from keras_sam.cli import main; sys.exit(main({arguments!r}))",
        KERAS_BACKEND=None,
    )
    assert result.returncode == 0, result.stderr
    document = json.loads((tmp_path / "out" / "photo.json").read_text())
    assert document["backend"] == keras.config.backend()


# Presets


def test_presets_table(cli, monkeypatch):
    known = keras_sam.presets.list_presets()
    known["sam_base_sa1b"] = {**known["sam_base_sa1b"], "cached": "/cache/base.h5"}
    known["sam_huge_sa1b"] = {**known["sam_huge_sa1b"], "cached": None}
    monkeypatch.setattr(keras_sam.presets, "list_presets", lambda: known)
    code, out, err = cli("presets")
    assert (code, err) == (0, "")
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == ["name", "parameters", "size", "cached"]
    assert ["sam_base_sa1b", "93,735,728", "375", "MB", "/cache/base.h5"] in rows
    assert ["sam_huge_sa1b", "641,090,864", "2,564", "MB", "no"] in rows
    assert len(rows) == 1 + len(known)
    code, out, _ = cli("presets", "--json")
    assert code == 0 and json.loads(out) == known


def test_a_reader_that_stops_reading_is_no_error():
    result = run_python(
        "import os, sys; from keras_sam.cli import main\n"
        "read, write = os.pipe(); os.close(read); os.dup2(write, 1)\n"
        "sys.exit(main(['presets']))"
    )
    assert (result.returncode, result.stderr) == (0, "")


# Converting


def test_convert_to_meta_is_bit_exact(cli, checkpoint, tmp_path):
    import torch
    from safetensors.torch import load_file

    code, out, err = cli("convert", checkpoint, tmp_path / "new" / "m.safetensors", "--to", "meta")
    assert (code, out) == (0, f"{tmp_path / 'new' / 'm.safetensors'}\n"), err
    assert "Converting" in err
    converted = load_file(tmp_path / "new" / "m.safetensors")
    original = torch.load(checkpoint, weights_only=True)
    assert converted.keys() == original.keys()
    for name, tensor in original.items():
        assert torch.equal(converted[name], tensor), name


@pytest.mark.every_backend
@pytest.mark.parametrize("layout", ["keras_sam", "transformers"])
def test_converted_folders_segment_the_same(cli, photo, checkpoint, predictor, tmp_path, layout):
    target = tmp_path / layout
    code, _, err = cli("convert", checkpoint, target, "--to", layout, "--quiet")
    assert (code, err) == (0, "")
    click = ("--point", "40,20", "--no-multimask", "--quiet")
    code, _, err = cli("segment", photo, "--model", target, "--out", tmp_path / "out", *click)
    assert code == 0, err
    predictor.set_image(photo)
    document = json.loads((tmp_path / "out" / "photo.json").read_text())
    prompts = [{"points": [[40, 20]], "labels": [1]}]
    check_result(tmp_path / "out", document, predictor, prompts, multimask_output=False)


def test_convert_overwrites_only_when_told_to(cli, checkpoint, tmp_path):
    target = tmp_path / "folder"
    assert cli("convert", checkpoint, target, "--to", "transformers")[0] == 0
    code, _, err = cli("convert", checkpoint, target, "--to", "keras_sam")
    assert code == 2 and "is there already; --overwrite replaces it" in err
    assert (target / "preprocessor_config.json").exists()
    assert cli("convert", checkpoint, target, "--to", "keras_sam", "--overwrite")[0] == 0
    assert sorted(path.name for path in target.iterdir()) == [
        "config.json",
        "metadata.json",
        "model.weights.h5",
    ]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (["none.pth", "OUT", "--to", "keras_sam"], "IN none.pth: no such preset, file or folder"),
        (["DIR/cut.pth", "OUT", "--to", "keras_sam"], "cut.pth"),
        (["DIR/text.pth", "OUT", "--to", "transformers"], "text.pth"),
        (["MODEL", "OUT"], "required: --to"),
        (["MODEL", "OUT", "--to", "onnx"], "invalid choice: 'onnx'"),
        (["MODEL", "DIR/model.pth", "--to", "meta"], "must end in .safetensors"),
        (["MODEL", "DIR/text.jpg", "--to", "keras_sam", "--overwrite"], "is a file, not a folder"),
        (["MODEL", "DIR/f.safetensors", "--to", "meta", "--overwrite"], "is a folder, not a file"),
        (["MODEL", "DIR/text.jpg/x", "--to", "keras_sam"], "is a file, not a folder"),
        (["MODEL", "DIR", "--to", "keras_sam", "--overwrite"], "no config.json"),
        (["MODEL", "MODEL", "--to", "keras_sam", "--overwrite"], "is IN itself"),
    ],
)
def test_bad_conversions(cli, bad_files, checkpoint, call, message):
    (bad_files / "f.safetensors").mkdir()
    before = sorted(bad_files.rglob("*"))
    call = [argument.replace("MODEL", str(checkpoint)) for argument in call]
    call = [argument.replace("OUT", str(bad_files / "new" / "out")) for argument in call]
    code, out, err = cli("convert", *(argument.replace("DIR", str(bad_files)) for argument in call))
    assert code == 2, err
    assert message in err and out == ""
    errors = [line for line in err.splitlines() if "error: " in line]
    assert len(errors) == 1 and "Traceback" not in err
    assert sorted(bad_files.rglob("*")) == before


# Files that are whole or not there


def test_a_full_disk_leaves_earlier_results_untouched(
    cli, photo, checkpoint, tmp_path, monkeypatch
):
    call = ("segment", photo, "--model", checkpoint, "--out", tmp_path / "out")
    assert cli(*call, "--point", "40,20")[0] == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    count, fsync = 0, os.fsync

    def full(descriptor):
        nonlocal count
        count += 1
        if count == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    code, _, err = cli(*call, "--point", "10,40", "--quiet", "--overwrite")
    assert code == 1 and "No space left on device" in err and err.count("\n") == 1
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_an_interrupted_run_removes_the_folders_that_it_made(tmp_path):
    with pytest.raises(KeyboardInterrupt), output_files(tmp_path / "a" / "b") as files:
        files.write("one.png", b"1")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_files_appear_together_with_ordinary_permissions(tmp_path):
    with output_files(tmp_path / "out") as files:
        path = files.write("one.png", b"1")
        assert not path.exists()
    assert path.read_bytes() == b"1"
    plain = tmp_path / "plain"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode
    (tmp_path / "out" / "two.png").mkdir()
    with pytest.raises(CommandError, match="two.png"), output_files(tmp_path / "out") as files:
        files.write("one.png", b"2")
        files.write("two.png", b"2")
    assert path.read_bytes() == b"1"


def test_tables_align():
    table = format_table(("name", "size"), [("a", "1,024 MB"), ("bcd", "9 MB")])
    assert table.splitlines() == ["name      size", "a     1,024 MB", "bcd       9 MB"]


def test_what_the_demo_cannot_do_is_said_first_and_not_quietly(capsys):
    model.say_limits("sam_tiny_demo", Progress())
    said = capsys.readouterr().err
    assert said.startswith("sam_tiny_demo: It knows shapes, not things") and "sam_base_sa1b" in said
    assert said.count("\n") == 1
    model.say_limits("sam_tiny_demo", Progress(quiet=True))
    model.say_limits("sam_base_sa1b", Progress())
    model.say_limits("my/sam_tiny_demo", Progress())  # a folder of that name
    assert capsys.readouterr().err == ""


def test_packages_are_hidden_in_a_block_alone_and_those_in_use_stay(tmp_path, monkeypatch):
    (tmp_path / "seldom_used.py").write_text("ANSWER = 42")
    monkeypatch.syspath_prepend(tmp_path)
    with model.missing_modules(["seldom_used", "json"]):
        with pytest.raises(ImportError):
            importlib.import_module("seldom_used")
        assert importlib.import_module("json") is json
    assert importlib.import_module("seldom_used").ANSWER == 42


def test_keras_starts_without_matplotlib_and_other_backends():
    code = (
        "import sys\nfrom keras_sam.cli import model\n"
        "with model.missing_modules(model.unneeded_packages(sys.argv[1])):\n"
        "    from keras_sam.models.sam_image_segmenter import SAMImageSegmenter\n"
        "print(sorted({'jax', 'matplotlib', 'tensorflow', 'torch'} & sys.modules.keys()))"
    )
    backend = keras.config.backend()
    command = [sys.executable, "-c", code, backend]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    needed = {"openvino": []}.get(backend, [backend])
    assert done.stdout.strip().splitlines()[-1] == str(needed)


def test_convert_reads_a_part_of_a_file(cli, checkpoint, tmp_path):
    import torch
    from safetensors.torch import load_file

    model = torch.load(checkpoint, weights_only=True)
    average = {name: tensor * 0.5 for name, tensor in model.items()}
    heads = {"class_head.weight": torch.ones(3), "count_head.bias": torch.ones(2)}
    both = tmp_path / "run.pth"
    torch.save({"model": {**model, **heads}, "model_ema": {**average, **heads}}, both)
    call = ("convert", both, tmp_path / "m.safetensors", "--to", "meta", "--quiet")
    code, _, err = cli(*call, "--checkpoint-key", "model_ema")
    assert code == 2 and "class_head.weight" in err
    ignore = ("--ignore", r"class_head\..*", "--ignore", r"count_head\..*")
    code, _, err = cli(*call, "--checkpoint-key", "model_ema", *ignore)
    assert (code, err) == (0, "")
    for name, tensor in load_file(tmp_path / "m.safetensors").items():
        assert torch.equal(tensor, average[name]), name


@pytest.mark.parametrize("text", ["4095", "9,3", "dark", "1,2,3", "0,nan"])
def test_value_ranges_that_are_none(cli, photo, checkpoint, tmp_path, text):
    call = ("segment", photo, "--model", checkpoint, "--out", tmp_path / "out", "--point", "9,9")
    code, _, err = cli(*call, "--value-range", text)
    assert code == 2 and "--value-range" in err
    assert not (tmp_path / "out").exists()


def test_the_value_range_of_a_camera(cli, photo, checkpoint, predictor, tmp_path):
    dark = tmp_path / "dark.png"
    grey = np.asarray(Image.open(photo))[..., 0]
    Image.fromarray(grey.astype("uint16") * 16).save(dark)
    converter = predictor.preprocessor.image_converter
    call = ("segment", dark, "--model", checkpoint, "--box", "10,5,70,45", "--out")
    try:
        code, _, err = cli(*call, tmp_path / "out", "--value-range", "0,4080", "--quiet")
        assert (code, err) == (0, "")
        assert converter.value_range == (0, 4080)
    finally:
        converter.value_range = "auto"  # the model is that of other tests
    document = json.loads((tmp_path / "out" / "dark.json").read_text())
    assert document["value_range"] == [0, 4080]
    predictor.set_image(np.repeat(grey[..., None], 3, axis=-1).astype("float32"))
    check_result(
        *(tmp_path / "out", document, predictor, [{"boxes": [10, 5, 70, 45]}]),
        multimask_output=False,
    )
    code, _, err = cli(*call, tmp_path / "told", "--quiet")
    assert code == 0 and "value_range=(0, 4095)" in err


def test_every_command_with_a_model_takes_a_value_range():
    calls = {
        "segment": ["a.jpg", "--out", "o"],
        "everything": ["a.jpg", "--out", "o", "--format", "coco"],
        "annotate": ["photos"],
        "evaluate": ["--data", "d"],
        "train": ["--data", "d", "--out", "o"],
    }
    for command, others in calls.items():
        for text, value in (("-160,240", (-160, 240)), ("percentile", "percentile")):
            args = parse_arguments([command, "--model", "m", *others, "--value-range", text])
            assert args.value_range == value


@pytest.mark.parametrize("end", [".jpg", ".tif"])
def test_a_rough_mask_may_have_soft_edges(cli, photo, checkpoint, predictor, tmp_path, end):
    mask = np.zeros((H0, W0), "uint8")
    mask[10:40, 20:60] = 255
    Image.fromarray(mask).save(tmp_path / f"rough{end}")
    code, _, err = cli(
        *("segment", photo, "--model", checkpoint, "--out", tmp_path / "out"),
        *("--mask", tmp_path / f"rough{end}", "--quiet"),
    )
    assert code == 0, err
    document = json.loads((tmp_path / "out" / "photo.json").read_text())
    predictor.set_image(photo)
    prompts = [{"masks": keras_sam.mask_to_logits(mask, 112)[..., 0]}]
    check_result(tmp_path / "out", document, predictor, prompts, multimask_output=False)


def test_coordinates_that_are_hardly_pixels_are_told(cli, photo, checkpoint, tmp_path):
    code, _, err = cli(
        *("segment", photo, "--model", checkpoint, "--out", tmp_path / "out"),
        *("--box", "0.1,0.1,0.9,0.8"),
    )
    assert code == 0 and "keras-sam: warning: `boxes` lie within 0..1 in image 0" in err
