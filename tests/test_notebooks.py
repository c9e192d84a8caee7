"""Every notebook of examples/ runs from its first cell to its last, and is stored with results.

They start a kernel each, so they run on one backend: `tools/check.py` takes torch.
"""

import re
from pathlib import Path

import nbclient
import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "examples").glob("*.ipynb"))
SECONDS_PER_CELL = 300
# More than a reader wants to download, and Git to keep.
LARGEST_NOTEBOOK = 3_000_000


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    nbformat.validate(nbformat.read(request.param, as_version=4))
    return request.param


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_it_runs(notebook, tmp_path):
    content = nbformat.read(notebook, as_version=4)
    nbclient.NotebookClient(
        content,
        timeout=SECONDS_PER_CELL,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},  # what it writes is not left in examples/
    ).execute()
    stored = nbformat.read(notebook, as_version=4)
    for fresh, kept in zip(code_cells(content), code_cells(stored), strict=True):
        assert kinds_of_output(fresh) == kinds_of_output(kept), fresh.source


def kinds_of_output(cell):
    """What a cell shows: pictures, values and printed text, not what they say."""
    kinds = [output.get("name") or ", ".join(sorted(output.data)) for output in cell.outputs]
    # Printed text comes in any number of pieces, and warnings differ with the machine.
    return [kind for kind in dict.fromkeys(kinds) if kind != "stderr"]


def test_it_is_stored_as_it_ran(notebook):
    content = nbformat.read(notebook, as_version=4)
    counts = [cell.execution_count for cell in code_cells(content)]
    assert counts == list(range(1, len(counts) + 1))
    assert notebook.stat().st_size < LARGEST_NOTEBOOK
    shown = [output for cell in code_cells(content) for output in cell.outputs]
    assert all(output.output_type != "error" and output.get("name") != "stderr" for output in shown)
    assert any("image/png" in output.get("data", {}) for output in shown)
    text = "".join(str(output.get("text", "")) for output in shown)
    assert not re.search(r"/(home|Users|root|tmp|work)/", text), "a path of the writer's machine"
