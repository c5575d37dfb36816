"""Command lines: one-line errors, exit status, help."""

import argparse
import sys
from collections.abc import Callable

from nanogpt_lib.support.errors import UserError, describe_os_error
from nanogpt_lib.support.terminal import prepare_terminal


class OneLineParser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line and exit status 2, without the usage text."""

    def error(self, message: str):
        """Print `prog: message` and exit 2."""
        self.exit(2, f"{self.prog}: {message} (see --help)\n")

    def parse_args(self, args=None, namespace=None):
        """Parse as argparse does, but reject `--flag --`, which argparse makes an empty list."""
        parsed = super().parse_args(args, namespace)
        for name, value in vars(parsed).items():
            if value == []:
                self.error(f"argument --{name.replace('_', '-')}: expected one argument")
        return parsed


def run_program(
    name: str,
    main: Callable[[], int | None],
    *,
    advice: str = "",
    outlives_terminal: bool = False,
) -> None:
    """Run the main() of a program or a recipe and exit with its status; print errors in one line.

    UserError, OSError and MemoryError exit with status 1, Ctrl-C with 130. `advice`, appended to
    the message of an interruption, says how to continue.
    With `outlives_terminal`, a closed pipe or terminal does not end the program.
    """
    prepare_terminal(outlives_terminal)
    advice = f"; {advice}" if advice else ""
    try:
        try:
            status = main() or 0
        finally:  # so that a full disk or a closed pipe raises here, not at interpreter exit
            if sys.stdout:
                sys.stdout.flush()
    except UserError as error:
        message, status = str(error), 1
    except OSError as error:
        message, status = describe_os_error(error) + advice, 1
    except MemoryError as error:
        message, status = f"out of memory: {error}".removesuffix(": "), 1
    except KeyboardInterrupt:
        message, status = "stopped" + advice, 130
    else:
        sys.exit(status)
    print(f"{name}: {' '.join(message.splitlines())}", file=sys.stderr)
    sys.exit(status)


def run_recipe(name: str, main: Callable[[], int | None]) -> None:
    """Run the main() of a recipe, which outlives its terminal and can be rerun after a kill."""
    run_program(name, main, advice="run the same command to continue", outlives_terminal=True)
