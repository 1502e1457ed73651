"""Every error a person may see: one root class that carries its exit code, a stable code and a hint; and the words that
messages are made of.

Light ring: standard library only. `lens_cli.app` is the one place that turns these into text and exit codes.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager


class LensError(Exception):
    """Something a person can act on. `str(error)` says what and where; `hint` says what to do.

    `exit_code` follows the table in the README (0 ok, 1 failure, 2 usage, 3 retryable, 4 timeout, 5 model missing,
    6 out of memory, 7 refused, 8 part of a batch failed, 130 interrupted); `code` is the snake_case name in `--json`.
    """

    exit_code = 1
    code = "failure"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(LensError):
    """A flag, a value or a combination that cannot be honoured."""

    exit_code = 2
    code = "usage"


class FileError(LensError):
    """A file that cannot be read or written: no permission, no space, not what it should be."""

    code = "file"


class UntrustedError(LensError):
    """Something from outside cannot be what it claims to be; nothing was done with it."""

    code = "untrusted"


class HistoryError(FileError):
    """The history cannot be read or written; pictures themselves are not touched by it."""

    code = "history"


class CheckpointError(LensError):
    """A checkpoint that is cut short, misshapen, of another model, or no checkpoint at all."""

    code = "bad_checkpoint"


class NumericsError(LensError):
    """A non-finite latent or feature: stopped instead of saving a black picture."""

    code = "non_finite"


class NetworkError(LensError):
    """A server or hub that is down, busy or unreachable; trying again may help."""

    exit_code = 3
    code = "network"


class BusyError(NetworkError):
    """A server that takes no more requests for now (429), still after the last try."""

    code = "busy"


class TimeoutExpiredError(LensError):
    """Something took longer than its limit."""

    exit_code = 4
    code = "timeout"


class ModelMissingError(LensError):
    """The weights are not on this disk."""

    exit_code = 5
    code = "model_missing"


class OutOfMemoryError(LensError):
    """The device or the machine has not enough memory."""

    exit_code = 6
    code = "out_of_memory"


class RefusedError(LensError):
    """The reasoner's policy refused the request. `rule` is the policy's name for why."""

    exit_code = 7
    code = "refused"

    def __init__(self, message: str, *, hint: str | None = None, rule: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.rule = rule


class ReplyError(LensError):
    """A language model's reply that is empty, cut short, malformed or not what was asked for."""

    code = "bad_reply"


class BudgetError(LensError):
    """A limit of requests, tokens or money that a person set is reached; what was answered before is kept."""

    code = "budget_spent"


class PartialBatchError(LensError):
    """Some pictures of a batch were made, others were not."""

    exit_code = 8
    code = "partial_batch"


class CancelledError(LensError):
    """The person pressed Ctrl-C; finished pictures are kept."""

    exit_code = 130
    code = "cancelled"


# Modules whose package is called otherwise, and packages that belong to no extra.
_PACKAGES = {"llama_cpp": "llama-cpp-python", "faiss": "faiss-cpu", "c2pa": "c2pa-python"}
_ALONE = ("torchao", "wandb")


@contextmanager
def optional_package(package: str | None = None, *, otherwise: str | None = None) -> Generator[None]:
    """Turn a failed import inside the block into the error that says what to install.

    `package`: whose lack it is where the missing module is only a part of it (FastAPI of "ray[serve]"); None: the
    module's own. `otherwise`: what helps without it. Raises LensError; an import of ours that fails stays a bug.
    """
    try:
        yield
    except ImportError as error:
        raise as_missing_package(error, package, otherwise=otherwise) or error from error


def as_missing_package(
    error: ImportError, package: str | None = None, *, otherwise: str | None = None
) -> LensError | None:
    """The error that says which optional package to install; None where the module belongs to none."""
    import shlex

    module = (error.name or "").partition(".")[0]
    package = package or _PACKAGES.get(module, module.replace("_", "-"))
    extra = _extra_of(package)
    if extra is None and package not in _ALONE:
        return None
    hint = f"pip install {shlex.quote(package)}" + (f"   (one of the packages of lens[{extra}])" if extra else "")
    if isinstance(error, ModuleNotFoundError):
        what = "is not installed, and this needs it"
    else:
        what = f"cannot be loaded: {first_line(error)}"  # another version, or a library of the system that it lacks
    return LensError(f"{package} {what}", hint=f"{hint}; or {otherwise}" if otherwise else hint)


def _extra_of(package: str) -> str | None:
    """The extra of `lens` that brings the package, as the installed metadata has it."""
    import re
    from importlib.metadata import PackageNotFoundError, requires

    try:
        lines = requires("lens") or []
    except PackageNotFoundError:  # run from a folder that was never installed
        lines = []
    for line in lines:
        found = re.match(r"([A-Za-z0-9._-]+(?:\[\w+\])?).*extra == ['\"](\w+)['\"]", line)
        # The extra for developers names the packages of the others once more.
        if found and found[1].lower() == package.lower() and found[2] != "dev":
            return found[2]
    return None


def first_line(error: BaseException) -> str:
    """What somebody else's error says first, for a message of ours; its class where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def os_reason(error: OSError) -> str:
    """What the system says is wrong, in the words of a message: "no space left on device"."""
    return (error.strerror or str(error)).lower()


def counted(number: int, noun: str) -> str:
    """1, "shard" -> "1 shard"; 1200, "shard" -> "1,200 shards"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def human_bytes(number: float) -> str:
    """1536 -> "1.5 kB". Decimal units, as disks and download pages count."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(number) < 1000:
            return f"{number:.0f} {unit}" if unit == "B" or number >= 100 else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def joined(words: Iterable[str], last: str = "or") -> str:
    """ "a, b or c". Raises ValueError for no words."""
    *first, end = words
    return f"{', '.join(first)} {last} {end}" if first else end


def shown(name: object) -> str:
    """A name from outside for a message: short, and without effect on a terminal."""
    text = ascii(name) if isinstance(name, str) else f"of type {type(name).__name__}"
    return text if len(text) <= 80 else f"{text[:80]}…"
