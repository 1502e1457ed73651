"""What the tests of llama.cpp's side share: the shipped GGUF, one of random weights, conversations and settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from backend.checkpoints.resolve import resolve_model
from backend.checkpoints.write_gguf import write_text_encoder_gguf
from backend.text import harmony
from backend.text.llama import LlamaModel
from backend.text.llama_library import Context
from tests.backend import tiny_weights as tiny

FILES = resolve_model("nano")
GGUF = FILES.text_encoder[0]
TAKE = FILES.preset.params.dit.selected_layer_index
SCHEMA = {
    "type": "object",
    "properties": {
        "decision": {"enum": ["rewrite", "refuse"]},
        "prompt": {"type": "string"},
        "rule": {"enum": [None, "gore", "hate"]},
    },
    "required": ["decision", "prompt", "rule"],
    "additionalProperties": False,
}
CLOSED = {"type": "object", "properties": {"a": {"enum": ["x", "yy", 3]}, "b": {"type": "boolean"}}}
PROMPTS = [
    "three red balloons over a green hill",
    "a cat",
    "",
    'a sign that says "OPEN", ' * 12,
    "ein Haus 家 🎈 " * 5,
    "a small blue fish " * 40,
]


def write_random(folder: Path) -> Path:
    """A tiny network of random weights in float32."""
    path = folder / "text_encoder.gguf"
    write_text_encoder_gguf(path, tiny.random_text_encoder(), tiny.TEXT, tiny.small_tokenizer().to_str(), dtype="F32")
    return path


def note_batches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Every batch of token ids that any context runs from here on."""
    batches: list[tuple[int, ...]] = []
    run = Context.append

    def noting(self: Context, ids: Sequence[int], stop: Callable[[], bool] | None = None) -> bool:
        batches.append(tuple(ids))
        return run(self, ids, stop)

    monkeypatch.setattr(Context, "append", noting)
    return batches


def encode(model: LlamaModel, prompt: str) -> tuple[int, ...]:
    return harmony.encode_prompt(model.tokenizer, model.params.template, prompt).ids


def asked(model: LlamaModel, request: str, instructions: str = "Rewrite the request.") -> tuple[int, ...]:
    return harmony.conversation(model.tokenizer, model.params.template, instructions, request)


def answer(model: LlamaModel, ids: Sequence[int], **changes: Any) -> harmony.Reply:
    settings: dict[str, Any] = {
        "schema": SCHEMA, "think_tokens": 12, "answer_tokens": 40, "temperature": 0.7, "seed": 1,
    }  # fmt: skip
    return model.answer(ids, **settings | changes)
