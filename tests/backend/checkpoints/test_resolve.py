"""A name or a path -> the right files, the right defaults, and for everything else an error that helps."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from backend import presets
from backend.checkpoints import detect, records, resolve
from backend.checkpoints.layouts import Parts
from backend.checkpoints.resolve import resolve_model
from backend.checkpoints.write_gguf import write_transformer_gguf
from backend.errors import CheckpointError, ModelMissingError, UsageError
from backend.model.tensors import transformer_shapes
from backend.params import DiTParams, VAEParams
from backend.presets import Component, Layout
from tests.backend import tiny_weights as tiny


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_embedded(tmp_path_factory.mktemp("embedded") / "tiny")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_diffusers(tmp_path_factory.mktemp("published") / "tiny")


PULLED = {name: row for name, row in presets.PRESETS.items() if row.embedded is None}


@pytest.fixture
def nano(embedded: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny model in the place of Lens-Nano's weights."""
    monkeypatch.setattr("backend.checkpoints.resolve.nano_dir", lambda: embedded)
    row = replace(presets.PRESETS["nano-base"], name="nano", params=replace(presets.NANO, dit=tiny.DIT))
    for place in (presets, resolve):
        monkeypatch.setattr(place, "PRESETS", {**PULLED, "nano": row})
    return embedded


def test_registry_name(nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = resolve_model("nano")
    assert (found.name, found.layout, found.assumed) == ("nano", Layout.embedded, None)
    assert found.folder == nano
    assert [part for part, _, _ in found.files()] == ["transformer", "text_encoder", "vae"]
    assert found.total_bytes == sum(path.stat().st_size for path in nano.iterdir())
    (tmp_path / "nano").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve_model("nano").folder == nano  # a folder of that name is ./nano
    with pytest.raises(CheckpointError, match="no Lens model in this folder"):
        resolve_model("./nano")


def test_absent_models_say_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ModelMissingError, match="lens-turbo is not on this disk") as raised:
        resolve_model("lens-turbo")
    assert "lens models pull lens-turbo" in str(raised.value.hint)
    monkeypatch.setattr("backend.checkpoints.resolve.nano_dir", lambda: tmp_path)
    with pytest.raises(ModelMissingError, match="weights of nano are not in this installation"):
        resolve_model("nano")


@pytest.mark.parametrize(
    ("typed", "kind", "message", "hint"),
    [
        ("lens-turbo2", UsageError, "no model is called 'lens-turbo2'", "did you mean 'lens-turbo'?"),
        ("qwertz", UsageError, "no model is called 'qwertz'", "model_index.json"),
        ("some/where.safetensors", ModelMissingError, "no such file or folder", "model_index.json"),
        ("./lens", ModelMissingError, "no such file or folder", "model_index.json"),
        ("", CheckpointError, "no Lens model in this folder", "model_index.json"),
    ],
)
def test_nothing_that_is_a_model(
    typed: str, kind: type[Exception], message: str, hint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=message) as raised:
        resolve_model(typed)
    assert hint in str(getattr(raised.value, "hint", ""))


def test_a_transformer_alone_borrows_from_nano(nano: Path, tmp_path: Path) -> None:
    """A fine-tune of Lens-Nano is one file; its encoder and autoencoder are those of the package."""
    path = tmp_path / "mine.gguf"
    write_transformer_gguf(path, tiny.random_transformer(), tiny.DIT)
    found = resolve_model(str(path))
    assert found.transformer == (path,)
    assert found.text_encoder == (nano / "text_encoder.gguf",)
    assert found.name == "mine.gguf"
    assert "the defaults of nano apply" in str(found.assumed)
    assert found.borrowed == "mine.gguf: text encoder and vae of nano, as there is none beside it"
    assert (found.folder, found.own_bytes) == (tmp_path, path.stat().st_size)
    lent = sum((nano / name).stat().st_size for name in ("text_encoder.gguf", "vae.safetensors"))
    assert found.total_bytes == found.own_bytes + lent


def test_the_folder_is_the_models_own(nano: Path, tmp_path: Path) -> None:
    """What another model lends lies elsewhere; parts in folders of their own have the one above in common."""
    folder = shutil.copytree(nano, tmp_path / "mine")
    (folder / "vae.safetensors").unlink()
    found = resolve_model(str(folder))
    assert found.vae == (nano / "vae.safetensors",)
    assert found.folder == folder
    comfy(nano, tmp_path / "comfy")
    assert resolve_model(str(tmp_path / "comfy" / "diffusion_models" / "mine.gguf")).folder == tmp_path / "comfy"


def comfy(embedded: Path, folder: Path) -> Path:
    """ComfyUI's arrangement, with the usual names of encoder and autoencoder."""
    names = {
        "transformer.gguf": "diffusion_models/mine.gguf",
        "text_encoder.gguf": "text_encoders/gpt-oss-20b-Q8_0.gguf",
        "vae.safetensors": "vae/flux2-vae.safetensors",
    }
    for file, place in names.items():
        (folder / place).parent.mkdir(parents=True)
        shutil.copy(embedded / file, folder / place)
    return folder


@pytest.mark.parametrize("place", ["text_encoders/gpt-oss-20b-Q8_0.gguf", "vae/flux2-vae.safetensors"])
def test_a_broken_part_is_never_replaced_by_another_models(nano: Path, tmp_path: Path, place: str) -> None:
    folder = comfy(nano, tmp_path)
    assert resolve_model(str(folder)).borrowed is None
    whole = (folder / place).read_bytes()
    (folder / place).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=Path(place).name):
        resolve_model(str(folder))
    with pytest.raises(CheckpointError, match=Path(place).name):
        resolve_model(str(folder / "diffusion_models" / "mine.gguf"))
    # Beside a whole one it is somebody else's: ComfyUI keeps all models' encoders in one folder.
    (folder / place).with_name("other" + Path(place).suffix).write_bytes(whole)
    assert resolve_model(str(folder)).borrowed is None


def test_models_that_lend_to_each_other_come_to_an_end(
    nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two adopted transformers without companions: neither can lend to the other, the third one does."""
    rows = {
        name: replace(presets.PRESETS[name], params=replace(presets.LENS, dit=tiny.DIT))
        for name in ("lens", "lens-turbo")
    }
    row = presets.PRESETS["nano"]
    monkeypatch.setattr(resolve, "PRESETS", {**PULLED, **rows, "nano": replace(row, params=presets.NANO)})
    for name in rows:
        path = tmp_path / f"{name}.gguf"
        write_transformer_gguf(path, tiny.random_transformer(), tiny.DIT)
        records.save(records.Record(name=name, folder=path, layout=Layout.embedded))
    with pytest.raises(ModelMissingError, match="no text encoder and no vae"):
        resolve_model("lens")
    monkeypatch.setattr(resolve, "PRESETS", {**PULLED, **rows, "nano": row})
    found = resolve_model("lens")
    assert found.text_encoder == (nano / "text_encoder.gguf",)
    assert "text encoder and vae of nano" in str(found.borrowed)


def test_an_interrupted_pull_is_not_there_rather_than_damaged(
    published: Path, nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards come before their index. Exit code 5 with the command that goes on, and nothing else is in its way."""
    source = presets.PRESETS["lens"].sources[0]
    monkeypatch.setattr("backend.paths.hub_cache", lambda: tmp_path)
    snapshot = tmp_path / f"models--{source.repo.replace('/', '--')}" / "snapshots" / (source.revision or "0" * 40)
    shutil.copytree(published, snapshot)
    indices = list(snapshot.rglob("*.index.json"))
    assert indices
    for index in indices:
        index.unlink()
    with pytest.raises(ModelMissingError, match=r"lens is here only in part: .*no index") as raised:
        resolve_model("lens")
    assert "lens models pull lens" in str(raised.value.hint)
    path = tmp_path / "mine.gguf"
    write_transformer_gguf(path, tiny.random_transformer(), tiny.DIT)
    assert resolve_model(str(path)).text_encoder == (nano / "text_encoder.gguf",)


def test_a_transformer_alone_without_anything_to_borrow(tmp_path: Path) -> None:
    path = tmp_path / "mine.gguf"
    write_transformer_gguf(path, tiny.random_transformer(), tiny.DIT)
    with pytest.raises(ModelMissingError, match="no text encoder and no vae beside it") as raised:
        resolve_model(str(path))
    assert "text_encoders/ and vae/" in str(raised.value.hint)
    assert "lens models pull" in str(raised.value.hint)


def test_companions_beside_a_transformer(embedded: Path, tmp_path: Path) -> None:
    for file in embedded.iterdir():
        shutil.copy(file, tmp_path / f"my-{file.name}")
    found = resolve_model(str(tmp_path / "my-transformer.gguf"))
    assert found.vae == (tmp_path / "my-vae.safetensors",)
    shutil.copy(embedded / "vae.safetensors", tmp_path / "another-vae.safetensors")
    with pytest.raises(UsageError, match="several files are a vae"):
        resolve_model(str(tmp_path / "my-transformer.gguf"))


def test_parts_that_replace_others(published: Path, embedded: Path) -> None:
    parts, other = resolve_model(str(published)).parts, resolve_model(str(embedded)).parts
    found = parts.replaced_by(Parts({Component.transformer: other.held[Component.transformer]}))
    assert found.files(Component.transformer) == (embedded / "transformer.gguf",)
    assert found.config(Component.transformer) is None  # the folder's config belongs to the file that was replaced
    assert found.config(Component.vae) == published / "vae" / "config.json"
    assert found.files(Component.tokenizer) == (published / "tokenizer" / "tokenizer.json",)
    found = found.replaced_by(Parts({Component.text_encoder: other.held[Component.text_encoder]}))
    assert found.files(Component.tokenizer) == () and not found.missing()  # the one inside the GGUF
    assert found.without(Component.text_encoder).missing() == (Component.text_encoder,)
    assert parts.without(Component.tokenizer).missing() == (Component.tokenizer,)


def test_a_folder_of_another_part(published: Path) -> None:
    with pytest.raises(CheckpointError, match="_class_name is 'AutoencoderKLFlux2'"):
        resolve_model(str(published / "vae"))


def test_an_encoder_is_no_model(embedded: Path) -> None:
    with pytest.raises(UsageError, match="a GPT-OSS text encoder; a model is the transformer's file"):
        resolve_model(str(embedded / "text_encoder.gguf"))


def test_networks_that_do_not_belong_together(published: Path, tmp_path: Path) -> None:
    wide = replace(tiny.DIT, enc_hidden_dim=128)
    folder = Path(shutil.copytree(published, tmp_path / "mixed"))
    shutil.rmtree(folder / "transformer")
    (folder / "transformer").mkdir()
    write_transformer_gguf(folder / "transformer" / "wide.gguf", tiny.random_transformer(wide), wide)
    with pytest.raises(CheckpointError, match=r"reads features of width 128, model-.* gives 64"):
        resolve_model(str(folder))


def test_several_transformers_in_a_folder(embedded: Path, tmp_path: Path) -> None:
    for folder in ("diffusion_models", "text_encoders", "vae"):
        (tmp_path / folder).mkdir()
    for name in ("lens_bf16", "lens_turbo_bf16"):
        shutil.copy(embedded / "transformer.gguf", tmp_path / "diffusion_models" / f"{name}.gguf")
    shutil.copy(embedded / "text_encoder.gguf", tmp_path / "text_encoders")
    shutil.copy(embedded / "vae.safetensors", tmp_path / "vae")
    with pytest.raises(UsageError, match=r"several transformers \(lens_bf16.gguf, lens_turbo_bf16.gguf\)"):
        resolve_model(str(tmp_path))
    assert resolve_model(str(tmp_path / "diffusion_models" / "lens_bf16.gguf")).vae[0].parent.name == "vae"


# variants ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def full_size(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the tiny size count as the published one, so that names decide between Lens, Turbo and Base."""
    small = replace(presets.LENS, dit=tiny.DIT)
    rows = {name: replace(row, params=small) if row.sources else row for name, row in presets.PRESETS.items()}
    for place in (presets, resolve):
        monkeypatch.setattr(place, "PRESETS", rows)


@pytest.mark.parametrize(
    ("folder", "variant"),
    [
        ("Lens-Turbo", "lens-turbo"),
        ("my_lens-base", "lens-base"),
        ("database", "lens"),
        ("models--SceneWorks--Lens-Turbo/snapshots/0123", "lens-turbo"),
    ],
)
@pytest.mark.usefixtures("full_size")
def test_the_name_decides_the_variant_and_says_so(published: Path, tmp_path: Path, folder: str, variant: str) -> None:
    path = tmp_path / folder
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(published, target_is_directory=True)
    found = resolve_model(str(path))
    assert found.preset.name == variant
    assert "by its name" in str(found.assumed)
    assert resolve_model(str(path), variant="lens-base").preset.steps == 50
    assert resolve_model(str(path), variant="lens-base").assumed is None


@pytest.mark.parametrize(
    ("typed", "variant"),
    [
        ("models", "lens-turbo"),
        ("models/diffusion_models/lens_turbo_bf16.safetensors", "lens-turbo"),
        ("Lens-Turbo/transformer", "lens-turbo"),
    ],
)
@pytest.mark.usefixtures("full_size")
def test_the_most_telling_name_decides(
    published: Path, embedded: Path, tmp_path: Path, typed: str, variant: str
) -> None:
    """ComfyUI's folder is called models whatever it holds; the transformer of a published folder, transformer."""
    folder = comfy(embedded, tmp_path / "models")
    (folder / "diffusion_models" / "mine.gguf").unlink()
    save_file(tiny.random_transformer(), folder / "diffusion_models" / "lens_turbo_bf16.safetensors")
    config = json.dumps(tiny.transformer_config())
    (folder / "diffusion_models" / "lens_turbo_bf16.json").write_text(config)
    (tmp_path / "Lens-Turbo").symlink_to(published, target_is_directory=True)
    assert resolve_model(str(tmp_path / typed)).preset.name == variant


@pytest.mark.usefixtures("full_size")
def test_a_file_may_state_its_variant(embedded: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(embedded, tmp_path / "plain"))
    metadata = {"lens.variant": "lens-turbo"}
    write_transformer_gguf(folder / "transformer.gguf", tiny.random_transformer(), tiny.DIT, metadata=metadata)
    found = resolve_model(str(folder))
    assert (found.preset.name, found.assumed) == ("lens-turbo", None)
    (folder / "lens.json").write_text(json.dumps({"variant": "lens-base"}))
    assert resolve_model(str(folder)).preset.name == "lens-base"
    (folder / "lens.json").write_text(json.dumps({"variant": "lens-mega"}))
    with pytest.raises(CheckpointError, match="unknown variant 'lens-mega'"):
        resolve_model(str(folder))


# shapes --------------------------------------------------------------------------------------------------------------


def test_published_parameters_are_told_from_shapes() -> None:
    assert detect.transformer_params_from_shapes(transformer_shapes(DiTParams()), "x") == DiTParams()
    wide = DiTParams(num_layers=3, num_attention_heads=4, mlp_hidden_dim=700)
    assert detect.transformer_params_from_shapes(transformer_shapes(wide), "x") == wide
    with pytest.raises(CheckpointError, match="which text-encoder blocks it reads"):
        detect.transformer_params_from_shapes(transformer_shapes(tiny.DIT), "x")
    with pytest.raises(CheckpointError, match="no complete Lens transformer"):
        detect.transformer_params_from_shapes({"img_in.weight": (4, 4)}, "x")


def test_published_autoencoder_is_told_from_shapes() -> None:
    from backend.model.autoencoder import build_vae

    with torch.device("meta"):
        shapes = {name: tuple(t.shape) for name, t in build_vae(VAEParams()).state_dict().items()}
    assert detect.vae_params_from_shapes(shapes, "x") == VAEParams()
    with pytest.raises(CheckpointError, match="number of norm groups"):
        detect.vae_params_from_shapes({n: tuple(t.shape) for n, t in tiny.random_vae().items()}, "x")


def test_qwen_image_is_not_taken_for_lens(tmp_path: Path) -> None:
    """Both have img_mod.1 and norm_added_q (facts 3.2)."""
    names = ("attn.norm_added_q.weight", "img_mod.1.weight", "attn.add_q_proj.weight", "img_mlp.net.0.proj.weight")
    path = tmp_path / "qwen.safetensors"
    save_file({f"transformer_blocks.0.{name}": torch.zeros(2, 2) for name in names}, path)
    with pytest.raises(CheckpointError, match="a Qwen-Image model, expected a Lens transformer"):
        resolve_model(str(path))
