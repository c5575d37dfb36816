"""Command lines: one-line errors, exit status, help."""

import argparse
import sys
from collections.abc import Callable

from nanogpt_lib.support.errors import UserError, describe_os_error
from nanogpt_lib.support.terminal import prepare_terminal


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


def run_program(
    name: str,
    main: Callable[[], int | None],
    *,
    goes_on: str = "",
    outlives_terminal: bool = False,
) -> None:
    """Run the main() of a program or a recipe and exit with its status; errors are one line.

    A UserError, an OSError and a lack of memory end with status 1, Ctrl-C with 130. `goes_on` says
    what carries on with the work after an interruption ("the same command goes on").
    With `outlives_terminal` a closed pipe or terminal does not end the program.
    """
    prepare_terminal(outlives_terminal)
    goes_on = f"; {goes_on}" if goes_on else ""
    try:
        try:
            status = main() or 0
        finally:  # so that a full disk or a closed pipe is met here, not after the end
            if sys.stdout:
                sys.stdout.flush()
    except UserError as error:
        message, status = str(error), 1
    except OSError as error:
        message, status = describe_os_error(error) + goes_on, 1
    except MemoryError as error:
        message, status = f"out of memory: {error}".removesuffix(": "), 1
    except KeyboardInterrupt:
        message, status = "stopped" + goes_on, 130
    else:
        sys.exit(status)
    print(f"{name}: {' '.join(message.splitlines())}", file=sys.stderr)
    sys.exit(status)


def run_recipe(name: str, main: Callable[[], int | None]) -> None:
    """Run the main() of a recipe: it outlives its terminal, and the same command goes on."""
    run_program(name, main, goes_on="the same command goes on", outlives_terminal=True)
