"""This project against the published pipeline: same weights, same process, alternating, A B A B.

Speed is given as ratios of neighbouring runs, so that whatever else the machine does meets both alike. Distance is
given beside the yardstick: what merely running the published pipeline's two branches one by one instead of as a batch
of two changes. Where arithmetic is coarser than float32, both are also held against a float32 run of the same weights,
which is what a claim of exactness is judged by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from backend.bench import reference
from backend.bench.timing import TimeSpread, Took, timed, walls
from backend.denoising import latents
from backend.denoising.denoiser import Denoiser
from backend.errors import NumericsError
from backend.loaders import Loader
from backend.model.autoencoder import AutoencoderKLFlux2
from backend.pipeline import Networks, Prepared, denoise
from backend.types import GenerationRequest

Say = Callable[[str], None]


@dataclass(frozen=True)
class Race:
    """What both sides took, run by run, in the order of the runs."""

    ours_took: tuple[Took, ...]
    reference_took: tuple[Took, ...]

    @property
    def ours(self) -> TimeSpread:
        """Seconds."""
        return walls(self.ours_took)

    @property
    def reference(self) -> TimeSpread:
        """Seconds."""
        return walls(self.reference_took)

    @property
    def ratios(self) -> TimeSpread:
        """How many times as long the reference took, of each pair of neighbouring runs."""
        return TimeSpread(tuple(b.wall / a.wall for a, b in self._pairs()))

    @property
    def processor_ratios(self) -> TimeSpread:
        """Ratios of the processor seconds; they say nothing where a GPU does the work."""
        return TimeSpread(tuple(b.processor / a.processor for a, b in self._pairs()))

    def _pairs(self) -> Iterator[tuple[Took, Took]]:
        return zip(self.ours_took, self.reference_took, strict=True)


@dataclass(frozen=True)
class Distance:
    """How far a tensor is from another, relative to the other: largest difference over largest value, and RMS alike."""

    maximum: float
    rms: float


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Distance between two ways to make one picture."""

    what: str  # "this project", …
    against: str  # "reference", …
    latent: Distance  # the final latent, normalised
    picture: Distance  # decoded, before it is rounded to bytes


@dataclass(frozen=True, kw_only=True)
class Comparison:
    denoise: Race
    decode: Race
    differences: tuple[Difference, ...]

    @property
    def both(self) -> Race:
        return Race(
            _summed(self.denoise.ours_took, self.decode.ours_took),
            _summed(self.denoise.reference_took, self.decode.reference_took),
        )


def _summed(first: Sequence[Took], second: Sequence[Took]) -> tuple[Took, ...]:
    pairs = zip(first, second, strict=True)
    return tuple(Took(a.wall + b.wall, a.processor + b.processor) for a, b in pairs)


@dataclass(frozen=True, kw_only=True)
class Ours:
    """Our side: the networks of a request in memory, on their device."""

    request: GenerationRequest
    loader: Loader  # of the tensors that the networks do not hold as they are
    networks: Networks
    ready: Prepared
    vae: AutoencoderKLFlux2

    @property
    def denoiser(self) -> Denoiser:
        return cast(Denoiser, self.ready.velocity)

    @property
    def device(self) -> torch.device:
        return self.networks.device

    @property
    def dtype(self) -> torch.dtype:
        return self.denoiser.network.img_in.weight.dtype

    def noise(self) -> Tensor:
        """(1, N, C) float32 of the request's first seed."""
        return latents.noise(self.request.seeds[0], *self.ready.grid).to(self.device)


@dataclass(frozen=True)
class _Made:
    latent: Tensor
    picture: Tensor


def compare(ours: Ours, *, runs: int, float32_run: bool, say: Say) -> Comparison:
    """Alternate `runs` timed pairs after one untimed run of each side. Call under inference_mode.

    Takes the memory of the weights that our side does not hold as they are (modulation), and of no others; nothing of
    it is streamed. `float32_run` adds the run in float32, where the arithmetic is another: its weights are widened one
    at a time.
    """
    published = _Published(ours, _shared_weights(ours), dict(ours.vae.state_dict()))
    made = {"this project": _make(ours)[0], "reference": published.run()[0]}
    say("reference ready")
    took: dict[str, list[Took]] = {"denoise": [], "decode": [], "reference denoise": [], "reference decode": []}
    for run in range(runs):
        for prefix, make in (("", lambda: _make(ours)), ("reference ", published.run)):
            _, (denoised, decoded) = make()
            took[f"{prefix}denoise"].append(denoised)
            took[f"{prefix}decode"].append(decoded)
        ratio = took["reference denoise"][-1].wall / took["denoise"][-1].wall
        say(f"pair {run + 1}/{runs}: the reference denoises in {ratio:.2f} times this project's time")

    made["reference at batch 1"] = published.run(batched=False)[0]
    pairs = [("this project", "reference"), ("reference at batch 1", "reference")]
    if float32_run and ours.dtype is not torch.float32:
        say("the reference in float32")
        with _exact_float32():
            made["float32"] = published.widened().run()[0]
        pairs += [(what, "float32") for what in ("this project", "reference", "reference at batch 1")]
    return Comparison(
        denoise=Race(tuple(took["denoise"]), tuple(took["reference denoise"])),
        decode=Race(tuple(took["decode"]), tuple(took["reference decode"])),
        differences=tuple(_difference(made, what, against) for what, against in pairs),
    )


def _make(ours: Ours) -> tuple[_Made, tuple[Took, Took]]:
    """What was made, and what denoising took and decoding down to bytes on the host."""
    device, grid = ours.device, ours.ready.grid
    latent, denoised = timed(device, lambda: denoise(ours.ready, ours.noise()))
    (picture, _), decoded = timed(device, lambda: _with_bytes(ours.networks.decode(latent, grid), latents.to_pixels))
    return _Made(latent.float().clone(), picture.float()), (denoised, decoded)


class _Published:
    """The reference over one set of weights, ready to run."""

    def __init__(self, ours: Ours, weights: Mapping[str, Tensor], vae: Mapping[str, Tensor]) -> None:
        self.ours, self.tensors = ours, vae
        self.lens = reference.ReferenceLens(weights, ours.loader.params.dit)
        self.vae = reference.build_decoder(vae, ours.loader.params.vae)
        conditional, unconditional = ours.ready.texts
        there = ours.device
        self.text = reference.pad_text(
            conditional.to(there), None if unconditional is None else unconditional.to(there)
        )

    def widened(self) -> _Published:
        """The published pipeline with these weights in float32, each for as long as it is used."""
        vae = {name: t.float() if t.is_floating_point() else t for name, t in self.tensors.items()}
        return _Published(self.ours, Widened(self.lens.weights), vae)

    def run(self, *, batched: bool = True) -> tuple[_Made, tuple[Took, Took]]:
        ours, ready = self.ours, self.ours.ready
        latent, denoised = timed(
            ours.device,
            lambda: reference.denoise(
                self.lens, ours.noise(), self.text, ready.sigmas, ours.request.guidance, ready.grid, batched=batched
            ),
        )
        (picture, _), decoded = timed(
            ours.device,
            lambda: _with_bytes(reference.decode(self.vae, latent, ready.grid), reference.to_pixels),
        )
        return _Made(latent.float(), picture.float()), (denoised, decoded)


def _with_bytes(decoded: Tensor, to_pixels: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    return decoded, to_pixels(decoded).cpu()


class Widened(Mapping[str, Tensor]):
    """A tensor in float32 whenever it is looked up, and no copy kept."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name].float()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


@contextmanager
def _exact_float32() -> Iterator[None]:
    """No TF32, which convolutions use on a GPU unless told otherwise."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def _shared_weights(ours: Ours) -> dict[str, Tensor]:
    """Every public tensor of the transformer: our network's own where it holds it as it is, else read once more."""
    held = dict(ours.denoiser.network.state_dict())
    table, dtype = ours.loader.transformer(), ours.dtype
    weights: dict[str, Tensor] = {}
    for name, entry in table.entries.items():
        tensor = held.get(name)
        if tensor is None or tuple(tensor.shape) != entry.shape or tensor.dtype is not dtype:
            tensor = table.tensor(name, dtype).to(ours.device)
        weights[name] = tensor
    return weights


def _difference(made: Mapping[str, _Made], what: str, against: str) -> Difference:
    a, b = made[what], made[against]
    return Difference(
        what=what, against=against, latent=distance(a.latent, b.latent), picture=distance(a.picture, b.picture)
    )


def distance(a: Tensor, b: Tensor) -> Distance:
    """Measure how far `a` is from `b`, relative to `b`. Raises NumericsError where either is not finite."""
    a, b = a.double(), b.double()
    maximum = float((a - b).abs().max() / b.abs().max())
    rms = float((a - b).square().mean().sqrt() / b.square().mean().sqrt())
    if not (maximum < float("inf") and rms < float("inf")):
        raise NumericsError("the two pipelines cannot be compared: one of them is not finite")
    return Distance(maximum, rms)
