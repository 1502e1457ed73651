"""Pulling from a hub on the loopback interface: order of sources, resuming, hashes, disk, records, removal."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from backend import presets
from backend.checkpoints import records
from backend.checkpoints.resolve import of_preset, resolve_model
from backend.errors import FileError, ModelMissingError, NetworkError, UsageError
from backend.hub import downloads, installed, pull_plan
from backend.loading import load_transformer
from backend.paths import hub_cache
from backend.presets import Component, HubSource, Layout, Preset, SourceFile
from tests.backend import tiny_weights as tiny
from tests.backend.fake_hub import COMMIT, Hub, serve

ROWS = dict(presets.PRESETS)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_diffusers(tmp_path_factory.mktemp("published") / "repo")


@pytest.fixture
def hub(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with the second source of `lens` and both files of a small Comfy-Org/Lens."""
    from huggingface_hub import constants

    folder = Path(shutil.copytree(published, tmp_path / "served"))
    (folder / "README.md").write_text("not fetched")
    with serve({"Jinstudio/Lens": folder}) as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"  # made from ENDPOINT at import
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)  # 10 MB: an unfinished chunk is lost
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(downloads, "PAUSE", 0.0)
        # The published tokenizer's hash is pinned in the registry, and the tiny model has another tokenizer.
        rows = {name: [replace(s, files=()) if s.patterns else s for s in row.sources] for name, row in ROWS.items()}
        for name, sources in rows.items():
            use(monkeypatch, name, sources=tuple(sources))
        yield running


@pytest.fixture
def said() -> list[str]:
    return []


def pull(said: list[str], name: str = "lens", origin: str | None = None) -> records.Record:
    plan = pull_plan.plan_pull(name, origin=origin, say=said.append)
    return downloads.pull(plan, say=said.append, bars=False)


def test_the_first_source_that_answers_is_used(hub: Hub, said: list[str], published: Path) -> None:
    with pytest.raises(ModelMissingError, match="lens is not on this disk"):
        resolve_model("lens")
    hub.gated.add("SceneWorks/Lens")
    record = pull(said)
    assert (record.repo, record.revision, record.layout) == ("Jinstudio/Lens", COMMIT, Layout.diffusers)
    assert "SceneWorks/Lens: not there, or closed to you; trying the next source" in said
    assert "README.md" not in record.files
    found = resolve_model("lens")
    assert (found.name, found.repo, found.revision) == ("lens", "Jinstudio/Lens", COMMIT)
    assert found.preset.params.dit == tiny.DIT
    assert found.total_bytes == resolve_model(str(published)).total_bytes
    assert torch.equal(
        load_transformer(found, torch.float32, "cpu").img_in.weight, tiny.random_transformer()["img_in.weight"]
    )
    before = len(hub.served)
    pull(said)  # nothing to do: nothing is fetched twice
    assert len(hub.served) == before


def test_an_interrupted_download_goes_on_where_it_stopped(hub: Hub, said: list[str]) -> None:
    path = "text_encoder/model-00002-of-00003.safetensors"
    size = (hub.repos["Jinstudio/Lens"] / path).stat().st_size
    hub.cut[path] = 100_000
    with pytest.raises(NetworkError, match=path) as raised:
        pull(said)
    assert "goes on where it stopped" in (raised.value.hint or "")
    assert records.load("lens") is None  # unfinished, so not recorded, and the model is not there
    with pytest.raises(ModelMissingError):
        of_preset(presets.get("lens"))
    assert installed.partial_bytes(presets.get("lens")) == 100_000
    hub.dead = False
    plan = pull_plan.plan_pull("lens", say=said.append)
    assert plan.remaining < plan.total - 100_000
    hub.served.clear()
    downloads.pull(plan, say=said.append, bars=False)
    assert (path, "bytes=100000-", size - 100_000) in hub.served
    assert not any(part == "text_encoder/model-00001-of-00003.safetensors" for part, _, _ in hub.served)
    assert all(check.problem is None for check in installed.verify("lens"))
    assert installed.partial_bytes(presets.get("lens")) == 0


def test_content_that_is_not_what_was_announced_is_deleted(hub: Hub, said: list[str]) -> None:
    path = "vae/diffusion_pytorch_model.safetensors"
    hub.corrupt.add(path)
    with pytest.raises(ModelMissingError, match=f"{path}.*not what was announced"):
        pull(said)
    hub.corrupt.clear()
    pull(said)
    assert all(check.problem is None for check in installed.verify("lens"))


def test_a_pinned_hash_wins_over_the_hub(hub: Hub, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = SourceFile(path="tokenizer/tokenizer.json", component=Component.tokenizer, sha256="0" * 64)
    use(monkeypatch, sources=(source(files=(pinned,)),))
    with pytest.raises(ModelMissingError, match=r"tokenizer.json has the SHA-256 .* published was 000000"):
        pull(said)


def test_a_pinned_revision_that_is_gone(hub: Hub, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, sources=(source(revision="f" * 40),))
    with pytest.raises(ModelMissingError, match=r"revision f+ is gone"):
        pull(said)
    use(monkeypatch, sources=(source(revision=COMMIT),))
    plan = pull_plan.plan_pull("lens", say=said.append)
    assert plan.pinned
    assert plan.provenance.startswith(f"Jinstudio/Lens@{COMMIT[:12]} (pinned)")


def test_the_disk_is_checked_before_the_first_byte(hub: Hub, said: list[str]) -> None:
    plan = pull_plan.plan_pull("lens", say=said.append)
    with pytest.raises(FileError, match=r"lens needs [0-9.]+ MB more"):
        downloads.pull(replace(plan, free=plan.remaining), say=said.append, bars=False)
    assert hub.served == []
    assert not hub_cache().exists()


def test_offline_means_no_request(hub: Hub, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    hub.dead = True  # any request would be answered with an error of its own
    with pytest.raises(ModelMissingError, match="cannot be fetched offline"):
        pull_plan.plan_pull("lens", offline=True, say=said.append)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelMissingError, match="cannot be fetched offline"):
        pull_plan.plan_pull("lens", say=said.append)


def test_a_hub_that_is_down_is_retryable(hub: Hub, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    hub.dead = True
    with pytest.raises(NetworkError) as raised:
        pull_plan.plan_pull("lens", say=said.append)
    assert raised.value.exit_code == 3
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(NetworkError, match="cannot be reached"):
        pull_plan.plan_pull("lens", say=said.append)


def test_after_two_failures_of_xet_http_takes_over(hub: Hub, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake hub has no Xet, so its failures are staged: the real choice, with a download that always fails."""
    from huggingface_hub.errors import XetDownloadError

    def broken(metadata: Any, partial: Path, file: pull_plan.PlannedFile) -> None:
        if file.path == "vae/diffusion_pytorch_model.safetensors":
            raise XetDownloadError("connection reset")
        downloads._get_http(metadata, partial, file)  # pyright: ignore[reportPrivateUsage]

    monkeypatch.setattr(downloads, "_get_xet", broken)
    monkeypatch.setattr(downloads, "_use_xet", lambda _metadata, blob, failures: failures < downloads.XET_FAILURES)
    pull(said)
    assert sum("Xet failed" in line for line in said) == 2
    assert any("HF_HUB_DISABLE_XET=1" in line for line in said)
    assert all(check.problem is None for check in installed.verify("lens"))


def test_from_another_repository(hub: Hub, said: list[str]) -> None:
    hub.repos["someone/copy"] = hub.repos["Jinstudio/Lens"]
    record = pull(said, "lens-base", "someone/copy@main")
    assert (record.repo, record.revision) == ("someone/copy", COMMIT)
    assert resolve_model("lens-base").preset.steps == 50
    with pytest.raises(UsageError, match="neither a folder nor a repository"):
        pull_plan.plan_pull("lens", origin="not a repo", say=said.append)
    with pytest.raises(ModelMissingError, match="nobody/nothing: not there"):
        pull_plan.plan_pull("lens", origin="nobody/nothing", say=said.append)


def test_comfy_files_are_shared_and_survive_the_removal_of_one_model(
    hub: Hub, said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "comfy" / "split_files"
    for folder in ("diffusion_models", "text_encoders", "vae"):
        (root / folder).mkdir(parents=True)
    # The shapes of full-size files tell their parameters; tiny ones must state them, so these are GGUF.
    tiny.write_embedded(root / "tmp")
    for name in ("lens", "lens_turbo"):
        shutil.copy(root / "tmp" / "transformer.gguf", root / "diffusion_models" / f"{name}.gguf")
    with (root / "diffusion_models" / "lens_turbo.gguf").open("ab") as file:
        file.write(bytes(32))  # another content, so another blob
    shutil.move(root / "tmp" / "text_encoder.gguf", root / "text_encoders" / "gpt.gguf")
    shutil.move(root / "tmp" / "vae.safetensors", root / "vae" / "flux2-vae.safetensors")
    shutil.rmtree(root / "tmp")
    hub.repos["Comfy-Org/Lens"] = tmp_path / "comfy"
    for name in ("lens", "lens_turbo"):
        files = (
            SourceFile(path=f"diffusion_models/{name}.gguf", component=Component.transformer),
            SourceFile(path="text_encoders/gpt.gguf", component=Component.text_encoder),
            SourceFile(path="vae/flux2-vae.safetensors", component=Component.vae),
        )
        comfy = HubSource(repo="Comfy-Org/Lens", layout=Layout.single_files, files=files)
        use(monkeypatch, name.replace("_", "-"), sources=(comfy,))
    pull(said, "lens")
    pull(said, "lens-turbo")
    removal = installed.plan_removal("lens")
    assert [path.name for path in removal.links] == ["lens.gguf"]
    assert {path.name for path, _ in removal.kept} == {"gpt.gguf", "flux2-vae.safetensors"}
    assert resolve_model("lens").name == "lens"  # a plan removes nothing
    installed.remove(removal)
    with pytest.raises(ModelMissingError):
        resolve_model("lens")
    assert all(check.problem is None for check in installed.verify("lens-turbo"))
    installed.remove(installed.plan_removal("lens-turbo"))
    assert not list(hub_cache().glob("models--*"))
    with pytest.raises(ModelMissingError, match="lens is not on this disk"):
        installed.plan_removal("lens")


def test_verify_names_each_kind_of_damage(hub: Hub, said: list[str]) -> None:
    record = pull(said)
    blobs = {path: (record.folder / path).resolve() for path in record.files}
    vae, shard, index = "vae/diffusion_pytorch_model.safetensors", "transformer/config.json", "model_index.json"
    blobs[vae].write_bytes(blobs[vae].read_bytes()[:-10])
    data = bytearray(blobs[shard].read_bytes())
    data[-2] ^= 1
    blobs[shard].write_bytes(bytes(data))
    blobs[index].unlink()
    text = "text_encoder/model-00001-of-00003.safetensors"
    blobs[text].write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    problems = {str(c.path.relative_to(record.folder)): c.problem for c in installed.verify("lens") if c.problem}
    assert set(problems) == {vae, shard, index, text}
    assert "cut short in its tensor data" in str(problems[vae])
    assert "SHA-256" in str(problems[shard])
    assert problems[index] == "is not there"
    assert "Git LFS pointer" in str(problems[text])
    quick = {str(c.path.relative_to(record.folder)) for c in installed.verify("lens", quick=True) if c.problem}
    assert quick == {vae, index, text}


def test_files_found_in_the_cache_need_no_record(hub: Hub, said: list[str]) -> None:
    """Another program fetched them: found by the sources' names, verified by their blobs' names, removable."""
    pull(said)
    records.forget("lens")
    found = resolve_model("lens")
    assert (found.repo, found.revision) == ("Jinstudio/Lens", COMMIT)
    assert {check.against for check in installed.verify("lens")} == {"hub"}
    installed.remove(installed.plan_removal("lens"))
    assert not list(hub_cache().glob("models--*"))


def test_adopting_a_folder(published: Path, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="another size"):
        installed.adopt("lens", published, say=said.append)
    use(monkeypatch, params=replace(presets.LENS, dit=tiny.DIT))
    record, _ = installed.adopt("lens", published, say=said.append)
    assert record.repo is None
    found = resolve_model("lens")
    assert found.name == "lens"
    assert found.assumed is None
    assert all(check.problem is None for check in installed.verify("lens"))
    removal = installed.plan_removal("lens")
    assert removal.links == ()
    assert "are yours and stay" in str(removal.note)
    installed.remove(removal)
    assert (published / "model_index.json").exists()
    with pytest.raises(ModelMissingError):
        resolve_model("lens")


def test_what_cannot_be_pulled_or_removed(said: list[str]) -> None:
    with pytest.raises(UsageError, match="part of the package"):
        pull_plan.plan_pull("nano", say=said.append)
    with pytest.raises(UsageError, match="part of the package"):
        installed.plan_removal("nano")


def source(revision: str | None = None, files: tuple[SourceFile, ...] = ()) -> HubSource:
    return HubSource(
        repo="Jinstudio/Lens",
        layout=Layout.diffusers,
        revision=revision,
        files=files,
        patterns=presets.DIFFUSERS_FILES,
    )


def use(monkeypatch: pytest.MonkeyPatch, name: str = "lens", **changes: object) -> None:
    """Change one row of the registry for a test."""
    row: Preset = replace(presets.PRESETS[name], **changes)  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr(presets, "PRESETS", {**presets.PRESETS, name: row})
    monkeypatch.setattr("backend.checkpoints.resolve.PRESETS", presets.PRESETS)
