"""The reasoner behind an OpenAI-compatible endpoint: llama-server, Ollama, LM Studio, vLLM, OpenAI, …

What servers call compatible differs, so a question steps down until an answer can be read: a JSON schema that the
server enforces, then JSON that it promises and the instructions describe, then plain text. What worked is remembered
for the process, per address and model. An optional parameter that a server refuses by name is left out from then on.
Thoughts are never used as a prompt: in `reasoning_content` only a complete JSON decision counts, since LM Studio puts
it there. Every other outcome is an error that says what happened; keys appear in none.

Other questions go over the same wire: `complete` sends messages of any kind, pictures among them, and gives back the
plain answer.

The client is the `openai` package, imported when something is asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NoReturn, cast
from urllib.parse import urlsplit

from backend.errors import LensError, NetworkError, ReplyError, TimeoutExpiredError, UsageError
from backend.reasoner import answers
from backend.reasoner.answers import Draft, RewriteError
from backend.reasoner.refine import Task
from backend.settings import ReasonerSettings, env_name

if TYPE_CHECKING:
    from openai import APIStatusError, OpenAI

LEVELS = ("json_schema", "json_object", "plain")
WAIT_LIMIT = 60.0  # seconds: a server that asks for a longer pause is reported instead
ATTEMPTS = 3  # of one question, where the server is busy
_BUSY = (429, 502, 503, 504, 529)
_FORMAT_REFUSED = (400, 415, 422, 500, 501)  # how servers say that they do not know a response_format
_SETTING = "the setting reasoner.{0}, or {1}"


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where to ask. The key is shown in no message, record or representation."""

    base_url: str
    model: str
    key: str | None = field(repr=False)  # None: no key is sent
    timeout: float  # seconds
    max_tokens: int

    @property
    def shown(self) -> str:
        """The address for messages: without user, password and query."""
        parts = urlsplit(self.base_url)
        port = f":{parts.port}" if parts.port else ""
        return f"{parts.scheme}://{parts.hostname}{port}{parts.path}"


def check_address(settings: ReasonerSettings) -> Address:
    """The endpoint of the settings. Raises UsageError for one that is missing or is no web address."""
    for name in ("base_url", "model"):
        if not getattr(settings, name):
            raise UsageError(f"--reasoner api needs reasoner.{name}", hint=f"set it: {_where(name)}")
    base_url, model = str(settings.base_url).strip().rstrip("/"), str(settings.model)
    try:
        parts = urlsplit(base_url)
        usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
    except ValueError:  # a port that is no number
        parts, usable = None, False
    if not usable or parts is None:
        raise UsageError("reasoner.base_url is no web address", hint="such as http://127.0.0.1:8080/v1")
    if parts.username or parts.password:
        raise UsageError("reasoner.base_url holds a user or a password", hint=f"use {_where('api_key')}")
    if not 0 < settings.timeout <= 3600:
        raise UsageError(f"reasoner.timeout = {settings.timeout:g} is outside 0..3600 seconds")
    key = settings.api_key
    if key is None and parts.hostname == "api.openai.com" and parts.scheme == "https":
        import os

        key = os.environ.get("OPENAI_API_KEY")  # sent to its own house only, never to another address
    if key is not None and (not key.strip() or not key.isascii() or not key.isprintable()):
        raise UsageError("reasoner.api_key is no key", hint="it is one line of plain characters")
    return Address(
        base_url=base_url,
        model=model,
        key=key.strip() if key else None,
        timeout=settings.timeout,
        max_tokens=settings.max_tokens,
    )


def _where(name: str) -> str:
    return _SETTING.format(name, env_name(f"reasoner.{name}"))


@dataclass
class _Learned:
    """What one model at one address was found to understand."""

    level: int = 0  # index into LEVELS of what worked last
    refused: set[str] = field(default_factory=set[str])  # optional parameters that it does not take


_LEARNED: dict[tuple[str, str], _Learned] = {}


@dataclass(frozen=True, kw_only=True)
class ChatReply:
    """A plain answer to `EndpointSpeaker.complete`."""

    text: str  # without thoughts; empty where there was nothing else
    cut: bool  # the budget of tokens ended it
    refused: bool  # the model or its filter says so, in the answer's own field
    tokens_in: int  # as the server counted; 0: it did not say
    tokens_out: int


class EndpointSpeaker:
    """A `reasoner.Speaker` behind an address. `wait` sleeps; tests give another."""

    def __init__(
        self, address: Address, *, say: Callable[[str], None] = lambda text: None,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:  # fmt: skip
        self.address, self.say, self.wait = address, say, wait
        self._learned = _LEARNED.setdefault((address.base_url, address.model), _Learned())
        self._client: OpenAI | None = None

    @property
    def identity(self) -> str:
        return f"api {self.address.base_url} {self.address.model}"

    def ask(self, task: Task) -> Draft:
        """One decision. Raises ReplyError (nothing usable came), NetworkError, TimeoutExpiredError, UsageError."""
        for index in range(self._learned.level, len(LEVELS)):
            last = index + 1 == len(LEVELS)
            try:
                draft = self._ask(task, LEVELS[index])
            except _NotUnderstood as error:
                if last:
                    raise error.cause from None
                self.say(f"the endpoint does not do {LEVELS[index]}; trying {LEVELS[index + 1]}")
                continue
            self._learned.level = index
            return self._with_left_out(draft, task)
        raise AssertionError("the last level returns or raises")

    def _with_left_out(self, draft: Draft, task: Task) -> Draft:
        """The draft, which says what the endpoint was not sent because it does not take it."""
        wanted = {"temperature": task.plan.temperature, "seed": task.plan.seed}
        left_out = tuple(name for name, value in wanted.items() if value is not None and name in self._learned.refused)
        notes = draft.notes
        if "temperature" in left_out:  # an endpoint's plan has one only where the person set it
            notes += (
                f"{self.address.model} does not take the temperature {task.plan.temperature:g}; its own was used",
            )
        return replace(draft, left_out=left_out, notes=notes)

    def _ask(self, task: Task, level: str) -> Draft:
        """One question at one level. Raises _NotUnderstood where a lower level may do better."""
        answer = self._send(lambda: self._arguments(task, level), level)
        choice = _first_choice(answer, self.address)
        message = cast("Mapping[str, Any]", choice.get("message") or {})
        if message.get("refusal") or choice.get("finish_reason") == "content_filter":
            return Draft(decision="refuse", rule=answers.MODEL_REFUSAL)
        text = message.get("content")
        text = text if isinstance(text, str) else ""
        plain = level == "plain" and task.plan.contract != "complete"
        try:
            if choice.get("finish_reason") == "length":
                return self._cut(text)
            if answers.final_text(text):
                return answers.read_plain(text) if plain or answers.declines(text) else answers.read_json(text)
            return self._thoughts_only(message)
        except _Cut as error:
            raise error.cause from None
        except RewriteError:
            raise
        except ReplyError as error:
            raise _NotUnderstood(error) from error

    def _cut(self, text: str) -> Draft:
        """A complete decision before the cut still counts: some servers pad JSON with blanks to the end."""
        try:
            return answers.read_json(text)
        except RewriteError:
            raise
        except ReplyError:
            what = "the answer was cut" if answers.final_text(text) else "the model thought until its budget was gone"
            raise _Cut(
                ReplyError(
                    f"{self.address.model}: {what} at {self.address.max_tokens:,} tokens",
                    hint=f"raise {_where('max_tokens')}, or lower reasoner.effort",
                )
            ) from None

    def _thoughts_only(self, message: Mapping[str, Any]) -> Draft:
        for key in ("reasoning_content", "reasoning"):
            thoughts = message.get(key)
            if isinstance(thoughts, str) and thoughts.lstrip().startswith("{"):
                return answers.read_json(thoughts)
        raise ReplyError(
            f"{self.address.model} gave no answer, only thoughts or nothing",
            hint=f"another model, or a newer server, may do better; more room: {_where('max_tokens')}",
        )

    def complete(
        self, messages: list[dict[str, Any]], *, seed: int | None = None, temperature: float | None = None
    ) -> ChatReply:
        """One answer to `messages` as it comes. None: the endpoint's own. Safe to call from several threads.

        Raises NetworkError, TimeoutExpiredError, UsageError; ReplyError where what comes is no chat completion.
        """
        sampling = {"seed": seed, "temperature": temperature}
        answer = self._send(lambda: self._request(messages, sampling), "plain")
        choice = _first_choice(answer, self.address)
        message = cast("Mapping[str, Any]", choice.get("message") or {})
        text, finish = message.get("content"), choice.get("finish_reason")
        usage = cast("Any", answer).model_dump().get("usage") or {}
        return ChatReply(
            text=answers.final_text(text) if isinstance(text, str) else "",
            cut=finish == "length",
            refused=bool(message.get("refusal")) or finish == "content_filter",
            tokens_in=int(usage.get("prompt_tokens") or 0),
            tokens_out=int(usage.get("completion_tokens") or 0),
        )

    # ------------------------------------------------------------------------------------------------------ the wire

    def _send(self, arguments: Callable[[], dict[str, Any]], level: str) -> object:
        """The parsed answer. Optional parameters go one by one where the server refuses them by name."""
        import openai

        waited = 0.0
        attempt = 1
        while True:
            sent = arguments()
            try:
                return self._opened().chat.completions.create(**sent)
            except openai.APITimeoutError:
                raise TimeoutExpiredError(
                    f"{self.address.shown} gave no answer within {self.address.timeout:g} s",
                    hint=f"raise {_where('timeout')}",
                ) from None
            except openai.APIStatusError as error:
                if name := _refused_parameter(error, sent):
                    self._learned.refused.add(name)
                    continue
                pause = _pause(error, attempt)
                if error.status_code not in _BUSY or attempt >= ATTEMPTS or waited + pause > WAIT_LIMIT:
                    self._fail(error, level)
                self.say(f"the endpoint is busy ({error.status_code}); asking again in {pause:g} s")
                self.wait(pause)
                waited, attempt = waited + pause, attempt + 1
            except openai.APIConnectionError as error:
                reason = str(error.__cause__ or error)
                raise NetworkError(
                    f"cannot reach {self.address.shown}: {self._clean(reason)}",
                    hint=f"is the server running? The address is {_where('base_url')}",
                ) from None
            except (openai.OpenAIError, ValueError) as error:  # ValueError: JSON was promised and something else came
                raise ReplyError(
                    f"{self.address.shown} answered with something that is no JSON: {self._clean(str(error))}",
                    hint="is it an OpenAI-compatible endpoint? The base URL usually ends in /v1",
                ) from None

    def _opened(self) -> OpenAI:
        if self._client is None:
            import openai

            self._client = openai.OpenAI(
                base_url=self.address.base_url,
                api_key=self.address.key or "none",
                timeout=self.address.timeout,
                max_retries=0,  # ours say what they wait for, and keep to one limit
            )
            # The package reads these from the environment; they are meant for OpenAI, not for any address.
            self._client.organization = self._client.project = None
        return self._client

    def _arguments(self, task: Task, level: str) -> dict[str, Any]:
        plan, refused = task.plan, self._learned.refused
        form = "plain" if level == "plain" else "json"
        messages = [
            {"role": "system", "content": task.instructions(form)},
            {"role": "user", "content": task.request},
        ]
        arguments = self._request(
            messages, {"seed": plan.seed, "reasoning_effort": plan.effort, "temperature": plan.temperature}
        )
        if "chat_template_kwargs" not in refused and not self.address.base_url.startswith("https://api.openai.com"):
            arguments["extra_body"] = {"chat_template_kwargs": {"reasoning_effort": plan.effort}}  # llama-server
        if level == "json_schema":
            arguments["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "decision", "strict": True, "schema": answers.schema()},
            }
        elif level == "json_object":
            arguments["response_format"] = {"type": "json_object"}
        return arguments

    def _request(self, messages: list[dict[str, Any]], sampling: Mapping[str, Any]) -> dict[str, Any]:
        """What every question has; of `sampling` what is not None and was not refused."""
        refused = self._learned.refused
        optional = {"max_tokens": self.address.max_tokens, **sampling}
        arguments: dict[str, Any] = {
            "model": self.address.model,
            "messages": messages,
            **{key: value for key, value in optional.items() if value is not None and key not in refused},
        }
        if "max_tokens" in refused:
            arguments["max_completion_tokens"] = self.address.max_tokens  # OpenAI's newer models
        if self.address.key is None:
            import openai

            arguments["extra_headers"] = {"Authorization": openai.Omit()}
        return arguments

    def _fail(self, error: APIStatusError, level: str) -> NoReturn:
        """An HTTP error in words. Raises always."""
        status, where, said = error.status_code, self.address.shown, self._clean(str(error.message))
        failure: LensError
        if status in (401, 403):  # the server's own words may repeat the key: they are not shown
            what = "refuses the key" if self.address.key else "asks for a key"
            failure = UsageError(f"{where} {what} ({status})", hint=f"set {_where('api_key')}")
        elif status == 404:
            failure = UsageError(
                f"{where} knows no model {self.address.model!r}, or is no endpoint (404)",
                hint=f"see {_where('model')} and base_url, which usually ends in /v1",
            )
        elif status == 429:
            after = error.response.headers.get("retry-after")
            failure = NetworkError(
                f"{where} is over its limit of requests (429){f'; it asks to wait {after} s' if after else ''}",
                hint="try again later",
            )
        elif status in _FORMAT_REFUSED and level != "plain":
            raise _NotUnderstood(ReplyError(f"{where} answered {status}: {said}")) from None
        elif status >= 500 or status == 408:
            failure = NetworkError(f"{where} failed ({status}): {said}", hint="try again later")
        else:
            failure = UsageError(f"{where} refused the request ({status}): {said}")
        raise failure from None

    def _clean(self, text: str) -> str:
        """A server's words, in one short line and without the key."""
        if self.address.key:
            text = text.replace(self.address.key, "***")
        line = " ".join(text.split())
        return line[:200] + ("…" if len(line) > 200 else "")


class _NotUnderstood(Exception):
    """The server does not do this level, or did not keep to it."""

    def __init__(self, cause: LensError) -> None:
        super().__init__(str(cause))
        self.cause = cause


class _Cut(Exception):
    """The budget ended the answer: asking in another form would only end the same way."""

    def __init__(self, cause: LensError) -> None:
        super().__init__(str(cause))
        self.cause = cause


def _refused_parameter(error: APIStatusError, sent: Mapping[str, Any]) -> str | None:
    """The optional parameter that a 400 or 422 complains about by name, if it was sent.

    What was sent counts, not what is known by now: another thread may have learnt the same while this one waited.
    """
    if error.status_code not in (400, 422):
        return None
    said, given = str(error.message), {*sent, *sent.get("extra_body", {})}
    names = ("max_tokens", "reasoning_effort", "chat_template_kwargs", "temperature", "seed")
    return next((name for name in names if name in said and name in given), None)


def _first_choice(answer: object, address: Address) -> Mapping[str, Any]:
    """The first choice as plain data. Raises UsageError for a web page, ReplyError for JSON of another kind."""
    if isinstance(answer, str):  # what the package gives for a content type that is not JSON
        what = "a web page" if "<html" in answer[:2000].lower() or "<!doctype" in answer[:200].lower() else "plain text"
        raise UsageError(
            f"{address.shown} answered with {what}, not with JSON",
            hint=f"see {_where('base_url')}: it usually ends in /v1",
        )
    data = cast("Any", answer).model_dump() if hasattr(answer, "model_dump") else {}
    choices = data.get("choices") if isinstance(data, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise ReplyError(
            f"{address.shown} answered with JSON that holds no choices",
            hint="is it an OpenAI-compatible endpoint? The base URL usually ends in /v1",
        )
    return cast("Mapping[str, Any]", choices[0])


def _pause(error: APIStatusError, attempt: int) -> float:
    """Seconds to wait: what the server asks for, else 1, 2, 4, …"""
    asked = error.response.headers.get("retry-after", "")
    try:
        return max(0.0, float(asked))
    except ValueError:  # a date, or nothing
        return float(2 ** (attempt - 1))
