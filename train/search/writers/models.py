"""Who writes the next system prompt: a language model at an endpoint or on this machine, or a person.

The library of guidelines is a writer too (`train.search.writers.guidelines`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend.chat.address import Label, make_address
from backend.chat.client import Client, NotUnderstood
from backend.chat.replies import ChatReply, Message
from backend.disk import read_error, write_atomic
from backend.errors import FileError, ReplyError, UsageError
from prompts import search_text
from train.search.config import LocalWriter, WriterEndpoint
from train.search.writers.task import PersonAsked, Proposal, Task

if TYPE_CHECKING:
    from backend.params import TemplateParams
    from backend.text.llama import LlamaModel

_FILE_LIMIT = 1_000_000  # bytes of next.md

SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {"analysis": {"type": "string"}, "changes": {"type": "string"}, "prompt": {"type": "string"}},
    "required": ["analysis", "changes", "prompt"],
    "additionalProperties": False,
}


class ModelWriter:
    """A language model behind a client. `Writer`."""

    def __init__(self, config: WriterEndpoint, client: Client) -> None:
        self.config, self.client, self.instructions = config, client, search_text("write").body

    @property
    def identity(self) -> str:
        return f"{self.config.model} at {self.client.address.shown}"

    def write(self, task: Task) -> Proposal:
        def messages(level: str) -> list[Message]:
            form = "" if level != "plain" else "\n\nAnswer with the new system prompt alone, between two lines of ```."
            return [
                {"role": "system", "content": self.instructions + form},
                {"role": "user", "content": task.instructions()},
            ]

        def read(reply: ChatReply, level: str) -> Proposal:
            if reply.cut:
                raise ReplyError(
                    f"{self.config.model}: the answer was cut at {self.config.max_tokens:,} tokens",
                    hint="--set writer.max_tokens=…",
                )
            return read_proposal(reply.text, plain=level == "plain")

        seed = task.iteration * 100 + task.attempt
        return self.client.ask(
            messages, SCHEMA, read, name="system_prompt", temperature=self.config.temperature, seed=seed
        )


def read_proposal(text: str, *, plain: bool) -> Proposal:
    """A model's answer. Raises NotUnderstood where another form of the question may do better."""
    start, end = text.find("{"), text.rfind("}")
    try:
        said = json.loads(text[start : end + 1]) if start >= 0 else None
    except (ValueError, RecursionError):
        said = None
    if isinstance(said, dict) and isinstance(said.get("prompt"), str) and said["prompt"].strip():
        changes = said.get("changes")
        return Proposal(text=_tidy(said["prompt"]), changes=_line(changes if isinstance(changes, str) else ""))
    if plain and text.strip():
        fenced = text.split("```")
        body = max(fenced[1::2], key=len).partition("\n")[2] if len(fenced) >= 3 else text
        return Proposal(text=_tidy(body), changes="")
    raise NotUnderstood(ReplyError("the writer's answer holds no system prompt"))


def _tidy(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.replace("\r\n", "\n").strip().split("\n"))


def _line(text: str) -> str:
    return " ".join(text.split())[:400]


def open_endpoint(config: WriterEndpoint, say: Callable[[str], None], budget: Any) -> ModelWriter:
    """Raises UsageError for what is no address, and for no model."""
    if not config.model:
        raise UsageError("no model was named as writer", hint="--set writer.model=NAME writer.base_url=…")
    labels = {
        name: Label(f"writer.{name}", f"--set writer.{name}=…")
        for name in ("base_url", "model", "timeout", "max_tokens")
    }
    address = make_address(
        config.base_url, config.model, key=os.environ.get(config.key_variable), timeout=config.timeout,
        max_tokens=config.max_tokens, labels={
            **labels, "limit": labels["timeout"],
            "key": Label("the writer's key", f"the environment variable {config.key_variable}"),
        },
    )  # fmt: skip
    return ModelWriter(config, Client(address, say=say, budget=budget))


class GgufWriter:
    """A GPT-OSS on this machine, opened by whoever owns the engine. `Writer`."""

    def __init__(
        self, config: LocalWriter, name: str, template: TemplateParams, open_model: Callable[[], LlamaModel],
        stop: Callable[[], bool],
    ) -> None:  # fmt: skip
        self.config, self.name, self.template, self.open_model, self.stop = config, name, template, open_model, stop
        self.instructions = search_text("write").body

    @property
    def identity(self) -> str:
        return f"{self.name} (local)"

    def write(self, task: Task) -> Proposal:
        """Raises ReplyError for an answer that holds no prompt, UsageError for one that the context does not hold."""
        from backend.text.harmony import conversation

        config, model = self.config, self.open_model()
        ids = conversation(model.tokenizer, self.template, self.instructions, task.instructions(), effort="medium")
        reply = model.answer(
            ids, schema=SCHEMA, think_tokens=config.think_tokens, answer_tokens=config.answer_tokens,
            temperature=config.temperature, seed=task.iteration * 100 + task.attempt, stop=self.stop,
        )  # fmt: skip
        if not reply.finished:
            raise ReplyError(
                f"the writer's answer was cut after {config.answer_tokens:,} tokens",
                hint="--set writer.answer_tokens=…",
            )
        try:
            return read_proposal(reply.text, plain=False)
        except NotUnderstood as error:
            raise error.cause from None


# -------------------------------------------------------------------------------------------------------------- person


class PersonWriter:
    """A person with an editor: what fails is in RUN/next.md, and what they make of it is the next prompt. `Writer`."""

    identity = "manual"

    def __init__(self, folder: Path) -> None:
        self.path, self.about = folder / "next.md", folder / "failures.md"

    def write(self, task: Task) -> Proposal:
        """What stands in next.md where it was changed. Raises PersonAsked, which says where to write."""
        text = self._read()
        if text is not None and text != task.current and text not in task.texts:
            return Proposal(text=text, changes="written by hand")
        write_atomic(self.about, f"{task.instructions()}\n".encode())
        if text is None:
            write_atomic(self.path, f"{task.current}\n".encode())
        again = f" ({task.complaint})" if task.complaint else ""
        raise PersonAsked(
            f"write the next system prompt into {self.path}{again}; what fails is in {self.about}",
            hint="then run the same command again",
        )

    def _read(self) -> str | None:
        try:
            with self.path.open("rb") as file:
                data = file.read(_FILE_LIMIT)
            return _tidy(data.decode("utf-8-sig"))
        except FileNotFoundError:
            return None
        except UnicodeDecodeError:
            raise FileError(f"{self.path} is not UTF-8 text", hint="save it as UTF-8") from None
        except OSError as error:
            raise read_error(self.path, error) from error
