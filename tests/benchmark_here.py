"""`tools/benchmark.py` for one list of words after another, with all sides in this one process.

    python tests/benchmark_here.py FOLDER

Importing the frameworks takes a process longer than all that it does with small models. A line of
stdin holds the words of one run, as JSON, and a line of stdout its exit code and what it printed.
The files that sides share are written into the folder, once for all runs.
"""

import contextlib
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tools"), str(ROOT)]

import benchmark  # noqa: E402
from benchmarks import files  # noqa: E402
from benchmarks.worker import Prepared, Worker  # noqa: E402

ANSWER = "@@ "  # before an answer, for libraries print, too


def side_here(job, name, case, side, shared):
    """In this process, unless variables of the environment make the side what it is."""
    if case.sides[side].variables.keys() - {"KERAS_SAM_OPENVINO_PRECISION"}:
        return Worker(job, name, case, side, shared)
    with contextlib.redirect_stdout(sys.stderr):
        return Prepared(case, side, shared)


def write_here(path, job):
    with contextlib.redirect_stdout(sys.stderr):
        files.write(path, job.size, job.batch)


def main(folder):
    benchmark.Worker = side_here
    files.write_apart = write_here
    # A run's folder goes with it, this one stays.
    benchmark.tempfile = SimpleNamespace(TemporaryDirectory=lambda: contextlib.nullcontext(folder))
    for line in sys.stdin:
        sys.argv[1:] = json.loads(line)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            code = benchmark.main()
        print(ANSWER + json.dumps([code, printed.getvalue()]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
