#!/usr/bin/env python3
"""Installs each extra into an empty environment and says what it weighs; minutes, and gigabytes.

    python3 tools/measure_extras.py                  all of them
    python3 tools/measure_extras.py jax onnxruntime  some

Prints the table of docs/extras.md. `.` is the package alone, and `test` is left out unless named.
Sizes are those of the installed files, without pip's own and without bytecode. On Linux the
plain wheel of PyTorch brings CUDA along; with the versions of constraints.txt and an index of CPU
builds it does not, as in the checks.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

from environment import ROOT, Environment, SetupError, require_python

NOT_FOR_USERS = ("test",)


def extras() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return list(project["optional-dependencies"])


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("extras", nargs="*", metavar="EXTRA")
    options = parser.parse_args(arguments)
    unknown = set(options.extras) - {".", *extras()}
    if unknown:
        parser.error(f"there are no extras {sorted(unknown)}; there are {', '.join(extras())}")
    return options


def measure(extra: str, folder: Path) -> str:
    """A row of the table."""
    environment = Environment(folder / "venv", folder / "log", say=lambda _: None)
    wanted = str(ROOT) if extra == "." else f"{ROOT}[{extra}]"

    def install(made: Environment) -> None:
        made.pip("--no-compile", "-c", str(ROOT / "constraints.txt"), wanted)

    started = time.monotonic()
    try:
        environment.ensure([], install)
    except SetupError as error:
        return f"| `{extra}` | could not be installed: {str(error).splitlines()[-1]} | | |"
    seconds = time.monotonic() - started
    site = "import sysconfig; print(sysconfig.get_path('purelib'))"
    found = subprocess.run(
        [str(environment.python), "-c", site], capture_output=True, text=True, check=True
    )
    libraries = Path(found.stdout.strip())
    sizes = {
        path.name: sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        for path in libraries.iterdir()
        if path.is_dir() and not path.name.startswith(("pip", "setuptools"))
    }
    packages = len(list(libraries.glob("*.dist-info"))) - 1  # but pip
    largest = ", ".join(
        f"{name} {size / 1e6:.0f}"
        for name, size in sorted(sizes.items(), key=lambda item: -item[1])[:3]
    )
    print(f"{extra}: {seconds:.0f} s", file=sys.stderr)
    return f"| `{extra}` | {packages} | {sum(sizes.values()) / 1e6:.0f} | {largest} |"


def main() -> None:
    require_python()
    options = parse()
    names = options.extras or [".", *(name for name in extras() if name not in NOT_FOR_USERS)]
    print(f"{datetime.date.today()}, Python {platform.python_version()}, {platform.platform()}\n")
    print("| extra | packages | MB | the largest, MB |\n|---|---|---|---|")
    for name in names:
        folder = Path(tempfile.mkdtemp(prefix="extra-"))
        try:
            print(measure(name, folder), flush=True)
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
