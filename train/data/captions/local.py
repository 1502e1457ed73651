"""Captions by a vision model on this machine: any image-to-text model that transformers loads, by folder or Hub id.

It answers as an endpoint does (`train.data.captions.ask.Asker`), so its answers go into the same journals. Captioners
that take no words (BLIP, GIT, ViT-GPT2) are given the picture alone; those with a chat template also the prompt.
Nothing of a model's own code is run, and only safetensors files are read.

Heavy ring: torch, transformers, Pillow.
"""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from backend.chat.replies import ChatReply, Message
from backend.errors import CheckpointError, ModelMissingError, NetworkError, first_line
from backend.hub.snapshot import snapshot
from backend.paths import expanded
from train.data.scores.learned import pick_device, quiet

PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")  # of a repository; never its code


def find_captioner(name: str, *, download: bool = False) -> Path:
    """The folder of a model: one on this disk, or a Hub id in the Hub's cache; `download`: fetched where it is not.

    Raises ModelMissingError, NetworkError.
    """
    folder = expanded(name)
    if folder.is_dir():
        return folder.resolve()
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return snapshot(name, PATTERNS, download=download)
    except (OSError, ValueError, HFValidationError, LocalEntryNotFoundError) as error:
        if download:
            raise NetworkError(
                f"local={name}: {first_line(error)}", hint="check the name and the connection"
            ) from error
        raise ModelMissingError(
            f"local={name}: no such folder, and not in the Hub's cache",
            hint="--set download=true fetches it; or give a folder",
        ) from error


class LocalCaptioner:
    """Describes pictures, one at a time whoever asks. Raises CheckpointError where transformers cannot load it."""

    def __init__(self, folder: Path, *, device: str = "auto", max_tokens: int = 700) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self._device, self._most = pick_device(device), max_tokens
        self._dtype = torch.bfloat16 if self._device.type == "cuda" else torch.float32
        self._lock = threading.Lock()
        try:
            with quiet():
                self._processor: Any = AutoProcessor.from_pretrained(folder, local_files_only=True)
                kind: Any = AutoModelForImageTextToText
                network, told = kind.from_pretrained(
                    folder, dtype=self._dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
                )
        except (ImportError, OSError, ValueError, KeyError, RuntimeError, AttributeError) as error:
            raise CheckpointError(f"cannot load {folder} as an image-to-text model: {first_line(error)}") from error
        if told["missing_keys"]:
            missing = sorted(told["missing_keys"])
            raise CheckpointError(f"{folder} lacks {len(missing)} tensors, {missing[0]} among them")
        self._network: Any = network.to(self._device).eval().requires_grad_(False)

    def complete(
        self,
        messages: Sequence[Message],
        *,
        seed: int | None = None,
        temperature: float | None = None,
        on_answer: Callable[[ChatReply], None],
    ) -> ChatReply:
        """Answer one question about one picture. The first answer (seed 0) is the likeliest, a further one is drawn."""
        prompt, image = _read(messages)
        again = bool(seed)
        with self._lock, torch.inference_mode(), torch.random.fork_rng():
            torch.manual_seed(seed or 0)
            given = self._inputs(prompt, image)
            sampling: dict[str, Any] = {"do_sample": again, "num_beams": 1}
            sampling |= {"temperature": temperature or 1.0} if again else {}
            out = self._network.generate(**given, max_new_tokens=self._most, **sampling)[0]
        begun = given["input_ids"].shape[-1] if "input_ids" in given else 0
        words = out[begun:] if begun and out[:begun].equal(given["input_ids"][0]) else out
        text = str(self._processor.batch_decode(words[None], skip_special_tokens=True)[0]).strip()
        reply = ChatReply(content=text, cut=len(words) > self._most, tokens_in=begun, tokens_out=len(words))
        on_answer(reply)
        return reply

    def _inputs(self, prompt: str, image: Image.Image) -> dict[str, Any]:
        """What the network takes, on its device."""
        if getattr(self._processor, "chat_template", None):
            content = [{"type": "image"}, {"type": "text", "text": prompt}]
            text = self._processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
            given = self._processor(images=image, text=text, return_tensors="pt")
        else:
            given = self._processor(images=image, return_tensors="pt")
        return {
            key: value.to(self._device, self._dtype) if value.is_floating_point() else value.to(self._device)
            for key, value in given.items()
        }


def _read(messages: Sequence[Message]) -> tuple[str, Image.Image]:
    """(the words, the picture) of a question as `train.data.captions.ask.messages` puts it."""
    prompt = str(messages[0]["content"])
    url = str(messages[-1]["content"][0]["image_url"]["url"])
    return prompt, Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")
