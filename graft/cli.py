"""The command line: parse, call one function, print. What each command does stands in `graft.commands`.

Nothing heavy is imported before it is needed: `graft --help` costs no numpy, `graft predict` no torch. A GraftError is
printed as its sentence, without a traceback, and the exit code is 2.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from graft.commands import (
    check,
    demo,
    doctor,
    evaluate,
    export,
    index,
    models,
    predict,
    pretrain,
    report,
    serve,
    shrink,
    similar,
    study,
    train,
)
from graft.commands.lines import one_line, write_whatever_comes
from graft.errors import MEMORY_RAN_OUT, GraftError, memory_ran_out
from graft.version import VERSION

COMMANDS = (
    study,
    train,
    demo,
    check,
    models,
    pretrain,
    predict,
    serve,
    evaluate,
    shrink,
    export,
    index,
    similar,
    report,
    doctor,
)

EXAMPLES = """examples:
  graft study photos/                          measure, choose, report and pack
  graft study photos/ --budget 5m --weights weights/ --max-size 5MB
  graft predict runs/photos/model.graft a.jpg some/folder/ --csv
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for an error with a sentence, 130 for Ctrl-C.

    Who reads the output may stop reading: that is 141, without a word, as a shell counts it.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(_with_values(given))
    options.typed = shlex.join(["graft", *given])
    command: Callable[[argparse.Namespace], int] = options.run
    try:
        try:
            return command(options)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        return 141
    except GraftError as error:
        print(one_line(f"graft: {error}"), file=sys.stderr)
        return 2
    except OSError as error:
        place = error.filename or "A file"
        print(one_line(f"graft: {place}: {error.strerror or error}."), file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not memory_ran_out(error):
            raise
        print(f"graft: {MEMORY_RAN_OUT} What is finished is kept.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("graft: stopped; the same command continues where it was.", file=sys.stderr)
        return 130


class _Parser(argparse.ArgumentParser):
    """What cannot be understood is one sentence, as every other mistake."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, one_line(f"graft: {message}. See {self.prog} --help.") + "\n")


def _with_values(given: Sequence[str]) -> list[str]:
    """`--budget -5s` as `--budget=-5s`: what begins with a minus and a digit is a value, and its option refuses it in words."""
    joined: list[str] = []
    for word in given:
        if joined and re.fullmatch(r"--[a-z-]+", joined[-1]) and re.match(r"-\d", word):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="graft",
        description="Measures whether to transfer or to train from scratch, and hands over the smallest image "
        "classifier you can trust.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"graft {VERSION}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(commands)
    return parser


def run() -> None:
    """The command as a process. Everything is written and closed by now; taking torch and OpenVINO down in order
    would keep the user waiting for another 1.6 s (measured on 2 cores)."""
    write_whatever_comes()
    os._exit(main())


if __name__ == "__main__":
    run()
