"""From files to networks: every layout gives the same numbers, every kind of damage gives an error that names it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from backend.checkpoints.resolve import ModelFiles, resolve_model
from backend.errors import CheckpointError, LensError
from backend.loading import load_text_encoder, load_tokenizer, load_transformer, load_vae
from backend.model.tensors import text_encoder_shapes, transformer_shapes
from backend.params import DiTParams, TextEncoderParams
from tests.backend import tiny_weights as tiny


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_diffusers(tmp_path_factory.mktemp("published") / "tiny-lens")


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_embedded(tmp_path_factory.mktemp("embedded") / "nano")


@pytest.fixture
def copy(published: Path, tmp_path: Path) -> Path:
    """A copy of the model that a test may damage."""
    return Path(shutil.copytree(published, tmp_path / "copy"))


def load_all(files: ModelFiles, dtype: torch.dtype = torch.float32) -> dict[str, dict[str, torch.Tensor]]:
    networks = {
        "transformer": load_transformer(files, dtype, "cpu"),
        "text_encoder": load_text_encoder(files, dtype, "cpu", with_head=True),
        "vae": load_vae(files, dtype, "cpu"),
    }
    for network in networks.values():
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())
    return {name: dict(network.state_dict()) for name, network in networks.items()}


def expected() -> dict[str, dict[str, torch.Tensor]]:
    return {
        "transformer": tiny.random_transformer(),
        "text_encoder": tiny.random_text_encoder(),
        "vae": tiny.random_vae(),
    }


def same(found: dict[str, dict[str, torch.Tensor]], dtype: torch.dtype = torch.float32) -> None:
    for part, state in expected().items():
        assert set(found[part]) == set(state)
        for name, tensor in state.items():
            want = tensor.to(dtype) if tensor.is_floating_point() else tensor
            assert torch.equal(found[part][name], want), name


def test_the_networks_have_exactly_the_published_tensors() -> None:
    """Our tables, which files are compared with, against the networks themselves, at full size without memory."""
    from backend.model.text_encoder import LensGptOssEncoder
    from backend.model.transformer import LensTransformer2DModel

    with torch.device("meta"):
        transformer = LensTransformer2DModel(**asdict(DiTParams()))
        encoder = LensGptOssEncoder(TextEncoderParams(), head=True)
    assert {n: tuple(t.shape) for n, t in transformer.state_dict().items()} == transformer_shapes(DiTParams())
    assert {n: tuple(t.shape) for n, t in encoder.state_dict().items()} == text_encoder_shapes(TextEncoderParams())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_diffusers_folder(published: Path, dtype: torch.dtype) -> None:
    files = resolve_model(str(published))
    assert files.preset.params.dit == tiny.DIT
    assert files.preset.params.text == tiny.TEXT
    assert files.preset.params.vae == tiny.VAE
    same(load_all(files, dtype), dtype)
    assert load_tokenizer(files).to_str() == tiny.small_tokenizer().to_str()


def test_embedded_folder(embedded: Path) -> None:
    files = resolve_model(str(embedded))
    assert files.preset.params.dit == tiny.DIT
    assert files.preset.params.text == tiny.TEXT
    assert files.preset.params.vae == tiny.VAE
    same(load_all(files))
    assert load_tokenizer(files).to_str() == tiny.small_tokenizer().to_str()


@pytest.mark.parametrize("split", [False, True])
def test_single_files(published: Path, tmp_path: Path, split: bool) -> None:
    """Comfy's folders with bfloat16 weights; parameters come from a .json beside each file, the sizes being tiny."""
    root = tmp_path / "split_files" if split else tmp_path
    states = {"diffusion_models/lens_turbo_bf16": "transformer", "text_encoders/gpt_oss_20b": "text_encoder"}
    for name, part in {**states, "vae/flux2-vae": "vae"}.items():
        path = root / f"{name}.safetensors"
        path.parent.mkdir(parents=True)
        state = expected()[part]
        save_file({n: t.to(torch.bfloat16) if t.is_floating_point() else t for n, t in state.items()}, path)
        shutil.copy(published / part / "config.json", path.with_suffix(".json"))
    tiny.small_tokenizer().save(str(root / "text_encoders" / "tokenizer.json"))
    save_file({"clip.weight": torch.zeros(1)}, root / "text_encoders" / "clip_l.safetensors")  # another tool's file
    for typed in (tmp_path, root / "diffusion_models" / "lens_turbo_bf16.safetensors"):
        files = resolve_model(str(typed))
        assert len(files.files()) == 4
        same(load_all(files, torch.bfloat16), torch.bfloat16)
        assert load_tokenizer(files).get_vocab_size() == tiny.small_tokenizer().get_vocab_size()


def test_plain_float32_is_not_copied(published: Path) -> None:
    """A memory map, not a read: a changed byte of the tensor must not reach the file."""
    network = load_transformer(resolve_model(str(published)), torch.float32, "cpu")
    before = load_file(published / "transformer" / "diffusion_pytorch_model-00001-of-00002.safetensors")
    with torch.no_grad():
        network.img_in.weight.zero_()
    after = load_file(published / "transformer" / "diffusion_pytorch_model-00001-of-00002.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_loading_does_not_import_the_compiler(published: Path) -> None:
    """A random initialisation on the meta device imports torch._dynamo, which costs more than loading Lens-Nano."""
    code = (
        "import sys, torch\nfrom backend.loading import load_text_encoder\n"
        f"from backend.checkpoints.resolve import resolve_model\nfiles = resolve_model({str(published)!r})\n"
        "load_text_encoder(files, torch.float32, 'cpu')\nprint('torch._dynamo' in sys.modules)"
    )
    root = Path(__file__).resolve().parent.parent.parent
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True, timeout=120
    )
    assert run.stdout.strip() == "False"


def test_float16_is_refused(published: Path) -> None:
    with pytest.raises(ValueError, match="float16 overflows"):
        load_vae(resolve_model(str(published)), torch.float16, "cpu")


def test_tokenizer_rebuilt_from_ggufs_own_fields(embedded: Path) -> None:
    """A file of llama.cpp's converter has no tokenizer.json inside."""
    import gguf

    from backend.checkpoints.tokenizer_files import _from_gguf

    fields = gguf.GGUFReader(embedded / "text_encoder.gguf").fields
    metadata = {name: field.contents() for name, field in fields.items() if "huggingface" not in name}
    rebuilt, original = _from_gguf(metadata, "x"), tiny.small_tokenizer()
    for text in [*tiny.CORPUS, "naïve 東京 12345\n\n x", "<|start|>user<|message|>hi<|end|>"]:
        assert rebuilt.encode(text).ids == original.encode(text).ids
        assert rebuilt.decode(rebuilt.encode(text).ids) == original.decode(original.encode(text).ids)


# damage --------------------------------------------------------------------------------------------------------------


def edit(folder: Path, change: dict[str, torch.Tensor | None]) -> None:
    """Replace (or, with None, remove) tensors of the autoencoder's file."""
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    state = {**load_file(path), **change}
    save_file({name: tensor for name, tensor in state.items() if tensor is not None}, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder.conv_out.bias": None}, r"1 tensor missing: decoder\.conv_out\.bias"),
        ({"decoder.new.weight": torch.zeros(2)}, r"1 tensor unexpected: decoder\.new\.weight"),
        ({"decoder.conv_out.bias": torch.zeros(4)}, r"decoder\.conv_out\.bias is \[4\], expected \[3\]"),
        ({"decoder.conv_out.bias": torch.zeros(3, dtype=torch.int32)}, r"conv_out\.bias' is stored as I32"),
    ],
)
def test_wrong_tensors_are_named(copy: Path, change: dict[str, torch.Tensor | None], message: str) -> None:
    edit(copy, change)
    with pytest.raises(CheckpointError, match=message):
        load_vae(resolve_model(str(copy)), torch.float32, "cpu")


def test_missing_and_extra_are_reported_together(copy: Path) -> None:
    shard = copy / "transformer" / "diffusion_pytorch_model-00001-of-00002.safetensors"
    state = load_file(shard)
    state["img_inn.weight"] = state.pop("img_in.weight")
    save_file(state, shard)
    files = resolve_model(str(copy))
    with pytest.raises(CheckpointError, match=r"missing: img_in\.weight.*unexpected: img_inn\.weight"):
        load_transformer(files, torch.float32, "cpu")


@pytest.mark.parametrize("part", ["transformer", "text_encoder", "vae"])
@pytest.mark.parametrize("keep", [0, 5, 40, 0.5, 0.999])
def test_truncated_safetensors(copy: Path, part: str, keep: float) -> None:
    path = min((copy / part).glob("*.safetensors"))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match=f"{path.name}: (empty file|cut short|neither)"):
        load_all(resolve_model(str(copy)))


@pytest.mark.parametrize("keep", [0, 10, 100, 0.02, 0.5, 0.999])
@pytest.mark.parametrize("file", ["transformer.gguf", "text_encoder.gguf"])
def test_truncated_gguf(embedded: Path, tmp_path: Path, file: str, keep: float) -> None:
    path = Path(shutil.copytree(embedded, tmp_path / "nano")) / file
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match=f"{file}: (empty file|cut short)"):
        load_all(resolve_model(str(path.parent)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 8210000000\n", "Git LFS pointer"),
        (b"PK\x03\x04" + bytes(100), "a pickle"),
        (b"\x80\x02}q\x00" + bytes(100), "a pickle"),
        (b"<!doctype html><html>404</html>", "a web page"),
        (b"\x0f\x00\x00\x00\x00\x00\x00\x00{not json here}", "unreadable safetensors header"),
        (bytes(range(1, 200)), "neither safetensors nor GGUF"),
    ],
)
def test_what_is_no_checkpoint(copy: Path, content: bytes, message: str) -> None:
    (copy / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load_vae(resolve_model(str(copy)), torch.float32, "cpu")


def test_pickles_are_never_opened(copy: Path) -> None:
    (copy / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    (copy / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"PK\x03\x04")
    with pytest.raises(CheckpointError, match="a pickle"):
        resolve_model(str(copy))


def test_a_shard_that_is_not_there(copy: Path) -> None:
    (copy / "text_encoder" / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"shard 'model-00002-of-00003\.safetensors'"):
        resolve_model(str(copy))


def test_another_pipeline(copy: Path) -> None:
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps(index | {"_class_name": "FluxPipeline"}))
    with pytest.raises(CheckpointError, match="'FluxPipeline', expected 'LensPipeline'"):
        resolve_model(str(copy))


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("transformer", {"num_layers": None}, "num_layers is missing"),
        ("transformer", {"num_layers": "two"}, "num_layers is 'two'"),
        ("transformer", {"num_layers": 3}, "tensors missing: transformer_blocks.2"),
        ("transformer", {"enc_hidden_dim": 128}, "they do not belong together"),
        ("transformer", {"selected_layer_index": [0, 7]}, "reads encoder block 7"),
        ("transformer", {"_class_name": "QwenImageTransformer2DModel"}, "expected 'LensTransformer2DModel'"),
        ("text_encoder", {"rope_parameters": None}, "neither rope_parameters nor rope_scaling"),
        ("text_encoder", {"layer_types": ["full_attention"] * 3}, "layer_types do not alternate"),
        ("text_encoder", {"model_type": "llama"}, "expected 'gpt_oss'"),
        ("vae", {"_class_name": "AutoencoderKL"}, "expected 'AutoencoderKLFlux2'"),
        ("vae", {"latent_channels": 16}, "makes 32 latent channels"),
    ],
)
def test_wrong_configs(copy: Path, part: str, change: dict[str, object], message: str) -> None:
    path = copy / part / "config.json"
    config = {**json.loads(path.read_text()), **change}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    with pytest.raises(CheckpointError, match=message):
        load_all(resolve_model(str(copy)))


def test_rope_scaling_of_transformers_4_is_read(copy: Path) -> None:
    """A reader that knows only the newer key silently loses YaRN (facts 0.18); ours reads both."""
    path = copy / "text_encoder" / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    path.write_text(json.dumps(config))
    assert resolve_model(str(copy)).preset.params.text == tiny.TEXT


def test_no_head_where_the_reasoner_needs_one(copy: Path) -> None:
    for shard in (copy / "text_encoder").glob("*.safetensors"):
        state = load_file(shard)
        state.pop("lm_head.weight", None)
        save_file(state, shard)
    files = resolve_model(str(copy))
    load_text_encoder(files, torch.float32, "cpu")
    with pytest.raises(CheckpointError, match="no output head"):
        load_text_encoder(files, torch.float32, "cpu", with_head=True)


def test_a_gguf_that_states_other_parameters(embedded: Path) -> None:
    files = resolve_model(str(embedded))
    params = replace(files.preset.params, dit=replace(tiny.DIT, num_layers=3))
    with pytest.raises(CheckpointError, match="header states other parameters"):
        load_transformer(replace(files, preset=replace(files.preset, params=params)), torch.float32, "cpu")


def test_a_tokenizer_with_too_many_tokens(copy: Path) -> None:
    tokenizer = tiny.small_tokenizer()
    tokenizer.add_tokens([f"extra{number}" for number in range(200)])
    tokenizer.save(str(copy / "tokenizer" / "tokenizer.json"))
    with pytest.raises(LensError, match="has no row in the text encoder's embedding of 512"):
        load_tokenizer(resolve_model(str(copy)))


def test_a_broken_tokenizer(copy: Path) -> None:
    (copy / "tokenizer" / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        load_tokenizer(resolve_model(str(copy)))
