"""Converts a SAM checkpoint between the formats of Meta, transformers and this package.

    python tools/convert_checkpoint.py sam_vit_b_01ec64.pth sam_base --to transformers

The source is anything that `from_preset` takes: a file or folder of any supported library, a
built-in name, a `kaggle://` or `hf://` address.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from keras_sam.presets.write import LAYOUTS, convert_checkpoint


def parse(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="file, folder, built-in name or address")
    parser.add_argument("target", help="folder to write; for --to meta, a .safetensors file")
    parser.add_argument("--to", choices=LAYOUTS, default="keras_sam", help="default: keras_sam")
    return parser.parse_args(arguments)


def main(arguments=None) -> int:
    options = parse(arguments)
    try:
        written = convert_checkpoint(options.source, options.target, options.to)
    except (OSError, ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {written}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
