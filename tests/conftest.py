"""What all tests share: the choice of the backend, before anything imports Keras."""

import importlib.util
import os
import random
import subprocess
import sys

import pytest

BACKENDS = ("jax", "torch", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def pytest_addoption(parser):
    parser.addoption(
        "--backend",
        choices=(*BACKENDS, "openvino", "all"),
        help="the Keras backend; `all` runs the three that can train, in one process each "
        "(default: $KERAS_BACKEND, else the first installed one)",
    )


def pytest_cmdline_main(config):
    """With `--backend all`: the same command once per backend, in a process of its own."""
    if config.getoption("--backend") != "all":
        return None
    arguments = without_backend(config.invocation_params.args)
    codes = {}
    for backend in BACKENDS:
        print(f"===== {backend}", flush=True)
        command = [sys.executable, "-m", "pytest", *arguments, f"--backend={backend}"]
        codes[backend] = subprocess.call(command, cwd=config.invocation_params.dir)
    print("===== " + ", ".join(f"{name}: exit code {code}" for name, code in codes.items()))
    return max(codes.values(), key=abs)


def without_backend(arguments):
    """The command line's words without `--backend all` in either spelling."""
    kept, skip = [], False
    for word in map(str, arguments):
        if skip or word.startswith("--backend="):
            skip = False
        elif word == "--backend":
            skip = True
        else:
            kept.append(word)
    return kept


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    backend = config.getoption("--backend") or os.environ.get("KERAS_BACKEND") or first_installed()
    if backend == "all":
        return
    if "keras" in sys.modules and sys.modules["keras"].config.backend() != backend:
        raise pytest.UsageError(
            f"Keras was imported before the tests, with the "
            f"{sys.modules['keras'].config.backend()} backend, so {backend} cannot be chosen."
        )
    os.environ["KERAS_BACKEND"] = backend


def first_installed():
    for name in BACKENDS:
        if importlib.util.find_spec(name):
            return name
    raise pytest.UsageError(
        "No backend is installed. Install one with: "
        'pip install "keras-sam[jax]", "keras-sam[torch]" or "keras-sam[tensorflow]".'
    )


def pytest_report_header(config):
    return f"keras backend: {os.environ.get('KERAS_BACKEND', 'one process each')}"


@pytest.fixture(autouse=True)
def same_draws_in_every_run():
    """A test that draws without a seed of its own passes always, or never.

    Keras takes the seeds of its generators from Python's. Its `set_random_seed` would have
    TensorFlow forget what it has compiled.
    """
    random.seed(0)
    if "torch" in sys.modules:  # as a backend or as an oracle
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(autouse=True)
def nothing_said_before():
    """A notice that one test has seen is given to the next one, too."""
    if "keras_sam.notices" in sys.modules:
        sys.modules["keras_sam.notices"]._given.clear()


@pytest.fixture(scope="session")
def segmenter():
    """One tiny segmenter for all tests that do not change it: compiled once per shape."""
    from tests.tiny import tiny_segmenter

    return tiny_segmenter()


@pytest.fixture(scope="session")
def loaded():
    """Models by what they were loaded from: a model that is kept is compiled only once."""
    return {}


@pytest.fixture
def cli(capsys, monkeypatch, loaded):
    """Calls the command in this process, and returns its exit code, stdout and stderr."""
    import keras

    import keras_sam
    from keras_sam.cli import main

    load = keras_sam.SAMImageSegmenter.from_preset

    def load_once(source, **options):
        key = (source, *sorted(options.items()))
        if key not in loaded:
            loaded[key] = load(source, **options)
        return loaded[key]

    monkeypatch.setattr(keras_sam.SAMImageSegmenter, "from_preset", load_once)
    monkeypatch.setenv("KERAS_BACKEND", keras.config.backend())
    for name in ("CUDA_VISIBLE_DEVICES", "JAX_PLATFORMS", "KERAS_TORCH_DEVICE"):
        monkeypatch.delenv(name, raising=False)  # which --device sets

    def call(*arguments):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return call
