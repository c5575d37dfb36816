"""The Hugging Face hub: checkpoint files, dataset files, one-line errors."""

import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from nanogpt_lib.support.errors import UserError


def is_reachable(repo: str) -> bool:
    """Whether the hub responds; asked at most once a minute, not once per file."""
    return answers(repo, int(time.monotonic() // 60))


@lru_cache(maxsize=16)
def answers(repo: str, minute: int) -> bool:
    """One request without retries: huggingface_hub's own take half a minute without internet."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    try:
        get_hf_file_metadata(hf_hub_url(repo, "config.json"))
    except HfHubHTTPError:  # an error is a response too; the download will report it
        return True
    except Exception:  # no network, or HF_HUB_OFFLINE: only the cache is left
        return False
    return True


def hub_file(repo: str, filename: str, optional: bool = False) -> Path | None:
    """Download one file of a hub repository (or find it in the cache); None if it has no such file.

    Honours HF_ENDPOINT, HF_HUB_OFFLINE and huggingface_hub's cache settings. If the hub cannot be
    reached and the file is not cached, raises UserError, or returns None for an `optional` one.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repo, filename, local_files_only=not is_reachable(repo)))
    except LocalEntryNotFoundError as error:
        if optional:
            return None
        raise UserError(
            f"{repo}: not in the local cache and the hub cannot be reached; "
            "go online once, or give a folder with config.json and model.safetensors"
        ) from error
    except EntryNotFoundError:
        return None
    except Exception as error:  # a missing repository, a broken transfer, a proxy that refuses
        first = str(error).strip().split("\n")[0]
        raise UserError(f"{repo}: {filename} could not be downloaded ({first})") from error


def is_final(error: Exception) -> bool:
    """Whether retrying is pointless: offline by choice, or a 4xx other than 429."""
    status = getattr(getattr(error, "response", None), "status_code", 0)
    return "OfflineMode" in type(error).__name__ or (400 <= status < 500 and status != 429)


def ask_hub(question: Callable, advice: str, attempts: int = 4):
    """Call question(), retrying with growing pauses; raises UserError if all attempts fail.

    `advice` ends the message: what the user can do if the hub cannot be reached.
    """
    for attempt in range(attempts):
        try:
            return question()
        except Exception as error:
            problem = error
        if is_final(problem):
            break
        if attempt + 1 < attempts:
            time.sleep(0.5 * 2**attempt)
    first = (str(problem).strip() or type(problem).__name__).split("\n")[0]
    raise UserError(f"{first}; {advice}") from problem


def dataset_files(repo: str, folder: str, revision: str, suffix: str, advice: str) -> list:
    """The files under a folder of a dataset on the hub, sorted by path.

    Each has `path`, `size` in bytes and, where the hub knows it, `lfs.sha256`.
    """
    from huggingface_hub import HfApi

    where = dict(revision=revision, repo_type="dataset", recursive=True)
    tree = ask_hub(lambda: list(HfApi().list_repo_tree(repo, folder or None, **where)), advice)
    return sorted((e for e in tree if e.path.endswith(suffix)), key=lambda entry: entry.path)
