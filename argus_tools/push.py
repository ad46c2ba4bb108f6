"""`argus export --push REPO`: huggingface_hub's upload_folder on an exported folder, and its errors in one sentence.

Nothing is uploaded unless a repository is named, and no repository is made: whether it is to be public is said where
it is made, on https://huggingface.co/new.
"""

import os
import re
from pathlib import Path

from .cli_support import CommandError, one_line

_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def check_push(repository: str) -> None:
    """What can be told before anything is exported: the repository's name, and that there is a token.

    Raises:
        CommandError: not "owner/name" as the hub has them, offline mode, or nobody is logged in.
    """
    from huggingface_hub import constants, get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if not _NAME.fullmatch(repository):
        raise CommandError(f"--push {repository}: a repository of the hub is named owner/name")
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise CommandError(f"--push {repository}: {one_line(error)}") from error
    if constants.HF_HUB_OFFLINE:
        raise CommandError(f"--push {repository}: HF_HUB_OFFLINE is set, so nothing can be uploaded")
    if not get_token():
        raise CommandError(f"--push {repository}: no token: run `hf auth login`, or set HF_TOKEN to one that may write")


def push(folder: str | os.PathLike, repository: str) -> str:
    """Upload an exported folder as one commit to a model repository that exists, and return the commit's address.

    Files of the repository that the folder does not hold stay. Raises CommandError, which says why nothing was changed.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    check_push(repository)
    try:
        commit = HfApi().upload_folder(
            repo_id=repository, folder_path=Path(folder), commit_message="Upload the folder of `argus export`"
        )
    except RepositoryNotFoundError as error:
        raise CommandError(
            f"--push {repository}: there is no such repository, or the token may not see it: make it on "
            "https://huggingface.co/new, public or private, and push again"
        ) from error
    except HfHubHTTPError as error:
        raise CommandError(f"--push {repository}: the hub refused: {one_line(error)}") from error
    except Exception as error:
        # Errors of the connection are OSErrors with requests, and kinds of their own with httpx.
        if not isinstance(error, OSError) and not type(error).__module__.startswith(("httpx", "httpcore")):
            raise
        raise CommandError(f"--push {repository}: the hub was not reached: {one_line(error)}") from error
    return str(getattr(commit, "commit_url", commit))
