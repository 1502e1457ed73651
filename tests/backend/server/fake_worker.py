"""The worker with the fake engine inside, as a program: what a server of the tests starts."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

if __name__ == "__main__":
    from tests import fake_engine

    fake_engine.install()
    from backend.server.worker import main

    main()
