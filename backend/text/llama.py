"""One GGUF, opened once by llama.cpp, for both jobs of Lens's language model: text features and the reasoner.

The weights are memory-mapped and shared; each job has a context (key/value cache) of its own, made when it is first
needed, because they want different ones: features need exact attention and an observer in the graph, writing wants
neither (`backend.text.llama_states`, `backend.text.llama_answer`).

Near-exact: llama.cpp rounds the YaRN correction range (8 to 18 instead of 8.09 to 17.40 for gpt-oss), and there is no
setting against it. At token 300 that turns some rotary pairs by up to 0.07 rad. A network trained that way, as
Lens-Nano is, is not affected. The exact path is torch's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from backend.checkpoints.gguf_keys import text_params
from backend.checkpoints.headers import FileFormat, FileHeader, read_header
from backend.checkpoints.tokenizer_files import gguf_tokenizer
from backend.errors import CheckpointError
from backend.packing.ggml_library import default_threads
from backend.text import harmony
from backend.text.llama_answer import Answerer
from backend.text.llama_library import OpenGguf
from backend.text.llama_states import StateReader
from backend.text.prefixes import PrefixCache

if TYPE_CHECKING:
    import torch

    from backend.cache.store import Store

_PLAIN = 1  # GGUF's token type of ordinary text
_HINT = "Use a GGUF of gpt-oss-20b, or the language model that comes with lens (--model nano)."


def _never() -> bool:
    return False


class LlamaModel:
    """One GGUF opened once by llama.cpp: generates, and yields hidden states. One caller at a time."""

    def __init__(
        self, gguf: Path, *, threads: int | None = None, context: int = 4096, repack: bool = False, gpu_layers: int = 0,
        prefixes: Store | None = None,
    ) -> None:  # fmt: skip
        """`threads`: None takes OMP_NUM_THREADS or the physical cores. `context`: tokens of a conversation and its
        reply together. `repack`: for a server, see `llama_library.Model`. `gpu_layers`: blocks kept on a GPU, where
        llama.cpp was built for one; -1 means all. `prefixes`: what every prompt and every rewrite begins with, kept
        across processes (`backend.text.prefixes`); None: computed once in each.

        Raises CheckpointError for a file that is missing, unreadable, cut short, no GGUF, of another architecture, or
        that llama.cpp refuses; LensError where llama.cpp cannot be loaded.
        """
        try:
            header = _checked(gguf)
            self.params = text_params(header.metadata, header.tensors["token_embd.weight"].shape[0], str(gguf))
            self.tokenizer = gguf_tokenizer(header)
        except CheckpointError as error:
            error.hint = error.hint or _HINT
            raise
        self._special = [i for i, kind in enumerate(header.metadata["tokenizer.ggml.token_type"]) if kind != _PLAIN]
        self._model: OpenGguf | None = OpenGguf(gguf, repack=repack, gpu_layers=gpu_layers)
        self.repacked = self._model.repacked  # what became of `repack`
        self._threads, self._limit = threads or default_threads(), context
        self._prefixes = None
        if prefixes is not None:
            self._prefixes = PrefixCache(prefixes, gguf, repacked=self.repacked, gpu_layers=gpu_layers)
        self._reader: StateReader | None = None
        self._answerer: Answerer | None = None

    def hidden_states(self, ids: Sequence[int], take: Sequence[int]) -> torch.Tensor:
        """(T, L, F) float32: the residual stream right after each block in `take` (0-based), for every token.

        Everything before the first user's text is computed once and remembered: the next prompt only pays for its own
        words. Raises ValueError for ids or blocks the model does not have and for more tokens than `context`,
        LensError where llama.cpp fails, OutOfMemoryError.
        """
        import torch

        blocks = self.params.num_hidden_layers
        if not ids or not take or not all(0 <= block < blocks for block in take):
            raise ValueError(f"{len(ids)} tokens, blocks {list(take)} of {blocks}")
        if self._reader is None:
            self._reader = StateReader(
                self._opened(), threads=self._threads, limit=self._limit, prefixes=self._prefixes
            )
        shared = harmony.users_place(self.tokenizer, ids)
        return torch.from_numpy(self._reader.read(ids, take, shared))

    def answer(
        self, prompt_ids: Sequence[int], *, schema: Mapping[str, Any] | None, think_tokens: int, answer_tokens: int,
        temperature: float, seed: int, stop: Callable[[], bool] = _never, adapter: Path | None = None,
    ) -> harmony.Reply:  # fmt: skip
        """What the model writes after `prompt_ids` (`harmony.conversation`): a thought, then the final message.

        The thought is closed by us once it has `think_tokens` tokens; 0 means none. Where a `schema` is given
        (`backend.text.grammar`) the final message is JSON of that form, written as `json.dumps` writes it; it may be
        cut by `answer_tokens`, then `finished` is False. Temperature 0 takes the likeliest token each time; otherwise
        the same seed draws the same reply. `stop` is asked between tokens and while the prompt is read. `adapter`:
        updates of the weights, for answers only; hidden states are those of the weights alone.
        Raises CheckpointError for an adapter that does not fit, UsageError for a prompt that leaves no room for the
        budgets, CancelledError once `stop()` is true, ValueError for a schema without a grammar.
        """
        if self._answerer is None:
            self._answerer = Answerer(
                self._opened(), self.tokenizer, self._special, threads=self._threads, limit=self._limit,
                prefixes=self._prefixes,
            )  # fmt: skip
        return self._answerer.answer(
            prompt_ids, schema=schema, think_tokens=think_tokens, answer_tokens=answer_tokens, temperature=temperature,
            seed=seed, stop=stop, adapter=adapter,
        )  # fmt: skip

    def close(self) -> None:
        """Give all memory back. The object is of no use afterwards."""
        for part in (self._reader, self._answerer, self._model):
            if part is not None:
                part.close()
        self._reader = self._answerer = self._model = None

    def __enter__(self) -> LlamaModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _opened(self) -> OpenGguf:
        if self._model is None:
            raise ValueError("this language model was closed")
        return self._model


def _checked(path: Path) -> FileHeader:
    """The header of a whole GPT-OSS file: what llama.cpp is only asked to open once it is known to be one."""
    header = read_header(path)
    if header.format is not FileFormat.gguf:
        raise CheckpointError(
            f"{path}: {header.format}, but llama.cpp reads GGUF only",
            hint="Use --encoder exact for this file. " + _HINT,
        )
    architecture = header.metadata.get("general.architecture")
    if architecture != "gpt-oss":
        raise CheckpointError(f"{path}: a GGUF of the architecture {architecture!r}, expected 'gpt-oss'")
    if "token_embd.weight" not in header.tensors or not header.metadata.get("tokenizer.ggml.token_type"):
        raise CheckpointError(f"{path}: has no token embedding or no vocabulary")
    return header
