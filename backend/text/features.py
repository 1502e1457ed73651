"""From prompts to what the transformer reads of them: looked up on the disk first, else encoded by the chosen path.

Two paths: exact (torch, a layer at a time, from any format) and llama (llama.cpp, near-exact, from a GGUF). The
language model is opened only for prompts that are not kept. The exact one is gone when this returns; llama.cpp's is
closed by whoever opened it.

Legend: T tokens of a prompt and what follows it, L encoder blocks that are read, F their width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from backend import loading
from backend.cache import tensors
from backend.cache.store import Store
from backend.checkpoints.identity import files_sha256
from backend.checkpoints.resolve import ModelFiles
from backend.errors import NumericsError
from backend.text.harmony import EncodedPrompt, encode_prompt
from backend.text.streaming import StreamingEncoder
from backend.types import Encoder, GenerationRequest, Phase

if TYPE_CHECKING:
    from backend.text.llama import LlamaModel

# Raised whenever this code computes other numbers than before from the same weights and prompt.
CODE_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class FeatureSource:
    """Everything that decides the features of a prompt but the prompt."""

    files: ModelFiles
    encoder: Encoder  # exact or llama
    dtype: torch.dtype
    device: torch.device
    store: Store | None = None  # kept features; None: always computed
    llama: Callable[[], LlamaModel] | None = None  # opens the model's GGUF, and closes it some time; for the llama path
    say: Callable[[str], None] | None = None  # told of a prompt that is longer than the model reads

    def branches(
        self, request: GenerationRequest, phase: Callable[[Phase], AbstractContextManager[None]]
    ) -> tuple[Tensor, Tensor | None]:
        """(1, T, L, F) of the prompt, and of the unconditional branch where guidance is not 1. A blank negative prompt:
        no text tokens at all, as in training. `phase` and errors as `features` has them."""
        guided = request.guidance != 1.0
        negative = guided and bool(request.negative_prompt.strip())
        texts = {"prompt": request.prompt}
        if negative:
            texts["negative prompt"] = request.negative_prompt
        found = self.features(list(texts.values()), phase, names=list(texts))
        if not guided:
            return found[0], None
        return found[0], found[1] if negative else found[0][:, :0]

    def features(
        self,
        prompts: Sequence[str],
        phase: Callable[[Phase], AbstractContextManager[None]],
        *,
        names: Sequence[str] | None = None,
    ) -> list[Tensor]:
        """(1, T, L, F) of each prompt, in order. `phase` wraps the phases that really happen; `names` are what a person
        calls the prompts (None: each of them "prompt").

        Raises CheckpointError, NumericsError for features that are not finite, and what opening the model raises.
        """
        keys = {prompt: self._key(prompt) for prompt in prompts} if self.store and self.store.limit else {}
        # Looking up counts as encoding where nothing else will.
        all_kept = bool(keys) and all(self.store and self.store.path(key).exists() for key in keys.values())
        with phase(Phase.encode) if all_kept else nullcontext():
            found = {prompt: self._kept(keys.get(prompt)) for prompt in prompts}
        unknown = [prompt for prompt, looked_up in found.items() if looked_up is None]
        if unknown:
            for prompt, features in zip(unknown, self._encode(unknown, phase), strict=True):
                if not bool(torch.isfinite(features).all()):
                    raise NumericsError("the text features are not finite", hint="Try --dtype float32.")
                if self.store is not None and prompt in keys:
                    tensors.write_rows(self.store, keys[prompt], features)
                found[prompt] = features
        if self.say is not None:
            for prompt, name in zip(prompts, names or ["prompt"] * len(prompts), strict=True):
                self._check_length(prompt, name, _present(found[prompt]), self.say)
        return [_present(found[prompt]).to(self.device)[None] for prompt in prompts]

    def _check_length(self, prompt: str, name: str, features: Tensor, say: Callable[[str], None]) -> None:
        """Say what the model does not read of a prompt; kept features do not tell, so its tokens are counted again."""
        template = self.files.preset.params.text.template
        if len(features) < template.room:
            return
        unread = encode_prompt(loading.load_tokenizer(self.files), template, prompt).unread.strip()
        if unread:
            shown = unread if len(unread) <= 60 else f"{unread[:40]} … {unread[-20:]}"
            say(
                f"the {name} is longer than the {template.room} tokens that the model reads: its end is left out "
                f"({shown!r})"
            )

    def _kept(self, key: str | None) -> Tensor | None:
        if self.store is None or key is None:
            return None
        params = self.files.preset.params
        width = (len(params.dit.selected_layer_index), params.text.hidden_size)
        return tensors.read_rows(self.store, key, width, self.dtype)

    def _key(self, prompt: str) -> str:
        params = self.files.preset.params
        exact = self.encoder is Encoder.exact
        return tensors.cache_key(
            {
                "code": CODE_VERSION,
                "path": str(self.encoder),
                "library": version("torch" if exact else "llama-cpp-python"),
                "processor": tensors.processor(self.device if exact else torch.device("cpu")),
                "dtype": str(self.dtype),
                "weights": files_sha256(self.files.text_encoder),
                "tokenizer": files_sha256(self.files.tokenizer) if self.files.tokenizer else None,
                "network and template": asdict(params.text),
                "blocks": list(params.dit.selected_layer_index),
                "prompt": prompt,
            }
        )

    def _encode(self, prompts: Sequence[str], phase: Callable[[Phase], AbstractContextManager[None]]) -> list[Tensor]:
        """(T, L, F) of each prompt, computed."""
        template = self.files.preset.params.text.template
        take = self.files.preset.params.dit.selected_layer_index
        if self.encoder is Encoder.llama:
            assert self.llama is not None, "who asks for llama.cpp says who opens it"
            with phase(Phase.load_encoder):
                model = self.llama()
            with phase(Phase.encode):
                encoded = [encode_prompt(model.tokenizer, template, prompt) for prompt in prompts]
                states = [model.hidden_states(given.ids, take) for given in encoded]
        else:
            with phase(Phase.load_encoder):
                tokenizer = loading.load_tokenizer(self.files)
                table = loading.open_text_table(self.files)
                streaming = StreamingEncoder(table, self.files.preset.params.text, self.dtype, self.device)
            with phase(Phase.encode):
                encoded = [encode_prompt(tokenizer, template, prompt) for prompt in prompts]
                states = streaming.hidden_states([given.ids for given in encoded], take)
        return [_cut(state, given).to(self.dtype) for state, given in zip(states, encoded, strict=True)]


def _cut(states_TLF: Tensor, encoded: EncodedPrompt) -> Tensor:
    """Without the tokens before the prompt, which the transformer never reads."""
    return states_TLF[encoded.prefix :]


def _present(features: Tensor | None) -> Tensor:
    assert features is not None, "every prompt was looked up or encoded"
    return features
