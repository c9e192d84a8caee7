"""Measures this package beside the others that do the same, in one run.

    python tools/benchmark.py --quick                        # small models: shows that it works
    python tools/benchmark.py --cases encoder decoder --backend jax
    python tools/benchmark.py --cases encoder --sides ours Meta --repeats 3 --out results

Each side of a case (ours, Meta's ...) has a process of its own, which prepares once and is then
asked for one repetition after the other, the sides in turn, so that whatever else the machine does
hits all alike. Prints a table in Markdown. Its columns: the median time and its spread; that time
as a multiple of the first side's; the same of the processor's time in all threads, which a busy
machine disturbs less; the seconds of the first call, which may compile; the peak of the process's
resident memory in a repetition, and until it was ready; how far the former is above what the
process held with its model loaded, and above what it held before the repetition (Linux, with freed
memory given back); and what came out. Memory of an accelerator does not count. `--out` also writes
the table, and everything measured as JSON.

Needs the package with its test extra, and `segment-anything-py`, whose weights all sides load:
random ones, of the released models' sizes. Peers are transformers, openvino, onnx with onnxruntime,
and KerasHub, which wants a folder of its own:

    pip install --no-deps --target FOLDER keras-hub
    python tools/benchmark.py --cases encoder --keras-hub FOLDER

What is not installed is left out, and the table says so. Ends with 1 if a side failed.
"""

import argparse
import datetime
import json
import os
import platform
import shlex
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path

from benchmarks import CASES, ON_REQUEST
from benchmarks.case import Job, LeftOut
from benchmarks.table import markdown, summarize
from benchmarks.worker import SideFailed, Worker, work

BACKENDS = ("torch", "jax", "tensorflow", "openvino")
SIZES = ("base", "large", "huge")
PACKAGES = (
    "keras-sam",
    "keras",
    "torch",
    "jax",
    "tensorflow",
    "tensorflow-cpu",
    "openvino",
    "onnxruntime",
    "segment-anything-py",
    "transformers",
    "numpy",
)


class Run:
    """One case: its sides' processes, and what they answered.

    Args:
        job: a `Job`.
        name: str, of the case.
        wanted: optional list of parts of sides' names.
        repeats: optional int, of each side.
    """

    def __init__(self, job, name, wanted=None, repeats=None):
        self.job, self.name, self.case = job, name, CASES[name](job)
        self.sides = [
            side for side in self.case.sides if not wanted or any(part in side for part in wanted)
        ]
        self.repeats = repeats or self.case.repeats
        self.shared: dict = {}
        self.answers: dict[tuple[str, str], list] = {}
        self.left_out: dict[str, str] = {}
        self.failed: dict[str, str] = {}
        self.devices: set[str] = set()
        self._workers: dict[str, Worker] = {}

    def measure(self) -> list[dict]:
        """Times all sides and returns the rows of the table."""
        groups = [self.sides] if self.case.together else [[side] for side in self.sides]
        for sides in groups:
            for side in sides:
                if not self.case.sides[side].restart:
                    self._attempt(side, self._start)
            for _ in range(self.repeats):
                for side in sides:
                    self._attempt(side, self._repeat)
            for side in sides:
                self._stop(side)
        gone = {**self.left_out, **self.failed}
        answers = {key: found for key, found in self.answers.items() if key[1] not in gone}
        return summarize(self.name, self.case, answers)

    def _attempt(self, side, do):
        if side in self.left_out or side in self.failed:
            return
        try:
            do(side)
        except LeftOut as reason:
            self.left_out[side] = str(reason)
        except SideFailed as reason:
            self.failed[side] = f"failed, {reason}"
            self._workers.pop(side, None)

    def _start(self, side):
        print(f"{self.name}: {side}", file=sys.stderr, flush=True)
        worker = Worker(self.job, self.name, self.case, side, self.shared)
        self._workers[side] = worker
        if worker.device:
            self.devices.add(worker.device)

    def _repeat(self, side):
        if side not in self._workers:
            self._start(side)
        for variant in self._workers[side].variants:
            answer = self._workers[side].repeat(variant)
            self.answers.setdefault((variant, side), []).append(answer)
        if self.case.sides[side].restart:
            self._stop(side)

    def _stop(self, side):
        if side in self._workers:
            self._workers.pop(side).stop()


def describe(options) -> dict:
    """When, where and with what the run was made."""
    versions = {name: found for name in PACKAGES if (found := installed(name))}
    for found in distributions(path=[options.keras_hub] if options.keras_hub else []):
        if found.name == "keras-hub":
            versions["keras-hub"] = found.version
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": shlex.join(["python", "tools/benchmark.py", *sys.argv[1:]]),
        "backend": options.backend,
        "quick": options.quick,
        "machine": f"{os.cpu_count()} x {processor()}, {platform.system()}",
        "versions": versions,
    }


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def parse(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    usual = [name for name in CASES if name not in ON_REQUEST]
    parser.add_argument(
        "--cases",
        nargs="+",
        choices=tuple(CASES),
        default=usual,
        metavar="CASE",
        help=f"of {', '.join(CASES)} (default: all but {', '.join(ON_REQUEST)})",
    )
    parser.add_argument(
        "--sides", nargs="+", metavar="PART", help="only sides with one of these in their names"
    )
    parser.add_argument(
        "--backend", choices=BACKENDS, default="torch", help="ours and KerasHub's; Meta's is torch"
    )
    parser.add_argument("--size", choices=SIZES, default="base", help="of the models")
    parser.add_argument("--batch", type=int, default=1, help="images that the encoder gets at once")
    parser.add_argument("--keras-hub", metavar="FOLDER", help="that has keras_hub in it")
    parser.add_argument("--quick", action="store_true", help="small sizes: no figures to quote")
    parser.add_argument("--repeats", type=int, help="of each side (default: as many as suit)")
    parser.add_argument("--out", type=Path, help="folder for benchmark.md and benchmark.json")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main() -> int:
    options = parse()
    if options.worker:
        asked = json.loads(options.worker)
        work(asked["side"], CASES[asked["case"]](Job(**asked["job"])))
        return 0
    options.keras_hub = options.keras_hub and str(Path(options.keras_hub).absolute())
    with tempfile.TemporaryDirectory() as folder:
        job = Job(
            options.backend,
            options.quick,
            "quick" if options.quick else options.size,
            options.batch,
            folder,
            options.keras_hub,
        )
        runs = [Run(job, name, options.sides, options.repeats) for name in options.cases]
        rows = [row for run in runs for row in run.measure()]
    about = describe(options)
    if devices := sorted(set().union(*(run.devices for run in runs))):
        about["machine"] += f", {', '.join(devices)}"
    missing = [
        (run.name, side, reason)
        for run in runs
        for side, reason in {**run.left_out, **run.failed}.items()
    ]
    table = markdown(rows, about, missing)
    print(table)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "benchmark.md").write_text(table)
        measured = {**about, "rows": rows, "missing": missing}
        (options.out / "benchmark.json").write_text(json.dumps(measured, indent=2))
    return 1 if any(run.failed for run in runs) else 0


if __name__ == "__main__":
    sys.exit(main())
