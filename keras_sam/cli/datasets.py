"""The data sets of `train` and `evaluate`: images with masks, from `--data` and its options."""

import argparse
from pathlib import Path

from keras_sam.cli.errors import CommandError, bad_input

HELP = """\
--data coco.json                  COCO instances; --images is the folder of the images (default:
                                  the folder of the file)
--data photos --masks masks       a folder of images, and one PNG per image of the same name:
                                  black and white, or with --label-map one object per value
--data folder                     name.jpg and name.json side by side, as in SA-1B"""


def add_data_options(group, prefix: str = "") -> None:
    """Adds the options that name a data set; `"validation-"` is the prefix of a second one."""
    name = prefix.rstrip("-") or "data"
    group.add_argument(
        f"--{name}",
        type=Path,
        required=not prefix,
        metavar="PATH",
        help="a COCO file or a folder, see above",
    )
    group.add_argument(
        f"--{prefix}images", type=Path, metavar="DIR", help=f"images of --{name} coco.json"
    )
    group.add_argument(
        f"--{prefix}masks", type=Path, metavar="DIR", help=f"masks of the images in --{name}"
    )


def add_reading_options(group) -> None:
    """Adds the options on reading, which hold for all data sets of a command."""
    group.add_argument("--label-map", action="store_true", help="masks hold one object per value")
    group.add_argument(
        "--skip-unreadable", action="store_true", help="leave out images that cannot be read"
    )


def open_data(args: argparse.Namespace, prefix: str = ""):
    """Opens the data set that the options name, as a `keras_sam.training.Source`."""
    name = prefix.rstrip("-") or "data"
    key = prefix.replace("-", "_")
    path, images, masks = (
        getattr(args, attribute) for attribute in (name, f"{key}images", f"{key}masks")
    )
    if not path.exists():
        raise CommandError(f"--{name} {path}: there is no such file or folder")
    for option, folder in ((f"--{prefix}images", images), (f"--{prefix}masks", masks)):
        if folder is not None and not folder.is_dir():
            raise CommandError(f"{option} {folder}: there is no such folder")
    is_file = path.is_file()
    if is_file and masks is not None:
        raise CommandError(f"--{prefix}masks belongs to a folder of images, not to {path}")
    if not is_file and images is not None:
        raise CommandError(f"--{prefix}images belongs to a COCO file, not to the folder {path}")
    if args.label_map and masks is None:
        raise CommandError(f"--label-map says how to read --{prefix}masks, which is missing")
    from keras_sam.training.sources import CocoObjects, MaskFolder, SA1BFolder

    with bad_input():
        if is_file:
            return CocoObjects(path, images or path.parent)
        if masks is not None:
            return MaskFolder(path, masks, label_map=args.label_map)
        return SA1BFolder(path)
