"""The `keras-sam` command: one module per command, listed in `COMMANDS`.

A command is named after its module, which has `HELP`, `DESCRIPTION` and
`EXAMPLES`, `add_options(parser)`, and `run(args)`, which does the work and
returns the exit code. Importing it must stay cheap: Keras and everything that
needs it is imported in `run`, after the backend has been chosen.

Exit codes: 0 done, 2 the call or its input is wrong, 1 anything else.
"""

import argparse
import os
import re
import sys
import warnings
from pathlib import Path

from keras_sam import __version__
from keras_sam.cli import annotate, convert, evaluate, everything, export, presets, segment, train
from keras_sam.cli.config import read_config
from keras_sam.cli.errors import CommandError, one_line

COMMANDS = {
    module.__name__.rpartition(".")[2]: module
    for module in (segment, everything, annotate, evaluate, train, presets, convert, export)
}

_DESCRIPTION = """\
Segment Anything with Keras, on JAX, PyTorch, TensorFlow or OpenVINO.

Exit codes: 0 done, 2 the call or its input is wrong, 1 anything else."""


class _Parser(argparse.ArgumentParser):
    def require_later(self):
        """Lets `parse_arguments` check for required arguments, which may be in a file."""
        self.needed = {}
        for action in self._actions:
            if action.required:
                self.needed[action.dest] = "".join(action.option_strings) or action.metavar
                action.required = False
                if action.option_strings:
                    action.help += " (required)"

    def error(self, message):
        raise CommandError(f"{one_line(message, 500)} (see {self.prog} --help)")


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser with every command. Nothing heavy is imported for it."""
    parser = _Parser(
        prog="keras-sam",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    version = f"keras-sam {__version__}"
    parser.add_argument("--version", action="version", version=version, help="print the version")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        command_parser = commands.add_parser(
            name,
            help=command.HELP,
            description=command.DESCRIPTION,
            epilog=command.EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.add_options(command_parser)
        command_parser.set_defaults(run=command.run, parser=command_parser)
        command_parser.add_argument(
            "--config",
            type=Path,
            metavar="FILE",
            help='a .toml file of options, such as `model = "sam_base_sa1b"`; the command line '
            "overrides it, and relative paths start from the file's folder",
        )
        command_parser.add_argument(
            "--quiet", action="store_true", help="print nothing but results and errors"
        )
        command_parser.add_argument(
            "--debug", action="store_true", help="let errors end in a Python traceback"
        )
        command_parser.require_later()
    return parser


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Reads a call, and the file that its `--config` names, which the call overrides."""
    argv = _join_negative_numbers(argv)
    args = build_parser().parse_args(argv)
    config = args.config or getattr(args, "config_file", None)
    if config is not None:
        from_file = read_config(config, args.parser)
        args = args.parser.parse_args(argv[1:], from_file)
    missing = [name for dest, name in args.parser.needed.items() if getattr(args, dest) is None]
    if missing:
        args.parser.error(f"the following arguments are required: {', '.join(missing)}")
    return args


def main(argv: list[str] | None = None) -> int:
    """Runs a call, by default that of this process, and returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        args = parse_arguments(argv)
    except SystemExit as stop:  # argparse, after --help or --version
        return stop.code or 0
    except CommandError as error:
        command = [word for word in argv[:1] if word in COMMANDS]
        print(f"{' '.join(['keras-sam', *command])}: error: {error}", file=sys.stderr)
        return error.code
    name = args.parser.prog
    with warnings.catch_warnings():
        if not args.debug:
            warnings.showwarning = _show_warning
        try:
            code = args.run(args)
            sys.stdout.flush()
            return code
        except Exception as error:
            if args.debug:
                raise
            return _report(name, error)
        except KeyboardInterrupt:
            print(f"{name}: interrupted", file=sys.stderr)
            return 130


def _report(name, error):
    if isinstance(error, BrokenPipeError):  # the reader of our output, such as `head`, is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if isinstance(error, CommandError):
        print(f"{name}: error: {error}", file=sys.stderr)
        return error.code
    print(
        f"{name}: error: {type(error).__name__}: {one_line(error)} (--debug shows where)",
        file=sys.stderr,
    )
    return 1


def _show_warning(message, category, filename, lineno, file=None, line=None):
    if issubclass(category, UserWarning):
        print(f"keras-sam: warning: {one_line(message)}", file=sys.stderr)


def _join_negative_numbers(argv):
    """`--box -3,0,9,9` as `--box=-3,0,9,9`: argparse takes the lone value for an option."""
    joined = []
    for argument in argv:
        follows_option = joined and re.fullmatch(r"--[a-z-]+", joined[-1])
        if follows_option and re.match(r"-[.\d][^a-z]*$", argument):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined
