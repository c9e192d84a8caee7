"""`keras-sam everything --ray`: the photographs of any file system, in the workers of a cluster."""

import argparse
import contextlib
import json
import os
import sys
import time

from keras_sam.cli import model, options
from keras_sam.cli.errors import CommandError, bad_input, one_line, writing
from keras_sam.cli.output import check_output_folder, check_same_settings
from keras_sam.cli.progress import Progress, quiet_stderr
from keras_sam.exported.manifest import is_export

FORMATS = ("parquet", "coco")


class _OnRay(argparse.Action):
    """`--ray`: without an address a cluster of this machine; the results are Parquet then."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, values or "local")
        if namespace.format is None:
            namespace.format = "parquet"


def add_ray_options(parser: argparse.ArgumentParser) -> None:
    """Adds what belongs to `--ray`."""
    group = parser.add_argument_group("many photographs on many machines (see docs/scale.md)")
    group.add_argument(
        "--ray",
        action=_OnRay,
        nargs="?",
        metavar="ADDRESS",
        help="segment in worker processes of Ray: on this machine, or in the cluster at auto, "
        "HOST:PORT or ray://HOST:PORT",
    )
    group.add_argument(
        "--workers",
        type=options.positive_integer,
        metavar="N",
        help="with --ray: worker processes, a model in each (default: what the cluster has room "
        "for)",
    )
    group.add_argument(
        "--worker-cpus",
        type=options.positive_integer,
        metavar="N",
        help="with --ray: processors of each worker (default: 1)",
    )
    group.add_argument(
        "--worker-gpus",
        type=options.positive_number,
        metavar="N",
        help="with --ray: GPUs of each worker, or a part of one (default: none)",
    )


def check_no_ray_options(args: argparse.Namespace) -> None:
    """Raises if what belongs to `--ray` is given without it."""
    for name in ("workers", "worker_cpus", "worker_gpus"):
        if getattr(args, name) is not None:
            raise CommandError(f"--{name.replace('_', '-')} belongs to --ray")
    if args.format == "parquet":
        raise CommandError("--format parquet belongs to --ray")
    for place in (*args.photos, args.out):
        if isinstance(place, str):
            raise CommandError(f"{place}: without --ray, it must be on this machine")


def run(args: argparse.Namespace, parameters: dict, settings: dict) -> int:
    """Segments what is not done yet, and prints a summary however the run ends."""
    _check(args)
    backend = None
    if not is_export(args.model):
        model.check_source(args.model)
        backend = model.choose_backend(args.backend)
    progress = Progress(args.quiet)
    cluster, results_of, source_of, plan_of = _import_ray()
    out = str(args.out)
    with bad_input(), _finding():
        photos = source_of([str(place) for place in args.photos], args.recursive, out)
        first = next(_listed(photos), None)  # a mistake in a source is found before Ray starts
    del first
    names = ("model", "dtype", "image_shape", "mask_threshold", "value_range")
    told = {name: getattr(args, name) for name in names}
    told |= {"backend": backend, "providers": args.provider}
    if os.path.exists(args.model):
        told["model"] = os.path.abspath(args.model)  # workers have folders of their own
    plan = plan_of(told, parameters, args.workers, args.worker_cpus or 1, args.worker_gpus or 0.0)
    # One format: the COCO file is made of the same shards.
    settings = json.loads(json.dumps({**settings, "format": "parquet"}))
    with writing(out), results_of(out) as results:
        earlier = None if args.overwrite else results.read_settings()
        if earlier is not None:
            check_same_settings(args.out, earlier, settings)
        try:
            results.start(settings, args.overwrite)
        except FileExistsError as error:
            raise CommandError(f"--out {args.out}: {error}") from error
        return _run(args, progress, cluster, plan, photos, results)


def _import_ray():
    """What needs Ray or pyarrow, or an error that says how to install them."""
    from keras_sam.ray import cluster

    try:
        cluster.import_ray()
    except ImportError as error:
        raise CommandError(f"--ray: {error}", code=1) from error
    from keras_sam.ray.results import Results
    from keras_sam.ray.run import Plan
    from keras_sam.ray.sources import Source

    return cluster, Results, Source, Plan


def _check(args):
    if args.format not in FORMATS:
        raise CommandError(f"--format {args.format}: --ray writes {' and '.join(FORMATS)}")
    if not isinstance(args.out, str):
        check_output_folder(args.out)
    if args.pictures is not None:
        raise CommandError("--pictures cannot be combined with --ray")
    if args.device is not None:
        raise CommandError(
            "--device cannot be combined with --ray, which chooses: --worker-gpus asks for GPUs"
        )
    gpus = args.worker_gpus or 0
    if gpus > 1 and gpus % 1:
        raise CommandError(f"--worker-gpus must be whole, or a part of one GPU, received {gpus:g}")
    if (args.polygons or args.tolerance) and args.format != "coco":
        raise CommandError("--polygons and --tolerance belong to --format coco")
    if args.tolerance < 0:
        raise CommandError(f"--tolerance must be at least 0, received {args.tolerance}")


def _run(args, progress, cluster, plan, photos, results):
    from keras_sam.ray.run import Run

    began = time.monotonic()
    quiet = contextlib.nullcontext if args.debug else quiet_stderr
    with contextlib.ExitStack() as stack:
        if not args.debug:
            # Ray prints there what it thinks of workers that die; `bar.say` tells of them.
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        try:
            where = "" if args.ray == "local" else f" at {args.ray}"
            needed = (plan.workers or 1) * plan.processors
            with progress.step(f"Starting Ray{where}"), quiet():
                ray = stack.enter_context(cluster.connected(args.ray, needed))
            with progress.bar(None) as bar:
                line = _Line(bar, results)
                job = Run(ray, plan, results, bar.say, line.advance)
                line.run = job
                interrupted = _segment(job, photos, results)
        except cluster.ClusterError as error:
            raise CommandError(f"--ray: {error}", code=1) from error
    if args.format == "coco" and not interrupted:
        results.write_coco(args.polygons, args.tolerance)
    _report(args, job, results, interrupted, time.monotonic() - began)
    if interrupted:
        raise KeyboardInterrupt
    return 2 if job.failed else 0


def _listed(photos):
    """The photographs, as they are found; an error is then not taken for one about results."""
    with _finding():
        yield from photos


@contextlib.contextmanager
def _finding():
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CommandError(f"cannot find the photographs: {error}", code=1) from error


def _segment(job, photos, results):
    """Runs the job; whatever ends it, its finished photographs are kept. Whether it was Ctrl-C."""
    is_complete = False
    try:
        with bad_input():
            job.segment(_listed(photos))
        is_complete = True
    except KeyboardInterrupt:
        return True
    finally:
        results.finish(is_complete)
    return False


class _Line:
    """The line above or instead of the bar: how far a run is."""

    def __init__(self, bar, results):
        self._bar, self._results = bar, results
        self._count, self._began = 0, time.monotonic()
        self._said = self._began
        self.run = None

    def advance(self):
        self._count += 1
        text = f"{self._count:,} photographs, {self.run.failed:,} failed"
        self._bar.describe(text)
        if time.monotonic() - self._said > 60:
            self._said = time.monotonic()
            rate = 60 * self._count / (self._said - self._began)
            self._bar.say(f"{text}, {rate:.0f} a minute", only_in_logs=True)


def _report(args, job, results, interrupted, seconds):
    """Prints the summary to stdout, and to stderr the first photographs that failed."""
    done, masks, failed = results.totals()
    for number, (name, reason) in enumerate(results.failures()):
        if number == 20:
            more = f"{failed - number} more are in failed.parquet"
            print(f"keras-sam everything: not segmented: {more}", file=sys.stderr)
            break
        line = one_line(f"{name}: {reason}")
        print(f"keras-sam everything: not segmented: {line}", file=sys.stderr)
    if args.json:
        summary = {
            "segmented": job.segmented,
            "skipped": job.skipped,
            "failed": failed,
            "interrupted": interrupted,
            "done": done,
            "masks": masks,
            "seconds": round(seconds, 1),
            "format": args.format,
            "out": str(args.out),
        }
        print(json.dumps(summary))
        return
    words = [f"{job.segmented} photographs segmented"]
    if job.skipped:
        words.append(f"{job.skipped} were done before")
    words.append(f"{masks} masks in all")
    if failed:
        words.append(f"{failed} could not be segmented, see failed.parquet")
    if interrupted:
        words.append("interrupted: give the same command again")
    print(f"{'; '.join(words)}. Results: {args.out}")
