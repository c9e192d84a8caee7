"""`keras-sam convert`: checkpoints from one library's format to another's."""

import argparse
from pathlib import Path

from keras_sam.cli import options
from keras_sam.cli.errors import CommandError, bad_input
from keras_sam.cli.model import check_source
from keras_sam.cli.output import (
    add_overwrite_option,
    check_nothing_is_lost,
    check_output_folder,
    made_folder,
)
from keras_sam.cli.progress import Progress

_LAYOUTS = ("keras_sam", "meta", "transformers")

HELP = "convert a checkpoint to Meta's, transformers' or this package's format"
DESCRIPTION = """\
Converts a checkpoint, bit by bit; no backend is needed.

--to keras_sam      OUT is a folder for from_preset and for --model
--to meta           OUT is a .safetensors file with the names of the released code's state dict:
                    torch users load it with safetensors.torch.load_file and
                    model.load_state_dict
--to transformers   OUT is a folder for from_pretrained of transformers' SamModel, SamHQModel or
                    Sam2Model"""

EXAMPLES = """\
examples:
  keras-sam convert sam_vit_b_01ec64.pth sam_base --to transformers
  keras-sam convert hf://facebook/sam-vit-base sam_vit_b.safetensors --to meta
  keras-sam convert run.pth sam_base --to keras_sam --checkpoint-key model_ema \\
      --ignore 'class_head\\..*'"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    parser.add_argument(
        "source",
        metavar="IN",
        help="a checkpoint file, a folder, a built-in name, or a kaggle:// or hf:// handle",
    )
    parser.add_argument("target", type=Path, metavar="OUT", help="the file or folder to write")
    parser.add_argument(
        "--to", type=_layout, choices=_LAYOUTS, required=True, help="the format of OUT"
    )
    parser.add_argument(
        "--checkpoint-key",
        metavar="NAME",
        help="of a file with the weights of several models, those to read: an entry, such as "
        "model_ema, or what precedes the names of its tensors",
    )
    parser.add_argument(
        "--ignore",
        action=options.Repeated,
        default=(),
        metavar="PATTERN",
        help="leave out tensors of these names, a regular expression of the whole name such as "
        "'class_head\\..*'; repeatable",
    )
    add_overwrite_option(parser)


def run(args: argparse.Namespace) -> int:
    """Writes OUT whole, or not at all."""
    from keras_sam.files import whole_folder
    from keras_sam.presets import convert_checkpoint

    check_source(args.source, "IN")
    _check_target(args)
    progress = Progress(args.quiet)
    reading = {"checkpoint_key": args.checkpoint_key, "ignore": args.ignore}
    local = Path(args.source).exists()
    step = progress.step(f"Converting {args.source}", spinner=local)
    with step, bad_input(), made_folder(args.target.parent):
        if args.to == "meta":
            convert_checkpoint(args.source, args.target, args.to, **reading)
        else:
            with whole_folder(args.target, replaceable="config.json") as folder:
                convert_checkpoint(args.source, folder, args.to, **reading)
    print(args.target)
    return 0


def _layout(text):
    return "keras_sam" if text == "preset" else text  # an earlier name


def _check_target(args):
    target = args.target
    if args.to == "meta" and target.suffix != ".safetensors":
        raise CommandError(f"OUT {target}: with --to meta it must end in .safetensors")
    if target.exists():
        if Path(args.source).exists() and target.samefile(args.source):
            raise CommandError(f"OUT {target}: is IN itself")
        if target.is_dir() == (args.to == "meta"):
            kind = "folder, not a file" if target.is_dir() else "file, not a folder"
            raise CommandError(f"OUT {target}: is a {kind}")
        check_nothing_is_lost([target], args.overwrite, "OUT")
        if target.is_dir() and not (target / "config.json").is_file():
            raise CommandError(f"OUT {target}: has no config.json, so it is no model: not replaced")
    check_output_folder(target.parent, "OUT")
