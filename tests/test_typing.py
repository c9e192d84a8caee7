"""What a type checker sees of the package: the stubs are fresh, and a strict project passes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools import stubs

pytestmark = pytest.mark.once

ROOT = Path(__file__).resolve().parent.parent
PROJECT = ROOT / "tests" / "typing" / "project.py"


@pytest.mark.parametrize("space", stubs.lazy_modules())
def test_a_stub_is_what_its_tool_writes(space):
    assert stubs.path_of(space).read_text() == stubs.stub(space), "run python3 tools/stubs.py"


def test_no_stub_is_left_of_a_module_that_needs_none():
    written = {stubs.path_of(space) for space in stubs.lazy_modules()}
    assert {*(ROOT / "keras_sam").rglob("*.pyi")} == written


def test_a_strict_project_passes_and_mistakes_are_seen(tmp_path):
    pytest.importorskip("mypy")
    command = [sys.executable, "-m", "mypy", "--config-file", str(PROJECT.with_name("mypy.ini"))]
    command += ["--cache-dir", str(tmp_path), str(PROJECT)]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
