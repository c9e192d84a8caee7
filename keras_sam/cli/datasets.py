"""The data sets of `train` and `evaluate`: images with masks, from `--data` and its options."""

import argparse
from pathlib import Path

from keras_sam.cli.errors import CommandError, bad_input

HELP = """\
--data coco.json                  COCO instances; --images is the folder of the images (default:
                                  the folder of the file)
--data photos --masks masks       a folder of images, and one mask per image of the same name:
                                  black and white, a colour on black, or with --label-map one
                                  object per value or colour
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
        "--void",
        type=_void,
        default="auto",
        metavar="N",
        help="the value of --masks that is void, or none (default: 255 in label maps of 8 bits)",
    )
    group.add_argument(
        "--rescale",
        action="store_true",
        help="scale COCO objects to pictures of another size than the file says",
    )
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
    if args.void != "auto" and masks is None:
        raise CommandError(f"--void says how to read --{prefix}masks, which is missing")
    if args.rescale and not is_file:
        raise CommandError(f"--rescale is for a COCO file, not for the folder {path}")
    from keras_sam.training.sources import CocoObjects, MaskFolder, SA1BFolder

    with bad_input():
        if is_file:
            return CocoObjects(path, images or path.parent, rescale=args.rescale)
        if masks is not None:
            return MaskFolder(path, masks, args.label_map, args.void)
        return SA1BFolder(path)


def _void(text: str) -> int | str | None:
    return {"auto": "auto", "none": None}[text] if text in ("auto", "none") else int(text)
