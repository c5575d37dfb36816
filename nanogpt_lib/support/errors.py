"""The error that users see: one line that says what is wrong, where, and what to do."""

import errno


class UserError(ValueError):
    """A problem the user can fix. The message is one line: what is wrong, where, what to do."""


def describe_os_error(error: OSError) -> str:
    """An OSError in one line: which file, what is wrong and, where known, what to do."""
    where = f"{error.filename}: " if error.filename else ""
    if error.errno == errno.ENOSPC:
        return f"{where}the disk is full; free some space"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"{where}too many open files; raise the limit with ulimit -n"
    if error.errno == errno.EROFS:
        return f"{where}the file system is read-only; choose another folder"
    if error.errno is not None and error.strerror:
        return f"{where}{error.strerror}"
    return str(error) or type(error).__name__
