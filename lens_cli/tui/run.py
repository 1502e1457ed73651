"""Start the app: what a terminal must have, what was remembered, and who draws."""

from __future__ import annotations

import os
import select
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from backend import paths
from backend.errors import UsageError
from backend.settings import Settings
from lens_cli.terminal.graphics import Answer, Graphics, ask_terminal

if TYPE_CHECKING:
    from lens_cli.tui.app import LensApp

GRACE = 3.0  # seconds that the app has to write its state once its terminal is gone
HUNG_UP = 129  # the exit code of what SIGHUP ends


def check_terminal() -> None:
    """Raises UsageError where there is none that can show an app."""
    hint = "lens gen makes pictures anywhere"
    streams = (sys.stdin, sys.stdout, sys.stderr)  # Textual draws on stderr
    if any(stream is None or not stream.isatty() for stream in streams):  # pyright: ignore[reportUnnecessaryComparison]
        raise UsageError("the app needs a terminal: stdin, stdout and stderr are not all one", hint=hint)
    if os.environ.get("TERM", "dumb") in ("", "dumb"):
        raise UsageError("the app needs a terminal that can move its cursor, and TERM says it is dumb", hint=hint)


def run(settings: Settings, *, graphics: Graphics = Graphics.auto, fresh: bool = False, notes: list[str]) -> None:
    """Run the app until a person leaves it. `fresh`: what was remembered is not taken up. Raises UsageError.

    `notes`: said at the start. The heavier half of Textual arrives here, and nothing of a model ever does.
    """
    check_terminal()
    answer = ask_terminal() if graphics is Graphics.auto else Answer(graphics)
    if answer.graphics is Graphics.sixel:
        pass  # asks the terminal about its cells, so before the app reads the keyboard
    from lens_cli.tui.app import LensApp, Places, Start
    from lens_cli.tui.jobs.connection import connect
    from lens_cli.tui.keys import read_keys
    from lens_cli.tui.state import State, read_state

    keymap = read_keys(paths.keys_file())
    state, problem = (State(), None) if fresh else read_state(paths.app_file())
    places = Places(
        state=paths.app_file(), history=paths.history_file(),
        pictures=None if settings.output_dir is not None else Path(paths.pictures_dir()),
    )  # fmt: skip
    start = Start(
        graphics=answer.graphics, keymap=keymap, notes=(*notes, *([problem] if problem else [])), typed=answer.typed
    )
    app = LensApp(settings, state, connect=connect, places=places, start=start)
    watch_terminal(app)
    app.run()


def watch_terminal(app: LensApp) -> None:
    """End the app once its terminal is gone, which SIGHUP does not always say.

    Reading from a terminal that hung up returns nothing at once, and Textual would read again without end.
    """
    if not hasattr(select, "poll"):  # Windows
        return
    gone = select.poll()
    gone.register(sys.stdin, 0)  # of nothing but that it hung up, which needs no asking

    def wait() -> None:
        if not any(event & (select.POLLHUP | select.POLLERR) for _, event in gone.poll()):
            return  # POLLNVAL: a system that cannot watch terminals, such as macOS
        last = threading.Timer(GRACE, os._exit, (HUNG_UP,))  # whatever the app waits for: nobody sees it
        last.daemon = True
        last.start()
        with suppress(RuntimeError):  # it runs no more
            app.call_from_thread(app.action_quit)

    threading.Thread(target=wait, name="terminal", daemon=True).start()
