"""The app in a terminal: what goes out over a pseudo terminal that answers as one does, and a real picture in tmux.

Trusted because the bytes are those that a terminal would get, and because tmux is a terminal of somebody else's.
"""

from __future__ import annotations

import base64
import fcntl
import io
import os
import pty
import re
import select
import shutil
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from lens_cli.terminal.graphics import Answer, Graphics, read_answer
from tests.lens_cli.cli import ROOT, environment, lens
from tests.lens_cli.scripted_server import gradient

KITTY, SIXEL = "\x1b_Gi=31;OK\x1b\\\x1b[?62;c", "\x1b[?62;4;22c"
APP = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from backend.settings import Settings
from lens_cli.terminal.graphics import Graphics
from lens_cli.tui.app import LensApp, Start
from lens_cli.tui.run import watch_terminal
from lens_cli.tui.state import State
from tests.lens_cli.scripted_server import ScriptedServer
server = ScriptedServer(Path(sys.argv[1]), steps=2)
start = Start(graphics=Graphics(sys.argv[2]))
app = LensApp(Settings(), State(), connect=lambda settings: server, start=start)
watch_terminal(app)
app.run()
"""


class Terminal:
    """A child on a pseudo terminal: what it wrote, and an answer to the questions that a terminal answers."""

    def __init__(self, *words: str, size: tuple[int, int] = (90, 28), device: str = "\x1b[?62;22c") -> None:
        self.written, self._answered = b"", 0
        self.pid, self.screen = pty.fork()
        if self.pid == 0:
            os.environ.update(environment(TERM="xterm-256color", COLORTERM="truecolor"))
            os.execv(sys.executable, [sys.executable, *words])
        self.device = device.encode()
        fcntl.ioctl(self.screen, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], size[0] * 8, size[1] * 16))

    def until(self, pattern: bytes, seconds: float = 60) -> bytes:
        """Everything so far, once it holds the pattern."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if re.search(pattern, self.written, re.DOTALL):
                return self.written
            if select.select([self.screen], [], [], 0.2)[0]:
                self.written += os.read(self.screen, 1 << 16)
                self._answer()
        raise AssertionError(f"{pattern!r} did not come; the end of what did:\n{self.written[-2000:]!r}")

    def _answer(self) -> None:
        for question, answer in ((b"\x1b[c", self.device), (b"\x1b[?2026$p", b"\x1b[?2026;1$y")):
            while (place := self.written.find(question, self._answered)) >= 0:
                os.write(self.screen, answer)
                self._answered = place + 1

    def keys(self, text: str) -> None:
        os.write(self.screen, text.encode())


@contextmanager
def terminal(*words: str, device: str = "\x1b[?62;22c") -> Iterator[Terminal]:
    child = Terminal(*words, device=device)
    try:
        yield child
    finally:
        child.keys("\x11")  # Ctrl-Q
        end = time.monotonic() + 20
        while time.monotonic() < end and os.waitpid(child.pid, os.WNOHANG)[0] == 0:
            if select.select([child.screen], [], [], 0.05)[0]:
                try:
                    os.read(child.screen, 1 << 16)
                except OSError:  # it is gone
                    time.sleep(0.05)
        os.close(child.screen)


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (KITTY, Answer(Graphics.kitty)),
        (SIXEL, Answer(Graphics.sixel)),
        ("\x1b_Gi=31;OK\x1b\\" + SIXEL, Answer(Graphics.sixel)),  # WezTerm and Konsole: no placeholders
        ("\x1b_Gi=31;ENOTSUP:x\x1b\\\x1b[?62;22c", Answer(Graphics.half)),
        ("\x1b[?1;2c", Answer(Graphics.half)),
        ("\x1b[?64;14;24c", Answer(Graphics.half)),  # 14 and 24 are not 4
        ("a f\x1b[?62;22c\x1b[Aish", Answer(Graphics.half, "a fish")),  # typed meanwhile
        ("", Answer(Graphics.half)),
    ],
)
def test_a_terminal_is_understood(said: str, answer: Answer) -> None:
    assert read_answer(said) == answer


@pytest.mark.parametrize("deaf", [False, True])
def test_a_terminal_that_is_gone_ends_the_app(deaf: bool, tmp_path: Path) -> None:
    """Also where SIGHUP is ignored, as `nohup` does: nothing is left that reads from nowhere without end."""
    ignore = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" if deaf else ""
    child = Terminal("-c", ignore + APP, str(tmp_path), "half")
    child.until(rb"Enter draws")
    child.keys("a fish")
    child.until(rb"a fish")
    os.close(child.screen)
    end = time.monotonic() + 20
    while (ended := os.waitpid(child.pid, os.WNOHANG)[0]) == 0 and time.monotonic() < end:
        time.sleep(0.1)
    if not ended:
        os.kill(child.pid, 9)
    assert ended == child.pid


def test_kitty_gets_a_picture_once_and_in_one_synchronised_write(tmp_path: Path) -> None:
    """The PNG that the terminal is sent is the picture, and nothing else is written between its parts."""
    with terminal("-c", APP, str(tmp_path), "kitty") as child:
        child.until(rb"Enter draws")
        child.keys("x\r")
        written = child.until(rb"a=p,U=1,.*\x1b\[\?2026l")
    (begins,) = [m.start() for m in re.finditer(rb"\x1b_Ga=t,f=100,", written)]
    ends = written.index(b"\x1b_Ga=p,U=1,")
    frame = written[written.rindex(b"\x1b[?2026h", 0, begins) : written.index(b"\x1b[?2026l", ends)]
    assert b"\x1b[?2026l" not in frame and frame.count("\U0010eeee".encode()) > 100
    messages = re.findall(rb"\x1b_G([^;]*);([^\x1b]*)\x1b\\", written[begins:ends])
    assert b"".join(b"\x1b_G%b;%b\x1b\\" % message for message in messages) == written[begins:ends]
    assert all(len(data) <= 4096 for _, data in messages)
    sent = Image.open(io.BytesIO(base64.b64decode(b"".join(data for _, data in messages))))
    assert sent.convert("RGB").tobytes() == gradient(3).tobytes()


def test_sixel_gets_sixels_in_a_synchronised_write(tmp_path: Path) -> None:
    code = f"import textual_image.widget\n{APP}"
    with terminal("-c", code, str(tmp_path), "sixel", device=SIXEL) as child:
        child.until(rb"Enter draws")
        child.keys("x\r")
        written = child.until(rb"\x1bP[0-9;]*q.*\x1b\\.*\x1b\[\?2026l")
    begins = re.search(rb"\x1bP[0-9;]*q", written)
    assert begins is not None
    opened, closed = written.rindex(b"\x1b[?2026h", 0, begins.start()), written.rfind(b"\x1b[?2026l", 0, begins.start())
    assert opened > closed


def test_without_a_terminal_it_is_refused_and_bare_lens_prints_help() -> None:
    run = lens("tui")
    assert run.code == 2 and "needs a terminal" in run.err and "lens gen" in run.err
    assert b"Usage" in lens().out


@pytest.mark.parametrize("words", [("tui",), ()])
def test_a_dumb_terminal_is_refused_or_gets_help(words: tuple[str, ...]) -> None:
    pid, screen = pty.fork()
    if pid == 0:
        os.environ.update(environment(TERM="dumb"))
        os.execv(sys.executable, [sys.executable, "-c", "from lens_cli.entry import main; main()", *words])
    written = b""
    try:
        while data := os.read(screen, 1 << 16):
            written += data
    except OSError:  # the child has closed it
        pass
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert (code, b"TERM says it is dumb" in written, b"Usage" in written) == (
        (2, True, False) if words else (0, False, True)
    )


def test_the_app_loads_nothing_of_a_model() -> None:
    """A prompt box does not wait for torch, nor for Pillow."""
    heavy = {"torch", "numpy", "PIL", "textual_image", "openai", "starlette", "sqlite3", "llama_cpp"}
    code = f"import sys, lens_cli.tui.run, lens_cli.tui.app\nprint(*sorted({heavy!r} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout.split()) == (0, []), run.stderr


@pytest.mark.nano
@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is a system package")
def test_a_prompt_typed_in_tmux_becomes_a_picture(tmp_path: Path) -> None:
    """Everything is real: the command, the server that it starts, Lens-Nano, and a terminal to look at it."""
    home = tmp_path / "lens"
    session, program = f"lens-{os.getpid()}", f"{sys.executable} -c 'from lens_cli.entry import main; main()'"
    env = {**environment(LENS_HOME=str(home), LENS_OUTPUT_DIR=str(tmp_path / "pictures"), LENS_KEEP_ALIVE="20s",
                         LENS_GENERATE__STEPS="4", LENS_GENERATE__BASE="128", TERM="xterm-256color")}  # fmt: skip

    def tmux(*words: str) -> str:
        socket = ["-L", session, "-f", "/dev/null"]
        return subprocess.run(["tmux", *socket, *words], env=env, capture_output=True, text=True, check=True).stdout

    def until(text: str, seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while text not in (screen := tmux("capture-pane", "-p")):
            assert time.monotonic() < end, screen
            time.sleep(0.2)

    tmux("new-session", "-d", "-x", "90", "-y", "28", f"cd {tmp_path}; {program}")
    try:
        until("Enter draws")
        tmux("send-keys", "-l", "a [red] fish")
        tmux("send-keys", "Enter")
        until("✓ done")
        until("a [red] fish")
        (picture,) = (tmp_path / "pictures").glob("*.png")
        assert Image.open(picture).size == (128, 128)
        tmux("send-keys", "F6")
        until("steps    4")
    finally:
        tmux("kill-server")
        subprocess.run([sys.executable, "-c", "from lens_cli.entry import main; main()", "stop"], env=env, timeout=60)
