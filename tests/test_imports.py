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
    "boxes": 0,
    "candidates": 0,
    "converters": 0,
    "drawing": 0,
    "enlarging": 0,
    "files": 0,
    "geometry": 0,
    "images": 0,
    "mask_records": 0,
    "masks": 0,
    "nested": 0,
    "presets": 0,
    "prompts": 0,
    # 1: Keras layers
    "backends": 1,
    "layers": 1,
    "losses": 1,
    # 2: models
    "models": 2,
    "preprocessing": 2,
    "tensorflow_graph": 2,
    # 3: using a model
    "compat": 3,
    "evaluation": 3,
    "mask_generator": 3,
    "predictor": 3,
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
    "tensorflow_graph.py": {"tensorflow"},  # the preprocessor inside tf.data
}
# Everything that `import keras_sam` must do without; scipy comes with JAX itself.
OPTIONAL = {
    "cv2",
    "huggingface_hub",
    "kagglehub",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "openvino",
    "pandas",
    "pycocotools",
    "scipy",
    "skimage",
    "supervision",
    "torchvision",
    "transformers",
}


@dataclasses.dataclass(frozen=True)
class Import:
    """One imported module: its dotted name, its line, and whether it waits inside a function."""

    module: str
    line: int
    lazy: bool


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
                found.append(Import(node.module, node.lineno, lazy))
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
    """Import names of the core dependencies, and of everything that pyproject.toml mentions."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(requirements):
        plain = {r.split(">")[0].split("[")[0].strip().replace("-", "_") for r in requirements}
        return {{"pillow": "PIL", "scikit_image": "skimage"}.get(name, name) for name in plain}

    core = names(project["dependencies"])
    return core, core.union(*map(names, project["optional-dependencies"].values()))


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
    try:
        TopologicalSorter({room: needs - {room} for room, needs in graph.items()}).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' -> '.join(error.args[1])}")


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


# They name the backend to the user, and choose it before Keras is imported.
TELL_THE_BACKEND = {"cli/backend.py", "cli/model.py"}
# To move: each of them asks for what `backends` knows by name.
ASK_THE_BACKEND = {
    "models/sam_image_segmenter.py",
    "models/trainable.py",
    "models/training_batches.py",
}


def test_only_one_room_asks_which_backend_runs():
    asking = {name_of(path) for path in sources() if re.search(r"\bbackend\(\)", path.read_text())}
    assert asking - TELL_THE_BACKEND - ASK_THE_BACKEND == {"backends/__init__.py"}


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
    core, _ = declared()
    wrong = [
        f"{name_of(path)}:{item.line}: {top}"
        for path in sources()
        for top, item in third_party(path)
        if not item.lazy and top not in core and not is_allowed(path, top, item)
    ]
    assert not wrong


def test_every_imported_package_is_declared():
    _, everything = declared()
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


def run_python(code, blocked=(), backend=None):
    """Runs `code` in a fresh Python in which the packages `blocked` cannot be imported."""
    variables = {k: v for k, v in os.environ.items() if k != "KERAS_BACKEND"}
    if backend:
        variables["KERAS_BACKEND"] = backend
    program = f"import sys\nsys.modules.update(dict.fromkeys({sorted(blocked)!r}))\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def modules_of_level(level):
    names = []
    for path in sources():
        if LEVELS.get(room_of(path)) == level:
            names.append(".".join(["keras_sam", *path.relative_to(PACKAGE).with_suffix("").parts]))
    return [name.removesuffix(".__init__") for name in names]


def test_blocked_packages_cannot_be_imported():
    code = "try:\n    import keras.ops\nexcept ModuleNotFoundError as error:\n    print(error)"
    assert "keras" in run_python(code, ["keras"])


def test_level_0_works_where_keras_is_not_installed():
    code = "\n".join(f"import {name}" for name in modules_of_level(0))
    code += "\nprint(keras_sam.geometry.ResizePlan((1200, 1800)).scaled_size)"
    assert "(683, 1024)" in run_python(code, ["keras", *BACKENDS, *OPTIONAL])


def test_the_package_and_the_command_line_start_without_keras():
    code = "import keras_sam, keras_sam.cli\nprint('keras' in sys.modules, keras_sam.__version__)"
    assert run_python(code).startswith("False ")


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
