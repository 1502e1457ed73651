"""A folder of pictures as a source of batches: latents and text features are made once and kept on the disk.

The encoders are gone before the transformer is loaded; the text encoder is read a layer at a time.

Heavy ring: torch, Pillow.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from backend.cache import tensors
from backend.checkpoints.identity import files_sha256
from backend.checkpoints.resolve import ModelFiles
from backend.errors import CheckpointError, FileError
from backend.loading import load_vae
from backend.model.autoencoder import AutoencoderKLFlux2
from backend.sizes import GRID
from train.batches.encoders import VERSION, encode_images
from train.batches.keeper import Keeper
from train.batches.texts import KeptTexts
from train.config import At, Stage
from train.data import buckets
from train.data.buckets import Placement
from train.data.pictures import Unreadable, decode
from train.lora.config import LoraConfig
from train.lora.pictures import Folder, Picture
from train.run.batch import Grid, Group, Loaded, padded
from train.run.distributed import Ranks

Say = Callable[[str], None]


class Kept:
    """What the frozen networks make of the folder's pictures and captions."""

    def __init__(self, config: LoraConfig, files: ModelFiles, ranks: Ranks, say: Say) -> None:
        self.files, self.ranks, self.device, self.say = files, ranks, ranks.device, say
        channels = files.preset.params.dit.in_channels
        self._latents = Keeper(config.cache_dir / "latents", (channels,), torch.float32, say)
        self._texts = KeptTexts(config.cache_dir / "texts", files, ranks.device, say)
        self._vae_sha256 = files_sha256(files.vae)

    def has_latent(self, sha256: str, placed: Placement) -> bool:
        """Whether a picture is encoded already, so that its file need not be proved whole again."""
        return self._latents.has(self._latent_key(sha256, placed))

    # --------------------------------------------------------------------------------------------------------- filling

    def fill(self, folder: Folder, prompts: Iterable[str]) -> None:
        """Encode what is not kept yet, each rank its share. Raises FileError (no space, a picture gone),
        CheckpointError, NumericsError."""
        self._latents.open()
        pictures = [*folder.training, *folder.held]
        rank, world = self.ranks.rank, self.ranks.world
        captions = list(dict.fromkeys([*(p.caption for p in pictures), *prompts]))
        self._fill_latents([p for p in pictures if not self.has_latent(p.sha256, p.placed)][rank::world])
        self._texts.fill(captions[rank::world])

    def _fill_latents(self, pictures: Sequence[Picture]) -> None:
        if not pictures:
            return
        self.say(f"encoding {len(pictures):,} pictures")
        vae = load_vae(self.files, torch.float32, self.device)

        def make(places: Sequence[int]) -> Iterator[Tensor]:
            for done, place in enumerate(places, 1):
                # One at a time: what a latent is does not depend, not in its last bit, on what is encoded beside it.
                yield self._latent(vae, pictures[place])
                if done % 100 == 0:
                    self.say(f"encoded {done:,} of {len(places):,} pictures")

        self._latents.fill([self._latent_key(p.sha256, p.placed) for p in pictures], make)

    def _latent(self, vae: AutoencoderKLFlux2, picture: Picture) -> Tensor:
        latent_NC = encode_images(vae, pixels(picture)[None], self.device)[0]
        if not bool(torch.isfinite(latent_NC).all()):
            raise CheckpointError(f"{picture.path}: its latent is not finite", hint="check: lens models verify")
        return latent_NC

    # --------------------------------------------------------------------------------------------------------- reading

    def latent(self, picture: Picture) -> Tensor:
        """(N, C) float32. Raises FileError where it is not kept."""
        rows = self._latents.read(self._latent_key(picture.sha256, picture.placed))
        h, w = grid_of(picture)
        if rows is None or len(rows) != h * w:
            raise FileError(f"{picture.key}: its latent is gone from {self._latents.store.folder}", hint="run it again")
        return rows

    def texts(self, captions: Sequence[str]) -> list[Tensor]:
        """(L, T, F) of each, on the device."""
        return self._texts.read(captions)

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
        image = decode(picture.read())
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

    def __init__(self, config: LoraConfig, folder: Folder, kept: Kept) -> None:
        self.config, self.folder, self.kept = config, folder, kept
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
        x0_BNC = torch.stack([self.kept.latent(picture) for picture in pictures]).to(self.kept.device)
        text, mask = padded(self.kept.texts([picture.caption for picture in pictures]))
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
