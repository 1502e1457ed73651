"""Where everything lies. No other module builds one of these paths.

`LENS_HOME` puts config, data and cache under one folder; otherwise platformdirs decides by platform (on Linux
the XDG folders). Weights of registry models stay in the Hugging Face cache, which `HF_HOME` moves.

Light ring: platformdirs is imported inside the functions. Nothing here creates a folder.
"""

from __future__ import annotations

import os
from pathlib import Path

from backend.errors import UsageError

APP = "lens"
PACKAGE = Path(__file__).resolve().parent


def expanded(name: str | Path) -> Path:
    """`~` and `~user` as the folders they stand for. Raises UsageError where there is no such user, or no home."""
    if "\0" in str(name):
        raise UsageError(f"{str(name)!r} is no path: it holds a NUL")
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise UsageError(f"{name}: there is no such home folder", hint="write the path without ~") from None


def resolved(path: Path) -> Path:
    """The absolute path behind all links. A circle of links stays as it is: whoever opens it says so."""
    return Path(os.path.realpath(path))


def _platform_dir(kind: str, *app: str, **more: bool) -> Path:
    """One of the folders that platformdirs knows. Raises UsageError where nothing says where the home is."""
    import platformdirs

    try:
        return Path(getattr(platformdirs, f"user_{kind}_path")(*app, **more))
    except RuntimeError:
        raise UsageError("no home folder is known", hint="set HOME, or LENS_HOME to a folder for everything") from None


def _own_dir(kind: str) -> Path:
    """A folder of ours: below LENS_HOME where that is set. Raises UsageError."""
    home = os.environ.get("LENS_HOME")
    return expanded(home) / kind if home else _platform_dir(kind, APP, appauthor=False)


def config_dir() -> Path:
    return _own_dir("config")


def data_dir() -> Path:
    return _own_dir("data")


def cache_dir() -> Path:
    return _own_dir("cache")


def state_dir() -> Path:
    """What running programs leave for one another: the server's address, its queue, its log."""
    return _own_dir("state")


def server_file() -> Path:
    """Where the running server is, and its owner's key: see `backend.server.place`."""
    return state_dir() / "server.pid"


def queue_file() -> Path:
    """The server's jobs: see `backend.server.queue`."""
    return state_dir() / "queue.db"


def spool_dir() -> Path:
    """Pictures that wait for whoever had them drawn."""
    return state_dir() / "spool"


def pictures_dir() -> Path:
    """Where pictures go that no folder was named for, but by a command: there it is the working folder."""
    return _platform_dir("pictures") / APP


def server_log() -> Path:
    """What a server that was started in the background says."""
    return state_dir() / "logs" / "server.log"


def config_file() -> Path:
    """The user's settings; `LENS_CONFIG` names another file."""
    named = os.environ.get("LENS_CONFIG")
    return expanded(named) if named else config_dir() / "config.toml"


def project_file() -> Path:
    """A project's settings: `lens.toml` in the working folder, and only there."""
    return Path.cwd() / "lens.toml"


def loras_dir() -> Path:
    return data_dir() / "loras"


def wildcards_dir() -> Path:
    """Lists of words for templates: see `backend.batch.wildcards`."""
    return config_dir() / "wildcards"


def prompts_dir() -> Path:
    """A person's own system prompts, `NAME.md` each: `--system-prompt NAME` finds them."""
    return config_dir() / "prompts"


def styles_file() -> Path:
    """A person's own named styles: see `backend.batch.styles`."""
    return config_dir() / "styles.toml"


def credentials_dir() -> Path:
    """The key and the certificate that sign pictures: see `backend.picture.credentials`."""
    return data_dir() / "credentials"


def history_file() -> Path:
    """Every picture that was made, as `backend.picture.history` keeps it."""
    return data_dir() / "history.db"


def projections_dirs() -> tuple[Path, Path]:
    """What shows a latent as colours (`backend.denoising.preview`): tables of the package, and a person's own."""
    return PACKAGE / "denoising" / "projections", data_dir() / "projections"


def app_file() -> Path:
    """What the app remembers from one time to the next."""
    return data_dir() / "tui.json"


def keys_file() -> Path:
    """Which keys the app has, where a person wants others."""
    return config_dir() / "keys.toml"


def embeds_dir() -> Path:
    """Encoded prompts, kept so that a known prompt does not load the encoder again."""
    return cache_dir() / "embeds"


def schedules_dir() -> Path:
    """Folded schedules, so that a known one does not read the modulation weights again."""
    return cache_dir() / "schedules"


def notes_dir(kind: str) -> Path:
    """Facts about weights files (`backend.cache.notes`), one folder a kind: their SHA-256, their headers."""
    return cache_dir() / kind


def prefixes_dir() -> Path:
    """What every conversation with a language model begins with, as llama.cpp computed it."""
    return cache_dir() / "prefixes"


def rewrites_dir() -> Path:
    """Rewritten requests, so that a known one asks no language model again."""
    return cache_dir() / "rewrites"


def kernels_dir() -> Path:
    """Which kernel was measured to be the fastest, a file a GPU."""
    return cache_dir() / "kernels"


def compiled_dir() -> Path:
    """What compilers have made for this machine."""
    return cache_dir() / "compiled"


def triton_dir() -> Path:
    """Triton's kernels, within that folder."""
    return compiled_dir() / "triton"


def inductor_dir() -> Path:
    """What torch.compile made, within that folder."""
    return compiled_dir() / "inductor"


def nano_dir() -> Path:
    """Lens-Nano's weights, inside the installed package."""
    return PACKAGE / "nano"


def hub_cache() -> Path:
    """The Hugging Face cache, by that library's own rules: HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME, in this order."""
    named = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if named:
        return expanded(named)
    home = os.environ.get("HF_HOME")
    if home:
        return expanded(home) / "hub"
    cache = os.environ.get("XDG_CACHE_HOME")
    return expanded(cache or "~/.cache") / "huggingface" / "hub"


HUB_REPO = "models--"  # how the Hugging Face cache begins the name of a model repository's folder


def hub_repo(repo: str) -> Path:
    """Where huggingface_hub keeps the model repository `owner/name`."""
    return hub_cache() / f"{HUB_REPO}{repo.replace('/', '--')}"
