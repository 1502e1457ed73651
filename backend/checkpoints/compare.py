"""Whether a file holds exactly the tensors that a network has: the one comparison that loading and converting make."""

from __future__ import annotations

from backend.errors import CheckpointError

SHOWN = 3  # names listed in one error


def compare(expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]], origin: str) -> None:
    """Raises CheckpointError naming the first missing, unexpected or misshapen tensors."""
    problems: list[str] = []
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    if missing:
        problems.append(f"{_counted(missing, 'missing')}")
    if extra:
        problems.append(f"{_counted(extra, 'unexpected')}")
    misshapen = [name for name in expected if name in found and found[name] != expected[name]]
    if misshapen:
        shown = "; ".join(f"{n} is {list(found[n])}, expected {list(expected[n])}" for n in misshapen[:SHOWN])
        problems.append(f"{len(misshapen)} of another shape: {shown}{_more(misshapen)}")
    if problems:
        raise CheckpointError(f"{origin}: {'; '.join(problems)}")


def _counted(names: list[str], what: str) -> str:
    plural = "tensor" if len(names) == 1 else "tensors"
    return f"{len(names)} {plural} {what}: {', '.join(names[:SHOWN])}{_more(names)}"


def _more(names: list[str]) -> str:
    return ", …" if len(names) > SHOWN else ""
