"""`ClickToSegment` in JupyterLab in Chromium: its clicks come to Python, and nothing else moves."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request

import nbformat
import pytest
from PIL import Image

pytest.importorskip("jupyterlab", reason="tools/browser.py installs it")
pytest.importorskip("anywidget")

TOKEN = "a-token-of-tests"
SHOW = """\
import keras_sam
widget = keras_sam.widget.ClickToSegment(
    "sam_tiny_demo", ["coins.png", "other.png"], labels=["coin", "hole"]
)
seen = []
widget.observe(lambda change: seen.append(len(change["new"][0])), "objects")
widget"""
READ = """\
(first, second), masks = widget.objects, widget.masks
print("kept", [record["label"] for record in first], masks[0].shape, masks[0].sum() > 300,
      len(second), masks[1].shape, seen, len(widget.to_coco()["annotations"]))"""
# JupyterLab shall ask nobody for news, and nobody whether it may. Its theme is not the browser's.
SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
        "doNotDisturbMode": True,
    },
    "@jupyterlab/apputils-extension:themes": {"theme": "JupyterLab Dark"},
}


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    """The address of a notebook in a JupyterLab of its own, and its folder."""
    data = pytest.importorskip("skimage").data
    place = tmp_path_factory.mktemp("lab")
    folder = place / "notebooks"
    folder.mkdir()
    Image.fromarray(data.coins()).save(folder / "coins.png")
    Image.fromarray(data.coins()[:200]).save(folder / "other.png")
    cells = [nbformat.v4.new_code_cell(text) for text in (SHOW, READ)]
    kernel = {"name": "python3", "display_name": "Python 3"}
    book = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.write(book, folder / "click.ipynb")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += [f"--ServerApp.port={port}", "--ServerApp.port_retries=0", "--ip=127.0.0.1"]
    command += [f"--ServerApp.root_dir={folder}", f"--IdentityProvider.token={TOKEN}"]
    settings = place / "config" / "labconfig" / "default_setting_overrides.json"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps(SETTINGS))
    names = ("config", "data", "runtime")
    own = {f"JUPYTER_{name.upper()}_DIR": str(place / name) for name in names}
    paths = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, **own, "PYTHONPATH": paths, "KERAS_BACKEND": "torch"}
    with open(place / "log", "w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert server.poll() is None, (place / "log").read_text()
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address}/api?token={TOKEN}", timeout=5).close()
                break
            time.sleep(0.1)
        yield f"{address}/doc/tree/click.ipynb?token={TOKEN}"
    finally:
        server.terminate()
        server.wait(30)


def test_clicks_in_a_notebook_come_to_python(notebook, new_page, photograph_of):
    page = new_page(notebook, viewport={"width": 1200, "height": 900})
    page.locator(".jp-Notebook .jp-CodeCell").first.click()
    page.keyboard.press("Shift+Enter")
    page.locator("#photo option").first.wait_for(state="attached")
    page.locator("#progress").wait_for(state="hidden")
    assert page.locator(".widget").evaluate("(e) => getComputedStyle(e).colorScheme") == "dark"
    canvas = page.locator(".segment-canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    scale = min((box["width"] - 24) / 384, (box["height"] - 24) / 303)
    left = box["x"] + (box["width"] - 384 * scale) / 2
    top = box["y"] + (box["height"] - 303 * scale) / 2
    ready = page.locator("#accept:not([disabled])")
    for number, (x, y) in enumerate([(52, 57), (155, 53), (333, 43)], start=1):
        page.mouse.click(left + x * scale, top + y * scale)
        ready.wait_for()
        page.keyboard.press("3")
        if number == 3:
            page.keyboard.press("Shift+Digit2")
        page.keyboard.press("Enter")
        page.locator(f"#objects li:nth-child({number})").wait_for()
    page.keyboard.press("Control+z")
    page.locator("#objects li:nth-child(3)").wait_for(state="detached")
    # Letters are no commands of JupyterLab here: b would make a cell, dd delete this one.
    page.locator("#label-name").click()
    page.keyboard.type("ddabx")
    page.keyboard.press("Enter")
    page.locator(".chip[aria-checked=true]").get_by_text("ddabx").wait_for()
    page.mouse.click(left + 344 * scale, top + 196 * scale)
    ready.wait_for()
    photograph_of(page, "widget")
    page.keyboard.press("Escape")
    for key in ("b", "d", "d", "v", "PageDown"):
        page.keyboard.press(key)
    page.locator("#photo option:checked").get_by_text("other.png").wait_for(state="attached")
    assert page.locator(".jp-Notebook .jp-CodeCell").count() == 2
    page.locator(".jp-CodeCell").last.locator(".cm-content").click()
    page.keyboard.press("Shift+Enter")
    output = page.locator(".jp-OutputArea-output", has_text="kept ['coin'")
    output.wait_for()
    told = output.inner_text().strip()
    assert told == "kept ['coin', 'coin'] (2, 303, 384) True 0 (0, 200, 384) [1, 2, 3, 2] 2"
    assert page.faults == []
