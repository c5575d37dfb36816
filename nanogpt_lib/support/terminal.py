"""Output to a terminal or pipe that may have any encoding and may be closed at any time."""

import errno
import io
import os
import sys

# The errors of writing to a pipe without a reader, or to a closed terminal.
GONE = {errno.EPIPE, errno.EIO, errno.ESHUTDOWN, errno.ENXIO}
if os.name == "nt":
    GONE.add(errno.EINVAL)  # a broken pipe on Windows


class TerminalOutput(io.RawIOBase):
    """The file behind stdout or stderr; when its reader goes away, it becomes the null device.

    The program then ends with exit status 141, which shells report for SIGPIPE; with `outlive` it
    continues without output.
    """

    def __init__(self, raw: io.RawIOBase, outlive: bool):
        self.raw, self.outlive, self.gone = raw, outlive, False

    def write(self, data) -> int:
        """Write to the file, or to the null device once its reader is gone."""
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
    """Make stdout and stderr safe to print to: for any character, and if the reader goes away.

    A character missing from an encoding such as cp1252 or ascii is printed as "?". With `outlive`,
    a closed pipe or terminal does not end the program. A stream that is not a real file (in a
    notebook or a test) is left alone, apart from that encoding.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
        buffer = getattr(stream, "buffer", None)
        raw = getattr(buffer, "raw", buffer)  # python -u has no buffer in between
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
