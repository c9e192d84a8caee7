"""The help of every command, as the program itself prints it."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
WIDTH = "78"  # what the page shows without scrolling


def markdown() -> str:
    """A section for each command."""
    sys.path.insert(0, str(ROOT))
    from keras_sam.cli import build_parser  # without Keras

    os.environ["COLUMNS"] = WIDTH
    parser = build_parser()
    (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    parts = [
        f"## keras-sam {name}\n\n```text\n{command.format_help().rstrip()}\n```"
        for name, command in commands.choices.items()
    ]
    return "\n" + "\n\n".join(parts) + "\n"
