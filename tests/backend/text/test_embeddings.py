"""Kept prompts: the same bits, the right key, damage, caps, and a language model that stays closed.

Why it can be trusted: encodings are counted where they happen, opened files are reported by the interpreter's own
audit hook in a child process, and damage is done byte by byte to real files.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from backend.cache import tensors as kept_tensors
from backend.cache.store import CACHES, MB, Store, Stores, clear, entries, limit_bytes, named, open_store
from backend.checkpoints.layouts import PartFiles, Parts
from backend.checkpoints.resolve import ModelFiles, resolve_model
from backend.checkpoints.write_gguf import write_text_encoder_gguf, write_transformer_gguf
from backend.engine import Engine
from backend.errors import CheckpointError, FileError, NumericsError, UsageError
from backend.events import Generation, PhaseStarted
from backend.loading import load_text_encoder, load_tokenizer
from backend.params import TemplateParams
from backend.presets import Component
from backend.requests import ResolvedRequest
from backend.settings import CacheSettings
from backend.text import features
from backend.text.choose_encoder import choose_encoder
from backend.text.features import FeatureSource
from backend.text.harmony import encode_prompt
from backend.text.llama import LlamaModel
from backend.text.streaming import StreamingEncoder
from backend.types import Encoder, GenerationRequest, Phase
from tests.backend import tiny_weights as tiny

ROOT = Path(__file__).resolve().parents[3]
TEMPLATE = TemplateParams(identity="", instruction="Describe.", thinking="Need.", prefix_tokens=0, max_tokens=256)
REQUEST = GenerationRequest(
    prompt="a red circle", model="tiny", seeds=(5,), width=32, height=32, steps=2, guidance=5.0, device="cpu"
)


def write_model(folder: Path) -> Path:
    """tiny_weights' model with a short template, and weights so large that every word reaches the pixels."""
    with pytest.raises(CheckpointError) as raised:  # says how many tokens the template has
        encode_prompt(tiny.small_tokenizer(), replace(TEMPLATE, prefix_tokens=-1), "")
    prefix = int(str(raised.value).split(" tokens long")[0].rsplit(maxsplit=1)[-1])
    text = replace(tiny.TEXT, template=replace(TEMPLATE, prefix_tokens=prefix))
    tiny.write_embedded(folder)
    large = {name: tensor * (3.0 if tensor.dim() == 2 else 1.0) for name, tensor in tiny.random_transformer().items()}
    write_transformer_gguf(folder / "transformer.gguf", large, tiny.DIT, quant="F32")
    tokenizer = tiny.small_tokenizer().to_str()
    write_text_encoder_gguf(folder / "text_encoder.gguf", tiny.random_text_encoder(), text, tokenizer, dtype="F32")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path: Path, warnings: list[str]) -> Store:
    return Store(tmp_path / "embeds", ".safetensors", 10 * MB, warnings.append)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many prompts each run of the encoder had."""
    seen: list[int] = []
    run = StreamingEncoder.hidden_states

    def spied(self: StreamingEncoder, prompts: Any, take: Any) -> Any:
        seen.append(len(prompts))
        return run(self, prompts, take)

    monkeypatch.setattr(StreamingEncoder, "hidden_states", spied)
    return seen


def source(model: Path, store: Store | None, **change: Any) -> FeatureSource:
    given = FeatureSource(
        files=resolve_model(str(model)), encoder=Encoder.exact, dtype=torch.float32, device=torch.device("cpu"),
        store=store,
    )  # fmt: skip
    return replace(given, **change)


def quiet(_phase: Phase) -> nullcontext[None]:
    return nullcontext()


def picture(model: Path, store: Store | None, **change: Any) -> tuple[Generation, list[Phase]]:
    phases: list[Phase] = []

    def note(event: object) -> None:
        if isinstance(event, PhaseStarted):
            phases.append(event.phase)

    files = resolve_model(str(model))
    request = ResolvedRequest(request=replace(REQUEST, **change), preset=files.preset, files=files)
    (made,) = Engine(stores=Stores(embeddings=store)).draw(request, on_event=note)
    return made, phases


# ------------------------------------------------------------------------------------------------------------ the bits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kept_features_are_the_computed_ones(model: Path, store: Store, encoded: list[int], dtype: torch.dtype) -> None:
    prompts = ["a red circle", "zwei gelbe Quadrate 🎈", ""]
    given = source(model, store, dtype=dtype)
    without = source(model, None, dtype=dtype).features(prompts, quiet)
    first, second = given.features(prompts, quiet), given.features(prompts, quiet)
    assert encoded == [3, 3]  # the second look needed no encoder
    for a, b, c in zip(without, first, second, strict=True):
        assert a.dtype == b.dtype == c.dtype == dtype and a.shape[1] > 5  # words, and what follows them
        assert torch.equal(a, b) and torch.equal(b, c)
    # And they are what the whole encoder says about the conversation behind its fixed beginning.
    files = resolve_model(str(model))
    ids = encode_prompt(load_tokenizer(files), files.preset.params.text.template, prompts[0])
    states = load_text_encoder(files, dtype, "cpu").hidden_states(torch.tensor([ids.ids]), (0, 1))
    assert torch.equal(first[0], torch.stack(states, dim=2)[:, ids.prefix :])


def test_what_is_not_read_of_a_long_prompt_is_said(model: Path, store: Store) -> None:
    """Computed or kept; the token that is read last and the first that is not stand side by side in the prompt."""
    said: list[str] = []
    files = resolve_model(str(model))
    template = files.preset.params.text.template
    words = [f"w{number}" for number in range(400)]
    for _ in range(2):  # encoded, then kept
        source(model, store, say=said.append).features([" ".join(words)], lambda _: nullcontext())
    assert len(said) == 2 and said[0] == said[1]
    tokenizer = load_tokenizer(files)
    whole = encode_prompt(tokenizer, replace(template, max_tokens=10_000), " ".join(words))
    read = tokenizer.decode(whole.ids[template.prefix_tokens : template.max_tokens])
    unread = encode_prompt(tokenizer, template, " ".join(words)).unread
    assert unread and read + unread == " ".join(words)
    assert repr(unread.strip()[:40])[:-1] in said[0] and "w399" in said[0]
    # Cut behind the person's own words, nothing of theirs is lost.
    room = template.max_tokens - template.prefix_tokens
    short = tokenizer.decode(whole.ids[template.prefix_tokens : template.max_tokens])
    assert len(tokenizer.encode(short, add_special_tokens=False).ids) == room
    source(model, store, say=said.append).features([short], lambda _: nullcontext())
    assert len(said) == 2


def test_it_is_said_which_text_is_too_long(model: Path, store: Store) -> None:
    long = " ".join(f"w{number}" for number in range(400))
    said: list[str] = []
    given = source(model, store, say=said.append)
    given.branches(replace(REQUEST, prompt="a red cat", negative_prompt=long, guidance=5.0), quiet)
    given.branches(replace(REQUEST, prompt=long, negative_prompt="blue", guidance=5.0), quiet)
    assert [line.split(" is longer")[0] for line in said] == ["the negative prompt", "the prompt"]


def test_pictures_from_kept_features_have_the_same_pixels(model: Path, store: Store, encoded: list[int]) -> None:
    """Without a cache, filling it, and from it; the phases say what happened."""
    wish = {"negative_prompt": "blue"}
    plain, first, second = (picture(model, s, **wish) for s in (None, store, store))
    assert plain[0].image.tobytes() == first[0].image.tobytes() == second[0].image.tobytes()
    assert encoded == [2, 2]
    rest = [Phase.load_transformer, Phase.fold, Phase.load_vae, Phase.denoise, Phase.decode]
    assert plain[1] == first[1] == [Phase.load_encoder, Phase.encode, *rest]
    assert second[1] == [Phase.encode, *rest]
    # Only what is new is encoded: another negative prompt alone.
    picture(model, store, negative_prompt="green")
    assert encoded == [2, 2, 1]
    assert picture(model, store, prompt="a blue circle")[0].image.tobytes() != plain[0].image.tobytes()


def test_the_key_has_everything_that_decides(model: Path, tmp_path: Path, store: Store) -> None:
    base = source(model, store)

    def with_text(**change: Any) -> ModelFiles:
        preset = base.files.preset
        text = replace(preset.params.text, **change)
        return replace(base.files, preset=replace(preset, params=replace(preset.params, text=text)))

    other = tmp_path / "other"
    shutil.copytree(model, other)
    data = bytearray((other / "text_encoder.gguf").read_bytes())
    data[-1] ^= 1
    (other / "text_encoder.gguf").write_bytes(data)
    (tmp_path / "tokenizer.json").write_text(tiny.small_tokenizer().to_str())
    with_file = Parts({**base.files.parts.held, Component.tokenizer: PartFiles((tmp_path / "tokenizer.json",))})
    template = base.files.preset.params.text.template
    dit = replace(base.files.preset.params.dit, selected_layer_index=(0, 2))
    changed = {
        "prompt": base._key("a red circle."),
        "blank": base._key("a red circle "),
        "dtype": replace(base, dtype=torch.bfloat16)._key("a red circle"),
        "path": replace(base, encoder=Encoder.llama)._key("a red circle"),
        "weights": source(other, store)._key("a red circle"),
        "date": replace(base, files=with_text(template=replace(template, date="2026-05-27")))._key("a red circle"),
        "range": replace(base, files=with_text(rope_truncate=False))._key("a red circle"),
        "tokenizer": replace(base, files=replace(base.files, parts=with_file))._key("a red circle"),
        "blocks": replace(
            base,
            files=replace(
                base.files, preset=replace(base.files.preset, params=replace(base.files.preset.params, dit=dit))
            ),
        )._key("a red circle"),
        "device": replace(base, device=torch.device("mps"))._key("a red circle"),
    }
    keys = [base._key("a red circle"), *changed.values()]
    assert len(set(keys)) == len(keys), changed
    assert source(model, store)._key("a red circle") == keys[0]


def test_the_key_has_the_code_and_the_library(model: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    before = source(model, store)._key("x")
    monkeypatch.setattr(features, "CODE_VERSION", features.CODE_VERSION + 1)
    bumped = source(model, store)._key("x")
    monkeypatch.setattr(features, "version", lambda name: "9.9")
    assert len({before, bumped, source(model, store)._key("x")}) == 3


def test_the_file_does_not_hold_the_prompt(model: Path, store: Store) -> None:
    source(model, store).features(["a very private wish"], quiet)
    (entry,) = entries(store.folder, store.suffix)
    assert b"private" not in entry.path.read_bytes() and "private" not in entry.path.name


def test_features_that_are_not_finite_are_not_kept(model: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run = StreamingEncoder.hidden_states
    monkeypatch.setattr(StreamingEncoder, "hidden_states", lambda *a: [x * torch.inf for x in run(*a)])
    with pytest.raises(NumericsError, match="features are not finite"):
        source(model, store).features(["x"], quiet)
    assert entries(store.folder, store.suffix) == []


# -------------------------------------------------------------------------------------------------------------- damage


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "only a length": lambda data: data[:8],
    "cut in the header": lambda data: data[:40],
    "cut in the numbers": lambda data: data[:-1],
    "longer": lambda data: data + b"\0",
    "a flipped bit": lambda data: flipped(data, len(data) - 7),
    "a flipped bit in the header": lambda data: flipped(data, 20),
    "a huge header": lambda data: b"\xff" * 8 + data[8:],
    "zeros": lambda data: bytes(len(data)),
    "a picture": lambda data: b"\x89PNG\r\n\x1a\n" + data,
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_made_again(
    model: Path, store: Store, encoded: list[int], warnings: list[str], kind: str
) -> None:
    given = source(model, store)
    (right,) = given.features(["x"], quiet)
    (entry,) = entries(store.folder, store.suffix)
    whole = entry.path.read_bytes()
    entry.path.write_bytes(DAMAGE[kind](whole))
    (again,) = given.features(["x"], quiet)
    assert torch.equal(again, right)
    assert len(encoded) == 2
    assert len(warnings) == 1 and "damaged" in warnings[0] and entry.path.name in warnings[0]
    assert entry.path.read_bytes() == whole


@pytest.mark.parametrize(
    "wrong", [torch.zeros(4, 2, 63), torch.zeros(4, 2, 64, dtype=torch.float64), torch.zeros(4, 128)]
)
def test_a_whole_file_of_other_numbers_is_refused(store: Store, warnings: list[str], wrong: torch.Tensor) -> None:
    kept_tensors.write_rows(store, "a", wrong)
    assert kept_tensors.read_rows(store, "a", (2, 64), torch.float32) is None
    assert "it holds" in warnings[0] and not store.path("a").exists()


# ---------------------------------------------------------------------------------------------------------------- caps


def kept(store: Store) -> list[str]:
    return sorted(entry.path.stem for entry in entries(store.folder, store.suffix))


def test_the_least_recently_used_goes_first(tmp_path: Path, warnings: list[str]) -> None:
    store = Store(tmp_path, ".bin", 300, warnings.append)
    for age, key in enumerate(("c", "b", "a")):
        store.write(key, bytes(100))
        os.utime(store.path(key), (1000 - age, 1000 - age))
    assert store.read("a") == bytes(100)  # the oldest, until now
    store.write("d", bytes(150))
    assert kept(store) == ["a", "d"]
    store.write("e", bytes(301))  # never fits, so it pushes nothing out
    assert kept(store) == ["a", "d"]
    store.write("f", bytes(300))
    assert kept(store) == ["f"] and warnings == []


def test_a_cap_of_nothing(model: Path, tmp_path: Path, encoded: list[int], warnings: list[str]) -> None:
    store = Store(tmp_path / "embeds", ".safetensors", 0, warnings.append)
    for _ in range(2):
        source(model, store).features(["x"], quiet)
    assert len(encoded) == 2 and not store.folder.exists() and warnings == []


def test_a_folder_that_cannot_be_used_only_costs_time(
    model: Path, tmp_path: Path, encoded: list[int], warnings: list[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    store = Store(tmp_path / "file", ".safetensors", MB, warnings.append)
    (found,) = source(model, store).features(["x"], quiet)
    assert torch.equal(found, source(model, None).features(["x"], quiet)[0])
    assert warnings and all("the cache is not used" in warning for warning in warnings)


def test_what_a_killed_process_left_goes_in_time(tmp_path: Path) -> None:
    store = Store(tmp_path, ".bin", 1000, lambda text: None)
    for name, age in ((".lens-old.tmp", 1000), (".lens-new.tmp", 0), ("other.tmp", 1000)):
        (tmp_path / name).write_bytes(b"x")
        stamp = (tmp_path / name).stat().st_mtime - age
        os.utime(tmp_path / name, (stamp, stamp))
    store.write("a", b"x")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lens-new.tmp", "a.bin", "other.tmp"]


def test_the_list_of_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LENS_HOME", str(tmp_path))
    assert [cache.name for cache in named([])] == [cache.name for cache in CACHES]
    assert [cache.name for cache in named(["sha256", "embeddings", "sha256"])] == ["embeddings", "sha256"]
    with pytest.raises(UsageError) as raised:
        named(["embedings"])
    assert raised.value.hint == "did you mean embeddings?"
    (row,) = named(["embeddings"])
    assert limit_bytes(row, CacheSettings(embeddings_mb=3)) == 3 * MB
    with pytest.raises(UsageError, match="embeddings_mb = -1 is negative"):
        open_store("embeddings", CacheSettings(embeddings_mb=-1), lambda text: None)
    store = open_store("embeddings", CacheSettings(), lambda text: None)
    store.write("a", b"123")
    (store.folder / "stays.txt").write_text("not ours")
    assert clear(row) == (1, 3) and clear(row) == (0, 0)
    assert [path.name for path in store.folder.iterdir()] == ["stays.txt"]
    shutil.rmtree(store.folder)
    assert clear(row) == (0, 0)
    store.folder.write_text("in the way")
    with pytest.raises(FileError, match="cannot read"):
        clear(row)


# --------------------------------------------------------------------------------------------------------------- llama


def test_the_llama_path(model: Path, store: Store) -> None:
    """Near the exact one for a network trained with the rounded range; kept apart from it; left open for its owner."""
    prompts = ["a red circle", "two yellow squares above a sign"]
    exact = source(model, store).features(prompts, quiet)
    with LlamaModel(model / "text_encoder.gguf", context=4096) as opened:
        asked: list[LlamaModel] = []

        def llama() -> LlamaModel:
            asked.append(opened)
            return opened

        given = source(model, store, encoder=Encoder.llama, llama=llama)
        near = given.features(prompts, quiet)
        assert opened.hidden_states([1], (0,)).shape[0] == 1  # whoever opened it closes it
        assert all(torch.equal(a, b) for a, b in zip(near, given.features(prompts, quiet), strict=True))
        assert len(asked) == 1  # kept features open nothing
    with LlamaModel(model / "text_encoder.gguf", context=4096) as opened:
        alone = source(model, None, encoder=Encoder.llama, llama=lambda: opened).features(prompts[1:], quiet)
    assert torch.equal(alone[0], near[1])  # not a matter of who was encoded before
    for a, b in zip(exact, near, strict=True):
        assert a.shape == b.shape and b.dtype == torch.float32
        assert not torch.equal(a, b)
        assert torch.nn.functional.cosine_similarity(a, b, dim=-1).min() > 0.9999


def test_llama_needs_a_gguf(tmp_path: Path) -> None:
    files = resolve_model(str(tiny.write_diffusers(tmp_path)))
    assert choose_encoder(Encoder.auto, files) is choose_encoder(Encoder.exact, files) is Encoder.exact
    with pytest.raises(UsageError, match=r"needs the text encoder of .* as one GGUF file; found model-00001"):
        choose_encoder(Encoder.llama, files)


# -------------------------------------------------------------------------------------------------- across processes

_CHILD = """
import json, sys
opened = set()
def hook(event, args):
    if event == "open" and isinstance(args[0], (str, bytes)):
        opened.add(args[0] if isinstance(args[0], str) else args[0].decode())
sys.addaudithook(hook)
from lens_cli.app import main
try:
    main()
finally:
    maps = open("/proc/self/maps").read() if sys.platform == "linux" else ""
    seen = {path.rsplit("/", 1)[-1] for path in opened}
    mapped = {line.split()[-1].rsplit("/", 1)[-1] for line in maps.splitlines() if line.split()}
    names = sorted(name for name in seen | mapped if name.endswith((".gguf", ".safetensors")))
    print(json.dumps({"weights": names, "modules": sorted(
        {"llama_cpp", "backend.text.llama"} & set(sys.modules))}), file=sys.stderr)
"""


def test_a_known_prompt_never_opens_the_language_model(model: Path, tmp_path: Path) -> None:
    """Two cold processes; the first opens all three files, the second two of them, and the pixels are the same."""
    words = ["gen", "a red circle", "-m", str(model), "--base", "128", "--steps", "1", "-s", "3", "-q"]
    words += ["--json", "--reasoner", "off", "--device", "cpu"]
    runs: list[tuple[str, dict[str, Any]]] = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, *words],
            cwd=tmp_path, capture_output=True, text=True, timeout=300, check=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "LENS_HOME": str(tmp_path / "home")},
        )  # fmt: skip
        image = json.loads(done.stdout)["data"]["images"][0]
        runs.append((image["pixel_sha256"], json.loads(done.stderr.splitlines()[-1])))
    (pixels, first), (again, second) = runs
    assert pixels == again
    assert set(first["weights"]) >= {"text_encoder.gguf", "transformer.gguf", "vae.safetensors"}
    assert "text_encoder.gguf" not in second["weights"]
    assert set(second["weights"]) >= {"transformer.gguf", "vae.safetensors"}
    assert "llama_cpp" not in first["modules"] + second["modules"]  # 0.1 s that only --encoder llama needs
