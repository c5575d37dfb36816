"""Files of the Hugging Face hub, from its cache or the internet."""

from pathlib import Path

from nanogpt_lib.support.errors import UserError


def hub_file(repo: str, filename: str) -> Path | None:
    """Download one file of a hub repository (or find it in the cache); None if it has no such file.

    Obeys HF_ENDPOINT, HF_HUB_OFFLINE and the cache settings of huggingface_hub.
    Raises UserError when the hub cannot be reached and the file is not cached.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    try:  # one question without retries, so that nobody without internet waits half a minute
        get_hf_file_metadata(hf_hub_url(repo, filename))
        reachable = True
    except HfHubHTTPError:  # an answer too; the download meets it again and says what it means
        reachable = True
    except Exception:  # no network, or HF_HUB_OFFLINE: what the cache holds must do
        reachable = False
    try:
        return Path(hf_hub_download(repo, filename, local_files_only=not reachable))
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"{repo}: not in the local cache and the hub cannot be reached; "
            "connect once, or give a folder with config.json and model.safetensors"
        ) from error
    except EntryNotFoundError:
        return None
    except Exception as error:  # a missing repository, a broken transfer, a proxy that refuses
        first = str(error).strip().split("\n")[0]
        raise UserError(f"{repo}: {filename} could not be downloaded ({first})") from error
