"""A whole repository of the hub by huggingface_hub's own download, for models that only train and judge.

That library joins a listing's names, its commit and its ETags to paths; what the hub says is checked before it does.

Light ring: huggingface_hub is imported inside the function.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from pathlib import Path

from backend.disk import check_commit, path_below, write_atomic
from backend.errors import NetworkError, UntrustedError, shown
from backend.hub.bounds import SILENCE, asked
from backend.hub.pull_plan import hub_is_safe, short, snapshot_folder
from backend.paths import hub_cache, hub_repo


def snapshot(repo: str, patterns: Sequence[str], *, download: bool) -> Path:
    """The folder of a repository's files of these `patterns` in the Hub's cache; `download`: fetched where not there.

    Raises what `huggingface_hub.snapshot_download` does, UntrustedError for an answer that names other places, and
    NetworkError for one that does not end.
    """
    from httpx2 import HTTPError
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if not download:
        return Path(
            snapshot_download(repo, cache_dir=hub_cache(), allow_patterns=list(patterns), local_files_only=True)
        )
    token = None if hub_is_safe() else False
    try:
        revision, names = _listed(repo, patterns, token)
        # By exact names, since the library lists once more, and a hub may answer something else then.
        folder = Path(
            snapshot_download(repo, cache_dir=hub_cache(), revision=revision, allow_patterns=names, token=token)
        )
    except (HfHubHTTPError, HFValidationError):
        raise
    except (HTTPError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise NetworkError(
            f"the hub's answer about {repo} cannot be used ({short(error)})", hint="check HF_ENDPOINT if it is set"
        ) from error
    (hub_repo(repo) / "refs").mkdir(exist_ok=True)
    write_atomic(hub_repo(repo) / "refs" / "main", revision.encode())  # as the library would: found without the network
    return folder


def _listed(repo: str, patterns: Sequence[str], token: bool | None) -> tuple[str, list[str]]:
    """(commit, names of the wanted files), each of them one that may be joined to a path. Raises UntrustedError."""
    from huggingface_hub import HfApi

    info = asked(lambda: HfApi(token=token).model_info(repo, timeout=SILENCE))
    said = f"the hub's listing of {repo}"
    revision = check_commit(info.sha, said)
    names = [str(sibling.rfilename) for sibling in info.siblings or ()]
    wanted = [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
    for name in wanted:
        path_below(snapshot_folder(repo, revision), name, source=said, links_within=hub_repo(repo))
        if any(sign in name for sign in "*?["):  # the library would read it as a pattern
            raise UntrustedError(f"{said} names a file {shown(name)}")
    return revision, wanted
