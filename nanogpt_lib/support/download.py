"""Files from NANOGPT_MIRROR or the internet: continued after a break, compared with their sum."""

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
    """Where NANOGPT_MIRROR keeps `name`: a path if the mirror is a folder, a URL if it is one."""
    mirror = os.environ.get("NANOGPT_MIRROR", "")
    if mirror.startswith(("http://", "https://")):
        return f"{mirror.rstrip('/')}/{name}"
    if mirror and (Path(mirror) / name).exists():
        return Path(mirror) / name
    return None


def obtain(name: str, url: str, path: Path, sha256: str | None = None, timeout: float = 30) -> str:
    """Put a file at `path`, from NANOGPT_MIRROR if it has `name`, else from `url`; say from where.

    A file that is there already is kept if its sum is right. Raises UserError if nothing works.
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
            temporary.unlink(missing_ok=True)  # nothing could tell whether the halves fit
        download(mirror or url, temporary, timeout)
        where = mirror or url
    if sha256 is not None and file_sha256(temporary) != sha256:
        temporary.unlink()
        raise UserError(f"{name} from {where}: damaged or another version (SHA-256 differs)")
    os.replace(temporary, path)
    return where


def download(url: str, path: Path, timeout: float = 30, attempts: int = 4) -> None:
    """Fetch a URL into a file, with progress; continue a broken transfer, wait between attempts.

    What is there already, from an attempt that was killed, is continued too; what has arrived when
    the last attempt fails stays for the next call.
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
                    raise ValueError("the server sends another part than it was asked for")
                have = have if reply.status == 206 else 0  # else it sends all of it again
                length = reply.headers.get("Content-Length")
                total = have + int(length) if length else None
                with (
                    open(path, "ab" if have else "wb") as file,
                    tqdm(
                        desc=path.name, initial=have, total=total, unit="B", unit_scale=True
                    ) as bar,
                ):
                    while block := reply.read1(1 << 16):  # what is there, even if it stalls then
                        file.write(block)
                        bar.update(len(block))
            if total is None or path.stat().st_size == total:
                return
            problem = f"{path.stat().st_size} of {total} bytes arrived"
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 416, 429):
                path.unlink(missing_ok=True)
                raise UserError(f"{url}: the server answers {error.code} {error.reason}") from error
            if error.code == 416:
                path.unlink(missing_ok=True)
            problem = f"the server answers {error.code}"
        except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
            problem = str(getattr(error, "reason", error))
        if attempt + 1 < attempts:
            time.sleep(0.5 * 2**attempt)
    raise UserError(
        f"{url}: {problem} ({attempts} attempts); set NANOGPT_MIRROR to a folder that has the file"
    )
