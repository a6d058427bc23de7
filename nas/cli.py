"""The command line: `vitnas`."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any

import typer

from nas.commands import app, print_json
from nas.errors import VitnasError

for name in ("search", "tables", "networks", "listings"):  # in the order of `vitnas --help`
    import_module(f"nas.commands.{name}")
# UsageError of click, or of the click that newer versions of typer bring along.
_WrongUsage: Any = typer.BadParameter.__mro__[1]
_INTERRUPTED = 130
_OUTPUT = (errno.EPIPE, errno.ENOSPC, errno.EBADF, errno.EIO, errno.EFBIG)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; every error becomes one line and an exit code."""
    _open_standard_streams()
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    try:
        code = _run([word for word in words if word != "--debug"], debug)
        sys.stdout.flush()
    except OSError as error:  # of the standard output
        code = 1
        _drop_output()
        if not isinstance(error, BrokenPipeError):  # else nobody reads any more, as in `| head`
            print(
                f"vitnas: cannot write to the standard output: {error.strerror}; "
                "what was done is kept, write to another file",
                file=sys.stderr,
            )
    sys.exit(code)


def _run(words: list[str], debug: bool) -> int:
    """Run a command; its exit code, after its error was printed."""
    try:
        code = app(words, prog_name="vitnas", standalone_mode=False)
        if code == _INTERRUPTED:  # what typer makes of Ctrl-C
            raise KeyboardInterrupt
        return int(code or 0)
    except _WrongUsage as error:
        if not words:
            error.show()  # the help
            return int(error.exit_code)
        fix = f"{error.ctx.command_path} --help" if error.ctx else "vitnas --help"
        wrong = VitnasError(" ".join(error.format_message().split()).rstrip("."), f"see {fix}")
        if "--json" in words:
            print_json({"error": {"kind": "usage", "message": wrong.message, "fix": fix}})
        else:
            print(f"vitnas: {wrong}", file=sys.stderr)
        return int(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        if debug:
            traceback.print_exc()
        print(
            "vitnas: interrupted; the same command goes on from what is kept (search and train: "
            "with --resume; a training keeps its state about once a minute)",
            file=sys.stderr,
        )
        return _INTERRUPTED
    except Exception as error:
        if isinstance(error, OSError) and error.filename is None and error.errno in _OUTPUT:
            raise
        if debug:
            traceback.print_exc()
        kind, found = _described(error)
        if "--json" in words:
            print_json({"error": {"kind": kind, "message": found.message, "fix": found.fix}})
        else:
            internal = "internal error: " if kind == "internal" else ""
            print(f"vitnas: {internal}{found}", file=sys.stderr)
        return found.exit_code


def _described(error: Exception) -> tuple[str, VitnasError]:
    """The kind of an error as `--json` has it, and the error with its fix."""
    if isinstance(error, VitnasError):
        return error.kind, error
    if isinstance(error, OSError) and error.filename is not None:
        fix = "check the path, its permissions, and the space that is left"
        return "file", VitnasError(f"cannot use {error.filename}: {error.strerror}", fix)
    message = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return "internal", VitnasError(message, "run it again with --debug and report what it prints")


def _open_standard_streams() -> None:
    """Give each standard stream that the caller closed a file that takes everything.

    Else the next file that is opened would have its number, and get what is printed.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)
            try:
                os.fstat(number)  # another file has the number already
            except OSError:
                os.dup2(nowhere, number)
            setattr(sys, name, os.fdopen(nowhere, "w" if number else "r"))


def _drop_output() -> None:
    """Have the end of the program write nowhere what the standard output does not take."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
