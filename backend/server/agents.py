"""`lens mcp`: a session for agents, over the Model Context Protocol on stdin and stdout.

An agent is a client like any other: it names models and LoRAs, and its pictures go below one folder. The tools' words
are what it knows of them. Source: the protocol's specification, by way of the package `mcp`.
"""

from __future__ import annotations

import io
import json
import os
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import anyio.from_thread
import anyio.to_thread
from mcp.server.mcpserver import Context, Image, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import Field

from backend.errors import LensError, UsageError
from backend.events import Event, PictureSaved, StepDone
from backend.paths import history_file
from backend.picture.history import History
from backend.picture.outcome import Outcome
from backend.reasoner.refine import Refused, make_plan
from backend.requests import find_model
from backend.server.http.intake import model_rows, take_in
from backend.server.remote import Draws
from backend.settings import Settings
from backend.wish import Wish

SHOWN = 768  # pixels of a side: what an agent sees of a picture; the file is whole


def serve(settings: Settings, folder: Path, session: Draws, version: str) -> None:
    """Answer until stdin ends. What libraries print goes to stderr."""
    sys.stdout = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    make_server(settings, folder, session, version).run("stdio")


def make_server(settings: Settings, folder: Path, session: Draws, version: str) -> MCPServer[Any]:
    """The tools. Pictures go below `folder`."""
    tools = Tools(settings, folder, session)
    server = MCPServer[Any](
        "lens", version=version, log_level="WARNING",
        instructions="Draws pictures on this machine from sentences. A prompt is one plain description of what is to "
        "be seen; words that shall be readable in the picture stand in double quotes.",
    )  # fmt: skip
    server.tool(title="Draw pictures", structured_output=False)(tools.draw)
    server.tool(title="Improve a prompt", structured_output=False)(tools.refine)
    server.tool(title="Search pictures that were made", structured_output=False)(tools.history)
    server.tool(title="List models", structured_output=False)(tools.models)
    return server


class Tools:
    """One call draws at a time; the others wait."""

    def __init__(self, settings: Settings, folder: Path, session: Draws) -> None:
        self._settings, self._folder, self._session = settings, folder, session
        self._lock = anyio.Lock()

    async def draw(
        self,
        prompt: Annotated[str, Field(description="What is to be seen.")],
        ctx: Context[Any],
        n: Annotated[int, Field(ge=1, le=10, description="Number of pictures.")] = 1,
        seed: Annotated[int | None, Field(description="The same seed gives the same picture.")] = None,
        ar: Annotated[str | None, Field(description="Shape W:H between 1:2 and 2:1, or portrait, landscape.")] = None,
        size: Annotated[str | None, Field(description="WxH in pixels, in place of a shape.")] = None,
        model: Annotated[str | None, Field(description="A name that `models` gives.")] = None,
        steps: Annotated[int | None, Field(description="More is slower and finer; best left out.")] = None,
        guidance: Annotated[float | None, Field(description="How strongly to follow the prompt.")] = None,
        negative_prompt: Annotated[str | None, Field(description="What to avoid.")] = None,
        output: Annotated[str | None, Field(description="A file name below the pictures' folder.")] = None,
    ) -> list[Any]:
        """Draw pictures. Returns for each its file, seed and id, and what it looks like."""
        wish = Wish(
            prompt=prompt, num=n, seeds=None if seed is None else (str(seed),), ar=ar, size=size, model=model,
            steps=steps, guidance=guidance, negative_prompt=negative_prompt,
        )  # fmt: skip
        name = output or Path(self._settings.output.template).name
        told = partial(_progress, ctx, n)
        outcome, notes = await self._call(partial(self._draw, wish, name), told)
        rows = [{**picture.row(), "prompt": picture.record["prompt"]} for picture in outcome.pictures]
        seen = [_seen(picture) for picture in outcome.pictures]
        return [json.dumps({"pictures": rows, "notes": notes}), *seen]

    async def refine(self, prompt: Annotated[str, Field(description="A brief request.")], ctx: Context[Any]) -> str:
        """Rewrite a brief request into the kind of prompt that the model was trained on, without drawing it."""
        return await self._call(partial(self._refine, prompt), _silent)

    async def history(
        self,
        query: Annotated[str, Field(description="Words of the prompt; empty for the last ones.")] = "",
        limit: Annotated[int, Field(ge=1, le=100)] = 10,
    ) -> str:
        """Search the pictures that were made on this machine, the last one first."""

        def search() -> list[dict[str, Any]]:
            with History(history_file()) as history:
                return [entry.data() for entry in history.search(query, limit=limit)]

        return json.dumps(await self._known(search))

    async def models(self) -> str:
        """The models on this machine, with what is drawn where nothing is said."""
        return json.dumps(await self._known(model_rows))

    async def _call(self, call: Callable[..., Any], told: Callable[[Event], None]) -> Any:
        """In a thread, one at a time; a call that is taken back stops after its step."""
        stop = threading.Event()
        async with self._lock:
            try:
                return await self._known(partial(call, told, stop.is_set), abandon=True)
            finally:
                stop.set()

    async def _known(self, call: Callable[[], Any], *, abandon: bool = False) -> Any:
        """Errors of ours as the protocol tells them: what, and what to do."""
        try:
            return await anyio.to_thread.run_sync(call, abandon_on_cancel=abandon)
        except LensError as error:
            raise ToolError(f"{error}" if error.hint is None else f"{error}; {error.hint}") from error

    def _draw(
        self, wish: Wish, name: str, told: Callable[[Event], None], stop: Callable[[], bool]
    ) -> tuple[Outcome, list[str]]:
        taken = take_in(wish, self._settings, folder=self._folder, owner=False, output=name)
        outcome = self._session.run(taken.resolved, taken.output, rewrite=taken.rewrite, on_event=told, stop=stop)
        if not outcome.pictures and (error := outcome.error()) is not None:
            raise error
        failed = [f"picture {failure.index + 1} failed: {failure.error}" for failure in outcome.failures]
        return outcome, [*taken.notes, *failed]

    def _refine(self, prompt: str, told: Callable[[Event], None], stop: Callable[[], bool]) -> str:
        from backend.presets import default_name

        found = find_model(self._settings.model or default_name())
        plan = make_plan(self._settings.reasoner, found.preset, found.name, insist=True, files=found.files)
        decision = self._session.rewrite(prompt, plan, found.files, on_event=told, stop=stop)
        if isinstance(decision, Refused):
            raise UsageError(str(decision.error()), hint=decision.error().hint)
        return decision.prompt


def _progress(ctx: Context[Any], pictures: int, event: Event) -> None:
    """Steps of all pictures together, told to whoever waits."""
    if isinstance(event, StepDone):
        done, total = event.image * event.total + event.step, pictures * event.total
        anyio.from_thread.run(ctx.report_progress, float(done), float(total), f"step {event.step} of {event.total}")


def _silent(event: Event) -> None: ...


def _seen(picture: PictureSaved) -> Image:
    """A picture as an agent looks at it."""
    shown = picture.generation.image.convert("RGB")
    shown.thumbnail((SHOWN, SHOWN))
    buffer = io.BytesIO()
    shown.save(buffer, format="JPEG", quality=90)
    return Image(data=buffer.getvalue(), format="jpeg")
