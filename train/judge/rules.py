"""Judge pictures of Lens-Nano's world by rules, in processes of their own: a verdict takes 0.2 s of a core."""

from __future__ import annotations

from concurrent.futures import Future, ProcessPoolExecutor

from PIL import Image

from backend.errors import UsageError
from train.evals.verifier.verify import VERSION, Expectation, verify
from train.judge.judge import Question
from train.losses.rewards import Verdict
from train.run.feed import begin_worker, spawn_context


class RuleJudge:
    """The verifier as a judge: one answer for each item that it checks. `train.judge.judge.Judge`."""

    def __init__(self, workers: int) -> None:
        """`workers` 0: in this process, before `submit` returns."""
        self._pool = (
            ProcessPoolExecutor(workers, mp_context=spawn_context(), initializer=begin_worker) if workers else None
        )

    @property
    def identity(self) -> str:
        return f"rules {VERSION}"

    def kinds(self, question: Question) -> tuple[str, ...]:
        return question.kinds

    def submit(self, picture: Image.Image, question: Question) -> Future[Verdict]:
        """Raises UsageError for a prompt whose content the rules do not know."""
        if question.expectation is None:
            raise UsageError(
                f"the rules cannot judge {question.prompt!r}: it is none of Lens-Nano's world",
                hint="prompts=none (drawn scenes), or a judge that looks: an endpoint or a score server",
            )
        arguments = (picture.mode, picture.size, picture.tobytes(), question.expectation)
        if self._pool is not None:
            return self._pool.submit(answers_of, *arguments)
        future: Future[Verdict] = Future()
        future.set_result(answers_of(*arguments))
        return future

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def answers_of(mode: str, size: tuple[int, int], pixels: bytes, expectation: Expectation) -> Verdict:
    """Judge one picture, given as its raw bytes: what a process is sent."""
    found = verify(Image.frombytes(mode, size, pixels), expectation)
    return Verdict(tuple(float(item.holds) for item in found.items))
