"""Measures how long full-size checkpoints take to load, and how much memory.

    KERAS_BACKEND=jax python tools/measure_loading.py --size huge --format meta

It writes a checkpoint of random weights in the format, unless `--model` names one, then loads
it in a fresh process with the Keras backend already at work, and samples that process's anonymous
memory (Linux: RssAnon, which mapped files do not count in). The peak is given above what the
process had before, in sizes of the weights.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from memory import Peak, anonymous_bytes

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

SIZES = ("base", "large", "huge")
FORMATS = ("meta", "transformers", "keras_sam", "torch")


def parse(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="torch",
        help="torch: a .pth as Meta's, for which torch is needed; default: torch",
    )
    parser.add_argument("--model", help="load this checkpoint instead of a random one")
    parser.add_argument("--dtype", help="policy to load with, such as bfloat16")
    parser.add_argument("--max-ratio", type=float, help="fail above this peak, such as 1.3")
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def write_random(size: str, layout: str, folder: Path) -> str:
    """A checkpoint of random weights, made tensor by tensor."""
    import numpy as np

    from keras_sam import presets
    from keras_sam.converters import Tensor, to_meta
    from keras_sam.presets import write

    preset = presets.read_preset(f"sam_{size}_sa1b", load_weights=False)
    shapes = variable_shapes(preset)
    rng = np.random.default_rng(0)

    def values(shape):
        return Tensor(shape, "f4", lambda: 0.02 * rng.standard_normal(shape, dtype="f4"))

    preset.arrays = {name: values(shape) for name, shape in shapes.items()}
    if layout == "torch":
        import torch

        tensors = to_meta(preset.arrays)
        state = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in tensors.items()}
        torch.save(state, folder / "sam.pth")
        return str(folder / "sam.pth")
    if layout == "meta":
        write.save_safetensors(folder / "sam.safetensors", to_meta(preset.arrays))
        return str(folder / "sam.safetensors")
    writers = {"transformers": write._write_transformers, "keras_sam": write._write_ours}
    writers[layout](preset, str(folder / layout))
    return str(folder / layout)


def variable_shapes(preset) -> dict:
    """The shapes of a preset's variables, from a model with one block of each kind."""
    import keras_sam

    parts = {name: dict(part["config"]) for name, part in preset.parts.items()}
    encoder = parts["image_encoder"]
    whole = encoder["global_attention_layer_indices"]
    small = {**encoder, "num_layers": 2, "global_attention_layer_indices": [1]}
    backbone = keras_sam.SAMBackbone(
        keras_sam.ViTDetBackbone(**small),
        keras_sam.SAMPromptEncoder(**parts["prompt_encoder"]),
        keras_sam.SAMMaskDecoder(**parts["mask_decoder"]),
    )
    shapes = {v.path: tuple(v.shape) for v in backbone.weights}
    blocks = {name: shape for name, shape in shapes.items() if name.startswith("block_")}
    shapes = {name: shape for name, shape in shapes.items() if name not in blocks}
    for i in range(encoder["num_layers"]):
        model = "block_1/" if i in whole else "block_0/"
        for name, shape in blocks.items():
            if name.startswith(model):
                shapes[f"block_{i}/" + name.removeprefix(model)] = shape
    return shapes


def measure(options) -> dict:
    """Loads the checkpoint in this process, whose backend has already computed something."""
    import keras

    import keras_sam

    keras.ops.convert_to_numpy(keras.ops.matmul(keras.ops.ones((64, 64)), keras.ops.ones((64, 64))))
    with Peak() as peak:
        start = time.perf_counter()
        segmenter = keras_sam.SAMImageSegmenter.from_preset(options.model, dtype=options.dtype)
        seconds = time.perf_counter() - start
    weights = sum(
        int(keras.ops.size(v.value)) * keras.backend.standardize_dtype(v.dtype).count("16") * 2
        or int(keras.ops.size(v.value)) * 4
        for v in segmenter.weights
    )
    return {
        "backend": keras.config.backend(),
        "checkpoint": options.model,
        "parameters": segmenter.count_params(),
        "weights_MB": round(weights / 1e6),
        "seconds": round(seconds, 1),
        "peak_MB": round(peak.above / 1e6),
        "kept_MB": round((anonymous_bytes() - peak.before) / 1e6),
        "peak_per_weights": round(peak.above / weights, 3),
    }


def main(arguments=None) -> int:
    options = parse(arguments)
    if options.in_process:
        print(json.dumps(measure(options)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = options.model or write_random(options.size, options.format, Path(folder))
        words = [sys.executable, __file__, "--in-process", "--model", checkpoint]
        if options.dtype:
            words += ["--dtype", options.dtype]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, env=os.environ)
    if done.returncode:
        return done.returncode
    result = json.loads(done.stdout.strip().splitlines()[-1])
    print(json.dumps(result, indent=2))
    if options.max_ratio and result["peak_per_weights"] > options.max_ratio:
        print(f"error: more than {options.max_ratio} times the weights", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
