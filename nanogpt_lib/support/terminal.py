"""The terminal a program writes to: any encoding, and one that goes away."""

import errno
import io
import os
import sys

# What writing to a pipe that nobody reads, or to a terminal that was closed, ends with.
GONE = {errno.EPIPE, errno.EIO, errno.ESHUTDOWN, errno.ENXIO}
if os.name == "nt":
    GONE.add(errno.EINVAL)  # Windows' word for a broken pipe


class TerminalOutput(io.RawIOBase):
    """The file behind stdout or stderr; when its reader goes away, it becomes the null device.

    A program that is there for its output ends then (exit status 141, as the shell has it for
    SIGPIPE); one that outlives its terminal goes on, unheard.
    """

    def __init__(self, raw: io.RawIOBase, outlive: bool):
        self.raw, self.outlive, self.gone = raw, outlive, False

    def write(self, data) -> int:
        """Write as the file does."""
        try:
            return self.raw.write(data)
        except OSError as error:
            if error.errno not in GONE or self.gone:
                raise
        self.gone = True
        null = os.open(os.devnull, os.O_WRONLY)  # for C code and children, too
        os.dup2(null, self.raw.fileno())
        os.close(null)
        if not self.outlive:
            raise SystemExit(141)
        return len(data)

    def writable(self) -> bool:
        """Always."""
        return True

    def isatty(self) -> bool:
        """Whether it is a terminal, and still there."""
        return self.raw.isatty()

    def fileno(self) -> int:
        """The file's number."""
        return self.raw.fileno()


def prepare_terminal(outlive: bool = False) -> None:
    """Make stdout and stderr safe to print to: any character, and a reader that goes away.

    What an encoding such as cp1252 or ascii does not have is printed as "?". With `outlive`, a
    closed pipe or terminal does not end the program. A stream that is no real file (a notebook's, a
    test's) is left alone but for the encoding.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
        buffer = getattr(stream, "buffer", None)
        raw = getattr(buffer, "raw", buffer)  # python -u has no buffer between
        if not isinstance(raw, io.RawIOBase) or isinstance(raw, TerminalOutput):
            continue
        stream.flush()
        output = TerminalOutput(raw, outlive)
        lasting = io.TextIOWrapper(
            output if raw is buffer else io.BufferedWriter(output),
            encoding=stream.encoding,
            errors="replace",
            line_buffering=stream.line_buffering or stream.isatty(),
            write_through=stream.write_through,
        )
        setattr(sys, name, lasting)
