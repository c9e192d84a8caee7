#!/usr/bin/env python3
"""Runs everything that has to hold before a change lands; makes the environment it needs itself.

    python3 tools/check.py                     everything
    python3 tools/check.py --list              the steps' names
    python3 tools/check.py --only jax lint     some of them

The environment and the steps' full logs are kept in `.check/`. The exit code is 0 only if every
step passed; the last line counts what ran.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree
from collections import Counter
from pathlib import Path

from environment import ROOT, Environment, SetupError, clean, require_python

# Test files that need to run only once, because they start processes of their own or read sources.
RUN_ONCE = (
    "tests/presets/test_clients.py",
    "tests/test_benchmark.py",
    "tests/test_imports.py",
    "tests/test_openvino.py",
    "tests/test_tools.py",
)
# The backends, and the released code, which is no part of the test extra: where one is missing,
# tests would be skipped instead of failing.
ORACLES = """
import jax, openvino, tensorflow, torch
from importlib.metadata import version
# These import torchvision, and some timm, for which the tests have stand-ins.
for name in ("segment-anything-py", "mobilesam-mirror", "segment-anything-hq", "sam2"):
    version(name)
"""
# What compiles every shape takes longest: in some steps, it fills the machine.
PARTS = {
    "parity": ("the comparisons with the peers", ("tests/parity",)),
    "model": ("layers and models", ("tests/backends", "tests/layers", "tests/models")),
}
# Programs that run once are made by XLA in half the time without its optimizations. Parity on JAX
# is tested with what users get.
QUICK_XLA = {"XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"}
# What XLA has compiled for one test of a step, the next ones load: many make the same small model.
# Each run starts with none, so that every program was made by the code under test.
KEPT_PROGRAMS = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
# Tests marked `once` show the same on every backend: torch, which compiles nothing, runs them.
EVERY_BACKEND = ("-m", "not package and (not once or every_backend)")
SNIPPETS = "tests/test_snippets.py"
NOTEBOOKS = "tests/test_notebooks.py"
PACKAGE = "tests/test_wheel.py"
BROWSER = "tests/browser"
ONCE = (*RUN_ONCE, SNIPPETS, NOTEBOOKS, PACKAGE, BROWSER)
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
STEP_LIMIT_SECONDS = 65 * 60
HEARTBEAT_SECONDS = 60
SLOWEST_FILES = 25  # named at the end


@dataclasses.dataclass(frozen=True)
class Step:
    """One thing that must hold.

    Args:
        name: string. What `--only` calls it.
        about: string. One line for `--list`.
        commands: lists of strings, run one after another; the word `{python}` is the environment's.
        variables: dict. Environment variables of the commands.
        pytest: bool. Whether the last command is a pytest run whose tests are counted. It does not
            start after one that failed.
        minutes: float. Rough duration; long steps start first.
    """

    name: str
    about: str
    commands: tuple[tuple[str, ...], ...]
    variables: dict[str, str] = dataclasses.field(default_factory=dict)
    pytest: bool = True
    minutes: float = 1.0


@dataclasses.dataclass
class Result:
    """What one step came to."""

    name: str
    passed: int
    failed: int
    skipped: Counter
    seconds: float
    reason: str = ""
    files: Counter = dataclasses.field(default_factory=Counter)  # seconds of each file's tests


def pytest_step(name: str, about: str, *arguments: str, minutes: float = 1.0, **variables: str):
    command = ("{python}", "-m", "pytest", "-q", "--durations=10", "-p", "no:cacheprovider")
    return Step(name, about, ((*command, *arguments),), variables, minutes=minutes)


def compiled_steps(backend: str, minutes: dict[str, float], **variables: str):
    """The steps of a backend that compiles; `variables` are not for parity."""
    for part, (about, paths) in PARTS.items():
        yield pytest_step(
            f"{backend}-{part}",
            f"{about} on the {backend} backend",
            f"--backend={backend}",
            *EVERY_BACKEND,
            *paths,
            minutes=minutes[part],
            **(variables if part != "parity" else {}),
        )
    elsewhere = [path for _, paths in PARTS.values() for path in paths]
    yield pytest_step(
        backend,
        f"all other unit tests on the {backend} backend",
        f"--backend={backend}",
        *EVERY_BACKEND,
        *left_out(*ONCE, *elsewhere),
        "tests",
        minutes=minutes["others"],
        **variables,
    )


def browser_step() -> Step:
    """What the tests need is no part of the environment: a browser is the system's."""
    tests = pytest_step(
        "browser",
        "pages and widget in Chromium, which apt-get installs; their pictures: .check/browser/",
        "--backend=torch",
        BROWSER,
        minutes=3.5,
    )
    return dataclasses.replace(tests, commands=(("{python}", "tools/browser.py"), *tests.commands))


def left_out(*names: str) -> list[str]:
    return [f"--ignore={name}" for name in names]


def all_steps() -> list[Step]:
    return [
        Step(
            "lint",
            "ruff's rules and formatting",
            (
                ("{python}", "-m", "ruff", "check", "."),
                ("{python}", "-m", "ruff", "format", "--check", "."),
            ),
            pytest=False,
            minutes=0.1,
        ),
        pytest_step(
            "structure",
            "who may import whom, the tools' own tests, and the backend that only predicts",
            *RUN_ONCE,
            minutes=5.5,
            **QUICK_XLA,
        ),
        pytest_step(
            "torch",
            "unit and parity tests on the torch backend",
            "--backend=torch",
            *left_out(*ONCE),
            "tests",
            minutes=20.0,
            **QUICK_XLA,  # of the processes that tests start
        ),
        *compiled_steps("jax", {"parity": 2.0, "model": 4.0, "others": 13.0}, **QUICK_XLA),
        *compiled_steps("tensorflow", {"parity": 1.0, "model": 4.0, "others": 14.0}),
        pytest_step(
            "snippets",
            "the examples of the README, the docs and the docstrings, and the notebooks",
            "--backend=torch",  # compiles nothing, so short runs are quickest
            SNIPPETS,
            NOTEBOOKS,
            minutes=2.5,
        ),
        Step(
            "oracles",
            "the backends and Meta's code are installed, so that no test is skipped for them",
            (("{python}", "-c", ORACLES),),
            pytest=False,
            minutes=0.2,
        ),
        pytest_step(
            "package",
            "the wheel and the demo, each in an empty environment",
            "-m",
            "package",
            PACKAGE,
            minutes=1.7,
        ),
        browser_step(),
        Step(
            "docs",
            "the documentation site, without broken links, in an environment of its own",
            (("{python}", "tools/docs.py"),),
            pytest=False,
            minutes=1.0,
        ),
    ]


def install(environment: Environment) -> None:
    """Fills the environment: PyTorch first, so that nothing else can pull another build of it."""
    pinned = ("-c", str(ROOT / "constraints.txt"))
    version = re.search(r"^torch==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M)[1]
    install_torch(environment, version)
    plain_x86 = platform.machine().lower() in ("x86_64", "amd64") and sys.platform != "darwin"
    tensorflow = "tensorflow-cpu" if plain_x86 else "tensorflow"
    environment.pip(*pinned, tensorflow, "jax", "openvino", what=f"{tensorflow}, jax, openvino")
    extras = "keras,kaggle,hub,plot,train,export,annotate,widget,tiff,geo,ray,test"
    environment.pip(*pinned, "-e", f".[{extras}]", what="keras-sam and the test oracles")
    # They ask for an unpinned torchvision, which would replace the torch that is installed.
    for oracle in ("segment-anything-py", "mobilesam-mirror", "segment-anything-hq"):
        environment.pip(*pinned, "--no-deps", oracle, what=oracle)
    # Its build asks for a torch of its own, and for CUDA, for an extension that no test needs.
    environment.pip("setuptools", "wheel", what="what builds sam2")
    alone = ("--no-deps", "--no-build-isolation")
    environment.pip(*pinned, *alone, "sam2", what="sam2", variables={"SAM2_BUILD_CUDA": "0"})


def install_torch(environment: Environment, version: str) -> None:
    """Installs the CPU build: on Linux the plain wheel brings gigabytes of CUDA along."""
    if sys.platform.startswith("linux"):
        cpu = f"torch=={version}+cpu"
        if environment.pip(cpu, what=cpu, must=False):
            return
        quick = ("--timeout", "15", "--retries", "1")
        if environment.pip(cpu, "--extra-index-url", TORCH_CPU_INDEX, *quick, what=cpu, must=False):
            return
    environment.pip(f"torch=={version}", what=f"torch {version}")


class Runner:
    """Runs steps in child processes, some at a time, and collects what they come to."""

    def __init__(self, python: Path, logs: Path, jobs: int, limit: float = STEP_LIMIT_SECONDS):
        self.python, self.logs, self.jobs, self.limit = str(python), Path(logs), jobs, limit
        self.started = time.monotonic()
        self._running: dict[str, subprocess.Popen] = {}
        self._lock = threading.Lock()
        self._stopping = False

    def run(self, steps: list[Step]) -> list[Result]:
        """Runs all steps, the longest first, and reports each as it ends."""
        quiet = threading.Event()
        threading.Thread(target=self._heartbeat, args=(quiet,), daemon=True).start()
        order = sorted(steps, key=lambda step: -step.minutes)
        results = []
        try:
            with concurrent.futures.ThreadPoolExecutor(self.jobs) as pool:
                for future in concurrent.futures.as_completed(
                    [pool.submit(self.one, s) for s in order]
                ):
                    results.append(future.result())
                    self.report(results[-1])
        except BaseException:
            self._stopping = True
            self._stop_all()
            raise
        finally:
            quiet.set()
        return results

    def one(self, step: Step) -> Result:
        """Runs one step to its end, in a process group of its own."""
        if self._stopping:
            return Result(step.name, 0, 1, Counter(), 0.0, "not started: the run was stopped")
        began = time.monotonic()
        self.logs.mkdir(parents=True, exist_ok=True)
        counts = self.logs / f"{step.name}.xml"
        counts.unlink(missing_ok=True)
        shutil.rmtree(self.programs(step), ignore_errors=True)
        reasons = []
        with self.log(step.name).open("w") as log:
            for command in step.commands:
                is_last = command is step.commands[-1]
                command = [self.python if word == "{python}" else word for word in command]
                if step.pytest and is_last:
                    command.append(f"--junitxml={counts}")
                log.write(f"$ {' '.join(command)}\n")
                log.flush()
                reasons.append(self._call(step, command, log))
                if step.pytest and reasons[-1]:
                    break
        seconds = time.monotonic() - began
        if step.pytest:
            return count_tests(step.name, counts, reasons[-1], seconds)
        failed = [reason for reason in reasons if reason]
        return Result(
            step.name,
            len(reasons) - len(failed),
            len(failed),
            Counter(),
            seconds,
            "; ".join(failed),
        )

    def _call(self, step: Step, command: list[str], log) -> str:
        """Runs one command; an empty string says that it succeeded."""
        share = max(1, (os.cpu_count() or 1) // self.jobs)
        variables = clean(
            TF_CPP_MIN_LOG_LEVEL="3",
            KERAS_HOME=str(self.logs.parent / "keras"),  # not the user's own settings
            OMP_NUM_THREADS=str(share),
            PYTHONUNBUFFERED="1",
            PYTEST_DISABLE_PLUGIN_AUTOLOAD="1",  # importing them all takes three seconds
            JAX_COMPILATION_CACHE_DIR=str(self.programs(step)),
            **KEPT_PROGRAMS,
            **step.variables,
        )
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=os.name != "nt",
        )
        with self._lock:
            self._running[step.name] = process
        try:
            code = process.wait(self.limit)
        except subprocess.TimeoutExpired:
            stop(process)
            return f"stopped after {self.limit:.0f} s"
        finally:
            with self._lock:
                del self._running[step.name]
        if code < 0:
            return f"killed by signal {-code}"
        return f"exit code {code}" if code else ""

    def _stop_all(self) -> None:
        with self._lock:
            processes = list(self._running.values())
        for process in processes:
            stop(process)

    def _heartbeat(self, quiet: threading.Event) -> None:
        while not quiet.wait(HEARTBEAT_SECONDS):
            with self._lock:
                names = sorted(self._running)
            print(f"[{self.clock()}] still running: {', '.join(names)}", flush=True)

    def report(self, result: Result) -> None:
        """One line for a step that passed; the end of its log as well for one that did not."""
        words = f"{result.passed} passed, {result.failed} failed"
        if result.skipped:
            words += f", {sum(result.skipped.values())} skipped"
        if result.reason:
            words += f" ({result.reason})"
        verdict = "FAIL" if result.failed else "ok"
        line = f"{result.name:<17} {verdict:<5} {words} in {result.seconds:.0f} s"
        print(f"[{self.clock()}] {line}", flush=True)
        if result.failed and self.log(result.name).is_file():
            lines = self.log(result.name).read_text(errors="replace").splitlines()
            print(f"----- the end of {self.log(result.name)} ({len(lines)} lines)")
            print("\n".join(lines[-150:]))
            print("-----", flush=True)

    def programs(self, step: Step) -> Path:
        """A folder of the step's own: two processes at once might meet half a file."""
        return self.logs.parent / "programs" / step.name

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def clock(self) -> str:
        seconds = int(time.monotonic() - self.started)
        return f"{seconds // 60:3d}:{seconds % 60:02d}"


def stop(process: subprocess.Popen) -> None:
    """Ends a process and everything that it started."""
    if process.poll() is not None:
        return
    if os.name == "nt":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def count_tests(name: str, counts: Path, reason: str, seconds: float) -> Result:
    """Reads pytest's own account; whatever went wrong outside a test counts as one failure more."""
    passed = failed = 0
    skipped: Counter = Counter()
    files: Counter = Counter()
    try:
        cases = list(xml.etree.ElementTree.parse(counts).iter("testcase"))
    except (OSError, xml.etree.ElementTree.ParseError) as error:
        cases = []
        reason = reason or f"no account of its tests ({error})"
    for case in cases:
        files[case.get("classname", "").removeprefix("tests.")] += float(case.get("time", 0))
        if case.find("failure") is not None or case.find("error") is not None:
            failed += 1
        elif case.find("skipped") is not None:
            skipped[case.find("skipped").get("message", "")] += 1
        else:
            passed += 1
    if not passed and not failed:
        reason = reason or "no test ran"
    if reason and not failed:
        failed = 1
    return Result(name, passed, failed, skipped, seconds, reason, files)


def summarize(results: list[Result]) -> int:
    """Prints what took longest, why tests were skipped, which steps failed and the counts.

    Gives the exit code.
    """
    longest = Counter({(r.name, file): s for r in results for file, s in r.files.items()})
    for (step, file), seconds in longest.most_common(SLOWEST_FILES):
        print(f"{seconds:5.0f} s in {step}: {file}")
    for result in results:
        for why, count in sorted(result.skipped.items()):
            print(f"skipped in {result.name}: {count} x {why}")
    bad = [result.name for result in results if result.failed]
    if bad:
        print(f"failed steps: {', '.join(sorted(bad))}")
    passed, failed = (sum(getattr(r, key) for r in results) for key in ("passed", "failed"))
    print(f"{passed} passed, {failed} failed", flush=True)
    return 1 if failed or not passed else 0


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    names = [step.name for step in all_steps()]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="show the steps and stop")
    parser.add_argument(
        "--only", nargs="+", choices=names, metavar="STEP", help="run these steps only"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="steps at a time")
    parser.add_argument("--folder", type=Path, default=ROOT / ".check", help="environment and logs")
    return parser.parse_args(arguments)


def main() -> int:
    require_python()
    options = parse()
    steps = [step for step in all_steps() if not options.only or step.name in options.only]
    if options.list:
        print("\n".join(f"{step.name:<17} {step.about}" for step in steps))
        return 0
    started = time.monotonic()
    folder = options.folder.absolute()
    environment = Environment(folder / "venv", folder / "logs" / "setup.log")
    recipe = [(ROOT / name).read_text() for name in ("pyproject.toml", "constraints.txt")]
    try:
        environment.ensure(recipe, install)
    except SetupError as error:
        print(error)
        print("0 passed, 1 failed", flush=True)
        return 1
    jobs = max(1, min(options.jobs, len(steps)))
    print(f"environment ready after {time.monotonic() - started:.0f} s")
    print(f"{len(steps)} steps, {jobs} at a time", flush=True)
    return summarize(Runner(environment.python, folder / "logs", jobs).run(steps))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("stopped")
