"""Make the judge that a config names."""

from __future__ import annotations

from collections.abc import Callable

from train.judge.config import JudgeConfig
from train.judge.judge import Judge


def open_judge(config: JudgeConfig, say: Callable[[str], None]) -> Judge:
    """Make the judge of a config. Raises UsageError."""
    if config.kind == "rules":
        from train.judge.rules import RuleJudge

        return RuleJudge(config.workers)
    if config.kind == "endpoint":
        from train.judge.endpoint import make

        return make(config, say)
    from train.judge.score_server import ScoreJudge

    return ScoreJudge(config)
