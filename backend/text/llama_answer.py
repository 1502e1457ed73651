"""Two-phase generation with llama.cpp: the model thinks within a budget, then answers, if need be under a grammar.

A grammar from the first token on would forbid harmony's own control tokens, so the headers of both messages are
written by us and the grammar holds inside the second one only. Control tokens have no place inside a message: all are
masked but the one that ends it. So a reply is always well formed, whatever the model would rather have said.

The answer's header is `<|channel|>final<|message|>`, without `<|constrain|>json`: it is what gpt-oss writes wherever
no response format was announced to it (we announce none; the system prompt asks for JSON in words), the header that
the text encoder's own conversation ends with, and the only one Lens-Nano has seen.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend.checkpoints.identity import known_sha256
from backend.errors import CancelledError, UsageError
from backend.text import harmony
from backend.text.grammar import gbnf
from backend.text.llama_library import Context, OpenGguf, Stop

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from backend.text.prefixes import PrefixCache

    Floats = NDArray[np.float32]

LIKELY = 64  # tokens shown to the grammar at first; only where it rejects them all is the whole vocabulary checked


class Grammar:
    """llama.cpp's grammar: how far a text has come, and which tokens may follow."""

    def __init__(self, model: OpenGguf, rules: str) -> None:
        self._model, self._api = model, model.lib.api
        self._pointer = self._api.llama_sampler_init_grammar(model.vocab, rules.encode(), b"root")
        if not self._pointer:
            raise ValueError(f"llama.cpp does not understand this grammar:\n{rules}")

    def first_allowed(self, ids: Sequence[int]) -> int | None:
        """The first of `ids` that may come next; None where none may."""
        api = self._api
        data = (api.llama_token_data * len(ids))(*((i, 0.0, 0.0) for i in ids))
        table = api.llama_token_data_array(data, len(ids), -1, False)
        api.llama_sampler_apply(self._pointer, ctypes.byref(table))
        return next((entry.id for entry in data if entry.logit == 0.0), None)  # rejected ones became -inf

    def accept(self, token: int) -> None:
        """Go on by a token that `first_allowed` gave; llama.cpp ends the process for any other."""
        self._api.llama_sampler_accept(self._pointer, token)

    def close(self) -> None:
        self._api.llama_sampler_free(self._pointer)


class Answerer:
    """Answers conversations one after another; the part before the first user's text is computed once."""

    def __init__(
        self, model: OpenGguf, tokenizer: Tokenizer, special: Sequence[int], *, threads: int, limit: int,
        prefixes: PrefixCache | None = None,
    ) -> None:  # fmt: skip
        """`special`: every token id that is not plain text. `limit`: tokens of a conversation and its reply.
        `prefixes`: beginnings that earlier processes computed; None: none."""
        self._model, self._tokenizer, self._special = model, tokenizer, list(special)
        self._threads, self._limit, self._kept = threads, limit, prefixes
        self._context: Context | None = None
        self._adapter: Path | None = None  # of the context
        self._prefix: tuple[int, ...] = ()
        writer = harmony.HarmonyWriter(tokenizer)
        self._think = tuple(writer.control("<|channel|>").text("analysis").control("<|message|>").ids)
        writer.ids = []
        writer.control("<|end|>").control("<|start|>").text("assistant")
        self._conclude = tuple(writer.control("<|channel|>").text("final").control("<|message|>").ids)
        self._end, self._return = harmony.HarmonyWriter(tokenizer).control("<|end|>").control("<|return|>").ids

    def answer(
        self, ids: Sequence[int], *, schema: Mapping[str, Any] | None, think_tokens: int, answer_tokens: int,
        temperature: float, seed: int, stop: Stop, adapter: Path | None = None,
    ) -> harmony.Reply:  # fmt: skip
        """See LlamaModel.answer."""
        need = len(ids) + len(self._think) + think_tokens + len(self._conclude) + answer_tokens
        if need > self._limit:
            raise UsageError(
                f"the request is too long: {len(ids)} tokens with its instructions, and up to "
                f"{think_tokens + answer_tokens} for the answer, where {self._limit} fit",
                hint="Shorten the request or the system prompt.",
            )
        context = self._begin(ids, need, stop, adapter)
        draw = _Draw(temperature, seed)
        self._append(context, self._think, stop)
        thought, _ = self._write(context, draw, think_tokens, (self._end,), None, stop)
        self._append(context, self._conclude, stop)
        if schema is None:
            text, finished = self._write(context, draw, answer_tokens, (self._return, self._end), None, stop)
        else:
            grammar = Grammar(self._model, gbnf(schema))
            try:
                text, finished = self._write(context, draw, answer_tokens, (self._return,), grammar, stop)
            finally:
                grammar.close()
        return harmony.Reply(self._text(thought), self._text(text), finished, draw.count)

    def close(self) -> None:
        self._prefix = ()
        if self._context is not None:
            self._context.close()
            self._context = None

    def _begin(self, ids: Sequence[int], need: int, stop: Stop, adapter: Path | None) -> Context:
        """The context, with the conversation in it.

        The prefix is always a batch of its own, whether it is known already or not: the same sums in the same order,
        so that an answer depends on its seed alone and not on what was asked before.
        """
        if self._context is None or self._context.size < need or self._adapter != adapter:
            self.close()
            self._context = Context(self._model, need, threads=self._threads, adapter=adapter)
            self._adapter = adapter
        context = self._context
        place = harmony.users_place(self._tokenizer, ids)
        prefix = tuple(ids[:place])
        if self._prefix != prefix or not context.length:
            self._prefix = ()
            context.keep(0)
            job = "answers" if adapter is None else f"answers with {known_sha256(adapter)}"
            if self._kept is None or self._kept.recall(context, job, prefix) is None:
                self._append(context, prefix, stop)
                if self._kept is not None and prefix:
                    self._kept.keep(context, job, prefix, {})
            self._prefix = prefix
        context.keep(place)
        self._append(context, ids[place:], stop)
        return context

    def _append(self, context: Context, ids: Sequence[int], stop: Stop) -> None:
        if not context.append(ids, stop):
            raise CancelledError("stopped while the language model was reading")

    def _write(
        self, context: Context, draw: _Draw, budget: int, ends: tuple[int, ...], grammar: Grammar | None, stop: Stop
    ) -> tuple[list[int], bool]:
        """Token ids up to an end token, which is neither returned nor run, and whether it came within the budget."""
        masked = [i for i in self._special if i not in ends]
        written: list[int] = []
        for _ in range(budget):
            if stop():
                raise CancelledError(f"stopped after {draw.count} tokens of the language model")
            logits = context.logits()
            logits[masked] = -float("inf")
            token = draw.token(logits, grammar)
            if token in ends:
                return written, True
            written.append(token)
            context.append((token,))
        return written, False

    def _text(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)


class _Draw:
    """Draws tokens with a generator of its own, so that a seed means the same with every build of llama.cpp.

    By the Gumbel trick: the largest of logit / temperature + noise is distributed as the softmax says, and the largest
    among the allowed ones as the softmax over these. So a grammar need only look at the most likely tokens.
    """

    def __init__(self, temperature: float, seed: int) -> None:
        import numpy as np

        if not temperature >= 0:
            raise ValueError(f"temperature {temperature}: not a number from 0 (the likeliest token) upwards")
        self._temperature, self._generator, self.count = temperature, np.random.default_rng(seed), 0

    def token(self, logits: Floats, grammar: Grammar | None) -> int:
        """The next token; under a grammar it is accepted there."""
        import numpy as np

        self.count += 1
        scores = logits.astype(np.float64)
        if self._temperature > 0:
            with np.errstate(divide="ignore"):  # a uniform number may be 0: then the noise is -inf, rightly
                scores = scores / self._temperature - np.log(-np.log(self._generator.random(scores.size)))
        if grammar is None:
            return int(scores.argmax())
        likely = np.argpartition(-scores, min(LIKELY, scores.size - 1))[:LIKELY]
        token = grammar.first_allowed(self._ordered(scores, likely))
        if token is None:
            token = grammar.first_allowed(self._ordered(scores, np.arange(scores.size)))
        if token is None:
            raise ValueError("the grammar allows no token of this vocabulary")
        grammar.accept(token)
        return token

    @staticmethod
    def _ordered(scores: NDArray[np.float64], ids: NDArray[np.int64]) -> list[int]:
        """Best first, masked ones left out; equal ones by their number, so that the order is always the same."""
        import numpy as np

        ids = np.sort(ids[scores[ids] > -np.inf])
        return [int(i) for i in ids[np.argsort(-scores[ids], kind="stable")]]
