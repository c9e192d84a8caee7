"""Measures what weights in fewer bits are worth in exported files: size, time, and the masks.

    python tools/measure_export_precision.py                                  # sam_tiny_demo
    python tools/measure_export_precision.py --model sam_base_sa1b --random   # ViT-B

Each model's encoder and prompt decoder are traced once, stored in each precision, and run on
scikit-image's photograph of 24 coins, each prompted by its box. The table has the size of both
files, the processor time of an image through the encoder (the least of `--repeats`, in turns), and
the mean IoU of the masks with those of float32 in ONNX Runtime. "int8, dynamic" is ONNX Runtime's
own quantizer, which also multiplies in int8. Runs on the torch backend.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
PARTS = ("image_encoder", "prompt_decoder")


def parse(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="sam_tiny_demo", help="as from_preset takes it")
    parser.add_argument("--random", action="store_true", help="random weights, of Meta's spread")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--litert", metavar="FOLDER", help="of exports in LiteRT, one each")
    parser.add_argument(
        "--exported", type=Path, metavar="FOLDER", help="its export in ONNX, instead of tracing it"
    )
    return parser.parse_args(arguments)


def open_segmenter(options):
    import keras
    import numpy as np

    import keras_sam

    segmenter = keras_sam.SAMImageSegmenter.from_preset(
        options.model, load_weights=not options.random
    )
    if options.random:  # biases and positions, which start at zero, too
        rng = np.random.default_rng(0)
        for variable in segmenter.weights:
            noise = 0.02 * rng.standard_normal(variable.shape, dtype="float32")
            variable.assign(keras.ops.convert_to_numpy(variable) + noise)
    return segmenter


def write_files(segmenter, folder: Path, exported: Path | None) -> dict[str, Path]:
    """A folder of both parts for each precision."""
    import copy

    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    from keras_sam.export import graphs, onnx_graphs

    made = {
        "image_encoder": graphs.ImageEncoderGraph(segmenter),
        "prompt_decoder": graphs.PromptDecoderGraph(segmenter, multimask_output=False),
    }
    folders = {}
    for name, graph in made.items():
        if exported is None:
            model = onnx_graphs.trace(graph, 20)
        else:
            model = onnx.load(exported / f"{name}.onnx")
        for precision in ("float32", "float16", "int8"):
            place = folders.setdefault(precision, folder / precision)
            place.mkdir(exist_ok=True)
            stored = onnx_graphs.with_stored_weights(copy.deepcopy(model), precision)
            onnx.save(stored, place / f"{name}.onnx")
        place = folders.setdefault("int8, dynamic", folder / "dynamic")
        place.mkdir(exist_ok=True)
        quantize_dynamic(
            folder / "float32" / f"{name}.onnx",
            place / f"{name}.onnx",
            weight_type=QuantType.QInt8,
            per_channel=True,
            op_types_to_quantize=["MatMul", "Gemm"],
        )
    return folders


def sides(folders: dict[str, Path], litert: str | None) -> dict:
    """By name: the files' folder, their ending, and the runtime as a function of a path."""
    from functools import partial

    from keras_sam.runtimes import LiteRT, OnnxRuntime, OpenVino

    found = {f"ONNX Runtime, {p}": (f, ".onnx", OnnxRuntime) for p, f in folders.items()}
    for stored in ("float32", "float16"):
        found[f"OpenVINO, {stored}"] = (folders[stored], ".onnx", OpenVino)
    run = partial(OpenVino, precision="bf16")
    found["OpenVINO, float32 in bfloat16"] = (folders["float32"], ".onnx", run)
    for folder in sorted(Path(litert).iterdir()) if litert else ():
        found[f"LiteRT, {folder.name}"] = (folder, ".tflite", LiteRT)
    return found


def inputs(segmenter):
    """Pixels of the photograph, and the prompts of its coins."""
    import numpy as np

    import keras_sam
    from keras_sam.export.graphs import pixel_statistics
    from tests.coins_truth import coins

    image, masks = coins()
    frames, plans = segmenter.preprocessor.image_converter.convert([image])
    mean, std = pixel_statistics(segmenter)
    pixels = np.ascontiguousarray(((frames - mean) / std).transpose(0, 3, 1, 2), "float32")
    boxes = keras_sam.masks.mask_to_box(masks).reshape(-1, 2, 2).astype("float32")
    count = len(boxes)
    prompts = {
        "points": np.float32(plans[0].to_model(boxes))[None],
        "labels": np.tile(np.int32([2, 3]), (1, count, 1)),
        "mask_prompts": np.zeros((1, count, *segmenter.mask_size), "float32"),
        "mask_given": np.zeros((1, count), "float32"),
    }
    return pixels, prompts


def main() -> int:
    options = parse()
    os.environ["KERAS_BACKEND"] = "torch"
    segmenter = open_segmenter(options)
    pixels, prompts = inputs(segmenter)
    with tempfile.TemporaryDirectory() as place:
        found = sides(write_files(segmenter, Path(place), options.exported), options.litert)
        del segmenter
        sizes, masks, times = {}, {}, {}
        for _ in range(options.repeats):
            # One at a time: ONNX Runtime keeps gigabytes of a large encoder's run for the next one.
            for name, (folder, ending, load) in found.items():
                encode = load(folder / f"image_encoder{ending}")
                features = encode({"pixels": pixels})  # and warms up
                began = time.process_time()
                encode({"pixels": pixels})
                times.setdefault(name, []).append(time.process_time() - began)
                del encode
                if name not in masks:
                    sizes[name] = sum((folder / f"{part}{ending}").stat().st_size for part in PARTS)
                    decode = load(folder / f"prompt_decoder{ending}")
                    masks[name] = decode({**features, **prompts})["masks"][0, :, 0] > 0
                    del decode
    print("| runtime and weights | MB | processor ms per image | mask IoU with float32 |")
    print("|---|---|---|---|")
    first = next(iter(found))
    for name in found:
        iou = mean_iou(masks[name], masks[first])
        print(f"| {name} | {sizes[name] / 1e6:.1f} | {min(times[name]) * 1e3:.0f} | {iou:.4f} |")
    return 0


def mean_iou(masks, others) -> float:
    both = (masks & others).sum((1, 2))
    either = (masks | others).sum((1, 2))
    return float((both / either.clip(1)).mean()) if either.any() else float("nan")


if __name__ == "__main__":
    sys.exit(main())
