"""The segmenter that a command runs, its backend and its device: checked early, loaded late."""

import contextlib
import hashlib
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from keras_sam.backend_choice import BACKENDS, first_installed, is_installed
from keras_sam.cli.errors import CommandError, bad_input
from keras_sam.cli.progress import Progress, quiet_stderr
from keras_sam.exported import ExportedSegmenter
from keras_sam.exported.manifest import is_export


def choose_backend(requested: str | None = None, order: Sequence[str] = BACKENDS) -> str:
    """Sets `KERAS_BACKEND`, before anything imports Keras, and returns it.

    In this order: what was requested, `KERAS_BACKEND`, the first of `order` that is installed.
    """
    name = requested or os.environ.get("KERAS_BACKEND")
    if name:
        origin = "--backend" if requested else "KERAS_BACKEND"
        if name not in BACKENDS:
            raise CommandError(f"{origin} must be one of {', '.join(BACKENDS)}. Received: {name!r}")
        if not is_installed(name):
            raise CommandError(
                f"{origin} asks for {name}, which is not installed. Install it with: "
                f'pip install "keras-sam[{name}]"'
            )
    else:
        name = first_installed(order)
        if name is None:
            raise CommandError(
                "no Keras backend is installed. Install one with: "
                'pip install "keras-sam[jax]" (or [torch], [tensorflow], [openvino])',
                code=1,
            )
    running = sys.modules.get("keras")
    if running is not None and running.config.backend() != name:
        raise CommandError(
            f"Keras already runs on {running.config.backend()} in this process: set "
            f"KERAS_BACKEND={name} before importing it",
            code=1,
        )
    os.environ["KERAS_BACKEND"] = name
    # TensorFlow's start-up notes about the processor are not about this command.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    return name


def prepare_device(device: str | None) -> None:
    """Keeps GPUs out of a run on the CPU, before anything imports the backend."""
    if device and device.startswith("cpu"):
        os.environ.update(CUDA_VISIBLE_DEVICES="-1", JAX_PLATFORMS="cpu", KERAS_TORCH_DEVICE="cpu")


def unneeded_packages(backend: str) -> set[str]:
    """What Keras imports where it is installed, for what no command uses, and can do without.

    Matplotlib and JAX take half a second each, several from a cold disk.
    """
    return {"matplotlib", "jax"} - {backend}


@contextlib.contextmanager
def missing_modules(names: Iterable[str]):
    """Lets imports in a block fail for these packages, unless they are imported already."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        for name in hidden:
            sys.modules.pop(name, None)


@contextlib.contextmanager
def use_device(device: str | None):
    """Runs a block on `device`, which must exist; None leaves the choice to the backend."""
    if device is None:
        yield
        return
    import keras

    from keras_sam import backends

    if not backends.has_device(device):
        raise CommandError(f"--device: {backends.NAME} has no {device} here")
    try:
        with keras.device(device):
            keras.ops.convert_to_numpy(keras.ops.ones(1) + 1)
    except Exception as error:  # each backend raises another class
        raise CommandError(f"--device: {backends.NAME} has no {device} here: {error}") from error
    with keras.device(device):
        yield


def check_source(source: str, option: str = "--model") -> None:
    """Checks a name, address or path without reading what it names."""
    if "://" in source or Path(source).exists():
        return
    from keras_sam.presets import locate  # whose `list_presets` would look for downloads, too

    known = locate.names()
    if source not in known:
        raise CommandError(
            f"{option} {source}: no such preset, file or folder. "
            f"Built-in presets: {', '.join(known)}"
        )


def hash_files(source: str) -> str | None:
    """A hash of the model's files, which may have been trained further; None for a name."""
    path = Path(source)
    if not path.exists():
        return None
    digest = hashlib.blake2b(digest_size=8)
    try:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and not file.name.startswith("."):
                digest.update(file.name.encode(errors="replace"))
                with file.open("rb") as opened:
                    digest.update(hashlib.file_digest(opened, "blake2b").digest())
    except OSError as error:
        raise CommandError(f"--model {source}: cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def open_exported(args: Any, progress: Progress) -> ExportedSegmenter:
    """Loads the exported folder that `--model` names; what only Keras can do is refused."""
    for name in ("dtype", "image_shape", "backend", "device"):
        if getattr(args, name) is not None:
            raise CommandError(
                f"--{name.replace('_', '-')} cannot be combined with the exported folder "
                f"{args.model}, whose files are made for one. --provider says what runs them"
            )
    with progress.step(f"Loading {args.model}"), bad_input():
        try:
            segmenter = ExportedSegmenter.load(args.model, providers=args.provider)
        except ImportError as error:
            raise CommandError(str(error), code=1) from error
    if args.mask_threshold is not None:
        segmenter.mask_threshold = args.mask_threshold
    if args.value_range is not None:
        segmenter.preprocessor.image_converter.value_range = args.value_range
    return segmenter


@contextlib.contextmanager
def open_any_segmenter(args, progress, order: Sequence[str] = BACKENDS):
    """`open_segmenter`, also for an exported folder, which needs no backend."""
    if is_export(args.model):
        yield open_exported(args, progress)
        return
    if args.provider is not None:
        raise CommandError(
            "--provider is for a folder that `keras-sam export` wrote. Received: "
            f"--model {args.model}; --backend and --device say what runs it"
        )
    with open_segmenter(args, progress, order) as segmenter:
        yield segmenter


@contextlib.contextmanager
def open_segmenter(args, progress, order: Sequence[str] = BACKENDS):
    """Chooses backend and device, and yields the `SAMImageSegmenter` that is loaded there."""
    check_source(args.model)
    backend = choose_backend(args.backend, order)
    prepare_device(args.device)
    quiet = contextlib.nullcontext if args.debug else quiet_stderr
    missing = missing_modules(unneeded_packages(backend))
    with progress.step(f"Starting {backend}"), quiet(), missing:
        try:
            from keras_sam.models.sam_image_segmenter import SAMImageSegmenter
        except ModuleNotFoundError as error:
            if error.name != "keras":
                raise
            raise CommandError(
                f'Keras is not installed. Install it with: pip install "keras-sam[{backend}]"',
                code=1,
            ) from error
    overrides = {
        name: getattr(args, name, None) for name in ("dtype", "image_shape", "mask_threshold")
    }
    overrides = {name: value for name, value in overrides.items() if value is not None}
    with use_device(args.device):
        # Downloads draw bars of their own.
        local = Path(args.model).exists()
        with progress.step(f"Loading {args.model}", spinner=local), bad_input():
            segmenter = SAMImageSegmenter.from_preset(args.model, **overrides)
        if args.value_range is not None:
            segmenter.preprocessor.image_converter.value_range = args.value_range
        yield segmenter


def say_limits(source: str, progress: Progress) -> None:
    """Says what a built-in preset cannot do, before its masks are judged."""
    from keras_sam.presets import locate

    limits = locate.metadata(source).get("limits") if source in locate.names() else None
    if limits:
        progress.say(f"{source}: {limits}")


def describe(args, segmenter) -> dict:
    """The settings that the masks were made with, for the JSON file of the results."""
    from keras_sam import __version__

    if isinstance(segmenter, ExportedSegmenter):
        dtype, backend = segmenter.precision, segmenter.runtime
    else:
        from keras_sam import backends

        dtype, backend = segmenter.dtype_policy.name, backends.NAME
    return {
        "model": args.model,
        "image_shape": list(segmenter.image_shape[:2]),
        "dtype": dtype,
        "value_range": segmenter.preprocessor.image_converter.value_range,
        "backend": backend,
        "keras_sam": __version__,
        "mask_threshold": segmenter.mask_threshold,
    }
