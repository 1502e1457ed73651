"""Jobs over HTTP: one server, one worker with the fake engine."""

from __future__ import annotations

from pathlib import Path

from backend.picture.outputs import OutputPlan
from backend.server.jobs import JobState
from backend.types import ImageFormat
from backend.wish import Wish
from tests.backend.server.conftest import Running


def test_a_job_from_its_wish_to_its_files(server: Running, tmp_path: Path) -> None:
    plan = OutputPlan(template=str(tmp_path / "{seed}"), suffix=".png", format=ImageFormat.png)
    job = server.client.submit(Wish(prompt="a red fish", num=3, seeds=("7",), steps=3), plan)
    assert job.state is JobState.queued and job.total == 3
    events = list(server.client.events(job.id))
    print([e["event"] for e in events])
    print(events[-1])
    assert server.client.job(job.id).state is JobState.done
