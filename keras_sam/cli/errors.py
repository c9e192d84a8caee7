"""Errors that users can see and correct, each in one line."""

import contextlib


class CommandError(Exception):
    """Ends a command with a line on what is wrong and what to do; `code` is its exit code."""

    def __init__(self, message: str, code: int = 2):
        super().__init__(one_line(message))
        self.code = code


def one_line(message, limit: int = 600) -> str:
    """Any message or exception as a single line that a terminal can show."""
    if isinstance(message, KeyError) and message.args:
        message = message.args[0]
    line = " ".join(str(message).split())
    return line if len(line) <= limit else line[: limit - 4] + " ..."


@contextlib.contextmanager
def bad_input():
    """Turns the library's errors about its input into exit code 2."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise CommandError(str(error)) from error


@contextlib.contextmanager
def writing(path):
    """Turns errors of the file system into one that names what could not be written."""
    try:
        yield
    except OSError as error:
        # A full disk is not an error in the call, hence 1.
        code = 2 if isinstance(error, PermissionError) else 1
        raise CommandError(f"cannot write {path}: {error.strerror or error}", code) from error
