"""A replica without Ray: an order and its events cross a machine's border as JSON, whatever types they had.

Why it can be trusted: the lines are read back as the server reads those of a worker. That two nodes of Ray draw for
one queue is shown by `python -m benchmarks.serve.cluster`.
"""

from __future__ import annotations

import asyncio
import json
import sys
import types
from datetime import datetime
from typing import Any

import pytest

from backend.checkpoints import resolve
from backend.fields import object_from
from backend.picture.outputs import OutputPlan
from backend.requests import build_request
from backend.server.cluster import Replica
from backend.server.tasks import Task
from backend.settings import Settings
from backend.types import GenerationRequest, ImageFormat
from backend.wish import Wish
from tests import fake_engine


def test_a_replica_carries_out_an_order(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("backend.engine")
    monkeypatch.setattr(module, "Engine", fake_engine.Engine, raising=False)
    monkeypatch.setitem(sys.modules, "backend.engine", module)
    monkeypatch.setattr(resolve, "resolve_model", fake_engine.resolve_model)
    wish = Wish(prompt="fish", num=2, seeds=("1",), steps=2, size="176x176")
    request = build_request(wish, Settings(), pytest.fail).request
    task = Task(
        request=request, output=OutputPlan(template=None, suffix=".png", format=ImageFormat.png),
        asked=datetime.now().isoformat(),
    )  # fmt: skip

    async def ask() -> list[dict[str, Any]]:
        replica = Replica(keep_alive=None)
        return [json.loads(line) async for line in replica.carry_out(json.dumps(task.order("ab", 0)))]

    first, *events, last = asyncio.run(ask())
    assert (first["event"], last["event"], last["error"]) == ("worker", "finished", None) and last["resident"] > 0
    (started,) = [event for event in events if event["event"] == "drawing_started"]
    assert object_from(started["request"], GenerationRequest) == request
    assert [event["seed"] for event in events if event["event"] == "picture_saved"] == [1, 2]
