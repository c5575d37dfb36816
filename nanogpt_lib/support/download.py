"""Files from NANOGPT_MIRROR or the internet: resumed if interrupted, checked by SHA-256."""

import http.client
import os
import shutil
import time
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.files import file_sha256


def from_mirror(name: str) -> Path | str | None:
    """Locate `name` in NANOGPT_MIRROR: a path if that is a folder, a URL if it is a URL."""
    mirror = os.environ.get("NANOGPT_MIRROR", "")
    if mirror.startswith(("http://", "https://")):
        return f"{mirror.rstrip('/')}/{name}"
    if mirror and (Path(mirror) / name).exists():
        return Path(mirror) / name
    return None


def obtain(name: str, url: str, path: Path, sha256: str | None = None, timeout: float = 30) -> str:
    """Put a file at `path`, from NANOGPT_MIRROR if it has `name`, else from `url`.

    Returns where it came from. An existing file is kept if its SHA-256 matches. Raises UserError
    if it can be had from neither.
    """
    if path.exists() and (sha256 is None or file_sha256(path) == sha256):
        return "already here"
    path.parent.mkdir(parents=True, exist_ok=True)
    mirror = from_mirror(name)
    temporary = path.with_name(path.name + ".tmp")
    if isinstance(mirror, Path):
        shutil.copyfile(mirror, temporary)
        where = "the mirror"
    else:
        if sha256 is None:
            temporary.unlink(missing_ok=True)  # without a sum, a resumed file cannot be checked
        download(mirror or url, temporary, timeout)
        where = mirror or url
    if sha256 is not None and file_sha256(temporary) != sha256:
        temporary.unlink()
        raise UserError(f"{name} from {where}: damaged or another version (SHA-256 differs)")
    os.replace(temporary, path)
    return where


def download(url: str, path: Path, timeout: float = 30, attempts: int = 4) -> None:
    """Fetch a URL into a file, with a progress bar; retry with growing pauses, resuming each time.

    A partial file left by a killed call is resumed too. If the last attempt fails, what has arrived
    is kept for the next call.
    """
    for attempt in range(attempts):
        have = path.stat().st_size if path.exists() else 0
        request = urllib.request.Request(url, headers={"User-Agent": "nanogpt-course"})
        if have:
            request.add_header("Range", f"bytes={have}-")
        try:
            with urllib.request.urlopen(request, timeout=timeout) as reply:
                part = reply.headers.get("Content-Range", "")
                if reply.status == 206 and not part.startswith(f"bytes {have}-"):
                    path.unlink(missing_ok=True)
                    raise ValueError("the server sent a different range than requested")
                have = have if reply.status == 206 else 0  # otherwise it sends the whole file
                length = reply.headers.get("Content-Length")
                total = have + int(length) if length else None
                with (
                    open(path, "ab" if have else "wb") as file,
                    tqdm(
                        desc=path.name, initial=have, total=total, unit="B", unit_scale=True
                    ) as bar,
                ):
                    while block := reply.read1(1 << 16):  # keep what has arrived if it stalls
                        file.write(block)
                        bar.update(len(block))
            if total is None or path.stat().st_size == total:
                return
            problem = f"only {path.stat().st_size} of {total} bytes arrived"
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 416, 429):
                path.unlink(missing_ok=True)
                raise UserError(f"{url}: the server replied {error.code} {error.reason}") from error
            if error.code == 416:
                path.unlink(missing_ok=True)
            problem = f"the server replied {error.code}"
        except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
            problem = str(getattr(error, "reason", error))
        if attempt + 1 < attempts:
            time.sleep(0.5 * 2**attempt)
    raise UserError(
        f"{url}: {problem} ({attempts} attempts); set NANOGPT_MIRROR to a folder that has the file"
    )
