"""The command line: `vitnas`."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; every error becomes one line and an exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        code = app(words, prog_name="vitnas", standalone_mode=False)
        if code == _INTERRUPTED:  # what typer makes of Ctrl-C
            raise KeyboardInterrupt
        sys.exit(code)
    except _WrongUsage as error:
        fix = f"{error.ctx.command_path} --help" if error.ctx else "vitnas --help"
        message = " ".join(error.format_message().split()).rstrip(".")
        if not words:
            error.show()  # the help
        elif "--json" in words:
            print_json({"error": {"kind": "usage", "message": message, "fix": fix}})
        else:
            print(f"vitnas: {message}; see {fix}", file=sys.stderr)
        sys.exit(error.exit_code)
    except VitnasError as error:
        if debug:
            traceback.print_exc()
        if "--json" in words:
            print_json({"error": {"kind": error.kind, "message": error.message, "fix": error.fix}})
        else:
            print(f"vitnas: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        if debug:
            traceback.print_exc()
        print(
            "vitnas: interrupted; what was done is kept, the same command goes on "
            "(search and train: with --resume)",
            file=sys.stderr,
        )
        sys.exit(_INTERRUPTED)
    except Exception as error:
        if debug:
            raise
        message = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        fix = "run it again with --debug and report what it prints"
        if "--json" in words:
            print_json({"error": {"kind": "internal", "message": message, "fix": fix}})
        else:
            print(f"vitnas: internal error: {message}; {fix}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
