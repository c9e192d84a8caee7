"""What a stranger gets: the built package and the demo, each in an empty environment."""

import json
import os
import re
import subprocess
import sys
import tarfile
import textwrap
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

pytestmark = pytest.mark.package


def call(*command, cwd, **variables):
    """Runs a command that must succeed; gives what it printed."""
    kept = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "KERAS_BACKEND"}
    environment = {k: v for k, v in os.environ.items() if k not in kept}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**environment, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The source distribution, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    call(sys.executable, "-m", "build", "--outdir", folder, ROOT, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    (sdist,) = folder.glob("*.tar.gz")
    return wheel, sdist


@pytest.fixture(scope="module")
def python(built, tmp_path_factory):
    """The Python of an empty environment into which the wheel was installed with JAX."""
    folder = tmp_path_factory.mktemp("empty") / "venv"
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    call(python, "-m", "pip", "install", "-q", "-c", CONSTRAINTS, f"{built[0]}[jax]", cwd=folder)
    return python


def tracked(folder):
    """The files of a folder that git knows, relative to it."""
    names = subprocess.run(
        ["git", "ls-files", folder], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return {name.removeprefix(f"{folder}/") for name in names.stdout.splitlines()}


def test_two_builds_are_the_same_to_the_last_bit(built, tmp_path):
    """In other folders, at another time, and with other permissions for new files."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path, ROOT]
    before = os.umask(0o077)
    try:
        call(*command, cwd=tmp_path, TZ="Pacific/Auckland")
    finally:
        os.umask(before)
    for path in built:
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_metadata_is_as_pypi_renders_it(built):
    pytest.importorskip("twine")
    call(sys.executable, "-m", "twine", "check", "--strict", *built, cwd=built[0].parent)
    with zipfile.ZipFile(built[0]) as wheel:
        (name,) = (n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = wheel.read(name).decode()
    shown = metadata.partition("\n\n")[2]
    assert shown.startswith("# keras_sam\n")
    assert not [place for place in targets(shown) if not place.startswith("https://")]
    version = built[0].name.split("-")[1]
    assert f"\nVersion: {version}\n" in metadata
    source = (ROOT / "keras_sam" / "__init__.py").read_text()
    assert f'__version__ = "{version}"' in source  # the one place that says it
    for path in ("pyproject.toml", "CITATION.cff", "mkdocs.yml"):
        assert version not in (ROOT / path).read_text(), path


def targets(markdown):
    """Where the links and pictures of a text lead."""
    nodes = list(MarkdownIt().enable("table").parse(markdown))
    for node in nodes:
        nodes += node.children or ()
        yield from (node.attrs[name] for name in ("href", "src") if name in node.attrs)
        assert not node.type.startswith("html"), node.content


def test_links_of_the_readme_lead_to_the_repository_where_its_address_is_known(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    from long_description import long_description

    readme = (ROOT / "README.md").read_text()
    paths = [place for place in targets(readme) if "://" not in place]
    assert "docs/index.md" in paths
    assert not [path for path in paths if not (ROOT / path).exists()]
    address = "https://host/owner/name"
    assert list(targets(long_description(readme, address + "/"))) == [
        place
        if "://" in place
        else f"{address}/{'raw' if place.endswith('.png') else 'blob'}/HEAD/{place}"
        for place in targets(readme)
    ]
    words = (
        "See [the page](docs/a.md#b), [above](#c), [us](https://a.org/).\n\n![A picture](a.png)\n\n"
    )
    assert long_description(words) == "See the page, [above](#c), [us](https://a.org/).\n\n"


def test_wheel_carries_the_code_and_the_presets(built):
    names = set(zipfile.ZipFile(built[0]).namelist())
    assert {f"keras_sam/{name}" for name in tracked("keras_sam")} <= names
    presets = {f"keras_sam/preset_files/{name}" for name in tracked("presets")}
    assert presets
    assert presets <= names
    assert {name.split("/")[0] for name in names} == {
        "keras_sam",
        f"keras_sam-{built[0].name.split('-')[1]}.dist-info",
    }
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_sdist_carries_what_the_tests_need(built):
    with tarfile.open(built[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for folder in ("keras_sam", "presets", "tests", "tools"):
        assert {f"{folder}/{name}" for name in tracked(folder)} <= names
    assert {"README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "constraints.txt"} <= names
    assert {"SECURITY.md", "CITATION.cff", "mkdocs.yml"} <= names
    assert not [name for name in names if name.startswith((".check", ".demo", ".git/"))]


def test_installed_package_works_with_one_backend_alone(python, tmp_path):
    program = """
        import importlib.metadata, importlib.util, json, pathlib
        import keras_sam
        from keras_sam import presets
        import keras, numpy as np

        home = pathlib.Path(keras_sam.__file__).parent
        for name in ("torch", "tensorflow", "matplotlib", "kagglehub", "huggingface_hub"):
            assert importlib.util.find_spec(name) is None, name

        small = {"hidden_size": 12, "num_layers": 2, "intermediate_dim": 24, "num_heads": 3,
                 "global_attention_layer_indices": [1], "window_size": 3, "num_output_channels": 16}
        encoder = keras_sam.ViTDetBackbone(image_shape=(64, 96, 3), **small)
        backbone = keras_sam.SAMBackbone(
            encoder,
            keras_sam.SAMPromptEncoder(
                hidden_size=16, image_embedding_size=(4, 6), input_image_size=(64, 96)),
            keras_sam.SAMMaskDecoder(
                hidden_size=16, num_heads=2, intermediate_dim=20, iou_head_hidden_dim=12),
        )
        segmenter = keras_sam.SAMImageSegmenter(backbone)
        image = np.random.default_rng(0).integers(0, 255, (50, 70, 3), "uint8")
        predictor = keras_sam.SAMPredictor(segmenter)
        predictor.set_image(image)
        masks, scores, _ = predictor.predict(points=[[20, 30]], labels=[1])
        segmenter.save("model.keras")
        keras.saving.load_model("model.keras")
        print(json.dumps({
            "home": str(home),
            "backend": keras.config.backend(),
            "typed": (home / "py.typed").is_file(),
            "version": [keras_sam.__version__, importlib.metadata.version("keras-sam")],
            "presets": presets.list_presets() if not isinstance(presets.list_presets(), dict)
                       else sorted(presets.list_presets()),
            "data": sorted(path.parent.name for path in home.glob("preset_files/*/config.json")),
            "masks": list(masks.shape),
        }))
    """
    output = call(python, "-c", textwrap.dedent(program), cwd=tmp_path, KERAS_BACKEND="jax")
    found = json.loads(output.splitlines()[-1])
    assert Path(found["home"]).is_relative_to(python.parent.parent)
    assert found["backend"] == "jax"
    assert found["typed"] is True
    assert found["version"] == [found["version"][0]] * 2
    assert found["masks"] == [3, 50, 70]
    assert (
        sorted(found["presets"])
        == found["data"]
        == sorted(
            {name.split("/")[0] for name in tracked("presets") if name.endswith("/config.json")}
        )
    )


def test_installed_command_picks_the_backend_itself(python, tmp_path):
    command = python.parent / "keras-sam"
    assert re.search(r"^usage: keras-sam", call(command, "--help", cwd=tmp_path), re.M)
    (script,) = PROJECT["scripts"]
    assert script == command.name


def test_editable_install_reads_presets_in_place(python, tmp_path_factory):
    """A second environment on top of the first one's packages, with an editable install."""
    folder = tmp_path_factory.mktemp("editable") / "venv"
    venv.create(folder, with_pip=True)
    editable = folder / python.relative_to(python.parent.parent)
    call(editable, "-m", "pip", "install", "-q", "--no-deps", "-e", ROOT, cwd=folder)
    site = "import sysconfig; print(sysconfig.get_path('purelib'))"
    libraries, own = (Path(call(p, "-c", site, cwd=folder).strip()) for p in (python, editable))
    (own / "zz_libraries.pth").write_text(f"{libraries}\n")  # read after the editable install's
    program = (
        "import keras_sam, os; from keras_sam.presets import locate;"
        "print(os.path.dirname(keras_sam.__file__), os.path.realpath(locate._data_folder()))"
    )
    output = call(editable, "-c", program, cwd=folder)
    assert output.split() == [str(ROOT / "keras_sam"), str(ROOT / "presets")]


def bytes_of(site, *names):
    """What folders of installed packages take on disk."""
    files = (p for name in names for p in (site / name).rglob("*") if p.is_file())
    return sum(path.stat().st_size for path in files)


# What exported files need whoever runs them: ONNX Runtime, numpy and pillow, of whose size we
# decide nothing: 173 MB with version 1.32 of the first on Linux, bytecode included.
RUNTIME = ("onnxruntime", "numpy", "numpy.libs", "PIL", "pillow.libs")


def test_an_exported_model_runs_without_keras_and_any_backend(built, tmp_path_factory):
    pytest.importorskip("torch", reason="the files are written on torch")
    folder = tmp_path_factory.mktemp("server")
    export = [sys.executable, "-m", "keras_sam", "export", "--model", "sam_tiny_demo"]
    export += ["--format", "onnx", "--out", folder / "sam", "--quiet"]
    call(*export, cwd=ROOT, KERAS_BACKEND="torch")
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    site = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(call(python, "-c", site, cwd=folder).strip())
    before = {path.name for path in site.iterdir()}
    wheel = f"{built[0]}[onnxruntime]"
    call(python, "-m", "pip", "install", "-q", "-c", CONSTRAINTS, wheel, cwd=folder)
    installed = {path.name for path in site.iterdir()} - before
    assert not installed & {"keras", "torch", "jax", "tensorflow", "h5py", "openvino"}
    sizes = [bytes_of(site, *names) / 1e6 for names in (RUNTIME, installed - {*RUNTIME})]
    print(f"installed: ONNX Runtime, numpy, pillow {sizes[0]:.0f} MB, all else {sizes[1]:.0f} MB")
    assert sizes[1] < 40

    Image.effect_noise((400, 300), 90).convert("RGB").save(folder / "photo.png")
    program = """
        import sys, time
        from keras_sam.cli import main

        words = "segment photo.png --model sam --point 200,150 --out masks --quiet".split()
        assert main(words) == 0
        assert not {"keras", "torch", "jax", "tensorflow"} & set(sys.modules)
        print(f"first mask: {time.process_time():.2f} s of processor time")
    """
    output = call(python, "-c", textwrap.dedent(program), cwd=folder)
    print(output)
    assert float(re.search(r"first mask: ([\d.]+)", output)[1]) < 3
    for i in range(3):
        with Image.open(folder / "masks" / f"photo_mask_{i}.png") as picture:
            assert picture.size == (400, 300)


def test_demo_sets_itself_up_and_writes_the_picture(tmp_path):
    torch = pytest.importorskip("torch", reason="the demo's checkpoint is written with torch")
    from tests.parity.oracles import meta_model

    torch.save(meta_model().state_dict(), tmp_path / "small.pth")
    demo = [sys.executable, ROOT / "tools" / "demo.py", "--folder", tmp_path / "demo"]
    output = call(*demo, cwd=tmp_path)
    assert "sam_tiny_demo" in output
    assert len(re.findall(r"score -?\d+\.\d+", output)) == 4  # three for the click, one for the box
    with Image.open(tmp_path / "demo_output" / "overlay.png") as picture:
        assert picture.size == (2 * 384, 303)

    packages = call(tmp_path / "demo" / "venv" / "bin" / "pip", "list", cwd=tmp_path).lower()
    assert "jax" in packages
    assert "torch" not in packages
    assert "nvidia" not in packages

    Image.new("RGB", (90, 60)).save(tmp_path / "mine.png")
    demo += ["--model", "small.pth"]
    output = call(*demo, "mine.png", "--point", "10,20", "--out", "other", cwd=tmp_path)
    assert "installed" not in output  # the environment is there already
    assert "10,20" in output
    with Image.open(tmp_path / "other" / "overlay.png") as picture:
        assert picture.size == (2 * 90, 60)
