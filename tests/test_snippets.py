"""Every example that a reader may copy runs: README, CONTRIBUTING, docs and docstrings.

A document's Python blocks run in order in one namespace, as a reader would paste them, in a folder
that holds the files of `FILES`; a preset's name, wherever it would be downloaded from, gives a tiny
model. A docstring's example also sees its module's names and those of `NAMES`. Where an
expression is followed by a comment that is a Python literal, the expression must equal it.
"""

import ast
import doctest
import importlib
import inspect
import os
import pkgutil
import re
import shlex
import textwrap
import tokenize
import tomllib
from io import StringIO
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

import keras_sam
import keras_sam.cli
from tests.tiny import photograph, tiny_backbone, tiny_segmenter

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.M | re.S)
ADDRESS = re.compile(r"kaggle://|hf://")


def blocks(text, *languages):
    """(line number, dedented code) of the fenced blocks in one of the languages."""
    for match in FENCE.finditer(text):
        if match[2] in languages:
            yield text.count("\n", 0, match.start(3)), textwrap.dedent(match[3])


# What the documents' examples find in their folder.
FILES = {
    "photo.jpg": lambda path: Image.fromarray(photograph((400, 600))).save(path),
    "other.jpg": lambda path: Image.fromarray(photograph((300, 250), seed=1)).save(path),
    "sam_vit_b_01ec64.pth": lambda path: write_meta_checkpoint(path),
    "decoder.pth": lambda path: write_meta_checkpoint(path, "decoder"),
    "parameters.pth": lambda path: write_meta_checkpoint(path, "parameters"),
    "facebook/sam-vit-base": lambda path: write_transformers_folder(path),
    "scan.tif": lambda path: write_scan(path),
    "--masks masks": lambda path: write_photos_and_masks(path.parent),
}


def write_scan(path):
    """A georeferenced picture."""
    rasterio = pytest.importorskip("rasterio", reason="the example's GeoTIFF is written with it")
    about = {"driver": "GTiff", "height": 150, "width": 200, "count": 3, "dtype": "uint8"}
    transform = rasterio.Affine(0.5, 0, 400000, 0, -0.5, 5000000)
    with rasterio.open(path, "w", crs="EPSG:32633", transform=transform, **about) as file:
        file.write(np.moveaxis(photograph((150, 200)), -1, 0))


def write_photos_and_masks(folder):
    """Two photographs in `photos`, and an object of each in `masks`."""
    for place in ("photos", "masks"):
        (folder / place).mkdir()
    for seed in range(2):
        Image.fromarray(photograph((60, 90), seed)).save(folder / "photos" / f"{seed}.png")
        labels = np.zeros((60, 90), "uint8")
        labels[20:40, 30:60] = 7
        Image.fromarray(labels).save(folder / "masks" / f"{seed}.png")


# What the docstrings' examples may use beside the names of their own module.
NAMES = {
    "np": lambda: np,
    "keras": lambda: keras,
    "keras_sam": lambda: keras_sam,
    "image": lambda: photograph((400, 600)),
    "tiny_backbone": tiny_backbone,
    "tiny_segmenter": tiny_segmenter,
    "predictor": lambda: predictor_of(photograph((400, 600))),
}


class Names(dict):
    """A namespace that makes the objects of `NAMES` when they are first used."""

    def __missing__(self, name):
        if name not in NAMES:
            raise KeyError(name)
        self[name] = NAMES[name]()
        return self[name]


def predictor_of(image):
    predictor = keras_sam.SAMPredictor(tiny_segmenter())
    predictor.set_image(image)
    return predictor


def write_meta_checkpoint(path, what="whole"):
    """A small random model in the layout of the released files, or what one saved of it."""
    torch = pytest.importorskip("torch", reason="the example's checkpoint is written with torch")
    from tests.parity.oracles import meta_model

    model = meta_model()
    saved = {
        "whole": model.state_dict,
        "decoder": model.mask_decoder.state_dict,
        "parameters": lambda: dict(model.named_parameters()),
    }
    torch.save(saved[what](), path)


def write_transformers_folder(path):
    """A small random model as `save_pretrained` of transformers writes it."""
    preset = path.parent.parent / "small_preset"
    tiny_segmenter(image_shape=(112, 112, 3)).save_to_preset(preset)
    path.parent.mkdir()
    keras_sam.presets.convert_checkpoint(preset, path, "transformers")


def run_code(code, namespace, name, first_line=0):
    """Runs statements one by one, and compares expressions with literals in their comments."""
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(StringIO(code).readline)
        if token.type == tokenize.COMMENT
    }
    for node in ast.parse(code).body:
        expected = literal(comments.get(node.end_lineno))
        ast.increment_lineno(node, first_line)
        if not isinstance(node, ast.Expr):
            exec(compile(ast.Module([node], []), name, "exec"), namespace)
            continue
        value = eval(compile(ast.Expression(node.value), name, "eval"), namespace)
        if expected is not None:
            assert value == expected, f"{name}:{node.lineno}: {ast.unparse(node)} is {value!r}"


def literal(comment):
    try:
        return ast.literal_eval(comment or "")
    except (SyntaxError, ValueError):
        return None


@pytest.fixture(scope="module")
def tiny_preset(tmp_path_factory):
    """The folder of a tiny preset."""
    folder = tmp_path_factory.mktemp("preset")
    tiny_segmenter().save_to_preset(folder)
    return folder


@pytest.fixture
def tiny_presets(tiny_preset, monkeypatch):
    """Every preset that would be downloaded is a tiny one on this machine instead."""
    from keras_sam.presets import locate, read

    read_here = read._read

    def read_tiny(preset, *arguments):
        known = {*keras_sam.presets.list_presets(), *locate.aliases()}
        elsewhere = locate.full_name(preset) in known or ADDRESS.match(preset)
        return read_here(str(tiny_preset) if elsewhere else preset, *arguments)

    monkeypatch.setattr(read, "_read", read_tiny)


@pytest.fixture
def sandbox(tmp_path, monkeypatch, tiny_presets):
    """An empty working folder; `fill(text)` puts the files there that a text mentions."""
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)

    def fill(text):
        for name, write in FILES.items():
            if name in text:
                write(tmp_path / name)

    yield fill
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_python_in_documents_runs(path, sandbox):
    text = path.read_text()
    sandbox(text)
    namespace = {"__name__": "example"}
    for line, code in blocks(text, "python", "py"):
        run_code(code, namespace, path.name, line)


def shell_commands():
    for path in DOCUMENTS:
        for line, code in blocks(path.read_text(), "sh", "bash", "shell", "console"):
            for number, command in enumerate(code.replace("\\\n", " ").splitlines(), line + 1):
                if command.split("#")[0].strip():
                    yield pytest.param(command, id=f"{path.name}:{number}")


@pytest.mark.parametrize("command", list(shell_commands()))
def test_commands_in_documents_are_valid(command, sandbox, monkeypatch, capsys):
    """`keras-sam` commands run; of the slow tools and installers the arguments are checked."""
    sandbox(command)
    words = shlex.split(command, comments=True)
    if words[:2] in (["keras-sam", "train"], ["keras-sam", "annotate"]) or "--ray" in words:
        # Minutes, a server that runs until it is stopped, and a cluster: tested elsewhere.
        keras_sam.cli.parse_arguments(words[1:])
    elif words[0] == "keras-sam":
        assert run_command_line(words[1:]) == 0, capsys.readouterr()
    elif words[0].startswith("python") and words[1].startswith("tools/"):
        assert (ROOT / words[1]).is_file()
        monkeypatch.syspath_prepend(ROOT / "tools")
        importlib.import_module(Path(words[1]).stem).parse(words[2:])
    elif words[:2] == ["pip", "install"]:
        assert extras_of(words) <= declared_extras()
    elif words[0] == "export":
        assert re.fullmatch(r"KERAS_BACKEND=(jax|torch|tensorflow|openvino)", words[1])
    elif words[1:3] == ["-m", "pytest"]:
        for word in words[3:]:
            assert not word.startswith("tests/") or (ROOT / word).exists(), word
    else:
        pytest.fail(f"this test does not know how to check {words[0]!r}")


def run_command_line(words):
    from keras_sam.cli import main

    try:
        return main(words) or 0
    except SystemExit as end:
        return end.code or 0


def extras_of(words):
    found = [re.fullmatch(r"(?:keras-sam|\.)\[([\w,]+)\]", word) for word in words]
    return {extra for match in found if match for extra in match[1].split(",")}


def declared_extras():
    return set(
        tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    )


def documented():
    """(qualified name, module, docstring) of everything in the package that shows an example."""
    for info in pkgutil.walk_packages(keras_sam.__path__, "keras_sam."):
        if info.name.endswith("__main__"):
            continue
        module = importlib.import_module(info.name)
        for name, value in vars(module).items():
            if getattr(value, "__module__", None) != info.name:
                continue
            members = vars(value).items() if inspect.isclass(value) else ()
            for label, item in [(name, value), *((f"{name}.{k}", v) for k, v in members)]:
                if isinstance(item, property):
                    item = item.fget
                item = getattr(item, "__func__", item)
                text = inspect.cleandoc(getattr(item, "__doc__", None) or "")
                if re.search(r"^Examples?:", text, re.M):
                    yield f"{info.name}.{label}", module, text


EXAMPLES = list(documented())


@pytest.mark.parametrize(
    ("name", "module", "text"), EXAMPLES, ids=[name for name, _, _ in EXAMPLES]
)
def test_docstring_example_runs(name, module, text, sandbox):
    sandbox(text)
    text = re.split(r"^Examples?:", text, maxsplit=1, flags=re.M)[1]
    namespace = Names({k: v for k, v in vars(module).items() if k not in NAMES})
    ran = 0
    for line, code in blocks(text, "python", "py"):
        run_code(code, namespace, name, line)
        ran += 1
    session = doctest.DocTestParser().get_doctest(text, namespace, name, None, 0)
    if session.examples:
        session.globs = namespace  # `get_doctest` copies, and the copy would make nothing on demand
        output = []
        runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
        assert runner.run(session, out=output.append, clear_globs=False).failed == 0, "".join(
            output
        )
        ran += 1
    assert ran, "an example without a ```python block or a >>> line"


def public_classes():
    values = {name: getattr(keras_sam, name) for name in keras_sam.__all__}
    return [name for name, value in values.items() if inspect.isclass(value)]


@pytest.mark.parametrize("name", public_classes())
def test_every_public_class_shows_an_example(name):
    home = getattr(keras_sam, name).__module__
    assert f"{home}.{name}" in [label for label, _, _ in EXAMPLES]


def test_a_wrong_comment_and_a_wrong_line_are_caught():
    run_code("x = (1, 2)\nx  # (1, 2)\nx  # three numbers", {}, "example")
    with pytest.raises(AssertionError, match=r"example:12: x is \(1, 2\)"):
        run_code("x = (1, 2)\nx  # (1, 3)", {}, "example", 10)
    with pytest.raises(NameError):
        run_code("y", Names(), "example")
    assert [code for _, code in blocks("```python\na\n```\n\n```sh\nb\n```\n", "python")] == ["a\n"]
