"""Click to segment in a notebook.

Needs `pip install "keras-sam[widget]"`: anywidget, which JupyterLab, VS Code, Colab and marimo
show.
"""

from keras_sam.namespaces import lazy_names

_HOMES = {"ClickToSegment": "keras_sam.widget.click_to_segment"}
__all__, __getattr__, __dir__ = lazy_names(globals(), _HOMES)
