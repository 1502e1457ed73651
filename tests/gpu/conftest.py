"""Everything here needs an NVIDIA GPU and is skipped, with that reason, where there is none.

One command: `pytest tests/gpu`. Whole functions only: a fixture may touch the device, so the skip comes before it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch

    if torch.cuda.is_available():
        return
    for item in items:
        if HERE in item.path.parents:  # this hook is given the items of the whole run
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU: torch.cuda.is_available() is False"))
