"""The widget's JavaScript: the files of the page, as the one module that notebooks load."""

from __future__ import annotations

import json
import re
from pathlib import Path

from keras_sam import annotate

_STATIC = Path(annotate.__file__).parent / "static"
_FILES = ("canvas.js", "editor.js", "widget.js")  # each needs those before it alone
_IMPORT = re.compile(r'^import \{[^}]*\} from "\./([\w.]+)";\n', re.M)


def read_module() -> str:
    """The text of the module.

    A notebook takes one module, which could not find others by their addresses. So the files follow
    each other, without their imports: names of one module see each other.
    """
    page = (_STATIC / "index.html").read_text(encoding="utf-8")
    markup = re.search(r"<body[^>]*>(.*)</body>", page, re.S)[1]
    style = (_STATIC / "page.css").read_text(encoding="utf-8")
    parts = [f"const MARKUP = {json.dumps(markup)};", f"const STYLE = {json.dumps(style)};"]
    for name in _FILES:
        parts.append(_IMPORT.sub("", (_STATIC / name).read_text(encoding="utf-8")))
    return "\n".join(parts)
