"""The app, driven by keys as a person drives it, over a scripted server.

Trusted because every test looks at what the server was asked for, at the file that was written or at the characters on
the screen, none at the app's inner state. Weakness: the screen is Textual's own rendering; that a terminal shows it is
seen in `test_tui_terminal.py`.
"""

from __future__ import annotations

import asyncio
import inspect
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from textual.pilot import Pilot
from textual.widgets import Input

from backend import paths
from backend.errors import NetworkError, RefusedError
from backend.picture.history import History
from backend.server.jobs import JobState
from backend.settings import ReasonerSettings, Settings
from backend.wish import Wish
from lens_cli.terminal.graphics import Graphics
from lens_cli.tui.app import LensApp, Places, Start
from lens_cli.tui.create.form import Form, SeedMode
from lens_cli.tui.state import State, read_state
from tests.lens_cli import screens
from tests.lens_cli.scripted_server import ScriptedServer, gradient

WAIT = 30.0  # seconds until a test gives up


@asynccontextmanager
async def opened(
    server: ScriptedServer | None, *, size: tuple[int, int] = (100, 30), state: State | None = None,
    settings: Settings | None = None, places: Places | None = None, **start: Any,
) -> AsyncIterator[tuple[LensApp, Pilot[None]]]:  # fmt: skip
    """The app with a server that answers at once; None: with none."""

    def connect(settings: Settings) -> ScriptedServer:
        if server is None:
            raise NetworkError("the server did not start", hint="see the log")
        return server

    app = LensApp(
        settings or Settings(), state or State(), connect=connect,
        places=places or Places(history=paths.history_file()), start=Start(**start),
    )  # fmt: skip
    async with app.run_test(size=size, notifications=True) as pilot:
        if server is not None:
            await until(pilot, lambda: app.link.connection is not None)
        yield app, pilot


async def until(pilot: Pilot[None], holds: Callable[[], bool]) -> None:
    """Wait for something that a thread brings about."""
    end = time.monotonic() + WAIT
    while time.monotonic() < end:
        await pilot.pause()
        if holds():
            return
        await asyncio.sleep(0.03)
    raise AssertionError("it did not come about; the screen:\n" + "\n".join(screens.lines(pilot.app)))


def shows(pilot: Pilot[None], text: str) -> bool:
    return any(text in line for line in screens.lines(pilot.app))


async def write(pilot: Pilot[None], text: str) -> None:
    """Write a line where one is asked for, faster than key by key, and enter it."""
    await until(pilot, lambda: isinstance(pilot.app.focused, Input))
    assert isinstance(pilot.app.focused, Input)
    pilot.app.focused.value = text
    await pilot.press("enter")


def run(test: Any) -> Any:
    """The tests are coroutines, and one loop each is all they need."""

    def sync(**given: Any) -> None:
        asyncio.run(test(**given))

    sync.__name__, sync.__doc__ = test.__name__, test.__doc__
    sync.__signature__ = inspect.signature(test)  # type: ignore[attr-defined]
    return sync


@pytest.fixture
def server(tmp_path: Path) -> ScriptedServer:
    return ScriptedServer(tmp_path)


@pytest.fixture
def history(isolated_home: Path) -> Path:
    """Three pictures of a fish, a cat and a house, the house made last."""
    with History(paths.history_file()) as known:
        for number, word in enumerate(("fish", "cat", "house")):
            path = isolated_home / f"{word}.png"
            gradient(number, (64, 48)).save(path)
            record = {
                "v": 1, "id": f"{number}" * 32, "pixel_sha256": str(number), "created": f"2026-11-30T10:0{number}:00Z",
                "prompt": f"a {word} [b]x[/b]", "negative_prompt": "", "original_prompt": None, "expander": None,
                "model": {"name": "nano", "revision": None, "sha256": {}},
                "width": 256, "height": 192, "seed": number, "steps": 12, "guidance": 3.0, "timings": {"denoise": 1.0},
                "sampler": "FlowMatchEuler", "loras": [], "dtype": "float32", "device": "auto", "quant": None,
                "encoder": "exact", "software": "lens 0",
            }  # fmt: skip
            known.add(record, path)
    return paths.history_file()


# ------------------------------------------------------------------------------------------------------------- drawing


@run
async def test_a_typed_prompt_is_drawn_as_it_was_typed(server: ScriptedServer) -> None:
    """Brackets and braces are no markup, and nothing of them is lost on the way."""
    async with opened(server) as (_, pilot):
        await pilot.press(*"a [red]fish[/] {a|b}", "enter")
        await until(pilot, lambda: shows(pilot, "✓ done"))
        assert shows(pilot, "a [red]fish[/] {a|b}") and shows(pilot, "seed 0 · 96×96")
    assert [wish.prompt for wish in server.wishes] == ["a [red]fish[/] {a|b}"]


@run
async def test_typing_does_not_wait_for_a_server_that_is_not_there() -> None:
    async with opened(None) as (app, pilot):
        await pilot.press(*"a fish")
        assert shows(pilot, "a fish")
        await until(pilot, lambda: shows(pilot, "no server"))
        await pilot.press("enter")
        await until(pilot, lambda: shows(pilot, "did not start"))
        assert app.create.form.prompt == "a fish"


@run
async def test_what_was_asked_before_the_server_answers_is_drawn(server: ScriptedServer) -> None:
    answers = threading.Event()

    def connect(settings: Settings) -> ScriptedServer:
        answers.wait()
        return server

    app = LensApp(Settings(), State(), connect=connect)
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await pilot.press(*"fish", "enter")
        await until(pilot, lambda: shows(pilot, "as soon as the server answers"))
        answers.set()
        await until(pilot, lambda: shows(pilot, "✓ done"))
    assert [wish.prompt for wish in server.wishes] == ["fish"]


@run
async def test_controls_make_the_wish(server: ScriptedServer) -> None:
    async with opened(server) as (app, pilot):
        await pilot.press(*"a fish", "tab", "tab")  # model, size
        await pilot.press("right", "down", "1", "2", "enter", "down", "right", "down", "7", "enter", "down", "right")
        await pilot.press("ctrl+g")
        await until(pilot, lambda: bool(server.wishes))
        wish = server.wishes[0]
        assert (wish.ar, wish.steps, wish.guidance, wish.seeds, wish.num) == ("4:3", 12, 3.5, ("7",), 2)
        await pilot.press("delete")  # one picture again
        assert app.create.form.count == 1


@run
async def test_a_value_that_does_not_fit_is_refused_and_nothing_changes(server: ScriptedServer) -> None:
    async with opened(server) as (app, pilot):
        app.create.query_one("#control-steps").focus()
        await pilot.press("9", "9", "9", "9", "enter")
        await until(pilot, lambda: shows(pilot, "outside 1..250"))
        assert app.create.form.steps is None and shows(pilot, "Steps      ◀ 20 ▶")


@run
async def test_what_a_distilled_model_cannot_honour_is_hidden(server: ScriptedServer) -> None:
    async with opened(server) as (app, pilot):
        assert shows(pilot, "Guidance")
        app.create.query_one("#fold").focus()
        await pilot.press("enter")
        await until(pilot, lambda: shows(pilot, "Avoid"))
        app.create.query_one("#control-model").focus()
        await pilot.press("right")
        await until(pilot, lambda: shows(pilot, "lens-turbo"))
        assert not shows(pilot, "Guidance") and not shows(pilot, "Avoid")
        await pilot.press("f5", *"x", "enter")
        await until(pilot, lambda: bool(server.wishes))
        assert server.wishes[0].model == "lens-turbo" and server.wishes[0].guidance is None


@run
async def test_the_rest_takes_any_text_and_says_what_it_holds(server: ScriptedServer) -> None:
    async with opened(server, size=(120, 40)) as (app, pilot):
        app.create.query_one("#fold").focus()
        await pilot.press("enter")
        await until(pilot, lambda: shows(pilot, "Avoid"))
        app.create.query_one("#control-negative_prompt").focus()
        await pilot.press("f", *"og [x]", "enter")
        await until(pilot, lambda: shows(pilot, "More (1): avoid fog [x]"))
        await pilot.press("f5", "x", "enter")
        await until(pilot, lambda: bool(server.wishes))
        assert server.wishes[0].negative_prompt == "fog [x]"


# --------------------------------------------------------------------------------------------------------------- queue


@run
async def test_the_queue_is_cancelled_and_reordered_by_keys(server: ScriptedServer) -> None:
    server.hold()
    async with opened(server) as (app, pilot):
        for word in ("one", "two", "three"):
            app.create.prompt.load_text(word)
            await pilot.press("enter")
            await until(pilot, lambda word=word: any(wish.prompt == word for wish in server.wishes))
        await until(pilot, lambda: len(app.link.jobs.waiting()) == 2)
        app.create.query_one("#queue").focus()
        await pilot.press("down", "down", "K")  # the third before the second
        await until(pilot, lambda: [job.prompt for job in server.jobs()] == ["one", "three", "two"])
        await until(pilot, lambda: [one.job.prompt for one in app.link.jobs.waiting()] == ["three", "two"])
        await pilot.press("x")  # the cursor stayed with the third
        await until(pilot, lambda: [job.prompt for job in server.jobs() if not job.state.ended] == ["one", "two"])
        await pilot.press("ctrl+t")  # what runs
        server.go()
        await until(pilot, lambda: [str(job.state) for job in server.jobs()].count("cancelled") == 2)
        await until(pilot, lambda: shows(pilot, "✓ done"))


@run
async def test_a_failed_job_says_why_and_the_next_one_is_drawn(server: ScriptedServer) -> None:
    async with opened(server) as (_, pilot):
        await pilot.press(*"nan", "enter")
        await until(pilot, lambda: shows(pilot, "✗ the latent is not finite"))
        assert shows(pilot, "try --dtype float32")
        await pilot.press("enter")
        await pilot.press(*"[fail]", "enter")
        await until(pilot, lambda: shows(pilot, "this wish cannot be met"))


@run
async def test_previews_are_shown_while_it_is_drawn(server: ScriptedServer) -> None:
    server.hold(3)
    async with opened(server) as (app, pilot):
        await pilot.press("x", "enter")
        await until(pilot, lambda: shows(pilot, "denoise 2/4 1 s") and shows(pilot, "▀▀▀▀"))
        assert app.link.jobs.running() is not None
        server.go()


# ------------------------------------------------------------------------------------------------------------ reasoner


@run
async def test_a_rewrite_is_seen_and_taken(server: ScriptedServer) -> None:
    server.rewrite = "two [big] fish in the sea"
    async with opened(server) as (_, pilot):
        await pilot.press(*"old fish", "f2")
        await until(pilot, lambda: shows(pilot, "two [big] fish in the sea"))
        assert shows(pilot, "old fish") and shows(pilot, "Rewritten by nano")
        await pilot.press("enter")
        await until(pilot, lambda: not shows(pilot, "Rewritten"))
        await pilot.press("enter")
        await until(pilot, lambda: bool(server.wishes))
    wish = server.wishes[0]
    assert (wish.prompt, wish.original_prompt) == ("two [big] fish in the sea", "old fish")
    assert wish.expander is not None and wish.expander.model == "nano"


@run
async def test_an_edited_rewrite_is_the_persons_own_and_escape_keeps_the_old(server: ScriptedServer) -> None:
    async with opened(server) as (_, pilot):
        await pilot.press(*"fish", "f2")
        await until(pilot, lambda: shows(pilot, "a fish, rewritten"))
        await pilot.press("escape", "f2")
        await until(pilot, lambda: shows(pilot, "a fish, rewritten"))
        await pilot.press("!", "enter", "enter")
        await until(pilot, lambda: bool(server.wishes))
    assert server.wishes[0].original_prompt is None and "!" in (server.wishes[0].prompt or "")


@run
async def test_a_rewrite_that_waits_for_the_job_at_hand_says_so(server: ScriptedServer) -> None:
    """The model rewrites after it has drawn; an endpoint is asked at once."""
    endpoint = ReasonerSettings(base_url="http://127.0.0.1:1/v1", model="m")
    for reasoner, said in ((ReasonerSettings(), "rewrites after this job"), (endpoint, "the reasoner is asked")):
        server.hold()
        async with opened(server, settings=Settings(reasoner=reasoner)) as (_, pilot):
            await pilot.press(*"fish", "enter")
            await until(pilot, lambda: any(job.state is JobState.running for job in server.jobs()))
            await until(pilot, lambda: shows(pilot, "step 0") or shows(pilot, "0/4"))
            await pilot.press("f2")
            await until(pilot, lambda said=said: shows(pilot, said))
            server.go()
            await until(pilot, lambda: shows(pilot, "Rewritten by"))


@run
async def test_a_refusal_names_its_rule(server: ScriptedServer) -> None:
    server.rewrite = RefusedError("this is not drawn", rule="real-people")
    async with opened(server) as (_, pilot):
        await pilot.press("x", "f2")
        await until(pilot, lambda: shows(pilot, "rule: real-people"))
        await pilot.press("escape")
        assert shows(pilot, "Enter draws")


# ---------------------------------------------------------------------------------------------------- copy and paste


@run
async def test_a_copied_line_pasted_gives_the_same_form(server: ScriptedServer) -> None:
    from textual.events import Paste

    form = Form(prompt='it\'s "x" [b]', steps=7, shape="16:9", seed_mode=SeedMode.fixed, seed=9, count=3)
    form = form.with_rest("negative_prompt", "fog").with_rest("sampler", "dpmpp_2m")
    async with opened(server, state=State(form=form)) as (app, pilot):
        await pilot.press("f9")
        line = app.clipboard
        assert line.startswith("lens gen ") and "--steps 7" in line
        app.create.put(Form())
        app.create.prompt.post_message(Paste(line))
        await until(pilot, lambda: app.create.form.prompt == form.prompt)
        again = app.create.form
        assert {**vars(again), "rest": dict(again.rest) | {}} == {
            **vars(form), "rest": {**form.rest, "preview": "proj"},
        }  # fmt: skip
        app.create.prompt.post_message(Paste("lens gen x --stepps 3"))
        await until(pilot, lambda: shows(pilot, "no lens gen"))
        app.create.prompt.post_message(Paste("plain\nwords"))
        await until(pilot, lambda: "plain\nwords" in app.create.form.prompt)


@run
async def test_the_editor_gets_the_prompt_and_gives_it_back(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Textual's headless driver cannot be suspended, so this is what a person sees where a terminal cannot either."""
    async with opened(server) as (_, pilot):
        await pilot.press("x", "f4")
        await until(pilot, lambda: shows(pilot, "an editor cannot take over"))


# ------------------------------------------------------------------------------------------------------------- gallery


@run
async def test_the_gallery_is_searched_rated_and_remixed(server: ScriptedServer, history: Path) -> None:
    async with opened(server) as (app, pilot):
        await pilot.press("f6")
        await until(pilot, lambda: shows(pilot, "a house [b]x[/b]") and shows(pilot, "▀▀▀"))
        await pilot.press("slash", *"fi")
        await until(pilot, lambda: shows(pilot, "a fish") and not shows(pilot, "a house"))
        await pilot.press("enter", "4")
        await until(pilot, lambda: shows(pilot, "★★★★☆"))
        with History(history) as known:
            assert known.find("0" * 32).rating == 4
        await pilot.press("s")
        await until(pilot, lambda: shows(pilot, "Enter draws"))
        assert app.create.form.prompt == "a fish [b]x[/b]" and app.create.form.seed_mode is SeedMode.fixed
        await pilot.press("enter")
        await until(pilot, lambda: bool(server.wishes))
    wish = server.wishes[0]
    assert (wish.prompt, wish.seeds, wish.steps, wish.size) == ("a fish [b]x[/b]", ("0",), 12, "256x192")
    assert server.parents == [("0" * 32, "remix")]


@run
async def test_two_pictures_are_compared(server: ScriptedServer, history: Path) -> None:
    async with opened(server) as (_, pilot):
        await pilot.press("f6")
        await until(pilot, lambda: shows(pilot, "a house [b]x[/b]"))
        await pilot.press("c", "right", "c")
        await until(pilot, lambda: shows(pilot, "a house [b]x[/b]  →  a cat [b]x[/b]"))
        assert shows(pilot, "seed     2  →  1")
        await pilot.press("escape", "y")
        await until(pilot, lambda: "lens gen 'a cat [b]x[/b]'" in pilot.app.clipboard)


@run
async def test_a_broken_history_costs_the_gallery_only(server: ScriptedServer) -> None:
    paths.history_file().parent.mkdir(parents=True)
    paths.history_file().write_bytes(b"SQLite format 3\0" + b"x" * 5000)
    async with opened(server) as (_, pilot):
        await pilot.press("f6")
        await until(pilot, lambda: shows(pilot, "is damaged"))
        await pilot.press("f5", "x", "enter")
        await until(pilot, lambda: shows(pilot, "✓ done"))


@run
async def test_a_history_of_the_future_says_so(server: ScriptedServer) -> None:
    paths.history_file().parent.mkdir(parents=True)
    with sqlite3.connect(paths.history_file()) as database:
        database.execute("PRAGMA user_version = 99")
    async with opened(server) as (_, pilot):
        await pilot.press("f6")
        await until(pilot, lambda: shows(pilot, "newer lens"))


# ------------------------------------------------------------------------------------------------------------- follows


@run
async def test_a_run_is_followed_while_it_grows(server: ScriptedServer, tmp_path: Path) -> None:
    from lens_cli.tui.follow.train import TrainTab

    folder = tmp_path / "run"
    (folder / "previews").mkdir(parents=True)
    gradient(1).save(folder / "previews/0000010.png")
    log = folder / "metrics.jsonl"
    log.write_text('{"step": 10, "loss": 2.5}\n{"step": 20, "loss": 1.25, "eta_s": 600}\n{"step": 30, "lo')
    (folder / "config.json").write_text('{"steps": 100}')
    running = FileLock(folder / ".lock")
    running.acquire()  # as a training does until it ends
    async with opened(server, size=(100, 36)) as (app, pilot):
        await pilot.press("f7", "o")
        await write(pilot, str(folder))
        await until(pilot, lambda: shows(pilot, "step 20 of 100 (20.0 %)") and shows(pilot, "samples of 0000010"))
        assert shows(pilot, "loss 1.2500") and shows(pilot, "running, about 10 min left")
        with log.open("a") as file:
            file.write('ss": 0.75}\n')
        app.query_one(TrainTab).look()
        await until(pilot, lambda: shows(pilot, "step 30 of 100") and shows(pilot, "loss 0.7500"))
        running.release()
        await pilot.press("o", "x", "enter")
        await until(pilot, lambda: shows(pilot, "no run here"))


@run
async def test_a_search_is_followed(server: ScriptedServer, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    rows = ['{"candidate": "c0000", "score": 0.5}', '{"candidate": "c0001", "score": 1.0}', '{"candidate": 3}', "junk"]
    (folder / "samples.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "events.jsonl").write_text('{"event": "validating", "candidate": "[red]c0001"}\n')
    (folder / "spent.jsonl").write_text('{"role": "draw", "pictures": 2, "seconds": 120}\n')
    async with opened(server) as (_, pilot):
        await pilot.press("f8", "o")
        await write(pilot, str(folder))
        await until(pilot, lambda: shows(pilot, "2 pictures, 2 min"))
        text = "\n".join(screens.lines(pilot.app))
        assert text.index("c0001") < text.index("c0000") and "candidate [red]c0001" in text


# ---------------------------------------------------------------------------------------------- remembered, keys, help


@run
async def test_the_app_comes_back_as_it_was_left(server: ScriptedServer, tmp_path: Path) -> None:
    file = tmp_path / "deep" / "tui.json"
    async with opened(server, places=Places(state=file, history=paths.history_file())) as (app, pilot):
        await pilot.press(*"a [fish]", "tab", "tab", "right")
        app.theme = "nord"
        await pilot.press("f7", "ctrl+q")
    state, problem = read_state(file)
    assert problem is None and (state.form.prompt, state.form.shape, state.tab) == ("a [fish]", "4:3", "train")
    async with opened(server, state=state) as (app, pilot):
        await until(pilot, lambda: shows(pilot, "Press o and name the folder"))
        await pilot.press("f5")
        assert shows(pilot, "a [fish]") and shows(pilot, "4:3") and app.theme == "nord"


@run
async def test_keys_are_remapped(server: ScriptedServer) -> None:
    async with opened(server, keymap={"draw": "ctrl+d", "refine": "f12"}) as (_, pilot):
        await pilot.press("x", "f2")
        assert not shows(pilot, "Yours") and shows(pilot, "f12 Refine")
        await pilot.press("f12")
        await until(pilot, lambda: shows(pilot, "Yours"))
        await pilot.press("escape", "ctrl+d")
        await until(pilot, lambda: bool(server.wishes))


@run
async def test_help_speaks_of_what_has_the_focus(server: ScriptedServer) -> None:
    settings = Settings(generate=Wish(steps=9), origins={"generate.steps": "LENS_GENERATE__STEPS"})
    async with opened(server, settings=settings, size=(100, 40)) as (app, pilot):
        app.create.query_one("#control-steps").focus()
        await pilot.press("f1")
        await until(pilot, lambda: shows(pilot, "now: 9 (said by LENS_GENERATE__STEPS)"))
        assert shows(pilot, "nano was made for 20 steps") and shows(pilot, "--steps")
        await pilot.press("escape", "ctrl+p")
        await pilot.press(*"gall", "enter")
        await until(pilot, lambda: shows(pilot, "no picture was made yet"))


# ---------------------------------------------------------------------------------------------------------------- looks


@pytest.mark.parametrize("size", [(80, 24), (100, 30), (120, 36)], ids=lambda size: f"{size[0]}x{size[1]}")
@run
async def test_looks(size: tuple[int, int], server: ScriptedServer, history: Path) -> None:
    """Three screens at three sizes, against what was looked at and found good."""
    async with opened(server, size=size) as (app, pilot):
        app.create.prompt.cursor_blink = False
        await pilot.press(*"a red fish", "enter")
        await until(pilot, lambda: shows(pilot, "✓ done") and shows(pilot, "ready · nano"))
        screens.check(app, f"create-{size[0]}x{size[1]}")
        await pilot.press("f6")
        await until(pilot, lambda: shows(pilot, "seed     2") and sum("▀" in line for line in screens.lines(app)) > 8)
        await until(pilot, lambda: not shows(pilot, "·   "))
        screens.check(app, f"gallery-{size[0]}x{size[1]}")
        await pilot.press("f1")
        await until(pilot, lambda: shows(pilot, "Esc closes"))
        screens.check(app, f"help-{size[0]}x{size[1]}")


@run
async def test_a_terminal_that_is_too_small_says_so_and_lives(server: ScriptedServer) -> None:
    async with opened(server, size=(20, 5)) as (_, pilot):
        assert shows(pilot, "20×5 is too small") and shows(pilot, "60×18 or more")
        await pilot.press(*"fish", "enter")
        await until(pilot, lambda: bool(server.wishes))
        await pilot.resize_terminal(80, 24)
        await until(pilot, lambda: shows(pilot, "Enter draws"))


@run
async def test_without_colours_pictures_are_shades(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    async with opened(server) as (_, pilot):
        await pilot.press("x", "enter")
        await until(pilot, lambda: shows(pilot, "✓ done") and shows(pilot, "▓▓"))
        assert not shows(pilot, "▀")


@run
async def test_no_graphics_draws_no_picture(server: ScriptedServer) -> None:
    async with opened(server, graphics=Graphics.none) as (_, pilot):
        await pilot.press("x", "enter")
        await until(pilot, lambda: shows(pilot, "seed 0 · 96×96"))
        assert not shows(pilot, "▀")


def test_a_pasted_line_may_have_every_flag_of_gen() -> None:
    """The app's reader of a line states the few flags that the table of wishes does not: held to the command's own."""
    from lens_cli.commands.gen import gen
    from lens_cli.lazy import build
    from lens_cli.tui.create import gen_line

    def flags(source: Any) -> dict[str, list[str]]:
        return {param.name: [*param.opts, *param.secondary_opts] for param in build("gen", source).params}

    assert flags(gen_line.gen) == flags(gen)


def test_a_home_that_is_not_there_is_no_picture() -> None:
    from lens_cli.tui.create.paste import read_picture_or_line

    assert read_picture_or_line("~nosuchuser/x.png") is None
