"""Who rewrites and who draws in a search: this tool's own models, or endpoints."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from PIL import Image

from backend.chat.address import Label, make_address
from backend.chat.budget import Budget
from backend.errors import NetworkError, ReplyError, UsageError
from backend.events import Noticed, PictureFailed
from backend.reasoner.address import reasoner_address
from backend.reasoner.endpoint import EndpointSpeaker
from backend.reasoner.refine import Refused, RewritePlan, refine
from backend.requests import ResolvedRequest, check_prompt
from backend.session import Session
from backend.text.choose_encoder import choose_encoder
from backend.types import ReasonerMode
from prompts import SystemPrompt
from train.search.config import ImagesEndpoint
from train.search.evaluator import Rewrite
from train.search.folder import canonical

_ANSWER = 64 * 2**20  # bytes of one answer with one picture
_PIXELS = 64_000_000


class SessionRewriter:
    """The reasoner of a session, local or at an endpoint. `train.search.evaluator.Rewriter`."""

    def __init__(
        self, session: Session, plan: RewritePlan, resolved: ResolvedRequest | None, who: str, *,
        budget: Budget | None = None,
    ) -> None:  # fmt: skip
        """`resolved`: of the model whose language model answers where the plan is local. `who` answers, for the
        identity. `budget`: of an endpoint's answers."""
        self.session, self.plan, self.resolved, self._who = session, plan, resolved, who
        self.stop: Callable[[], bool] = lambda: False
        self._speaker: EndpointSpeaker | None = None
        if plan.mode is ReasonerMode.api:
            self._speaker = EndpointSpeaker(reasoner_address(session.settings.reasoner))
            self._speaker.client.budget = budget

    @property
    def identity(self) -> str:
        plan = self.plan
        told = [str(plan.mode), self._who, plan.effort, plan.temperature, plan.seed, plan.adapter]
        return canonical([*told, plan.think_tokens, plan.answer_tokens, plan.max_tokens])

    def rewrite(self, request: str, system: SystemPrompt) -> Rewrite:
        plan = replace(self.plan, system=system, contract=system.contract or self.plan.contract)
        try:
            if self._speaker is not None:
                decision = refine(request, plan, self._speaker)
            else:
                assert self.resolved is not None, "a local plan has a model"
                files = self.resolved.need_files()
                decision = self.session.rewrite(request, plan, files, on_event=lambda event: None, stop=self.stop)
        except ReplyError as error:
            return Rewrite(unusable=str(error))
        if isinstance(decision, Refused):
            return Rewrite(refused=decision.rule)
        return Rewrite(prompt=decision.prompt)


class SessionGenerator:
    """A model of this tool, its networks kept in memory. `train.search.evaluator.Generator`."""

    def __init__(self, session: Session, resolved: ResolvedRequest, say: Callable[[str], None]) -> None:
        self.session, self.resolved, self.say = session, resolved, say

    @property
    def identity(self) -> str:
        """The model's weights and everything else that decides a pixel, beside prompt and seed."""
        from backend.checkpoints.identity import identify_model

        request, files = self.resolved.request, self.resolved.need_files()
        choose_encoder(request.encoder, files)
        told: dict[str, Any] = {
            "model": request.model, "weights": identify_model(files).sha256, "steps": request.steps,
            "guidance": request.guidance, "size": [request.width, request.height], "dtype": str(request.dtype),
            "sampler": str(request.sampler), "encoder": str(request.encoder), "quant": str(request.quant),
            "loras": [[use.sha256, use.scale] for use in request.loras], "negative": request.negative_prompt,
        }  # fmt: skip
        return canonical(told)

    def draw(self, prompt: str, seed: int) -> Image.Image:
        """Raises what the engine does, NumericsError for a picture that fails too."""
        request = replace(self.resolved.request, prompt=check_prompt(prompt, "rewrite"), seeds=(seed,))

        def listen(event: object) -> None:
            if isinstance(event, Noticed):
                self.say(event.text)

        (made,) = self.session.draw(replace(self.resolved, request=request), on_event=listen)
        if isinstance(made, PictureFailed):
            raise made.error
        return made.image


class EndpointGenerator:
    """A model behind an OpenAI-compatible images endpoint, which may know no seeds: then each picture is a new draw.

    Only pictures within the answer are taken; an address in it is never followed. `train.search.evaluator.Generator`.
    """

    def __init__(self, config: ImagesEndpoint) -> None:
        """Raises UsageError for what is no address, and for no model."""
        if not config.model:
            raise UsageError("no model was named as generator", hint="--set generator.model=NAME generator.base_url=…")
        labels = {name: Label(f"generator.{name}", f"--set generator.{name}=…") for name in ("base_url", "timeout")}
        self.config = config
        self.address = make_address(
            config.base_url, config.model, key=os.environ.get(config.key_variable), timeout=config.timeout,
            max_tokens=1, labels={
                **labels, "limit": labels["timeout"],
                "key": Label("the generator's key", f"the environment variable {config.key_variable}"),
            },
        )  # fmt: skip
        self._seeds = True  # until the server refuses the word

    @property
    def identity(self) -> str:
        return canonical(["images", self.config.base_url, self.config.model, self.config.size])

    def draw(self, prompt: str, seed: int) -> Image.Image:
        """Raises NetworkError, UsageError (a wrong key, no such model), ReplyError for what is no picture."""
        import openai

        client: Any = openai.OpenAI(
            base_url=self.address.base_url, api_key=self.address.key or "none", timeout=self.address.timeout,
            max_retries=2,
        )  # fmt: skip
        client.organization = client.project = None  # of OpenAI's own environment, for no other address
        width, height = self.config.size.split("x")
        more: dict[str, Any] = {"seed": seed} if self._seeds else {}
        wanted = dict(model=self.config.model, prompt=prompt, size=f"{width}x{height}", n=1)
        try:
            images = client.images.with_streaming_response
            with images.generate(**wanted, response_format="b64_json", extra_body=more) as response:
                data = bytearray()
                for chunk in response.iter_bytes():
                    data += chunk
                    if len(data) > _ANSWER:
                        raise ReplyError(f"{self.address.shown} answered with more than {_ANSWER:,} bytes")
        except openai.APIConnectionError as error:  # the timeouts among them
            raise NetworkError(f"cannot reach {self.address.shown}: {type(error).__name__}") from None
        except openai.APIStatusError as error:
            if self._seeds and error.status_code in (400, 422) and "seed" in str(error.message):
                self._seeds = False
                return self.draw(prompt, seed)
            said = f"{self.address.shown} refused the picture ({error.status_code})"
            if error.status_code == 429 or error.status_code >= 500:
                raise NetworkError(said, hint="the same command goes on later") from None
            raise UsageError(said, hint=f"see {self.address.where('base_url')} and generator.model") from None
        return picture_of(bytes(data), self.address.shown)


def picture_of(answer: bytes, source: str) -> Image.Image:
    """The first picture of an images answer. Raises ReplyError."""
    try:
        said = json.loads(answer)["data"][0]
        encoded = said["b64_json"]
        with Image.open(io.BytesIO(base64.b64decode(encoded, validate=True)), formats=("PNG", "JPEG", "WEBP")) as image:
            if image.width * image.height > _PIXELS:
                raise ReplyError(f"{source} sent a picture of more than {_PIXELS:,} pixels")
            return image.convert("RGB")
    except (
        ValueError,
        RecursionError,
        KeyError,
        IndexError,
        TypeError,
        OSError,
        Image.DecompressionBombError,
    ) as error:
        raise ReplyError(
            f"{source} answered with no picture: {type(error).__name__}", hint="does it do response_format=b64_json?"
        ) from None
