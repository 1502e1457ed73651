"""A folder of pictures as a source of batches: latents and text features are computed once and kept on the disk.

A file is named by the SHA-256 of everything that decides its numbers (the picture's contents, its crop and size, the
autoencoder; the caption, the encoder, its template), so a changed picture or caption is encoded anew and nothing else
is, and several runs may share one folder. The encoders are gone before the transformer is loaded.

Heavy ring: torch, Pillow.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import nullcontext
from textwrap import shorten

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from backend.cache import tensors
from backend.checkpoints.identity import files_sha256
from backend.checkpoints.resolve import ModelFiles
from backend.disk import make_folder
from backend.errors import CheckpointError, FileError
from backend.loading import load_vae
from backend.sizes import GRID
from backend.text.features import FeatureSource
from backend.types import Encoder
from train.batches.kept import RunCache
from train.batches.scenes import encode_images
from train.config import At, Stage
from train.data import buckets
from train.data.buckets import Placement
from train.data.pictures import Unreadable, decode
from train.lora.config import LoraConfig
from train.lora.pictures import Folder, Picture
from train.run.batch import Grid, Group, Loaded, padded

VERSION = 1  # raised when the same picture gives other numbers
AT_ONCE = 64  # captions that share one pass over the text encoder's layers

Say = Callable[[str], None]


class Cache:
    """What the frozen networks make of pictures and captions."""

    def __init__(self, config: LoraConfig, files: ModelFiles, device: torch.device, say: Say) -> None:
        self.config, self.files, self.device, self.say = config, files, device, say
        self.params = files.preset.params
        self._latents, self._texts = (
            RunCache(config.cache_dir / name, ".safetensors", 1, say) for name in ("latents", "texts")
        )
        self._vae_sha256 = files_sha256(files.vae)
        self._features = FeatureSource(
            files=files,
            encoder=Encoder.exact,
            dtype=torch.float32 if device.type == "cpu" else torch.bfloat16,
            device=device,
            store=self._texts,
        )

    def has_latent(self, sha256: str, placed: Placement) -> bool:
        return self._latents.path(self._latent_key(sha256, placed)).exists()

    # --------------------------------------------------------------------------------------------------------- filling

    def fill(self, folder: Folder, prompts: Iterable[str]) -> None:
        """Encode what is not kept yet. Raises FileError (no space, a picture gone), CheckpointError, NumericsError."""
        for store in (self._latents, self._texts):
            make_folder(store.folder)
        pictures = [*folder.training, *folder.held]
        self._fill_latents([p for p in pictures if not self.has_latent(p.sha256, p.placed)])
        self._fill_texts(list(dict.fromkeys([*(p.caption for p in pictures), *prompts])))

    def _fill_latents(self, pictures: Sequence[Picture]) -> None:
        if not pictures:
            return
        self.say(f"encoding {len(pictures):,} pictures")
        vae = load_vae(self.files, torch.float32, self.device)
        for number, picture in enumerate(pictures, 1):
            # One at a time: what a latent is does not depend, not in its last bit, on what is encoded beside it.
            latent_NC = encode_images(vae, pixels(picture)[None], self.device)[0]
            if not bool(torch.isfinite(latent_NC).all()):
                raise CheckpointError(f"{picture.path}: its latent is not finite", hint="check: lens models verify")
            tensors.write_rows(self._latents, self._latent_key(picture.sha256, picture.placed), latent_NC)
            if number % 100 == 0:
                self.say(f"encoded {number:,} of {len(pictures):,} pictures")

    def _fill_texts(self, captions: list[str]) -> None:
        most = self.params.text.template.room
        for start in range(0, len(captions), AT_ONCE):
            some = captions[start : start + AT_ONCE]
            # Also finds damaged files, which are then made again.
            for caption, found in zip(some, self._features.features(some, lambda _: nullcontext()), strict=True):
                if found.shape[1] >= most:
                    self.say(f"longer than the {most} tokens that are read, cut: {shorten(caption, 60)}")

    # --------------------------------------------------------------------------------------------------------- reading

    def latent(self, picture: Picture) -> Tensor:
        """(N, C) float32. Raises FileError where it is not kept."""
        width = (self.params.dit.in_channels,)
        rows = tensors.read_rows(self._latents, self._latent_key(picture.sha256, picture.placed), width, torch.float32)
        h, w = grid_of(picture)
        if rows is None or len(rows) != h * w:
            raise FileError(f"{picture.key}: its latent is gone from {self._latents.folder}", hint="run it again")
        return rows

    def texts(self, captions: Sequence[str]) -> list[Tensor]:
        """(L, T, F) of each, on the device."""
        # Made while training only where a file was removed meanwhile; then they come from inference mode.
        return [found[0].clone() for found in self._features.features(captions, lambda _: nullcontext())]

    def _latent_key(self, sha256: str, placed: Placement) -> str:
        return tensors.cache_key(
            {
                "code": VERSION,
                "buckets": buckets.VERSION,
                "picture": sha256,
                "box": list(placed.box),
                "size": [placed.width, placed.height],
                "vae": self._vae_sha256,
                "processor": tensors.processor(self.device),
            }
        )


def pixels(picture: Picture) -> np.ndarray:
    """(H, W, 3) uint8 of its bucket: upright, sRGB, cropped, scaled. Raises FileError."""
    try:
        image = decode(picture.path.read_bytes())
    except (OSError, Unreadable) as error:
        raise FileError(f"{picture.path}: {error}") from error
    size = (picture.placed.width, picture.placed.height)
    return np.array(image.resize(size, Image.Resampling.LANCZOS, box=picture.placed.box))


def grid_of(picture: Picture) -> Grid:
    height, width = picture.shape
    return height // GRID, width // GRID


class FolderSource:
    """Batches of a folder (`train.run.batch.BatchSource`). An epoch has every picture once; each batch is of one
    bucket.

    A bucket's last batch of an epoch may be smaller than the others: nothing is left out and nothing is repeated.
    """

    def __init__(self, config: LoraConfig, folder: Folder, cache: Cache) -> None:
        self.config, self.folder, self.cache = config, folder, cache
        self._epoch: tuple[int, list[list[Picture]]] | None = None  # the one of the last step

    @property
    def fingerprint(self) -> str:
        return self.folder.fingerprint

    def groups(self, at: At) -> list[tuple[Grid, list[Hashable]]]:
        first = at.step * self.config.accumulate
        batches = [self._batch(first + i) for i in range(self.config.accumulate)]
        return [(grid_of(batch[0]), list[Hashable](batch)) for batch in batches]

    def load(self, at: At, group: Group) -> Loaded:
        return self.loaded([picture for picture in group.refs if isinstance(picture, Picture)])

    def held(self, stage: Stage) -> list[tuple[Grid, Loaded]]:
        """One picture each, by key."""
        chosen = self.folder.held[: self.config.held_most]
        return [(grid_of(picture), self.loaded([picture])) for picture in chosen]

    def loaded(self, pictures: Sequence[Picture]) -> Loaded:
        x0_BNC = torch.stack([self.cache.latent(picture) for picture in pictures]).to(self.cache.device)
        text, mask = padded(self.cache.texts([picture.caption for picture in pictures]))
        return Loaded(x0_BNC, text, mask, tuple(picture.key for picture in pictures))

    def _batch(self, number: int) -> list[Picture]:
        """The run's batch `number`, a function of the seed."""
        an_epoch = batches_of(self.folder, self.config.batch)
        epoch, place = divmod(number, an_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, self._shuffled(epoch)
        return self._epoch[1][place]

    def _shuffled(self, epoch: int) -> list[list[Picture]]:
        rng = random.Random(f"folder {self.config.seed} {epoch}")
        out: list[list[Picture]] = []
        for pictures in self.folder.buckets().values():
            order = rng.sample(pictures, len(pictures))
            out += [order[i : i + self.config.batch] for i in range(0, len(order), self.config.batch)]
        rng.shuffle(out)
        return out


def batches_of(folder: Folder, batch: int) -> int:
    """Batches of one epoch."""
    return sum(-(-len(pictures) // batch) for pictures in folder.buckets().values())
