"""The segmenter that a command runs: checked early, loaded late."""

import contextlib
from pathlib import Path

from keras_sam.cli.backend import choose_backend, prepare_device, use_device
from keras_sam.cli.failure import CommandError, bad_input
from keras_sam.cli.progress import quiet_stderr


def check_source(source: str, option: str) -> None:
    """Checks a name, address or path as far as that goes without reading what it names."""
    if "://" in source or Path(source).exists():
        return
    from keras_sam.presets import list_presets

    known = list_presets()
    if source not in known:
        raise CommandError(
            f"{option} {source}: no such preset, file or folder. "
            f"Built-in presets: {', '.join(known)}"
        )


def _source(args):
    """What `from_preset` takes, from `--preset` or `--checkpoint`."""
    if args.checkpoint is None:
        check_source(args.preset, "--preset")
        return args.preset
    if not args.checkpoint.exists():
        raise CommandError(f"--checkpoint {args.checkpoint}: there is no such file")
    return str(args.checkpoint)


@contextlib.contextmanager
def open_segmenter(args, progress):
    """Chooses the backend and the device, and loads the segmenter onto them.

    Args:
        args: the options of `options.add_model_options`.
        progress: `Progress`.

    Yields:
        `SAMImageSegmenter`, to be used inside the block.
    """
    source = _source(args)
    backend = choose_backend(args.backend)
    prepare_device(args.device)
    quiet = contextlib.nullcontext if args.debug else quiet_stderr
    with progress.step(f"Starting {backend}"), quiet():
        from keras_sam.models.sam_image_segmenter import SAMImageSegmenter
    overrides = {"dtype": args.dtype, "image_shape": args.image_shape}
    overrides = {name: value for name, value in overrides.items() if value is not None}
    with use_device(args.device):
        # Downloads draw bars of their own.
        with progress.step(f"Loading {source}", spinner=Path(source).exists()), bad_input():
            segmenter = SAMImageSegmenter.from_preset(source, **overrides)
        yield segmenter


def describe(args, segmenter) -> dict:
    """What made the masks, for the results' JSON file."""
    import keras

    from keras_sam import __version__

    return {
        "model": args.preset or str(args.checkpoint),
        "image_shape": list(segmenter.image_shape[:2]),
        "dtype": segmenter.dtype_policy.name,
        "backend": keras.config.backend(),
        "keras_sam": __version__,
    }
