"""A full-size SAM beside Meta's code: the same random weights, the same photograph and prompts.

    python tools/compare_with_meta.py                        # ViT-B, one process per backend
    python tools/compare_with_meta.py --model huge --backend jax
    python tools/compare_with_meta.py --model hq_base        # SAM-HQ, beside its released code
    python tools/compare_with_meta.py --model sam2.1_hiera_tiny

Meta's code writes a `.pth` of random weights and its answers; each backend loads that file with
`from_preset` and computes the same. Prints the differences as a fraction of Meta's largest value,
the pixels of masks that differ, and seconds. Needs the package with its test extra, and
`segment-anything-py`, `segment-anything-hq` or `sam2`. Takes 5 GB of memory and a few minutes for
ViT-B. The exit code is 1 if a difference exceeds the tolerance: 1e-4 of the largest value, and
0.01 % of a mask's pixels.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
BACKENDS = ("jax", "torch", "tensorflow")
SIZES = ("base", "large", "huge")
VITS = (*SIZES, *(f"hq_{size}" for size in SIZES))
HIERAS = tuple(f"sam2.1_hiera_{size}" for size in ("tiny", "small", "base_plus", "large"))
SIZE = (1200, 1800)  # its short side is rounded up, to 683
BOUND, PIXEL_BOUND = 1e-4, 1e-4
PROMPTS = {
    "click": {"points": [[900, 700]], "labels": [1]},
    "clicks at the ends": {"points": [[1797, 3], [2, 1197], [1799, 1199]], "labels": [1, 0, 1]},
    "box": {"boxes": [300, 200, 1790, 1100]},
    "click, box and mask": {
        "points": [[900, 700]],
        "labels": [0],
        "boxes": [300, 200, 1790, 1100],
        "masks": True,
    },
}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="Example: python tools/compare_with_meta.py --backend torch",
    )
    parser.add_argument("--model", choices=(*VITS, *HIERAS), default="base")
    parser.add_argument("--backend", choices=(*BACKENDS, "all"), default="all")
    parser.add_argument("--folder", type=Path, help="of Meta's file and answers, kept for later")
    parser.add_argument("--answer", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.answer:
        return compare(options.folder)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "answers.npz").exists():
            code = f"import compare_with_meta as c; c.ask({str(folder)!r}, {options.model!r})"
            command = [sys.executable, "-c", code]
            subprocess.run(command, cwd=ROOT / "tools", check=True)
        backends = BACKENDS if options.backend == "all" else (options.backend,)
        codes = [run(backend, folder) for backend in backends]
    return max(codes)


def run(backend, folder):
    """One backend in a process of its own."""
    command = [sys.executable, __file__, "--answer", "--folder", str(folder)]
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.run(command, env=environment, check=False).returncode


def photograph():
    sys.path.insert(0, str(ROOT))
    from tests.tiny import photograph

    return photograph(SIZE)


# --- Meta's code ---


def ask(folder, name):
    """Makes Meta's model, its file, and its answers."""
    sys.path.insert(0, str(ROOT))
    import torch

    folder = Path(folder)
    started = time.perf_counter()
    predictor = sam2_predictor(name) if name in HIERAS else sam_predictor(name)
    state = predictor.model.state_dict()
    torch.save({"model": state}, folder / "random.pth")
    count = sum(values.numel() for values in state.values())
    print(f"Meta's {name}, {count:,} weights, made in {time.perf_counter() - started:.0f} s")
    seconds = {}
    image = photograph()
    seconds["encode"] = timed(predictor.set_image, image)[0]
    answers = {"embedding": predictor.get_image_embedding().permute(0, 2, 3, 1).numpy()}
    if hasattr(predictor, "interm_features"):  # SAM-HQ's
        answers["early_features"] = predictor.interm_features[0].numpy()
    previous = None
    for prompt, given in PROMPTS.items():
        for multimask_output in (True, False):
            arguments = {
                "point_coords": np.array(given["points"]) if "points" in given else None,
                "point_labels": np.array(given["labels"]) if "points" in given else None,
                "box": np.array(given["boxes"]) if "boxes" in given else None,
                "mask_input": previous if "masks" in given else None,
                "multimask_output": multimask_output,
            }
            spent, (masks, scores, logits) = timed(predictor.predict, **arguments)
            seconds.setdefault("predict", spent)
            key = f"{prompt}, {'candidates' if multimask_output else 'one mask'}"
            answers |= {f"{key}/masks": masks, f"{key}/scores": scores, f"{key}/logits": logits}
            if previous is None:
                previous = logits[:1]
    answers["previous"] = previous
    np.savez(folder / "answers.npz", **answers)
    print("seconds: " + ", ".join(f"{key} {value:.2f}" for key, value in seconds.items()))


def sam_predictor(name):
    from tests.hq_oracle import import_segment_anything_hq
    from tests.meta_oracle import import_segment_anything
    from tests.parity.oracles import randomize

    size = name.removeprefix("hq_")
    meta = import_segment_anything() if size == name else import_segment_anything_hq()
    return meta.SamPredictor(randomize(meta.sam_model_registry[f"vit_{size[0]}"](), seed=0))


def sam2_predictor(name):
    """Of a preset's sizes, as `build_sam2` makes it; what is for videos is smaller."""
    from keras_sam.presets import read_preset
    from tests.parity.oracles import randomize
    from tests.sam2_oracle import import_sam2, sam2_like

    import_sam2()
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    encoder = read_preset(name, load_weights=False).encoder
    model = sam2_like(encoder, dynamic_multimask_via_stability=True)
    return SAM2ImagePredictor(randomize(model, seed=0))


def timed(function, *arguments, **named):
    started = time.perf_counter()
    result = function(*arguments, **named)
    return time.perf_counter() - started, result


# --- ours ---


def compare(folder):
    """Answers on the backend of this process and prints how far from Meta's."""
    import keras

    import keras_sam

    load, segmenter = timed(keras_sam.ImageSegmenter.from_preset, folder / "random.pth")
    expected = np.load(folder / "answers.npz")
    predictor = keras_sam.SAMPredictor(segmenter)
    image = photograph()
    first, _ = timed(predictor.set_image, image)
    again, _ = timed(predictor.set_image, image)
    print(f"\n{keras.backend.backend()}, {segmenter.count_params():,} weights")
    worst = {"encoder": difference(predictor.image_embeddings, expected["embedding"])}
    print(f"  {'image embedding':34}{worst['encoder']:9.1e}")
    if "early_features" in expected:
        early = predictor.features["early_features"]
        worst["early"] = difference(early, expected["early_features"])
        print(f"  {'early features':34}{worst['early']:9.1e}")
    print(f"  {'':34}{'logits':>9}{'scores':>9}{'mask pixels':>13}")
    seconds = []
    for prompt, given in PROMPTS.items():
        masks = expected["previous"][0] if "masks" in given else None
        for multimask_output in (True, False):
            arguments = {**given, "masks": masks, "multimask_output": multimask_output}
            spent, answer = timed(predictor.predict, **arguments)
            seconds.append(spent)
            key = f"{prompt}, {'candidates' if multimask_output else 'one mask'}"
            pixels = np.mean(answer[0] != (expected[f"{key}/masks"] > 0))
            scores = difference(answer[1], expected[f"{key}/scores"])
            logits = difference(answer[2], expected[f"{key}/logits"])
            print(f"  {key:34}{logits:9.1e}{scores:9.1e}{100 * pixels:11.4f} %")
            worst["logits"] = max(worst.get("logits", 0), logits)
            worst["scores"] = max(worst.get("scores", 0), scores)
            worst["pixels"] = max(worst.get("pixels", 0), pixels)
    print(
        f"  seconds: load {load:.1f}, encode {first:.1f} the first time and {again:.1f} again, "
        f"predict {max(seconds):.2f} at most and {min(seconds):.2f} at least"
    )
    pixels = worst.pop("pixels")
    exact = max(worst.values()) <= BOUND and pixels <= PIXEL_BOUND
    print(f"  {'as promised' if exact else 'MORE THAN PROMISED'}")
    return 0 if exact else 1


def difference(actual, expected):
    if actual.shape != expected.shape:
        raise ValueError(f"Shapes differ: {actual.shape} and Meta's {expected.shape}.")
    return np.abs(actual - expected).max() / np.abs(expected).max()


if __name__ == "__main__":
    sys.exit(main())
