"""Who may import whom: rooms only look down, nothing heavy is imported before it is needed."""

import ast
import dataclasses
import os
import re
import subprocess
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "keras_sam"

# A room is a module or a folder directly inside keras_sam/. CONTRIBUTING.md says what each is for.
LEVELS = {
    # 0: numpy only; works without Keras
    "annotations": 0,
    "backend_choice": 0,
    "boxes": 0,
    "converters": 0,
    "drawing": 0,
    "encode_decode": 0,
    "enlarging": 0,
    "exported": 0,
    "files": 0,
    "framing": 0,
    "generator_settings": 0,
    "geometry": 0,
    "images": 0,
    "masks": 0,
    "namespaces": 0,
    "notices": 0,
    "outputs": 0,
    "pixel_values": 0,
    "presets": 0,
    "prompts": 0,
    "runtimes": 0,
    # 1: Keras layers
    "backends": 1,
    "layers": 1,
    "losses": 1,
    # 2: models
    "models": 2,
    "preprocessing": 2,
    # 3: using a model
    "annotate": 3,
    "compat": 3,
    "embedding_cache": 3,
    "evaluation": 3,
    "export": 3,
    "mask_generator": 3,
    "predictor": 3,
    "tiles": 3,
    "ray": 3,
    "training": 3,
    "visualization": 3,
    # 4: surfaces
    "__main__": 4,
    "cli": 4,
}
BACKENDS = ("jax", "torch", "tensorflow")
ALL_BACKENDS = (*BACKENDS, "openvino")
# The only files up to level 2 that may name a backend, and which. Those of the room `backends` are
# imported with that backend alone, and name it as soon as they are imported.
BACKEND_FILES = {
    "backends/jax.py": {"jax"},
    "backends/openvino.py": {"openvino"},
    "backends/tensorflow.py": {"tensorflow"},
    "backends/torch.py": {"torch"},
    "backends/torch_recorder.py": {"torch"},
    "preprocessing/tensorflow_graph.py": {"tensorflow"},  # the preprocessor inside tf.data
}
# Everything that `import keras_sam` must do without; scipy comes with JAX itself.
OPTIONAL = {
    "cv2",
    "dask",
    "fastapi",
    "huggingface_hub",
    "kagglehub",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "openvino",
    "pandas",
    "pyarrow",
    "pycocotools",
    "pyogrio",
    "rasterio",
    "ray",
    "scipy",
    "shapely",
    "skimage",
    "supervision",
    "tifffile",
    "torchvision",
    "transformers",
    "uvicorn",
    "zarr",
}


@dataclasses.dataclass(frozen=True)
class Import:
    """One imported module: its dotted name, its line, and whether it waits inside a function.

    `names` are what `from module import ...` takes of it.
    """

    module: str
    line: int
    lazy: bool
    names: tuple[str, ...] = ()


def sources():
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path):
    return path.relative_to(PACKAGE).as_posix()


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path):
    """All imports of a file; `from keras_sam import x` counts as `keras_sam.x`."""
    found = []

    def visit(node, lazy):
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, node.lineno, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            if node.module == "keras_sam":
                found.extend(
                    Import(f"keras_sam.{alias.name}", node.lineno, lazy) for alias in node.names
                )
            else:
                names = tuple(alias.name for alias in node.names)
                found.append(Import(node.module, node.lineno, lazy, names))
        waits = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, lazy or waits)

    visit(ast.parse(path.read_text()), lazy=False)
    return found


def own_rooms(path):
    """(room, line) of everything inside the package that a file imports."""
    for item in imports_of(path):
        if item.module == "keras_sam":
            yield "__init__", item.line
        elif item.module.startswith("keras_sam.") and item.module != "keras_sam.__version__":
            yield item.module.split(".")[1], item.line


def third_party(path):
    for item in imports_of(path):
        top = item.module.split(".")[0]
        if top not in sys.stdlib_module_names and top not in ("keras_sam", "__future__"):
            yield top, item


def declared():
    """Import names of the core dependencies, of those with Keras, and of everything that
    pyproject.toml mentions.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(requirements):
        plain = {r.split(">")[0].split("[")[0].strip().replace("-", "_") for r in requirements}
        return {{"pillow": "PIL", "scikit_image": "skimage"}.get(name, name) for name in plain}

    core, extras = names(project["dependencies"]), project["optional-dependencies"]
    return core, core | names(extras["keras"]), core.union(*map(names, extras.values()))


def test_every_room_has_a_level_and_every_level_a_room():
    rooms = {room_of(path) for path in sources()} - {"__init__"}
    assert rooms == set(LEVELS)


def test_contributing_lists_the_rooms_of_each_level():
    rows = re.findall(r"^\| (\d) \|.*\|(.*)\|$", (ROOT / "CONTRIBUTING.md").read_text(), re.M)
    listed = {room: int(level) for level, text in rows for room in re.findall(r"`(\w+)`", text)}
    assert listed == {room: level for room, level in LEVELS.items() if room != "__main__"}


def test_files_import_only_from_their_own_level_or_lower():
    wrong = [
        f"{name_of(path)}:{line}: {room} is above"
        for path in sources()
        if name_of(path) != "__init__.py"
        for room, line in own_rooms(path)
        if LEVELS.get(room, 99) > LEVELS[room_of(path)]
    ]
    assert not wrong


def test_rooms_of_one_level_do_not_import_each_other_in_a_circle():
    graph = {}
    for path in sources():
        if room_of(path) != "__init__":
            graph.setdefault(room_of(path), set()).update(room for room, _ in own_rooms(path))
    found = circles({room: needs - {room} for room, needs in graph.items()})
    assert not found, f"a circle: {' -> '.join(found)}"


def modules():
    """The dotted name of every file of the package, and its path."""
    names = {}
    for path in sources():
        parts = ["keras_sam", *path.relative_to(PACKAGE).with_suffix("").parts]
        names[".".join(parts).removesuffix(".__init__")] = path
    return names


def circles(graph):
    """One circle of a dict from nodes to what each needs, as a list that ends where it starts."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_a_circle_is_found():
    assert circles({"a": {"b"}, "b": {"c"}}) == []
    assert set(circles({"a": {"b"}, "b": {"c"}, "c": {"b"}})) == {"b", "c"}


def test_modules_do_not_import_each_other_in_a_circle():
    paths = modules()
    graph = {}
    for name, path in paths.items():
        needs = graph.setdefault(name, set())
        for item in imports_of(path):
            inside = [f"{item.module}.{taken}" for taken in item.names]
            needs.update(module for module in inside if module in paths)
            # A package is needed itself only if something is taken that is no module in it.
            if item.module in paths and not (inside and set(inside) <= paths.keys()):
                needs.add(item.module)
    found = circles(graph)
    assert not found, f"a circle of imports: {' -> '.join(found)}"


def test_the_package_imports_names_from_where_they_are_defined():
    # The namespaces import lazily, by strings: an import through them would hide what it needs.
    wrong = [
        f"{name_of(path)}:{item.line}: {', '.join(item.names)}"
        for path in sources()
        for item in imports_of(path)
        if item.module in ("keras_sam.layers", "keras_sam.models")
        and any(f"{item.module}.{name}" not in modules() for name in item.names)
    ]
    assert not wrong


def is_allowed(path, top, item):
    """Whether a file may name this backend: early in a room of its own, else within functions."""
    early = room_of(path) == "backends"
    return top in BACKEND_FILES.get(name_of(path), ()) and (early or item.lazy)


def test_backends_are_named_only_in_a_room_of_their_own():
    wrong = [
        f"{name_of(path)}:{item.line}: {top}"
        for path in sources()
        for top, item in third_party(path)
        if top in ALL_BACKENDS
        and (item.lazy is False or LEVELS.get(room_of(path), 0) <= 2)
        and not is_allowed(path, top, item)
    ]
    assert not wrong


def test_only_one_room_asks_which_backend_runs():
    asking = {name_of(path) for path in sources() if re.search(r"\bbackend\(\)", path.read_text())}
    # The command line must not import Keras before it has chosen a backend.
    assert asking == {"backends/__init__.py", "cli/model.py"}


def test_level_0_never_imports_keras_at_import_time():
    wrong = [
        f"{name_of(path)}:{item.line}"
        for path in sources()
        if LEVELS.get(room_of(path)) == 0
        for top, item in third_party(path)
        if top == "keras" and not item.lazy
    ]
    assert not wrong


def test_only_core_dependencies_are_imported_with_a_module():
    core, with_keras, _ = declared()
    wrong = [
        f"{name_of(path)}:{item.line}: {top}"
        for path in sources()
        for top, item in third_party(path)
        if not item.lazy
        and top not in (with_keras if LEVELS.get(room_of(path)) else core)
        and not is_allowed(path, top, item)
    ]
    assert not wrong


def test_every_imported_package_is_declared():
    *_, everything = declared()
    wrong = [
        f"{name_of(path)}:{item.line}: {top}"
        for path in sources()
        for top, item in third_party(path)
        if top not in everything
    ]
    assert not wrong


def test_tools_and_tests_are_not_imported_by_the_package():
    outside = {path.stem for folder in ("tools", "tests") for path in (ROOT / folder).glob("*.py")}
    wrong = [
        f"{name_of(path)}: {top}"
        for path in sources()
        for top, _ in third_party(path)
        if top in outside | {"tools", "tests"}
    ]
    assert not wrong


def run_python(code, blocked=(), backend=None, **more):
    """Runs `code` in a fresh Python in which the packages `blocked` cannot be imported."""
    variables = {**{k: v for k, v in os.environ.items() if k != "KERAS_BACKEND"}, **more}
    if backend:
        variables["KERAS_BACKEND"] = backend
    program = f"import sys\nsys.modules.update(dict.fromkeys({sorted(blocked)!r}))\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def modules_of_level(level):
    return [name for name, path in modules().items() if LEVELS.get(room_of(path)) == level]


def test_blocked_packages_cannot_be_imported():
    code = "try:\n    import keras.ops\nexcept ModuleNotFoundError as error:\n    print(error)"
    assert "keras" in run_python(code, ["keras"])


def test_level_0_works_where_keras_is_not_installed():
    code = "\n".join(f"import {name}" for name in modules_of_level(0))
    code += "\nprint(keras_sam.geometry.ResizePlan((1200, 1800)).scaled_size)"
    assert "(683, 1024)" in run_python(code, ["keras", *BACKENDS, *OPTIONAL])


def test_the_package_and_the_command_line_start_without_keras():
    code = "import keras_sam, keras_sam.cli, keras_sam.visualization\n"
    code += "keras_sam.SAMPredictor, keras_sam.SAMAutomaticMaskGenerator\n"
    code += "print('keras' in sys.modules, keras_sam.__version__)"
    assert run_python(code).startswith("False ")


def test_what_needs_keras_says_how_to_install_it():
    code = "import keras_sam\ntry:\n    keras_sam.SAMImageSegmenter\n"
    code += "except ImportError as error:\n    print(error)"
    assert 'needs Keras: pip install "keras-sam[jax]"' in run_python(code, ["keras"])


def first_imports():
    """Keras, one public name, and the last module of each room that uses Keras."""
    last = {name.split(".")[1]: name for level in (1, 2, 3) for name in modules_of_level(level)}
    last["backends"] = "keras_sam.backends"  # whose last module is another backend's
    return ["import keras", "keras_sam.SAMBackbone", *(f"import {name}" for name in last.values())]


@pytest.mark.parametrize("first", first_imports())
def test_classes_are_registered_whatever_is_imported_first(first):
    code = f"import keras_sam\n{first}\nimport keras\n"
    code += "print(keras.saving.get_registered_object('keras_sam>SAMImageSegmenter'))"
    assert "SAMImageSegmenter" in run_python(code, backend="jax")


@pytest.mark.parametrize("backend", BACKENDS)
def test_public_names_need_nothing_optional_and_no_other_backend(backend):
    needed = {"scipy"} if backend == "jax" else set()
    others = set(BACKENDS) - {backend}
    code = "import keras_sam\nfor name in keras_sam.__all__: getattr(keras_sam, name)"
    code += "\nimport keras\nprint(keras.config.backend())"
    assert backend in run_python(code, (others | OPTIONAL) - needed, backend)


@pytest.mark.parametrize("backend", ALL_BACKENDS)
def test_the_room_of_another_backend_is_never_imported(backend):
    code = "import keras_sam\nfor name in keras_sam.__all__: getattr(keras_sam, name)"
    code += "\nprint(*(x for x in sys.modules if x.startswith('keras_sam.backends.')))"
    rooms = {name.rsplit(".", 1)[1] for name in run_python(code, (), backend).split()}
    own = {backend, "torch_recorder"} if backend == "torch" else {backend}
    assert rooms == {"generic", "private", *own}


@pytest.mark.parametrize("own", [None, "0"])
def test_large_pages_for_tensors_of_torch_unless_the_user_said_no(own):
    name = "THP_MEM_ALLOC_ENABLE"
    code = f"import os\nos.environ.pop({name!r}, None)\n"
    code += "" if own is None else f"os.environ[{name!r}] = {own!r}\n"
    code += f"import keras_sam\nprint(os.environ[{name!r}])"
    assert run_python(code).strip() == (own or "1")


@pytest.mark.parametrize(
    ("given", "count"),
    [
        ({}, "1000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),  # the user's own
        ({"OMP_WAIT_POLICY": "active"}, "None"),  # which a count would override
    ],
)
def test_threads_that_wait_sleep_soon_unless_the_user_chose(given, count):
    code = (
        "import os\nfor name in ('GOMP_SPINCOUNT', 'OMP_WAIT_POLICY'): os.environ.pop(name, None)"
    )
    code += f"\nos.environ |= {given}\nimport keras_sam\nprint(os.environ.get('GOMP_SPINCOUNT'))"
    assert run_python(code).strip() == count


NAMESPACES = {
    "layers": "ConvNorm InvertedBottleneck MLP MultiHeadAttentionWithDownsampling "
    "OffsetBiasAttention RandomFrequencyPositionalEmbeddings SAM2MaskDecoder SAMHQMaskDecoder "
    "SAMImageConverter SAMMaskDecoder SAMPromptEncoder TinyViTBlock TwoWayMultiHeadAttention "
    "TwoWayTransformer WindowAttention WindowedTransformerEncoder",
    "models": "Backbone HieraBackbone ImageSegmenter SAM2ImageSegmenter "
    "SAM2ImageSegmenterPreprocessor SAMBackbone SAMHQImageSegmenter SAMImageSegmenter "
    "SAMImageSegmenterPreprocessor TinyViTBackbone ViTDetBackbone",
}


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_namespaces_have_the_flat_names(namespace):
    names = NAMESPACES[namespace].split()
    code = f"import keras_sam\nfrom keras_sam.{namespace} import *\n"
    code += f"print(keras_sam.{namespace}.__all__ == dir(keras_sam.{namespace}) == {names})\n"
    code += f"print({' and '.join(f'{name} is keras_sam.{name}' for name in names)})"
    assert run_python(code, backend="torch").split() == ["True", "True"]


def test_a_namespace_imports_no_more_than_is_asked_for():
    code = "import keras_sam\nkeras_sam.layers, keras_sam.models\nprint('keras' in sys.modules)\n"
    code += (
        "try:\n    keras_sam.layers.SAMBackbone\nexcept AttributeError as error:\n    print(error)"
    )
    assert run_python(code).splitlines() == [
        "False",
        "module 'keras_sam.layers' has no attribute 'SAMBackbone'",
    ]


# Packages that are missing, what the user has chosen, and the backend that results.
CHOICES = [
    ({"tensorflow"}, {}, "jax"),
    ({"tensorflow", "jax"}, {}, "torch"),
    ({"tensorflow", "jax", "torch"}, {}, "openvino"),
    ({"tensorflow", "jax", "torch", "openvino"}, {}, "None"),
    (set(), {}, "None"),  # TensorFlow is what Keras takes by itself
    ({"tensorflow"}, {"KERAS_BACKEND": "torch"}, "torch"),
    ({"tensorflow"}, {"keras.json": '{"backend": "torch"}'}, "None"),
]


@pytest.mark.parametrize(("missing", "chosen", "backend"), CHOICES)
def test_without_a_choice_an_installed_backend_is_taken(missing, chosen, backend, tmp_path):
    variables = {"KERAS_HOME": str(tmp_path)} | chosen
    if "keras.json" in variables:
        (tmp_path / "keras.json").write_text(variables.pop("keras.json"))
    code = "import logging, os\nlogging.basicConfig(level='INFO', stream=sys.stdout)\n"
    code += "import keras_sam\nprint(os.environ.get('KERAS_BACKEND'))\n"
    code += f"print(set(sys.modules) & { ({*BACKENDS, 'openvino', 'keras'} - missing)!r})"
    *log, name, imported = run_python(code, missing, **variables).splitlines()
    assert (name, imported) == (backend, "set()")
    quiet = chosen or backend == "None"
    assert len(log) == (0 if quiet else 1)
    assert quiet or log[0].startswith(f"INFO:keras_sam:Keras runs on {backend}")


def test_the_choice_lets_keras_start(tmp_path):
    code = "import keras_sam\nprint(keras_sam.ResizePlan((3, 4)).original_size)\n"
    code += "import keras\nprint(keras.config.backend())"
    home = {"KERAS_HOME": str(tmp_path)}  # no settings there
    assert run_python(code, {"tensorflow", "jax"}, **home).split("\n")[1] == "torch"


def test_keras_that_runs_already_keeps_its_backend(tmp_path):
    code = "import os, keras\ndel os.environ['KERAS_BACKEND']\n"
    code += "import keras_sam\nprint(os.environ.get('KERAS_BACKEND'), keras.config.backend())"
    home = {"KERAS_HOME": str(tmp_path)}
    assert run_python(code, {"tensorflow"}, "torch", **home).strip() == "None torch"
