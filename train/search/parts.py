"""Open everybody who works for a search, as its config names them."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from backend.cache.store import Stores
from backend.chat.client import Client
from backend.errors import UsageError
from backend.reasoner.address import reasoner_address
from backend.reasoner.refine import LOCAL_CONTEXT, RewritePlan, local_gguf, make_plan
from backend.requests import FoundModel, ResolvedRequest, build_request, find_model
from backend.session import Session
from backend.settings import Settings, load
from backend.types import ReasonerMode
from backend.wish import Wish
from prompts import FOLDER, PromptError, SystemPrompt
from prompts.guidelines import load_guidelines
from train.judge.choose import open_judge
from train.judge.config import EndpointJudge
from train.judge.judge import Judge
from train.search.config import Guidelines, ImagesEndpoint, LocalModel, LocalWriter, SearchConfig, WriterEndpoint
from train.search.evaluator import Generator as Draws
from train.search.evaluator import Parts
from train.search.folder import text_sha256
from train.search.generators import EndpointGenerator, SessionGenerator, SessionRewriter
from train.search.spending import RoleBudget, Spending
from train.search.writers.guidelines import GuidelineWriter
from train.search.writers.models import GgufWriter, PersonWriter, open_endpoint
from train.search.writers.task import Writer

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A search's parts, for as long as they are open."""

    parts: Parts
    writer: Writer


def first_prompt(config: SearchConfig, name_or_path: str | None, settings: Settings) -> tuple[SystemPrompt, str]:
    """(the prompt that the search begins with, its contract). None: the reasoner's own. Raises UsageError."""
    plan = _plan(config, settings, _reasoner_model(config), name_or_path)
    return plan.system, plan.contract


def _reasoner_model(config: SearchConfig) -> FoundModel:
    """The model whose language model rewrites; at an endpoint, only its defaults matter."""
    own = config.generator.model if isinstance(config.generator, LocalModel) else "nano"
    return find_model(config.reasoner.model or own)


def _plan(config: SearchConfig, settings: Settings, found: FoundModel, prompt: str | None) -> RewritePlan:
    mode = ReasonerMode.api if config.reasoner.mode == "api" else ReasonerMode.local
    return make_plan(settings.reasoner, found.preset, found.name, mode=mode, system_prompt=prompt, files=found.files)


def _resolved(config: LocalModel | None, settings: Settings, found: FoundModel, say: Say) -> ResolvedRequest:
    wish = Wish(prompt="a request", seeds=("0",), ar="1:1")
    if config is not None:
        wish = replace(
            wish, steps=config.steps, guidance=config.guidance, base=config.base, device=config.device
        )  # fmt: skip
    return build_request(wish, settings, say, found=found)


@contextmanager
def opened(
    config: SearchConfig, spending: Spending, folder: Path, *, say: Say, stop: Callable[[], bool] = lambda: False
) -> Generator[Opened]:
    """Everybody, closed at the end. Nothing is loaded or asked before it is needed.

    Raises UsageError for what a config cannot mean, ModelMissingError.
    """
    settings = load(say)
    judge = _open_judge(config, spending, say)
    try:
        with Session(settings, stores=Stores()) as session:
            rewriter = _open_rewriter(config, settings, session, spending, say)
            rewriter.stop = stop
            yield Opened(
                parts=Parts(
                    rewriter=rewriter, generator=_open_generator(config, settings, session, say), judge=judge
                ),
                writer=_open_writer(config, session, spending, folder, say, stop),
            )  # fmt: skip
    finally:
        judge.close()


def _open_judge(config: SearchConfig, spending: Spending, say: Say) -> Judge:
    judge = open_judge(config.judge, say)
    client = getattr(judge, "client", None)
    if isinstance(config.judge, EndpointJudge) and isinstance(client, Client):
        client.budget = RoleBudget(spending, "judge", config.price_judge_in, config.price_judge_out)
    return judge


def _open_rewriter(
    config: SearchConfig, settings: Settings, session: Session, spending: Spending, say: Say
) -> SessionRewriter:
    found = _reasoner_model(config)
    plan = _plan(config, settings, found, None)
    if plan.mode is ReasonerMode.api:
        address = reasoner_address(settings.reasoner)
        budget = RoleBudget(spending, "reasoner", config.reasoner.price_in, config.reasoner.price_out)
        return SessionRewriter(session, plan, None, f"{address.shown} {address.model}", budget=budget)
    resolved = _resolved(None, settings, found, say)
    speaker = session.speaker(plan, resolved.need_files(), lambda: False)
    return SessionRewriter(session, plan, resolved, text_sha256(speaker.identity))


def _open_generator(config: SearchConfig, settings: Settings, session: Session, say: Say) -> Draws:
    if isinstance(config.generator, ImagesEndpoint):
        return EndpointGenerator(config.generator)
    found = find_model(config.generator.model)
    found.need_files()
    return SessionGenerator(session, _resolved(config.generator, settings, found, say), say)


def _open_writer(
    config: SearchConfig, session: Session, spending: Spending, folder: Path, say: Say, stop: Callable[[], bool]
) -> Writer:
    writer = config.writer
    if isinstance(writer, Guidelines):
        return open_guidelines(writer)
    if isinstance(writer, WriterEndpoint):
        return open_endpoint(writer, say, RoleBudget(spending, "writer", writer.price_in, writer.price_out))
    if isinstance(writer, LocalWriter):
        found = find_model(writer.model)
        gguf = local_gguf(found.need_files().text_encoder, found.name)
        context = max(LOCAL_CONTEXT, 4096 + writer.think_tokens + writer.answer_tokens)
        return GgufWriter(
            writer, found.name, found.preset.params.text.template,
            lambda: session.engine.language_model(gguf, context), stop,
        )  # fmt: skip
    return PersonWriter(folder)


def open_guidelines(config: Guidelines) -> GuidelineWriter:
    """Raises UsageError for a library that is none."""
    try:
        return GuidelineWriter(load_guidelines(Path(config.library) if config.library else FOLDER / "guidelines.toml"))
    except PromptError as error:
        raise UsageError(str(error), hint=error.hint) from error
