"""A client of OpenAI-compatible endpoints: llama-server, Ollama, LM Studio, vLLM, OpenAI, …, for whoever asks a model.

`Client.complete` sends messages of any kind, pictures among them, and gives back the answer as it came.
`Client.ask` wants JSON of a schema. What servers call compatible differs, so it steps down until an answer can be read:
a schema that the server enforces, then JSON that it promises and the instructions describe, then plain text. What
worked is remembered by the client, as are optional parameters that the server refuses by name.

Errors name what a person can change in the caller's own words (`Label`); keys appear in none.

The network package is `openai`, imported when something is asked.
"""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast
from urllib.parse import urljoin, urlsplit

from backend.chat.address import Address
from backend.chat.budget import Budget
from backend.chat.replies import ChatReply, Message, read_completion
from backend.errors import BusyError, LensError, NetworkError, ReplyError, TimeoutExpiredError, UsageError, shown
from backend.foreign.answers import cut, unpack_bounded, within
from backend.foreign.documents import check_values

if TYPE_CHECKING:
    from openai import APIStatusError, OpenAI

LEVELS = ("json_schema", "json_object", "plain")
WAIT_LIMIT = 60.0  # seconds: a server that asks for a longer pause is reported instead
ATTEMPTS = 3  # of one question, where the server is busy
MAX_ANSWER = 64 * 2**20  # bytes of one answer: with log-probabilities a token takes about 2 kB
MAX_REFUSAL = 2**16  # bytes of an answer that is an error: its message
PATIENCE = 10  # times `timeout`: what a question has in all where no limit is said; some servers send blanks meanwhile
_BUSY = (429, 502, 503, 504, 529)
_FORMAT_REFUSED = (400, 415, 422, 500, 501)  # how servers say that they do not know a response_format
# In this order: a name that holds another one comes first.
_OPTIONAL = (
    "max_tokens", "reasoning_effort", "chat_template_kwargs", "temperature", "seed", "top_logprobs", "logprobs",
)  # fmt: skip

Read = TypeVar("Read")


class NotUnderstood(Exception):
    """A reader of `Client.ask` raises this for an answer that another form of the question may mend."""

    def __init__(self, cause: LensError) -> None:
        super().__init__(str(cause))
        self.cause = cause  # what is raised where no form is left


class Client:
    """One model at one address. Safe to use from several threads. `wait` sleeps; tests give another.

    `level` (an index into LEVELS) and `refused` (optional parameters) are what the server was found to understand.
    """

    def __init__(
        self,
        address: Address,
        *,
        say: Callable[[str], None] = lambda text: None,
        wait: Callable[[float], None] = time.sleep,
        budget: Budget | None = None,
    ) -> None:
        self.address, self.say, self.wait, self.budget = address, say, wait, budget
        self.level = 0
        self.refused = set[str]()
        self._client: OpenAI | None = None

    def complete(
        self,
        messages: Sequence[Message],
        *,
        seed: int | None = None,
        temperature: float | None = None,
        effort: str | None = None,  # how long a thinking model thinks: low, medium, high
        chances: int | None = None,  # of how many of the likeliest tokens at each place; the server may not have them
        response_format: Mapping[str, Any] | None = None,
        on_answer: Callable[[ChatReply], None] = lambda reply: None,
    ) -> ChatReply:
        """One answer to `messages`, whatever it says. None: the endpoint's own.

        `on_answer` is given every answer at once, before anything here judges it: a journal of what was paid for.
        Raises NetworkError, TimeoutExpiredError, UsageError; ReplyError where what comes is no chat completion;
        NotUnderstood where the server refuses `response_format`; BudgetError.
        """

        def arguments() -> dict[str, Any]:
            sampling = {"seed": seed, "reasoning_effort": effort, "temperature": temperature}
            sampling |= {"logprobs": True, "top_logprobs": chances} if chances is not None else {}
            return self._arguments(messages, sampling, response_format)

        reply = self._first_choice(*self._send(arguments))
        on_answer(reply)
        if self.budget is not None:
            self.budget.add(reply)
        return reply

    def ask(
        self,
        messages: Callable[[str], Sequence[Message]],
        schema: Mapping[str, Any],
        read: Callable[[ChatReply, str], Read],
        *,
        name: str = "answer",
        **sampling: Any,
    ) -> Read:
        """What `read` makes of an answer in the first form that the server and the model keep to.

        `messages` and `read` are told the form, one of LEVELS; `name`: the schema's, which some models see; `sampling`:
        what `complete` takes. `read` raises NotUnderstood for what another form may mend; what else it raises is
        raised. Raises what `complete` does.
        """
        formats: tuple[Mapping[str, Any] | None, ...] = (
            {"type": "json_schema", "json_schema": {"name": name, "strict": True, "schema": schema}},
            {"type": "json_object"},
            None,
        )
        for index in range(self.level, len(LEVELS)):
            level = LEVELS[index]
            try:
                found = read(self.complete(messages(level), response_format=formats[index], **sampling), level)
            except NotUnderstood as error:
                if index + 1 == len(LEVELS):
                    raise error.cause from None
                self.say(f"the endpoint does not do {level}; trying {LEVELS[index + 1]}")
                continue
            self.level = index
            return found
        raise AssertionError("the last level returns or raises")

    # ------------------------------------------------------------------------------------------------------ the wire

    def _arguments(
        self, messages: Sequence[Message], sampling: Mapping[str, Any], response_format: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        """What every question has; of `sampling` what is not None and was not refused."""
        left_out = {*self.refused, *(("top_logprobs",) if "logprobs" in self.refused else ())}
        optional = {"max_tokens": self.address.max_tokens, **sampling}
        arguments: dict[str, Any] = {
            "model": self.address.model,
            "messages": list(messages),
            **{key: value for key, value in optional.items() if value is not None and key not in left_out},
        }
        if "max_tokens" in left_out:
            arguments["max_completion_tokens"] = self.address.max_tokens  # OpenAI's newer models
        if self.address.key is None:
            import openai

            arguments["extra_headers"] = {"Authorization": openai.Omit()}
        effort, own = sampling.get("reasoning_effort"), self.address.base_url.startswith("https://api.openai.com")
        if effort is not None and "chat_template_kwargs" not in left_out and not own:
            arguments["extra_body"] = {"chat_template_kwargs": {"reasoning_effort": effort}}  # llama-server
        if response_format is not None:
            arguments["response_format"] = response_format
        return arguments

    def _send(self, arguments: Callable[[], dict[str, Any]]) -> tuple[bytes, str]:
        """(an answer's bytes, its content type). Optional parameters go one by one where the server refuses them."""
        import openai

        began, waited, attempt = time.monotonic(), 0.0, 1
        while True:
            sent = arguments()
            if self.budget is not None:
                self.budget.take()
            try:
                return self._receive(sent, began)
            except openai.APITimeoutError:
                raise self._late(began) from None
            except openai.APIStatusError as error:
                if name := _refused_parameter(error, sent):
                    self.refused.add(name)
                    continue
                pause = _pause(error, attempt)
                over = waited + pause > WAIT_LIMIT or pause > self._left(began)
                if error.status_code not in _BUSY or attempt >= ATTEMPTS or over:
                    self._fail(error, "response_format" in sent)
                self.say(f"the endpoint is busy ({error.status_code}); asking again in {pause:g} s")
                self.wait(pause)
                waited, attempt = waited + pause, attempt + 1
            except openai.APIConnectionError as error:
                raise self._unreachable(error.__cause__ or error) from None

    def _receive(self, sent: dict[str, Any], began: float) -> tuple[bytes, str]:
        """Send once and read to the end, in a thread of its own: what trickles in, headers or a name's look-up among
        it, would never let go of this one. Raises as `_read_answer`, TimeoutExpiredError."""
        self._opened()  # imports the package here: a thread that is left behind holds no lock of an import
        try:
            return within(self._left(began), lambda: self._read_answer(sent, began))
        except TimeoutError:
            raise self._late(began) from None

    def _read_answer(self, sent: dict[str, Any], began: float) -> tuple[bytes, str]:
        """Send once and read to the end: no longer than the limits say, and no more than MAX_ANSWER bytes."""
        data = bytearray()
        patience = max(0.001, min(self.address.timeout, self._left(began)))
        completions: Any = self._opened().chat.completions
        with completions.with_streaming_response.create(**sent, timeout=patience) as response:
            # The package's errors cover the request; while an answer is read, those of its transport come through.
            transport = importlib.import_module(type(response.http_response).__module__.partition(".")[0])
            try:
                for chunk in response.iter_bytes():
                    data += chunk
                    if self._left(began) <= 0:
                        raise self._late(began)
                    if len(data) > MAX_ANSWER:
                        raise ReplyError(f"{self.address.shown} answered with more than {MAX_ANSWER:,} bytes")
            except transport.TimeoutException:
                raise self._late(began) from None
            except transport.HTTPError as error:
                raise self._unreachable(error) from None
            return bytes(data), str(response.headers.get("content-type", "application/json")).split(";")[0]

    def _left(self, began: float) -> float:
        """Seconds that a question still has in all."""
        limit = PATIENCE * self.address.timeout if self.address.limit is None else self.address.limit
        return limit - (time.monotonic() - began)

    def _opened(self) -> OpenAI:
        if self._client is None:
            import openai

            client = openai.OpenAI(
                base_url=self.address.base_url,
                api_key=self.address.key or "none",
                timeout=self.address.timeout,
                max_retries=0,  # ours say what they wait for, and keep to one limit
                http_client=openai.DefaultHttpxClient(event_hooks={"response": [_stay, _cut_refusal]}),
            )
            # The package reads these from the environment; they are meant for OpenAI, not for any address.
            client.organization = client.project = None
            self._client = client
        return self._client

    def _first_choice(self, data: bytes, kind: str) -> ChatReply:
        """Raises UsageError for a web page, ReplyError for what is no JSON, or JSON of another kind."""
        address, text = self.address, data.decode(errors="replace")
        ends_in_v1 = "is it an OpenAI-compatible endpoint? The base URL usually ends in /v1"
        if not kind.endswith("json"):
            page = "<html" in text[:2000].lower() or "<!doctype" in text[:200].lower()
            raise UsageError(
                f"{address.shown} answered with {'a web page' if page else 'plain text'}, not with JSON",
                hint=f"see {address.where('base_url')}: it usually ends in /v1",
            )
        try:
            check_values(text)
            body = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ReplyError(
                f"{address.shown} answered with something that is no JSON: {self._clean(str(error))}", hint=ends_in_v1
            ) from None
        try:
            return read_completion(cast("Mapping[str, Any]", body if isinstance(body, dict) else {}))
        except ValueError:
            raise ReplyError(f"{address.shown} answered with JSON that holds no choices", hint=ends_in_v1) from None

    # ------------------------------------------------------------------------------------------------- what goes wrong

    def _late(self, began: float) -> TimeoutExpiredError:
        address = self.address
        name, limit = ("timeout", PATIENCE * address.timeout) if address.limit is None else ("limit", address.limit)
        if self._left(began) <= limit * 0.001:
            return TimeoutExpiredError(
                f"{address.shown} had not answered in full after {limit:g} s", hint=f"raise {address.where(name)}"
            )
        return TimeoutExpiredError(
            f"{address.shown} gave no answer within {address.timeout:g} s", hint=f"raise {address.where('timeout')}"
        )

    def _unreachable(self, cause: BaseException) -> NetworkError:
        return NetworkError(
            f"cannot reach {self.address.shown}: {self._clean(str(cause))}",
            hint=f"is the server running? The address is {self.address.where('base_url')}",
        )

    def _fail(self, error: APIStatusError, with_format: bool) -> NoReturn:
        """An HTTP error in words. Raises always; NotUnderstood where the form of the answer may be what is refused."""
        address, status, said = self.address, error.status_code, self._clean(str(error.message))
        failure: LensError
        if status in (401, 403):  # the server's own words may repeat the key: they are not shown
            what = "refuses the key" if address.key else "asks for a key"
            failure = UsageError(f"{address.shown} {what} ({status})", hint=f"set {address.where('key')}")
        elif status == 404:
            failure = UsageError(
                f"{address.shown} knows no model {address.model!r}, or is no endpoint (404)",
                hint=f"see {address.where('model')} and base_url, which usually ends in /v1",
            )
        elif status == 429:
            after = self._clean(error.response.headers.get("retry-after", ""))[:40]
            failure = BusyError(
                f"{address.shown} is over its limit of requests (429){f'; it asks to wait {after} s' if after else ''}",
                hint="try again later",
            )
        elif status in _FORMAT_REFUSED and with_format:
            raise NotUnderstood(ReplyError(f"{address.shown} answered {status}: {said}")) from None
        elif status >= 500 or status == 408:
            failure = NetworkError(f"{address.shown} failed ({status}): {said}", hint="try again later")
        else:
            failure = UsageError(f"{address.shown} refused the request ({status}): {said}")
        raise failure from None

    def _clean(self, text: str) -> str:
        """A server's words, in one short line, without commands to a terminal, and without the key or a part of it,
        in whatever case."""
        line = " ".join(
            "".join(sign if sign.isprintable() or sign.isspace() else "\ufffd" for sign in text[:4000]).split()
        )
        line = hide(line, self.address.key) if self.address.key else line
        return line[:200] + ("…" if len(line) > 200 else "")


KEY_PART = 6  # characters in a row of a key that are taken for it


def hide(text: str, key: str) -> str:
    """`text` with *** for every run of KEY_PART or more characters that stands in `key` too, whatever its case."""
    said, secret = text.translate(_LOWER), key.translate(_LOWER)
    size = min(KEY_PART, len(secret))
    parts = {secret[at : at + size] for at in range(len(secret) - size + 1)}
    hidden = [False] * len(said)
    for at in range(len(said) - size + 1):
        if said[at : at + size] in parts:
            hidden[at : at + size] = [True] * size
    return "".join("***" * (at == 0 or not hidden[at - 1]) if hidden[at] else sign for at, sign in enumerate(text))


_LOWER = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}  # as many characters as before


def _stay(response: Any) -> None:
    """Raises NetworkError where an endpoint would have the question, and its pictures, sent to another host, or on
    without encryption."""
    if not response.has_redirect_location:
        return
    try:
        asked = urlsplit(str(response.request.url))
        there = urlsplit(urljoin(asked.geturl(), response.headers["location"]))
    except ValueError:  # a bracket that is open, and what else is no address
        raise NetworkError("the endpoint sends on to what is no address") from None
    if there.hostname != asked.hostname:
        raise NetworkError(
            f"the endpoint sends on to another host, {shown(there.hostname or '')}",
            hint="name that address yourself if you trust it",
        )
    if there.scheme != asked.scheme and there.scheme != "https":
        raise NetworkError(f"the endpoint sends on from {asked.scheme} to {shown(there.scheme)}")


def _cut_refusal(response: Any) -> None:
    """Bound what is read of an answer that is an error, which the package reads whole."""
    if response.status_code >= 400:
        unpack_bounded(response, lambda pieces: cut(pieces, MAX_REFUSAL))


def _refused_parameter(error: APIStatusError, sent: Mapping[str, Any]) -> str | None:
    """The optional parameter that a 400 or 422 complains about by name, if it was sent.

    What was sent counts, not what is known by now: another thread may have learnt the same while this one waited.
    """
    if error.status_code not in (400, 422):
        return None
    said, given = str(error.message), {*sent, *sent.get("extra_body", {})}
    return next((name for name in _OPTIONAL if name in said and name in given), None)


def _pause(error: APIStatusError, attempt: int) -> float:
    """Seconds to wait: what the server asks for, else 1, 2, 4, …"""
    asked = error.response.headers.get("retry-after", "")
    try:
        return max(0.0, float(asked))
    except ValueError:  # a date, or nothing
        return float(2 ** (attempt - 1))
