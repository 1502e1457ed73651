"""Who draws for the server: a worker process on this machine; `backend.server.cluster` has replicas on several.

Light ring: standard library and psutil.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

from backend.errors import LensError

LINE_BYTES = 256 << 20  # of one event: a picture of 16 megapixels that nothing compresses
PATIENCE = 5.0  # seconds that a worker may take to end by itself

COMMAND = (sys.executable, "-m", "backend.server.worker")


class WorkerLostError(LensError):
    """A worker ended in the middle of an order."""

    code = "worker_lost"


class Drawer(Protocol):
    """Carries out one order at a time."""

    def carry_out(self, order: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        """The order's events, `finished` last. Raises WorkerLostError."""
        ...

    async def cancel(self, job: str, *, hard: bool) -> None:
        """Stop an order after its step; `hard`: now, whatever it takes."""
        ...

    async def unload(self) -> None:
        """Give back all its memory."""
        ...

    def status(self) -> dict[str, Any]:
        """pid, device, memory: whatever is known; resident None: nothing is in memory."""
        ...


class ProcessDrawer:
    """A worker process, started with the first order and again when it has ended."""

    def __init__(self, command: Sequence[str] = COMMAND) -> None:
        self._command = command
        self._process: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()  # one order at a time

    async def carry_out(self, order: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        async with self._lock:
            process = await self._started()
            await self._send(process, order)
            while True:
                event = await self._read(process)
                if event.get("job") != order["job"]:
                    continue  # of an order that nobody listens to any more
                yield event
                if event["event"] == "finished":
                    return

    async def start(self) -> None:
        """Have the process ready before the first order."""
        async with self._lock:
            await self._started()

    async def cancel(self, job: str, *, hard: bool) -> None:
        if self._process is None:
            return
        if hard:
            with suppress(ProcessLookupError):
                self._process.kill()
        else:
            await self._send(self._process, {"do": "cancel", "job": job})

    async def unload(self) -> None:
        """End the process: a CPU's memory comes back in no other way."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), PATIENCE)
        except TimeoutError:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    def status(self) -> dict[str, Any]:
        pid = None if self._process is None or self._process.returncode is not None else self._process.pid
        return {"kind": "process", "pid": pid, "resident": None if pid is None else resident_bytes(pid)}

    async def _started(self) -> asyncio.subprocess.Process:
        if self._process is not None and self._process.returncode is None:
            return self._process
        self._process = await asyncio.create_subprocess_exec(
            *self._command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=LINE_BYTES
        )
        await self._read(self._process)  # ready
        return self._process

    async def _send(self, process: asyncio.subprocess.Process, order: Mapping[str, Any]) -> None:
        assert process.stdin is not None
        with suppress(OSError):  # a worker that has ended is noticed by whoever reads
            process.stdin.write(json.dumps(order, allow_nan=False).encode() + b"\n")
            await process.stdin.drain()

    async def _read(self, process: asyncio.subprocess.Process) -> dict[str, Any]:
        assert process.stdout is not None
        line = await process.stdout.readline()
        if line.endswith(b"\n"):
            return json.loads(line)
        code = await process.wait()
        self._process = None
        how = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
        hint = "memory may have run out: make a smaller picture" if code == -9 else "the server's log has more"
        raise WorkerLostError(f"the process that draws {how}", hint=hint)


def resident_bytes(pid: int) -> int | None:
    """Memory of a process; None: it is gone."""
    import psutil

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None
