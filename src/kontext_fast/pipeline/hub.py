"""Checkpoints from the Hugging Face Hub: downloaded once into its cache, then a diffusers folder like any other.

The package huggingface_hub reads HF_TOKEN itself, so this module never handles the token.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from kontext_fast.errors import CheckpointUnavailable
from kontext_fast.pipeline.folder import INDEX, check_folder, load_folder, weights_bytes
from kontext_fast.pipeline.load import FULL_SIZE_BYTES, KONTEXT_DEV, CheckpointSource, LoadedCheckpoint, Target

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

_COMPONENT_FILES = ("*/*.json", "*/*.safetensors", "*/*.txt", "*/*.model")
"""Only of subfolders: repositories also hold a second copy of the whole transformer at the top."""

_REACH_S = 10.0


def is_hub_id(checkpoint: str) -> bool:
    """Whether `checkpoint` has the form "organization/name"."""
    return _HUB_ID.fullmatch(checkpoint) is not None


def _load(checkpoint: str, target: Target) -> LoadedCheckpoint:
    return load_folder(download(checkpoint), target, kind="hub", name=checkpoint, shown=checkpoint)


def _is_full_size(checkpoint: str) -> bool:
    folder = cached_folder(checkpoint)
    return checkpoint == KONTEXT_DEV or (folder is not None and weights_bytes(folder) >= FULL_SIZE_BYTES)


HUB = CheckpointSource(
    name=f"a Hub id such as {KONTEXT_DEV}",
    kind="hub",
    precedence=30,
    matches=is_hub_id,
    full_size=_is_full_size,
    load=_load,
)


def cached_folder(hub_id: str) -> Path | None:
    """Where the local cache has the index of this checkpoint, which is downloaded first; uses no network."""
    from huggingface_hub import try_to_load_from_cache

    index = try_to_load_from_cache(hub_id, INDEX)
    return Path(index).parent if isinstance(index, str) else None


def download(hub_id: str) -> Path:
    """The local folder of a checkpoint, after downloading what the cache lacks. Raises CheckpointUnavailable."""
    import httpx
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionResolutionError,
    )

    try:
        # The index is small, so it reveals what is wrong before gigabytes are downloaded.
        offline = not _is_reachable(HfApi(), hub_id)
        index = Path(hf_hub_download(hub_id, INDEX, local_files_only=offline))
        check_folder(index.parent, hub_id, weights=False)
        patterns = [INDEX, *_COMPONENT_FILES]
        folder = Path(snapshot_download(hub_id, allow_patterns=patterns, local_files_only=offline))
    except GatedRepoError as error:
        raise CheckpointUnavailable(
            f"{hub_id} is gated; accept its licence at https://huggingface.co/{hub_id} and set HF_TOKEN to a token of "
            "that account, or use tiny."
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise CheckpointUnavailable(
            f"{hub_id} is neither a local folder nor a checkpoint on the Hub that this account may see; "
            "check the name and HF_TOKEN, or use tiny."
        ) from error
    except (LocalEntryNotFoundError, RevisionResolutionError, httpx.TransportError) as error:
        raise CheckpointUnavailable(
            f"{hub_id} is not in the local cache and the Hub cannot be reached; connect to the network, or use tiny."
        ) from error
    except EntryNotFoundError as error:
        raise CheckpointUnavailable(
            f"{hub_id} is not a diffusers pipeline, since it has no {INDEX}; use a FLUX.1-Kontext checkpoint or tiny."
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise CheckpointUnavailable(
            f"The Hub refused {hub_id} with status {status}; check HF_TOKEN and try again later, or use tiny."
        ) from error
    except OSError as error:
        raise CheckpointUnavailable(
            f"{hub_id} could not be downloaded ({error.strerror or type(error).__name__}); "
            "check the network and the free space of the disk, or use tiny."
        ) from error
    check_folder(folder, hub_id)
    return folder


def _is_reachable(api: Any, hub_id: str) -> bool:
    """One request, since downloads retry for half a minute before they fail. Raises the Hub's errors."""
    import httpx
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        api.model_info(hub_id, timeout=_REACH_S)
    except (OfflineModeIsEnabled, httpx.TransportError):
        return False
    return True
