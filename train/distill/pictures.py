"""What an update sees: captions with their features, and the pictures that count as real.

An update has a number, over all updates of the run; which pictures it has is a function of (config, number) alone, so
it is the same on any number of ranks and after a resume.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from backend.cache import tensors
from backend.checkpoints.identity import files_sha256
from backend.checkpoints.resolve import ModelFiles
from backend.errors import UsageError
from backend.loading import load_vae
from backend.lora.own import transformer_sha256
from backend.sizes import GRID
from train.batches.encoders import encode_images
from train.batches.keeper import Keeper
from train.batches.preview import PROMPTS
from train.batches.sources import open_source
from train.batches.texts import KeptTexts
from train.config import At, FrozenNames, PackedData, PretrainConfig, RandomData
from train.distill.config import CaptionFile, DistillConfig, DrawnScenes
from train.evals.verifier.verify import Expectation
from train.rl.chance import shuffled
from train.rl.prompts import drawn, prompt_set
from train.run.batch import BatchSource, Grid, Group, Loaded, padded
from train.run.distributed import Ranks
from train.world.dialogues import caption_of
from train.world.drawing import render
from train.world.grid import sample_on_grid
from train.world.scene_text import Stating

DrawReal = Callable[[Sequence[Tensor], Grid, Sequence[int]], list[Tensor]]  # texts, seeds -> (N, C) by the teacher


@dataclass(frozen=True)
class Shown:
    """A held-out prompt that is drawn again and again."""

    prompt: str
    grid: Grid
    expectation: Expectation | None  # None: no rule knows what its picture must hold


class Pictures(Protocol):
    """Where updates come from."""

    fingerprint: str | None  # tells these pictures and their order from others

    def groups(self, number: int) -> list[tuple[Grid, list[Hashable]]]:
        """Update `number`'s groups, the same on every rank."""
        ...

    def load(self, number: int, group: Group) -> Loaded:
        """This rank's group: x0 are the real pictures."""
        ...

    def prepare(self, draw: DrawReal | None) -> None:
        """Make what is made once, before the first update; `draw` None: nobody can draw. All ranks must call."""
        ...


# Packed pictures, and noise in their place ----------------------------------------------------------------------------


class Packed:
    """Pictures that `lens train data` has packed, or noise of the right shapes: as pre-training reads them."""

    def __init__(self, config: DistillConfig, files: ModelFiles, ranks: Ranks, say: Callable[[str], None]) -> None:
        """Raises LensError."""
        assert isinstance(config.data, PackedData | RandomData)
        params = files.preset.params
        self.stage = config.stage_of(files.preset)
        if isinstance(config.data, RandomData):
            say("noise in place of pictures and captions: for timing, what is learned means nothing")
        like = PretrainConfig(
            run_dir=config.run_dir, params=params.dit, template=params.text.template, stages=(self.stage,),
            seed=config.seed, data=config.data, frozen=FrozenNames(encoders=config.model), machine=config.machine,
            caption_tokens=60,
        )  # fmt: skip
        self.source: BatchSource = open_source(like, None, ranks.device, say)[0]
        self.fingerprint: str | None = getattr(self.source, "fingerprint", None)

    def groups(self, number: int) -> list[tuple[Grid, list[Hashable]]]:
        return self.source.groups(At(number, self.stage, 0, 0))

    def load(self, number: int, group: Group) -> Loaded:
        return self.source.load(At(number, self.stage, 0, 0), group)

    def prepare(self, draw: DrawReal | None) -> None:
        pass


# Captions of finite number --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Captioned:
    """One caption; `picture` draws what it describes, None: nobody but the teacher can."""

    text: str
    picture: Callable[[int, int], Image.Image] | None = None


class Finite:
    """Captions that are known from the start: features and real pictures are made once and kept on the disk."""

    def __init__(
        self, config: DistillConfig, files: ModelFiles, rows: Sequence[Captioned], texts: KeptTexts, ranks: Ranks,
        say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.config, self.files, self.rows, self.texts, self.ranks, self.say = config, files, rows, texts, ranks, say
        side = (config.base or files.preset.default_base) // GRID
        self.grid: Grid = (side, side)
        self._round, self._order = -1, list[int]()  # the order of the captions in one round
        by_teacher = not (isinstance(config.data, DrawnScenes) and config.data.real == "data")
        self.by_teacher = by_teacher
        made = {"steps": config.made.steps, "guidance": config.made.guidance, "start": config.start_from}
        self.about = tensors.cache_key(
            {
                "real": made if by_teacher else "data",
                "teacher": transformer_sha256(files) if by_teacher else None,
                "other teacher": config.teacher if by_teacher else None,
                "vae": files_sha256(files.vae),
                "grid": list(self.grid),
                "seed": config.seed,
            }
        )
        self.kept = Keeper(config.cache_dir / "real", (files.preset.params.dit.in_channels,), torch.float32, say)
        self.fingerprint: str | None = tensors.cache_key({"captions": [row.text for row in rows], "real": self.about})

    def groups(self, number: int) -> list[tuple[Grid, list[Hashable]]]:
        batch, groups = self.config.batch, self.config.groups
        first = number * batch * groups
        return [(self.grid, [self._at(first + i * batch + j) for j in range(batch)]) for i in range(groups)]

    def _at(self, position: int) -> int:
        """Caption at a position of the endless order: every one comes once before any comes twice."""
        count = len(self.rows)
        if self._round != position // count:
            self._round = position // count
            self._order = shuffled(range(count), "captions", self.config.seed, self._round)
        return self._order[position % count]

    def load(self, number: int, group: Group) -> Loaded:
        refs = [ref for ref in group.refs if isinstance(ref, int)]
        x0 = [self.kept.read(self._key(ref)) for ref in refs]
        missing = [ref for ref, rows in zip(refs, x0, strict=True) if rows is None]
        if missing:
            raise UsageError(f"{self.kept.store.folder}: a picture that was made is gone", hint="run the command again")
        text, mask = padded(self.texts.read([self.rows[ref].text for ref in refs]))
        device = self.ranks.device
        pictures = torch.stack([rows for rows in x0 if rows is not None]).to(device)
        return Loaded(pictures, text.to(device), mask.to(device), tuple(self.rows[ref].text for ref in refs))

    def _key(self, ref: int) -> str:
        return tensors.cache_key({"real": self.about, "what": self.rows[ref].text, "place": ref})

    def prepare(self, draw: DrawReal | None) -> None:
        """Encode the drawn scenes, or have the teacher draw; ranks share the work and keep the same number of passes.

        Raises FileError (no space).
        """
        if self.ranks.first:
            self.kept.open()
        self.ranks.barrier()
        missing = [ref for ref in range(len(self.rows)) if self.kept.read(self._key(ref)) is None]
        missing = self.ranks.gathered(missing)[0]
        if missing:
            self.say(f"making {len(missing):,} real pictures{' by the teacher' if self.by_teacher else ''}")
        size, world = self.config.batch, self.ranks.world
        vae = None if self.by_teacher else load_vae(self.files, torch.float32, self.ranks.device)
        for start in range(0, len(missing), size * world):
            some = missing[start : start + size * world]
            mine = some[self.ranks.rank :: world] or some[:1]  # an idle rank repeats one: sharded networks need all
            if vae is None:
                assert draw is not None
                texts = self.texts.read([self.rows[ref].text for ref in mine])
                made = draw(texts, self.grid, mine)
            else:
                made = [self._encoded(vae, self.rows[ref]) for ref in mine]
            for ref, rows in zip(mine, made, strict=True):
                if ref in some[self.ranks.rank :: world]:
                    tensors.write_rows(self.kept.store, self._key(ref), rows.float().cpu())
        self.ranks.barrier()

    def _encoded(self, vae: object, row: Captioned) -> Tensor:
        import numpy as np

        assert row.picture is not None
        height, width = (side * GRID for side in self.grid)
        pixels = np.array(row.picture(width, height).convert("RGB"))[None]
        return encode_images(vae, pixels, self.ranks.device)[0]  # pyright: ignore[reportArgumentType]


def _scene(data: DrawnScenes, number: int, cells: int) -> Captioned:
    rng = random.Random(f"distill scene {data.seed} {number}")
    scene = sample_on_grid(rng, cells, aspect=1.0, weights=None, flat_share=0.5)
    text = caption_of(scene, rng, data.captions, Stating(0.45, 0.35, orderly=True))
    return Captioned(text, lambda width, height: render(scene, width, height))


def open_pictures(
    config: DistillConfig, files: ModelFiles, ranks: Ranks, say: Callable[[str], None]
) -> tuple[Pictures, list[Shown], KeptTexts | None]:
    """The config's pictures, the prompts that are looked at, and where their features are kept (None: noise).

    Encodes what is finite in number. Raises LensError.
    """
    side = (config.base or files.preset.default_base) // GRID
    grid, data = (side, side), config.data
    count = config.watch.prompts
    if data.source == "random":
        return Packed(config, files, ranks, say), [Shown(f"noise {i}", grid, None) for i in range(count)], None
    texts = KeptTexts(config.cache_dir / "texts", files, ranks.device, say)
    rows: list[Captioned] = []
    if isinstance(data, DrawnScenes):
        rows = [_scene(data, number, side) for number in range(data.count)]
        known = {row.text for row in rows}
        held, expectations = drawn.make(4 * count, data.seed + 1)
        # In turn over the kinds, so that few prompts are of all of them.
        names = shuffled([prompt.id for prompt in held.prompts if prompt.prompt not in known], "shown", data.seed)
        by_id = {prompt.id: prompt for prompt in held.prompts}
        shown = [Shown(by_id[name].prompt, grid, expectations[name]) for name in names[:count]]
    elif isinstance(data, CaptionFile):
        if data.path is None:
            raise UsageError("no captions were named", hint="lens train rl prompts write FILE, --set data.path=FILE")
        everything = prompt_set.read(data.path)
        training, held = everything.split(0.05, config.seed)
        rows = [Captioned(prompt.prompt) for prompt in training.prompts]
        shown = [Shown(prompt.prompt, grid, None) for prompt in held.prompts[:count]]
        if not rows or not shown:
            raise UsageError(f"{data.path}: {len(everything.prompts)} prompts are too few", hint="some dozens at least")
    else:
        shown = [Shown(prompt, grid, None) for prompt in PROMPTS[:count]]
    with ranks.failing_together():
        if ranks.first:
            texts.fill(list(dict.fromkeys([row.text for row in (*rows, *map(_as_row, shown))])))
    if not rows:
        return Packed(config, files, ranks, say), shown, texts
    return Finite(config, files, rows, texts, ranks, say), shown, texts


def _as_row(shown: Shown) -> Captioned:
    return Captioned(shown.prompt)


def shown_texts(
    config: DistillConfig, files: ModelFiles, shown: Sequence[Shown], texts: KeptTexts | None
) -> list[Tensor]:
    """(L, T, F) of each, on the CPU or the device."""
    if texts is not None:
        return texts.read([one.prompt for one in shown])
    params = files.preset.params.dit
    width = (len(params.selected_layer_index), params.enc_hidden_dim)
    return [torch.randn(9, *width, generator=torch.Generator().manual_seed(place)) for place in range(len(shown))]
