"""A full-size model beside its authors' code: the same random weights, photograph and prompts.

    python tools/compare_with_meta.py                        # SAM's ViT-B, one process per backend
    python tools/compare_with_meta.py --model huge --backend jax
    python tools/compare_with_meta.py --model hq_tiny        # SAM-HQ, the light one
    python tools/compare_with_meta.py --model mobile_sam --backend torch
    python tools/compare_with_meta.py --model sam2.1_hiera_tiny

Their code writes a `.pth` of random weights and its answers; each backend loads that file with
`from_preset` and computes the same: features, masks of every kind of prompt, and the records of
the mask generator. Prints the differences as a fraction of their largest value, the pixels of masks
that differ, and seconds. Needs the package with its test extra, and `segment-anything-py`,
`segment-anything-hq`, `mobilesam-mirror` or `sam2`. Takes 5 GB of memory and a few minutes for
ViT-B. The exit code is 1 if a difference exceeds the tolerance: 1e-4 of the largest value, 0.01 %
of a mask's pixels, and records in another order, with other boxes, or of an overlap below 0.999.
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
# Names of the models in their authors' registries.
SAMS = {"base": "vit_b", "large": "vit_l", "huge": "vit_h"}
HQS = {"hq_tiny": "vit_tiny", **{f"hq_{size}": name for size, name in SAMS.items()}}
HIERAS = tuple(f"sam2.1_hiera_{size}" for size in ("tiny", "small", "base_plus", "large"))
MODELS = (*SAMS, *HQS, "mobile_sam", *HIERAS)
SIZE = (1199, 1801)  # odd, and its short side is rounded up, to 682
BOUND, PIXEL_BOUND, OVERLAP = 1e-4, 1e-4, 0.999
PROMPTS = {
    "click": {"points": [[900, 700]], "labels": [1]},
    "clicks at the ends": {"points": [[1798, 3], [2, 1196], [1800, 1198]], "labels": [1, 0, 1]},
    "box": {"boxes": [300, 200, 1790, 1100]},
    "click, box and mask": {
        "points": [[900, 700]],
        "labels": [0],
        "boxes": [300, 200, 1790, 1100],
        "masks": True,
    },
}
FIELDS = ("segmentation", "bbox", "point_coords", "predicted_iou", "stability_score")
# Masks of random weights all span the image: suppression would leave one record.
GENERATOR = {
    "points_per_side": 4,
    "pred_iou_thresh": 0.0,
    "stability_score_thresh": 0.0,
    "box_nms_thresh": 1.0,
}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="Example: python tools/compare_with_meta.py --backend torch",
    )
    parser.add_argument("--model", choices=MODELS, default="base")
    parser.add_argument("--backend", choices=(*BACKENDS, "all"), default="all")
    parser.add_argument("--folder", type=Path, help="of their file and answers, kept for later")
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
            environment = {**os.environ, "KERAS_BACKEND": "torch"}
            subprocess.run(command, cwd=ROOT / "tools", env=environment, check=True)
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


# --- their code ---


def ask(folder, name):
    """Makes their model, its file, and its answers."""
    sys.path.insert(0, str(ROOT))
    import torch

    folder = Path(folder)
    started = time.perf_counter()
    model, predictor_class, generator_class = oracle(name)
    predictor, state = predictor_class(model), model.state_dict()
    torch.save({"model": state}, folder / "random.pth")
    count = sum(values.numel() for values in state.values())
    print(f"{name}, {count:,} weights, made in {time.perf_counter() - started:.0f} s")
    seconds = {}
    image = photograph()
    seconds["encode"] = timed(predictor.set_image, image)[0]
    answers = {"features/image_embeddings": channels_last(predictor.get_image_embedding())}
    if hasattr(predictor, "interm_features"):  # SAM-HQ's
        answers["features/early_features"] = predictor.interm_features[0].numpy()
    if name in HIERAS:
        for number, values in enumerate(predictor._features["high_res_feats"]):
            answers[f"features/high_res_features_{number}"] = channels_last(values)
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
    generator = generator_class(model, **GENERATOR)
    seconds["generate"], records = timed(generator.generate, image)
    for field in FIELDS:
        answers[f"records/{field}"] = np.array([record[field] for record in records])
    np.savez(folder / "answers.npz", **answers)
    print("seconds: " + ", ".join(f"{key} {value:.2f}" for key, value in seconds.items()))


def oracle(name):
    """Their model with random weights, and their predictor and generator."""
    from tests.hq_oracle import import_segment_anything_hq
    from tests.meta_oracle import import_segment_anything
    from tests.mobile_sam_oracle import import_mobile_sam, randomize_statistics
    from tests.parity.oracles import randomize

    if name in HIERAS:
        return sam2_oracle(name)
    if name == "mobile_sam":
        code, model = import_mobile_sam(), "vit_t"
    elif name in HQS:
        code, model = import_segment_anything_hq(), HQS[name]
    else:
        code, model = import_segment_anything(), SAMS[name]
    model = randomize_statistics(randomize(code.sam_model_registry[model](), seed=0), seed=0)
    return model, code.SamPredictor, code.SamAutomaticMaskGenerator


def sam2_oracle(name):
    """Of a preset's sizes, as `build_sam2` makes it; what is for videos is smaller."""
    from keras_sam.presets import read_preset
    from tests.parity.oracles import randomize
    from tests.sam2_oracle import import_sam2, sam2_like

    import_sam2()
    from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    encoder = read_preset(name, load_weights=False).encoder
    model = randomize(sam2_like(encoder, dynamic_multimask_via_stability=True), seed=0)
    return model, SAM2ImagePredictor, SAM2AutomaticMaskGenerator


def channels_last(values):
    return values.permute(0, 2, 3, 1).numpy()


def timed(function, *arguments, **named):
    started = time.perf_counter()
    result = function(*arguments, **named)
    return time.perf_counter() - started, result


# --- ours ---


def compare(folder):
    """Answers on the backend of this process and prints how far from theirs."""
    import keras

    import keras_sam

    load, segmenter = timed(keras_sam.ImageSegmenter.from_preset, folder / "random.pth")
    expected = np.load(folder / "answers.npz")
    predictor = keras_sam.SAMPredictor(segmenter)
    image = photograph()
    first, _ = timed(predictor.set_image, image)
    again, _ = timed(predictor.set_image, image)
    print(f"\n{keras.backend.backend()}, {segmenter.count_params():,} weights")
    worst = {}
    for name, values in predictor.features.items():
        worst[name] = difference(values, expected[f"features/{name}"])
        print(f"  {name:34}{worst[name]:9.1e}")
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
    records_agree = compare_records(predictor, expected)
    pixels = worst.pop("pixels")
    exact = max(worst.values()) <= BOUND and pixels <= PIXEL_BOUND and records_agree
    print(f"  {'as promised' if exact else 'MORE THAN PROMISED'}")
    return 0 if exact else 1


def compare_records(predictor, expected):
    """Whether the generator's records are theirs: count, order, boxes, overlaps and scores."""
    import keras_sam

    generator = keras_sam.SAMAutomaticMaskGenerator(predictor, **GENERATOR)
    spent, records = timed(generator.generate)
    ours = {name: np.array([record[name] for record in records]) for name in FIELDS}
    theirs = {name: expected[f"records/{name}"] for name in FIELDS}
    print(f"  records: {len(records)}, theirs {len(theirs['bbox'])}, {spent:.1f} s")
    if len(records) != len(theirs["bbox"]):
        return False
    masks, wanted = ours["segmentation"], theirs["segmentation"]
    overlap = ((masks & wanted).sum(axis=(1, 2)) / (masks | wanted).sum(axis=(1, 2))).min()
    same = {name: np.array_equal(ours[name], theirs[name]) for name in ("bbox", "point_coords")}
    scores = {
        name: np.abs(ours[name] - theirs[name]).max()
        for name in ("predicted_iou", "stability_score")
    }
    print(
        f"  least overlap {overlap:.6f}; "
        + ", ".join(f"{name} {'equal' if equal else 'OTHERS'}" for name, equal in same.items())
        + "".join(f", {name} within {error:.1e}" for name, error in scores.items())
    )
    return overlap >= OVERLAP and all(same.values()) and max(scores.values()) <= 1e-3


def difference(actual, expected):
    if actual.shape != expected.shape:
        raise ValueError(f"Shapes differ: {actual.shape} and theirs {expected.shape}.")
    return np.abs(actual - expected).max() / np.abs(expected).max()


if __name__ == "__main__":
    sys.exit(main())
