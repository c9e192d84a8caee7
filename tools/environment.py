"""A virtual environment of a tool's own, made at its first run by the standard library alone."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST_PYTHON = (3, 11)


class SetupError(Exception):
    """The environment could not be made; the message says why and what to do."""


def require_python() -> None:
    """Ends the program with one sentence where this Python is too old."""
    if sys.version_info < OLDEST_PYTHON:
        wanted = ".".join(map(str, OLDEST_PYTHON))
        sys.exit(
            f"keras-sam needs Python {wanted} or newer; this is Python {platform.python_version()} "
            f"({sys.executable}). Run the command with a newer one, for example "
            f"python{wanted} {' '.join(sys.argv)}"
        )


class Environment:
    """A virtual environment that is made once and used again while its recipe stays the same.

    Args:
        folder: path. Where it lies; created at the first `ensure`.
        log: path. Receives what pip says.
        say: callable. Gets one line per installation. Defaults to `print`.
    """

    def __init__(self, folder: Path, log: Path, say: Callable[[str], None] = print):
        self.folder = Path(folder).absolute()
        self.log = Path(log).absolute()
        self.say = say

    @property
    def bin(self) -> Path:
        return self.folder / ("Scripts" if os.name == "nt" else "bin")

    @property
    def python(self) -> Path:
        return self.bin / ("python.exe" if os.name == "nt" else "python")

    def ensure(self, recipe: Iterable[str], install: Callable[[Environment], None]) -> None:
        """Makes the environment, unless it is there already and was made by the same recipe.

        Args:
            recipe: strings. Everything that decides what is installed; the Python in use and this
                checkout's place are added.
            install: callable. Fills the fresh environment by calling `pip`.

        Raises:
            SetupError: if the environment cannot be made or a package cannot be installed.
        """
        parts = [sys.version, platform.platform(), str(ROOT), *recipe]
        wanted = hashlib.sha256("\0".join(parts).encode()).hexdigest()
        stamp = self.folder / "recipe.sha256"
        if stamp.is_file() and stamp.read_text() == wanted and self.python.exists():
            return
        self._create()
        install(self)
        stamp.write_text(wanted)  # last: an interrupted installation starts over

    def _create(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.write_text("")
        if self.folder.exists():
            if not (self.folder / "pyvenv.cfg").is_file() and any(self.folder.iterdir()):
                raise SetupError(
                    f"{self.folder} is not a virtual environment; it is left as it is."
                )
            shutil.rmtree(self.folder)
        made = self._logged([sys.executable, "-m", "venv", str(self.folder)])
        if made:
            raise SetupError(
                f"`python -m venv {self.folder}` failed. On Debian and Ubuntu it needs a package "
                f"of its own: apt-get install python3-venv. {self._tail()}"
            )

    def pip(
        self,
        *arguments: str,
        what: str | None = None,
        must: bool = True,
        variables: dict[str, str] | None = None,
    ) -> bool:
        """Runs `pip install` with `arguments`.

        Args:
            arguments: strings, as pip takes them.
            what: string. What to call the installation. Defaults to the arguments.
            must: bool. Raise where it fails. Defaults to `True`.
            variables: optional dict. More environment variables for it.

        Returns:
            bool. Whether pip succeeded.

        Raises:
            SetupError: if it failed and `must` is set.
        """
        started = time.monotonic()
        what = what or " ".join(arguments)
        command = [str(self.python), "-m", "pip", "install", "--disable-pip-version-check"]
        failed = self._logged([*command, "--no-input", "-q", *arguments], variables)
        if not failed:
            self.say(f"installed {what} ({time.monotonic() - started:.0f} s)")
        elif must:
            raise SetupError(f"pip could not install {what}. {self._tail()}")
        return not failed

    def _logged(self, command: list[str], variables: dict[str, str] | None = None) -> int:
        with self.log.open("a") as log:
            log.write(f"$ {' '.join(command)}\n")
            log.flush()
            return subprocess.call(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env=clean(**(variables or {})),
            )

    def _tail(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-30:]
        return "\n".join([f"The end of {self.log}:", *lines])


def clean(**extra: str) -> dict[str, str]:
    """This process's environment variables without those that would leak another Python in."""
    leaks = {"PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV", "KERAS_BACKEND"}
    return {**{k: v for k, v in os.environ.items() if k not in leaks}, **extra}
