"""`metrics.jsonl`: one JSON object a line with at least `step` and `loss`; cut back to the checkpoint on resume."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


class Metrics:
    """Append-only log of one run. `resume_step` drops lines a crashed run wrote after its last checkpoint."""

    def __init__(self, run_dir: Path, resume_step: int = 0) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        self.path = run_dir / "metrics.jsonl"
        if self.path.exists():
            rows = [line for line in self.path.read_text().splitlines() if line.endswith("}")]
            kept = [line for line in rows if json.loads(line)["step"] <= resume_step]
            self.path.write_text("".join(line + "\n" for line in kept))
        self.started = time.monotonic()

    def log(self, step: int, **values: float) -> None:
        """Write one line and echo it on stderr."""
        row = {
            "step": step,
            **{k: float(f"{v:.6g}") for k, v in values.items()},
            "seconds": round(time.monotonic() - self.started, 1),
        }
        with open(self.path, "a") as file:
            file.write(json.dumps(row) + "\n")
        print("  ".join(f"{k} {v}" for k, v in row.items()), file=sys.stderr, flush=True)
