"""`keras-sam export`: a model as files for other runtimes."""

import argparse
from pathlib import Path

from keras_sam.cli.errors import CommandError, bad_input
from keras_sam.cli.model import choose_backend, open_segmenter
from keras_sam.cli.options import add_model_options
from keras_sam.cli.output import add_overwrite_option, check_nothing_is_lost, check_output_folder
from keras_sam.cli.progress import Progress
from keras_sam.exported.manifest import other_files

# The format's names, and the backends that write it, the first that is installed.
_BACKENDS = {
    "onnx": ("torch",),
    "openvino": ("torch",),
    "saved_model": ("tensorflow",),
    "litert": ("tensorflow",),
}

HELP = "write a model as ONNX, OpenVINO, SavedModel or LiteRT files"
DESCRIPTION = """\
Writes image encoder and mask decoder as files that run without Keras, and a manifest.json that
describes them. Each file is opened in its own runtime and compared with the model.

--format onnx         image_encoder.onnx, prompt_decoder.onnx, and mask_decoder.onnx, which has the
                      inputs and outputs of Meta's exported decoder
--format openvino     the same as .xml and .bin
--format saved_model  a folder for TensorFlow with the signatures encode, decode and segment
--format litert       image_encoder.tflite and prompt_decoder.tflite, for phones"""

EXAMPLES = """\
examples:
  keras-sam export --model sam_vit_b_01ec64.pth --format onnx --out sam_onnx
  keras-sam export --model sam_tiny_demo --format onnx --image-input --out sam_onnx
  keras-sam export --model sam_tiny_demo --format openvino --precision float16 --out sam_openvino"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    add_model_options(parser, makes_masks=False)
    group = parser.add_argument_group("files")
    group.add_argument("--format", choices=tuple(_BACKENDS), required=True, help="the format")
    group.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="the folder to write"
    )
    group.add_argument(
        "--precision",
        choices=("float32", "float16", "int8"),
        default="float32",
        help="how weights are stored: float16 is half the size, int8 a quarter (default: float32)",
    )
    group.add_argument(
        "--image-input",
        nargs="?",
        const="uint8",
        default=False,
        choices=("uint8", "float32"),
        help="the encoder takes the photograph itself, of any size, instead of normalised pixels; "
        "with float32 as AnyLabeling passes it (default: uint8)",
    )
    group.add_argument("--opset", type=int, default=20, help="ONNX's operator set (default: 20)")
    group.add_argument(
        "--multimask",
        dest="multimask_output",
        action=argparse.BooleanOptionalAction,
        help="prompt_decoder makes the candidates alone, or the one mask for unambiguous prompts "
        "alone (default: all)",
    )
    add_overwrite_option(group)
    metas = parser.add_argument_group("mask_decoder, as in Meta's exporter")
    metas.add_argument("--return-single-mask", action="store_true", help="one mask, the best")
    metas.add_argument(
        "--use-stability-score", action="store_true", help="scores are the masks' stability"
    )
    metas.add_argument(
        "--return-extra-metrics", action="store_true", help="also stability and area of each mask"
    )


def run(args: argparse.Namespace) -> int:
    """Writes the folder whole, or not at all."""
    check_nothing_is_lost([args.out], args.overwrite)
    if others := other_files(args.out):
        raise CommandError(
            f"--out {args.out}: holds other files than an export, such as {others[0]}: not replaced"
        )
    check_output_folder(args.out.parent)
    choose_backend(args.backend, _BACKENDS[args.format])
    progress = Progress(args.quiet)
    names = "image_input precision opset multimask_output return_single_mask"
    names = (*names.split(), "use_stability_score", "return_extra_metrics")
    settings = {name: getattr(args, name) for name in names}
    with open_segmenter(args, progress) as segmenter:
        from keras_sam.export import export_model

        with progress.step(f"Writing {args.format}"), bad_input():
            manifest = export_model(segmenter, args.out, args.format, **settings)
    for name, about in manifest["files"].items():
        off = about.get("differences")
        print(f"{args.out / name}  {about['bytes'] / 1e6:.1f} MB{_largest(off)}")
    return 0


def _largest(differences):
    if not differences:
        return ""
    values = [x for v in differences.values() for x in (v.values() if isinstance(v, dict) else [v])]
    return f"  off by at most {max(values):.1e} of the largest value"
