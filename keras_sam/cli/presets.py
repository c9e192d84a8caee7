"""`keras-sam presets`: the built-in presets, and which of them are on this machine."""

import argparse
import json

from keras_sam.cli.output import format_table

HELP = "list the built-in presets"
EXAMPLES = None
DESCRIPTION = """\
Lists the built-in presets. `keras-sam segment --model NAME` downloads the weights of one that is
not cached; for this list nothing is downloaded."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    parser.add_argument("--json", action="store_true", help="print everything known, as JSON")


def run(args: argparse.Namespace) -> int:
    """Prints the table."""
    from keras_sam.presets import list_presets

    presets = list_presets()
    if args.json:
        print(json.dumps(presets, indent=2))
        return 0
    rows = []
    for name, known in presets.items():
        size = f"{known['size'] / 1e6:,.0f} MB"
        rows.append((name, f"{known['parameters']:,}", size, known["cached"] or "no"))
    print(format_table(("name", "parameters", "size", "cached"), rows))
    return 0
