"""Whether a reasoner follows guideline sentences one by one: its rewrites against what they must be, word for word.

Each sentence is tried on requests that it changes: once among the instructions, where it must be followed, and once
left out, where nothing of it may show. The requests are drawn scenes that no training sees, said with the twist that
the sentence undoes, or in plain words where it adds something.

    python -m train.evals.following -m nano              # one line a sentence: followed when asked, left out when not
"""

from __future__ import annotations

import argparse
import dataclasses
import random
from collections.abc import Callable
from dataclasses import dataclass

from backend.cache.store import Stores
from backend.errors import ReplyError
from backend.reasoner.refine import Refused, RewritePlan, make_plan
from backend.requests import find_model
from backend.session import Session
from backend.settings import load
from backend.types import ReasonerMode
from prompts.guidelines import Guideline, compose_guidelines, load_guidelines
from train.evals.stats import AnswerTally
from train.world.requests import UNDONE_BY, Request, rewritten, sample_request, text

QUIET = ("quote",)  # sentences that ask for what is always done: nothing tells whether they are followed


@dataclass(frozen=True, kw_only=True)
class Following:
    """How one sentence is followed."""

    id: str
    asked: AnswerTally  # rewrites that are right to the letter where it is among the instructions
    left_out: AnswerTally  # and where it is not


def cases(name: str, count: int) -> list[Request]:
    """Requests of scenes that no training sees, which the sentence changes."""
    rng = random.Random(f"following {name}")
    found: list[Request] = []
    twist = next((twist for twist, by in UNDONE_BY.items() if by == name), None)
    while len(found) < count:
        request = sample_request(rng, held_out=None if name == "letters" else True)
        plain = twist is None or (name == "side" and len(found) % 2 == 1)  # it also says what was left open
        others: frozenset[str] = frozenset({"background"} if name == "short" else ())
        told = rewritten(request, others | {name}) != rewritten(request, others)
        if told and request.twists == (frozenset() if plain else {twist}):
            found.append(request)
    return found


def follow(
    decide: Callable[[str, tuple[str, ...]], str], count: int, on_line: Callable[[Following], None] = lambda line: None
) -> list[Following]:
    """One row a sentence. `decide(request, ids)` is the rewrite of a request under these sentences."""
    rows: list[Following] = []
    for name in (guideline.id for guideline in load_guidelines() if guideline.id not in QUIET):
        others = ("background",) if name == "short" else ()
        tallies: list[AnswerTally] = []
        for ids in ((*others, name), others):
            rights = [decide(text(case), ids) == rewritten(case, frozenset(ids)) for case in cases(name, count)]
            tallies.append(AnswerTally(sum(rights), len(rights)))
        rows.append(Following(id=name, asked=tallies[0], left_out=tallies[1]))
        on_line(rows[-1])
    return rows


def decider(session: Session, model: str) -> Callable[[str, tuple[str, ...]], str]:
    """Ask a model's own reasoner. An answer that cannot be used, and a refusal, is an empty rewrite."""
    found = find_model(model)
    plan = make_plan(session.settings.reasoner, found.preset, found.name, mode=ReasonerMode.local, files=found.files)
    library = {guideline.id: guideline for guideline in load_guidelines()}

    def decide(request: str, ids: tuple[str, ...]) -> str:
        mine = with_guidelines(plan, [library[name] for name in ids])
        try:
            decision = session.rewrite(request, mine, found.need_files(), on_event=lambda event: None)
        except ReplyError:
            return ""
        return "" if isinstance(decision, Refused) else decision.prompt

    return decide


def with_guidelines(plan: RewritePlan, chosen: list[Guideline]) -> RewritePlan:
    """The plan with a system prompt of these sentences."""
    body = compose_guidelines(chosen)
    return dataclasses.replace(plan, system=dataclasses.replace(plan.system, name="guidelines", body=body))


def main() -> None:
    parser = argparse.ArgumentParser(prog="train.evals.following", description="Does a reasoner follow each guideline?")
    parser.add_argument("-m", "--model", default="nano")
    parser.add_argument("--count", type=int, default=12, help="requests of each sentence")
    told = parser.parse_args()
    with Session(load(print), stores=Stores()) as session:

        def show(row: Following) -> None:
            counts = f"asked {row.asked.right:>3}/{row.asked.total}  left out {row.left_out.right:>3}"
            print(f"{row.id:<12} {counts}", flush=True)

        rows = follow(decider(session, told.model), told.count, show)
    for name in ("asked", "left_out"):
        tallies = [getattr(row, name) for row in rows]
        print(AnswerTally(sum(t.right for t in tallies), sum(t.total for t in tallies)).row(name.replace("_", " ")))


if __name__ == "__main__":
    main()
