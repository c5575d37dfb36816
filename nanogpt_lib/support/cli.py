"""Command lines: one-line errors, exit status, help."""

import argparse
import errno
import sys
from collections.abc import Callable

from nanogpt_lib.support.errors import UserError


class OneLineParser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line with exit status 2; usage is left to --help."""

    def error(self, message: str):
        """Print `prog: message` and exit 2."""
        self.exit(2, f"{self.prog}: {message} (see --help)\n")

    def parse_args(self, args=None, namespace=None):
        """As ever, but `--flag --` is an error; argparse would make it an empty list."""
        parsed = super().parse_args(args, namespace)
        for name, value in vars(parsed).items():
            if value == []:
                self.error(f"argument --{name.replace('_', '-')}: expected one argument")
        return parsed


def run_program(name: str, main) -> None:
    """Run a program's main() and exit with what it returns; a UserError is one line, exit 1."""
    try:
        sys.exit(main())
    except (UserError, OSError) as error:  # OSError: a full disk, a folder that went away
        sys.exit(f"{name}: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def one_line(name: str, job: Callable[[], None]) -> int:
    """Run a recipe; turn a UserError, Ctrl-C and a full disk into one line on stderr.

    Returns the exit status.
    """
    try:
        job()
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{name}: stopped; the same command goes on", file=sys.stderr)
        return 130
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(f"{name}: the disk is full; make room, the same command goes on", file=sys.stderr)
        return 1
    return 0
