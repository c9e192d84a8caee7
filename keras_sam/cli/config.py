"""Options from a TOML file, for every command: `--config FILE.toml`."""

import argparse
import tomllib
from pathlib import Path

from keras_sam.cli.errors import CommandError

# Arguments that every command has; none of them is a setting.
GENERAL = ("command", "config", "config_file", "debug", "help", "parser", "quiet", "run")


def read_config(path: Path, parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Reads a TOML file as if its values had been given on the command line.

    `epochs = 20` is `--epochs 20`, `flips = true` is `--flips`, and `point = [[1, 2], [3, 4]]`
    is `--point 1,2 --point 3,4`; positional arguments go by their names, `photo = "a.jpg"`.
    Relative paths start from the file's folder. The parser must not require anything.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CommandError(f"--config {path}: {error.strerror}") from error
    except ValueError as error:
        raise CommandError(f"--config {path}: not a TOML file: {error}") from error
    options = {flag: action for action in parser._actions for flag in action.option_strings}
    operands = {action.dest: action for action in parser._actions if not action.option_strings}
    words, values = [], {}
    try:
        for name, value in content.items():
            flag = "--" + name.replace("_", "-")
            if name in GENERAL or (flag not in options and name not in operands):
                raise CommandError(f"there is no option {name!r}")
            if isinstance(value, dict):
                raise CommandError(f"options must not be in a table, as [{name}] is")
            if flag in options:
                words += _words(flag, value, options)
            else:
                read = operands[name].type or str
                several = operands[name].nargs == "+"
                given = value if several and isinstance(value, list) else [value]
                values[name] = [read(str(item)) for item in given] if several else read(str(value))
        values |= vars(parser.parse_args(words, argparse.Namespace(**values)))
    except CommandError as error:
        raise CommandError(f"--config {path}: {error}") from error
    for name, value in values.items():
        if isinstance(value, Path):
            values[name] = path.parent / value
        elif name in ("model", "source") and _is_model(path.parent / str(value)):
            values[name] = str(path.parent / value)
        elif isinstance(value, list):
            paths = [path.parent / x if isinstance(x, Path) else x for x in value]
            values[name] = tuple(paths)  # a tuple, which `options.Repeated` replaces
    return argparse.Namespace(**values)


def _words(flag, value, options):
    """One entry of the file as arguments of the command line."""
    if isinstance(value, bool):
        no = f"--no-{flag[2:]}"
        return [flag] if value else [no] * (no in options)
    if isinstance(value, list) and all(isinstance(item, (list, str)) for item in value):
        return [f"{flag}={_joined(item)}" for item in value]
    return [f"{flag}={_joined(value)}"]


def _joined(value):
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _is_model(path):
    return path.is_file() or (path / "config.json").is_file()
