"""Modulation of a schedule, computed once: the bits of the loop, the memory it takes, what is kept of it.

Why it can be trusted: the wanted numbers are caught by hooks on the network's own layers while its plain `forward`
runs at batch 1; what is read from files, when and how much of it at once is counted where it is read.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from backend import loading, sampling
from backend.cache.store import MB, Store, entries
from backend.checkpoints import formats
from backend.checkpoints.formats import TensorEntry, TensorTable
from backend.checkpoints.identity import files_sha256
from backend.checkpoints.resolve import ModelFiles, resolve_model
from backend.checkpoints.write_gguf import write_transformer_gguf
from backend.denoising import modulation, modulation_store
from backend.denoising.modulation import Folded, fold, modulation_names, table_width
from backend.errors import CheckpointError
from backend.model.transformer import LensTransformer2DModel
from backend.params import DiTParams
from backend.types import LoraUse
from tests.backend import tiny_weights as tiny
from tests.backend.folding import fold_network

SIGMAS = sampling.schedule(24, 5)[:-1]
GRID = (2, 3)
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    return resolve_model(str(tiny.write_embedded(tmp_path_factory.mktemp("model") / "tiny")))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "schedules", ".safetensors", 10 * MB, lambda text: pytest.fail(text))


def said_in_the_loop(network: LensTransformer2DModel, sigma: float) -> list[Tensor]:
    """What every modulation layer returns during one `forward`: image and text of each block, then the final norm."""
    said: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, out: Tensor) -> None:
        said.append(out)

    layers = [layer for block in network.blocks() for layer in (block.img_mod, block.txt_mod)]
    hooks = [layer.register_forward_hook(keep) for layer in (*layers, network.norm_out.linear)]
    params = network.params
    text = torch.zeros(1, 2, len(params.selected_layer_index), params.enc_hidden_dim)
    with torch.no_grad():
        network(torch.zeros(1, 6, params.in_channels), torch.full((1,), sigma), text, GRID)
    for hook in hooks:
        hook.remove()
    return said


def same_as_the_loop(folded: Folded, network: LensTransformer2DModel, sigmas: Sequence[float]) -> None:
    assert folded.sigmas == tuple(sigmas)
    assert folded.table_SW.dtype == network.img_in.weight.dtype
    for step, sigma in enumerate(sigmas):
        *blocks, final = said_in_the_loop(network, sigma)
        for index in range(network.params.num_layers):
            found = folded.block(step, index)
            assert torch.equal(found.image, blocks[2 * index]) and torch.equal(found.text, blocks[2 * index + 1])
        assert torch.equal(folded.final(step), final)


def without(files: ModelFiles, dtype: torch.dtype = torch.float32) -> LensTransformer2DModel:
    """The network without its modulation layers."""
    table = loading.open_transformer_table(files)
    return loading.load_for_schedules(table, files.preset.params.dit, dtype, "cpu")


def kept(
    files: ModelFiles, store: Store | None, sigmas: Sequence[float] = SIGMAS, dtype: torch.dtype = torch.float32,
    loras: Sequence[LoraUse] = (),
) -> Folded:  # fmt: skip
    table, params = loading.open_transformer_table(files), files.preset.params.dit
    return modulation_store.read_or_fold(
        table, params, sigmas, dtype, "cpu", loras, store, lambda: files_sha256(files.transformer)
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bits_of_the_loop(files: ModelFiles, dtype: torch.dtype) -> None:
    """From the network, from its files, and beside the network that is loaded without those layers."""
    network = loading.load_transformer(files, dtype, "cpu")
    from_files = fold(formats.open_transformer(files.transformer), network.params, SIGMAS, dtype, "cpu")
    bare = without(files, dtype)
    for folded in (fold_network(network, SIGMAS), from_files, kept(files, None, SIGMAS, dtype)):
        same_as_the_loop(folded, network, SIGMAS)
    assert len({row.numpy().tobytes() for row in from_files.table_SW.view(torch.uint8)}) == len(SIGMAS)
    rest = {name: tensor for name, tensor in network.state_dict().items() if name not in modulation_names(tiny.DIT)}
    assert set(bare.state_dict()) == set(rest) and len(rest) == len(network.state_dict()) - (4 + 4 * 2 + 2)
    assert all(torch.equal(tensor, rest[name]) for name, tensor in bare.state_dict().items())
    assert not bare.training and not any(p.requires_grad for p in bare.parameters())


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bits_of_the_loop_in_nano(dtype: torch.dtype) -> None:
    """At a real width, where matrix products take their fast kernels, from packed weights."""
    nano = resolve_model("nano")
    sigmas = sampling.schedule(256, 3)[:-1]
    folded = fold(formats.open_transformer(nano.transformer), nano.preset.params.dit, sigmas, dtype, "cpu")
    same_as_the_loop(folded, loading.load_transformer(nano, dtype, "cpu"), sigmas)


def test_one_layer_at_a_time(files: ModelFiles) -> None:
    """Never more than one layer's weights alive, and what was read is given back after every block."""
    table = formats.open_transformer(files.transformer)
    alive: list[weakref.ref[Tensor]] = []
    most, released = 0, 0

    def counted(name: str, entry: TensorEntry) -> TensorEntry:
        def read(dtype: torch.dtype) -> Tensor:
            nonlocal most
            tensor = entry.read(dtype).clone()  # a view of the map would live as long as the map
            alive.append(weakref.ref(tensor))
            most = max(most, sum(ref() is not None for ref in alive))
            return tensor

        return TensorEntry(entry.shape, read if name in modulation_names(tiny.DIT) else unread)

    def unread(dtype: torch.dtype) -> Tensor:
        raise AssertionError("read, though no modulation")

    def release() -> None:
        nonlocal released
        released += 1

    watched = TensorTable(table.origin, {n: counted(n, e) for n, e in table.entries.items()}, release=release)
    fold(watched, tiny.DIT, SIGMAS, torch.float32, "cpu")
    assert len(alive) == len(modulation_names(tiny.DIT))
    assert most == 2  # a weight and its bias
    assert released == tiny.DIT.num_layers


def test_published_sizes() -> None:
    """A third of the parameters goes; 1.77 MB a step in bfloat16 comes."""
    params = DiTParams()
    with torch.device("meta"):
        network = LensTransformer2DModel()
    whole = {name: tensor.numel() for name, tensor in network.state_dict().items()}
    network.drop_modulation()
    gone = set(whole) - set(network.state_dict())
    assert gone == set(modulation_names(params))
    assert sum(whole[name] for name in gone if "_mod.1.weight" in name) == 1_358_954_496
    d, gone_by_hand = 1536, 1_358_954_496 + 48 * 2 * 9216 + (256 * 1536 + 1536) + (1536 * 1536 + 1536)
    assert sum(whole[name] for name in gone) == gone_by_hand + 2 * d * d + 2 * d
    assert 2 * table_width(params) == pytest.approx(1.77e6, rel=5e-3)


@pytest.mark.parametrize(
    "name",
    ["transformer_blocks.1.txt_mod.1.weight", "norm_out.linear.bias", "transformer_blocks.0.attn.to_add_out.bias"],
)
def test_every_tensor_is_still_asked_for(tmp_path: Path, name: str) -> None:
    """Missing, of another shape or unexpected: an error that names it, whether the network would hold it or not."""
    folder = tiny.write_diffusers(tmp_path / "tiny")
    whole = tiny.random_transformer()
    cases: dict[str, dict[str, Tensor]] = {
        "missing": {key: tensor for key, tensor in whole.items() if key != name},
        "of another shape": {**whole, name: torch.zeros(3)},
        "unexpected": {**whole, name.replace("bias", "weight") + "s": torch.zeros(3)},
    }
    for problem, state in cases.items():
        tiny.write_shards(folder / "transformer", "diffusion_pytorch_model", state)
        with pytest.raises(CheckpointError, match=problem) as raised:
            without(resolve_model(str(folder)))
        assert name.rsplit(".", 1)[0] in str(raised.value)


# ------------------------------------------------------------------------------------------------------ on the disk


@pytest.fixture
def folds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often a schedule was computed."""
    seen: list[int] = []

    def spied(*args: Any) -> Folded:
        seen.append(len(args[2]))
        return modulation.fold(*args)

    monkeypatch.setattr(modulation_store, "fold", spied)
    return seen


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_kept_schedule_is_the_computed_one(
    files: ModelFiles, store: Store, folds: list[int], dtype: torch.dtype
) -> None:
    plain = kept(files, None, SIGMAS, dtype)
    first, second = (kept(files, store, SIGMAS, dtype) for _ in range(2))
    assert folds == [5, 5]  # without a store, and to fill it
    assert first.sigmas == second.sigmas == plain.sigmas and second.dim == plain.dim
    assert torch.equal(plain.table_SW, first.table_SW) and torch.equal(plain.table_SW, second.table_SW)


def test_the_key_has_everything_that_decides(files: ModelFiles, tmp_path: Path, store: Store, folds: list[int]) -> None:
    other = resolve_model(str(tiny.write_embedded(tmp_path / "other")))
    write_transformer_gguf(
        tmp_path / "other" / "transformer.gguf", tiny.random_transformer(seed=9), tiny.DIT, quant="F32"
    )
    use = LoraUse(path="/a.safetensors", sha256="ab" * 32)
    asked: list[tuple[Any, ...]] = [
        (files, SIGMAS, torch.float32, ()),
        (files, SIGMAS[:-1], torch.float32, ()),
        (files, SIGMAS, torch.bfloat16, ()),
        (other, SIGMAS, torch.float32, ()),
        (files, SIGMAS, torch.float32, (use,)),
        (files, SIGMAS, torch.float32, (replace(use, scale=0.5),)),
    ]
    for _ in range(2):
        for given, sigmas, dtype, loras in asked:
            kept(given, store, sigmas, dtype, loras)
    assert len(folds) == len(asked) == len(entries(store.folder, store.suffix))


def test_a_damaged_or_foreign_file_is_made_again(files: ModelFiles, tmp_path: Path, folds: list[int]) -> None:
    warnings: list[str] = []
    store = Store(tmp_path / "schedules", ".safetensors", 10 * MB, warnings.append)
    right = kept(files, store)
    (entry,) = entries(store.folder, store.suffix)
    whole = entry.path.read_bytes()
    entry.path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    again = kept(files, store)
    assert torch.equal(right.table_SW, again.table_SW)
    assert len(folds) == 2 and len(warnings) == 1 and "damaged" in warnings[0]
    assert entry.path.read_bytes() == whole


def test_nothing_is_kept_at_a_cap_of_nothing(files: ModelFiles, tmp_path: Path, folds: list[int]) -> None:
    store = Store(tmp_path / "schedules", ".safetensors", 0, lambda text: pytest.fail(text))
    for _ in range(2):
        kept(files, store)
    assert len(folds) == 2 and not store.folder.exists()
