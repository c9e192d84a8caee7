"""Measures this package beside the others that do the same, in one run.

    python tools/benchmark.py --quick                        # small models: shows that it works
    python tools/benchmark.py --cases everything --backend jax
    python tools/benchmark.py --cases rle memory --out results

Each side of a case (ours, Meta's ...) has a process of its own, which prepares once and is then
asked for one repetition after the other, the sides in turn, so that whatever else the machine does
hits all alike. Prints a table in Markdown: median seconds, their spread, the ratio to ours; the
same of the processor's time in all threads, which a busy machine disturbs less; the peak of the
process's resident memory (Linux; its preparation is not counted), and what came out. `--out` also
writes it, and everything measured as JSON. Needs the package with its test extra, and
`segment-anything-py`. Weights are random, of the released models' sizes.

A case is a function in `CASES` that returns its sides; a side is a function that prepares and
returns the function to be timed.
"""

import argparse
import dataclasses
import functools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BACKENDS = ("torch", "jax", "tensorflow")
PHOTO = (1200, 1800)
QUICK_PHOTO = (150, 225)
ANSWER = "@@ "  # before a worker's answers, for libraries print, too
PACKAGES = ("keras", "torch", "jax", "tensorflow", "numpy", "segment-anything-py")


@dataclasses.dataclass(frozen=True)
class Case:
    """Something that several sides can do.

    Args:
        about: str, for the table.
        sides: dict from a side's name to what prepares it: a function of `(options, shared)` that
            returns the function to be timed. That returns a dict of facts about its result. In
            `shared`, a dict, a side finds what those before it have put there, ready for JSON.
        repeats: int. How often each side is timed.
        together: bool. False runs one side after the other, each process alone in memory.
        model: bool. Whether the sides load `options.checkpoint`.
    """

    about: str
    sides: dict[str, Callable]
    repeats: int = 5
    together: bool = True
    model: bool = True


# --- what the sides share ---


def photograph(options):
    from tests.tiny import photograph

    return photograph(QUICK_PHOTO if options.quick else PHOTO)


def meta_code():
    from tests.meta_oracle import import_segment_anything

    return import_segment_anything()


def write_checkpoint(folder: Path, quick: bool) -> str:
    """A `.pth` of random weights by Meta's code, of ViT-B's size or a small one."""
    path = folder / "sam.pth"
    if not path.exists():
        meta_code()
        import torch

        torch.manual_seed(0)
        torch.save(meta_model(quick).state_dict(), path)
    return str(path)


def write_checkpoint_elsewhere(folder: str, quick: bool) -> None:
    """The same in a process of its own, for this one imports nothing heavy."""
    code = f"import benchmark as b; b.write_checkpoint(b.Path({folder!r}), {quick})"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tools'}"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def meta_model(quick):
    """Meta's own ViT-B, or the same code with small sizes, which `from_preset` recognises."""
    segment_anything = meta_code()
    if not quick:
        return segment_anything.sam_model_registry["vit_b"]()
    from tests.meta_oracle import small_meta

    return small_meta()


def our_segmenter(options):
    import keras_sam

    return keras_sam.SAMImageSegmenter.from_preset(options.checkpoint)


# --- everything: all masks of a photograph ---

# A third of the candidates is good enough, as of trained weights on a photograph. No mask is
# dropped for its stability: that of random weights' masks is arbitrary.
GOOD_ENOUGH = 1 / 3


def everything_settings(options, shared):
    return {
        "points_per_side": 4 if options.quick else 16,
        "pred_iou_thresh": shared["pred_iou_thresh"],
        "stability_score_thresh": 0.0,
        "output_mode": "uncompressed_rle",
    }


def everything_ours(options, shared):
    import numpy as np

    import keras_sam

    image, segmenter = photograph(options), our_segmenter(options)
    settings = everything_settings(options, {"pred_iou_thresh": 2.0})
    generator = keras_sam.SAMAutomaticMaskGenerator(segmenter, **settings)
    # The first run compiles, and finds the threshold that a third of the candidates exceeds.
    records = generator.generate(image, keep_candidates=True)
    scores = np.concatenate(
        [batch.scores.reshape(-1) for _, batches in records.candidates.crops() for batch in batches]
    )
    shared["pred_iou_thresh"] = float(np.quantile(scores, 1 - GOOD_ENOUGH))
    settings = everything_settings(options, shared)
    generator = keras_sam.SAMAutomaticMaskGenerator(segmenter, **settings)
    good = int((scores > shared["pred_iou_thresh"]).sum())

    def run():
        return {"candidates": len(scores), "good": good, "records": len(generator.generate(image))}

    return run


def everything_meta(options, shared):
    segment_anything = meta_code()
    import torch

    image, model = photograph(options), meta_model(options.quick)
    model.load_state_dict(torch.load(options.checkpoint, weights_only=True))
    settings = everything_settings(options, shared)
    generator = segment_anything.SamAutomaticMaskGenerator(model.eval(), **settings)
    return lambda: {"records": len(generator.generate(image))}


def everything(options):
    points = "16" if options.quick else "256"
    return Case(
        f"all masks of a photograph, {points} points",
        {"ours": everything_ours, "Meta": everything_meta},
        repeats=2 if options.quick else 3,
    )


# --- rle: run lengths of many masks ---


def masks(options):
    """Bool `(M, H0, W0)`: blobs of all sizes, as a model makes them, from logits of 256 x 256."""
    import numpy as np

    from keras_sam.geometry import ResizePlan

    rng = np.random.default_rng(0)
    size = QUICK_PHOTO if options.quick else PHOTO
    plan, side = ResizePlan(size, 1024), 256
    y, x = np.mgrid[:side, :side]
    high = side * size[0] / max(size)
    stack = np.empty((8 if options.quick else 64, *size), bool)
    for mask in stack:
        radius = np.exp(rng.uniform(np.log(6), np.log(90)))
        angle = np.arctan2(y - (cy := rng.uniform(0, high)), x - (cx := rng.uniform(0, side)))
        waves = sum(
            rng.normal(0, 0.4 / n) * np.cos(n * angle + rng.uniform(0, 6)) for n in (2, 3, 5)
        )
        noise = 0.02 * rng.standard_normal((side, side))
        logits = 1 + waves + noise - np.hypot(x - cx, y - cy) / radius
        mask[:] = plan.masks_to_original(logits.astype("float32")) > 0
    return stack


def rle_ours(options, shared):
    from keras_sam.masks import encode_rle

    stack = masks(options)
    return lambda: {"runs": count_runs(encode_rle(stack, compressed=False))}


def rle_meta(options, shared):
    meta_code()
    import torch
    from segment_anything.utils.amg import mask_to_rle_pytorch

    stack = torch.from_numpy(masks(options))
    return lambda: {"runs": count_runs(mask_to_rle_pytorch(stack))}


def rle_pycocotools(options, shared):
    import numpy as np
    from pycocotools import mask as coco

    stack = masks(options)

    def run():
        fortran = np.asfortranarray(stack.transpose(1, 2, 0).view("uint8"))
        return {"strings": len(coco.encode(fortran))}

    return run


def count_runs(rles):
    return sum(len(rle["counts"]) for rle in rles)


def rle(options):
    count, (h, w) = (8, QUICK_PHOTO) if options.quick else (64, PHOTO)
    return Case(
        f"run lengths of {count} masks of {h} x {w}",
        {"ours": rle_ours, "Meta": rle_meta, "pycocotools": rle_pycocotools},
        repeats=15,
        model=False,
    )


# --- memory: of the generator, by the number of points ---


def memory_encode(options, shared):
    import keras_sam

    image, predictor = photograph(options), keras_sam.SAMPredictor(our_segmenter(options))

    def run():
        predictor.set_image(image)
        return {}

    return run


def memory_points(points, options, shared):
    import keras_sam

    image, segmenter = photograph(options), our_segmenter(options)
    generator = keras_sam.SAMAutomaticMaskGenerator(
        segmenter,
        points_per_side=points,
        pred_iou_thresh=0.0,
        stability_score_thresh=0.0,
        output_mode="coco_rle",
    )
    return lambda: {"candidates": 3 * points**2, "records": len(generator.generate(image))}


def memory(options):
    """Every candidate survives the thresholds, which is the most that can be in memory."""
    sides = {"set_image alone": memory_encode}
    for points in (2, 4) if options.quick else (8, 16, 32):
        sides[f"{points} x {points} points"] = functools.partial(memory_points, points)
    return Case("peak memory of the generator", sides, repeats=1, together=False)


CASES = {"everything": everything, "rle": rle, "memory": memory}


# --- a side's process ---


def work(options) -> None:
    """Prepares a side, then answers each line of stdin with one repetition."""
    sys.path.insert(0, str(ROOT))
    prepare = CASES[options.cases[0]](options).sides[options.side]
    shared = json.loads(sys.stdin.readline())
    run = prepare(options, shared)
    say({"shared": shared})
    reset_peak()
    for _ in sys.stdin:
        began, worked = time.perf_counter(), time.process_time()
        facts = run()
        seconds, cpu = time.perf_counter() - began, time.process_time() - worked
        say({"seconds": seconds, "cpu_seconds": cpu, "facts": facts, "peak": peak_bytes()})


def say(answer) -> None:
    print(ANSWER + json.dumps(answer), flush=True)


def reset_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # the preparation then counts


def peak_bytes() -> int | None:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


class Worker:
    """A side's process, ready to be timed."""

    def __init__(self, options, case: str, side: str, checkpoint: str, shared: dict):
        command = [sys.executable, __file__, "--worker", "--cases", case, "--side", side]
        command += ["--checkpoint", checkpoint, *(["--quick"] if options.quick else [])]
        environment = {
            **os.environ,
            "KERAS_BACKEND": options.backend,
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "PYTHONUNBUFFERED": "1",
        }
        self.name = f"{case}, {side}"
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        shared.update(self._ask(json.dumps(shared))["shared"])

    def repeat(self) -> dict:
        return self._ask("once")

    def stop(self) -> None:
        self.process.stdin.close()
        self.process.wait()

    def _ask(self, line):
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended, which reading finds out
        for answer in self.process.stdout:
            if answer.startswith(ANSWER):
                return json.loads(answer.removeprefix(ANSWER))
        sys.exit(f"benchmark: {self.name} ended with exit code {self.process.wait()}, see above")


# --- the run ---


def measure(options, name: str, checkpoint: str) -> list[dict]:
    """Times all sides of a case, in turn. Returns a row of the table for each."""
    case = CASES[name](options)
    repeats = options.repeats or case.repeats
    shared: dict = {}
    answers: dict[str, list] = {}
    workers = {}
    for side in case.sides:
        worker = Worker(options, name, side, checkpoint, shared)
        if case.together:
            workers[side] = worker
        else:
            answers[side] = [worker.repeat() for _ in range(repeats)]
            worker.stop()
    for _ in range(repeats if case.together else 0):
        for side, worker in workers.items():
            answers.setdefault(side, []).append(worker.repeat())
    for worker in workers.values():
        worker.stop()
    first = next(iter(answers))
    rows = [summarize(name, case, side, found) for side, found in answers.items()]
    for row in rows:
        row["ratio"] = row["seconds"] / rows[0]["seconds"]
        row["cpu_ratio"] = row["cpu_seconds"] / rows[0]["cpu_seconds"]
        row["first"] = first
        if None not in (row["peak"], rows[0]["peak"]):
            row["peak_above_first"] = row["peak"] - rows[0]["peak"]
    return rows


def summarize(name, case, side, found):
    seconds = [answer["seconds"] for answer in found]
    return {
        "case": name,
        "about": case.about,
        "side": side,
        "repeats": len(seconds),
        "seconds": statistics.median(seconds),
        "cpu_seconds": statistics.median(answer["cpu_seconds"] for answer in found),
        "fastest": min(seconds),
        "slowest": max(seconds),
        "peak": found[-1]["peak"],
        "facts": found[-1]["facts"],
    }


def markdown(rows: list[dict], about: dict) -> str:
    lines = [
        f"{about['machine']}; {', '.join(f'{k} {v}' for k, v in about['versions'].items())}; "
        f"ours on {about['backend']}",
    ]
    for name in dict.fromkeys(row["case"] for row in rows):
        of_case = [row for row in rows if row["case"] == name]
        first = of_case[0]["first"]
        lines += [
            "",
            f"### {name}: {of_case[0]['about']}, median of {of_case[0]['repeats']}",
            "",
            f"| | seconds | fastest..slowest | times `{first}` | CPU seconds | times `{first}` "
            f"| peak GB | above `{first}`, MB | |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for row in of_case:
            spread = f"{row['fastest']:.3g}..{row['slowest']:.3g}"
            known = row["peak"] is not None
            peak = f"{row['peak'] / 1e9:.2f}" if known else "?"
            above = f"{row['peak_above_first'] / 1e6:.0f}" if known else "?"
            facts = ", ".join(f"{value:,} {key}" for key, value in row["facts"].items())
            times = f"{row['seconds']:.3g} | {spread} | {row['ratio']:.1f}"
            cpu_times = f"{row['cpu_seconds']:.3g} | {row['cpu_ratio']:.1f}"
            lines.append(f"| {row['side']} | {times} | {cpu_times} | {peak} | {above} | {facts} |")
    return "\n".join(lines) + "\n"


def describe(options) -> dict:
    return {
        "backend": options.backend,
        "quick": options.quick,
        "machine": f"{os.cpu_count()} x {processor()}, {platform.system()}",
        "versions": {name: found for name in PACKAGES if (found := installed(name))},
    }


def processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def installed(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def parse(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=tuple(CASES), default=list(CASES))
    parser.add_argument(
        "--backend", choices=BACKENDS, default="torch", help="ours; Meta's is torch"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes: no figures to quote")
    parser.add_argument("--repeats", type=int, help="of each side (default: as many as suit)")
    parser.add_argument("--out", type=Path, help="folder for benchmark.md and benchmark.json")
    parser.add_argument("--checkpoint", help=argparse.SUPPRESS)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main() -> int:
    options = parse()
    if options.worker:
        work(options)
        return 0
    sys.path.insert(0, str(ROOT))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        if any(CASES[name](options).model for name in options.cases):
            write_checkpoint_elsewhere(folder, options.quick)
        for name in options.cases:
            rows += measure(options, name, str(Path(folder) / "sam.pth"))
    table = markdown(rows, describe(options))
    print(table)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "benchmark.md").write_text(table)
        everything_measured = {**describe(options), "rows": rows}
        (options.out / "benchmark.json").write_text(json.dumps(everything_measured, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
