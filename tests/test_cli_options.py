"""What every command has in common: one name per option, earlier names, options from a file."""

from pathlib import Path

import pytest

from keras_sam.cli import build_parser, parse_arguments
from keras_sam.cli.errors import CommandError

pytestmark = pytest.mark.once

SEGMENT = ["segment", "a.jpg", "--out", "o"]
EVERYTHING = ["everything", "photos", "--out", "o", "--format", "coco"]
EVALUATE = ["evaluate", "--data", "photos"]
TRAIN = ["train", "--data", "photos", "--out", "o"]
CONVERT = ["convert", "a.pth", "b"]


def values(words):
    """What a call sets, but for the parser itself."""
    found = vars(parse_arguments(words))
    return {name: value for name, value in found.items() if name not in ("command", "parser")}


@pytest.mark.parametrize(
    ("call", "old", "new"),
    [
        *((c, ["--preset", "x"], ["--model", "x"]) for c in (SEGMENT, EVERYTHING, EVALUATE, TRAIN)),
        *((c, ["--checkpoint", "x"], ["--model", "x"]) for c in (SEGMENT, EVERYTHING, TRAIN)),
        (
            [*SEGMENT, "--model", "x"],
            ["--threshold", "-0.5"],
            ["--mask-threshold", "-0.5"],
        ),
        ([*TRAIN, "--model", "x"], ["--train", "all"], ["--parts", "all"]),
        (CONVERT, ["--to", "preset"], ["--to", "keras_sam"]),
    ],
)
def test_earlier_names_do_the_same_and_are_not_in_the_help(call, old, new):
    assert values([*call, *old]) == values([*call, *new])
    help_text = parse_arguments([*call, *new]).parser.format_help()
    words = help_text.replace(",", " ").replace("}", " ").split()
    assert new[0] in words
    assert (old[0] if old[0] != new[0] else old[1]) not in words


def test_the_earlier_form_of_config(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('data = "photos"\nout = "o"\ntrain = "all"\npreset = "x"')
    old, new = values(["train", str(file)]), values(["train", "--config", str(file)])
    assert (old["parts"], old["model"]) == ("all", "x")
    assert {k: v for k, v in old.items() if not k.startswith("config")} == {
        k: v for k, v in new.items() if not k.startswith("config")
    }
    assert "config_file" not in build_parser().parse_args(["train"]).parser.format_help()


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            [*SEGMENT, "--model", "m", "--point", "1,2", "--point", "-3,4.5,0", "--no-multimask"],
            'photo = "a.jpg"\nout = "o"\nmodel = "m"\npoint = [[1, 2], [-3, 4.5, 0]]\n'
            "multimask = false",
        ),
        (
            [*SEGMENT, "--model", "m", "--box", "1,2,3,4", "--mask-threshold", "-1", "--overwrite"],
            'photo = "a.jpg"\nout = "o"\nmodel = "m"\nbox = ["1,2,3,4"]\nmask_threshold = -1\n'
            "overwrite = true",
        ),
        (
            [*EVERYTHING, "--model", "m", "--points-per-side", "4", "--recursive"],
            'photos = "photos"\nout = "o"\nformat = "coco"\nmodel = "m"\npoints-per-side = 4\n'
            "recursive = true",
        ),
        (
            [*EVALUATE, "--model", "m", "--clicks", "1,3", "--image-shape", "96,144"],
            'data = "photos"\nmodel = "m"\nclicks = [1, 3]\nimage_shape = [96, 144]\nplot = false',
        ),
        (
            [*TRAIN, "--model", "m", "--scales", "0.5,2", "--epochs", "3", "--flips"],
            'data = "photos"\nout = "o"\nmodel = "m"\nscales = [0.5, 2]\nepochs = 3\nflips = true',
        ),
        ([*CONVERT, "--to", "meta"], 'source = "a.pth"\ntarget = "b"\nto = "meta"'),
        (["presets", "--json"], "json = true"),
    ],
)
def test_a_file_says_the_same_as_the_command_line(tmp_path, monkeypatch, call, text):
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "run.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    found = values([call[0], "--config", "deeper/run.toml"])
    assert found.pop("config") == Path("deeper/run.toml")
    for name, value in values(call).items():
        if isinstance(value, Path):
            value = Path("deeper") / value
        if name == "photos":
            value = [Path("deeper") / place for place in value]
        if name in ("point", "box", "photos"):
            found[name], value = list(found[name]), list(value)
        if name != "config":
            assert found[name] == value, name


def test_the_command_line_comes_first(tmp_path):
    file = tmp_path / "run.toml"
    (tmp_path / "own.pth").touch()
    file.write_text(
        'photo = "a.jpg"\nout = "o"\npreset = "own.pth"\npoint = [[1, 2], [3, 4]]\n'
        "multimask = true\nmask_threshold = 1"
    )
    plain = parse_arguments(["segment", "--config", str(file)])
    assert plain.model == str(tmp_path / "own.pth")  # beside the file
    assert (list(plain.point), plain.multimask) == ([(1, 2, 1), (3, 4, 1)], True)
    more = ["--checkpoint", "m", "--point", "5,6", "--point", "7,8,0", "--no-multimask"]
    args = parse_arguments(["segment", "b.jpg", "--config", str(file), "--out", "p", *more])
    assert (args.photo, args.out, args.model) == (Path("b.jpg"), Path("p"), "m")
    assert args.point == [(5, 6, 1), (7, 8, 0)]
    assert (args.multimask, args.mask_threshold) == (False, 1)


@pytest.mark.parametrize(
    ("command", "text", "message"),
    [
        ("segment", 'pointt = "1,2"', "there is no option 'pointt'"),
        ("segment", "debug = true", "there is no option 'debug'"),
        ("segment", 'config = "other.toml"', "there is no option 'config'"),
        ("segment", 'point = "1"', "--point: expected X,Y or X,Y,LABEL in pixels, received '1'"),
        ("segment", "overwrite = 3", "--overwrite: ignored explicit argument '3'"),
        ("everything", 'photos = "p"', "required: --out, --format, --model"),
        ("evaluate", "[data]\nx = 1", "must not be in a table, as [data] is"),
        ("convert", 'to = "onnx"', "invalid choice: 'onnx'"),
        ("presets", "json = ", "not a TOML file"),
    ],
)
def test_bad_files_are_named(tmp_path, command, text, message):
    file = tmp_path / "run.toml"
    file.write_text(text)
    with pytest.raises(CommandError) as caught:
        parse_arguments([command, "--config", str(file)])
    assert message in str(caught.value)
    assert str(file) in str(caught.value) or "required" in message
