"""Hidden states out of llama.cpp, judged by torch's network on the same file.

Why it can be trusted: the reference is the torch encoder, itself compared with transformers elsewhere, in float32 on
the very bytes that llama.cpp maps; neighbouring blocks and neighbouring tokens must fail the same comparison.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from backend.checkpoints.write_gguf import write_text_encoder_gguf
from backend.errors import LensError
from backend.loading import load_text_encoder, load_tokenizer
from backend.model.text_encoder import LensGptOssEncoder
from backend.packing.ggml_library import default_threads
from backend.text import harmony
from backend.text.llama import LlamaModel
from backend.text.llama_library import Context, Library, library
from tests.backend import tiny_weights as tiny
from tests.backend.llama_models import FILES, GGUF, PROMPTS, TAKE, answer, asked, encode
from train.world.scene_text import dense
from train.world.scenes import sample_scene


@pytest.fixture(scope="module")
def nano() -> Iterator[LlamaModel]:
    with LlamaModel(GGUF, threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def encoder() -> LensGptOssEncoder:
    return load_text_encoder(FILES, torch.float32, "cpu")


@pytest.fixture(scope="module")
def shipped32(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaModel]:
    """The shipped network written in float32: llama.cpp multiplies in the precision that weights are stored in."""
    path = tmp_path_factory.mktemp("float32") / "text_encoder.gguf"
    whole = load_text_encoder(FILES, torch.float32, "cpu", with_head=True)
    tokenizer = load_tokenizer(FILES).to_str()
    write_text_encoder_gguf(path, whole.state_dict(), FILES.preset.params.text, tokenizer, dtype="F32")
    with LlamaModel(path, threads=1) as model:
        yield model


def by_torch(encoder: LensGptOssEncoder, ids: Sequence[int], take: Sequence[int]) -> torch.Tensor:
    with torch.inference_mode():
        return torch.stack(encoder.hidden_states(torch.tensor([list(ids)]), take), dim=2)[0]


def cosines(got: torch.Tensor, wanted: torch.Tensor) -> list[float]:
    """Per block, over all tokens at once."""
    return [
        float(torch.nn.functional.cosine_similarity(got[:, i].flatten(), wanted[:, i].flatten(), dim=0))
        for i in range(got.shape[1])
    ]


LENGTHS = (1, 2, 17, 64, 65, 127, 128, 129, 200, 257, 333, 400)  # around the prefix, the window and 256 cells


def long_prompt(model: LlamaModel) -> tuple[int, ...]:
    """Dense captions, one after another, over 400 tokens."""
    rng = random.Random(1)
    return encode(model, " ".join(dense(sample_scene(rng), rng) for _ in range(9)))


@pytest.mark.parametrize("length", LENGTHS)
def test_parity_with_torch(shipped32: LlamaModel, encoder: LensGptOssEncoder, length: int) -> None:
    """The shipped network, every token of prompts of 1 to 400 tokens."""
    ids = long_prompt(shipped32)[:length]
    got, wanted = shipped32.hidden_states(ids, TAKE), by_torch(encoder, ids, TAKE)
    assert got.dtype == torch.float32
    assert got.shape == (length, len(TAKE), shipped32.params.hidden_size)
    assert min(cosines(got, wanted)) >= 0.99999
    # The next block, or the same one a token later, is far from it: the comparison can tell.
    assert max(cosines(got[:, :-1], wanted[:, 1:])) < 0.999
    if length > 1:
        assert max(cosines(got[:-1], wanted[1:])) < 0.999


def test_parity_of_the_shipped_file(nano: LlamaModel, encoder: LensGptOssEncoder) -> None:
    """As it is stored, in float16, to which llama.cpp also rounds what goes into an expert.

    About one token in a thousand is a near tie of two experts and may fall the other way, so prompts are judged
    together and each of them a little less strictly: the weights may be trained anew, and the ties then lie elsewhere.
    """
    pairs = []
    for length in LENGTHS:
        ids = long_prompt(nano)[:length]
        pairs.append((nano.hidden_states(ids, TAKE), by_torch(encoder, ids, TAKE)))
    for prompt in PROMPTS:
        ids = encode(nano, prompt)
        pairs.append((nano.hidden_states(ids, TAKE), by_torch(encoder, ids, TAKE)))
    assert min(min(cosines(got, wanted)) for got, wanted in pairs) >= 0.999
    assert min(cosines(*(torch.cat(side) for side in zip(*pairs, strict=True)))) >= 0.9999


def test_float32_weights_agree_closely(random_gguf: Path) -> None:
    """Without the rounding of float16 weights only the order of sums is left, for any choice of blocks."""
    encoder = LensGptOssEncoder(tiny.TEXT)
    encoder.load_state_dict({k: v for k, v in tiny.random_text_encoder().items() if k != "lm_head.weight"})
    ids = torch.randint(0, 400, (90,), generator=torch.Generator().manual_seed(1)).tolist()
    with LlamaModel(random_gguf, threads=1) as model:
        for take in ((0, 1, 2), (0,), (1,), (2, 0), (0, 2)):
            got, wanted = model.hidden_states(ids, take), by_torch(encoder.eval(), ids, sorted(take))
            wanted = wanted[:, [sorted(take).index(block) for block in take]]
            assert float((got - wanted).abs().max() / wanted.abs().max()) < 2e-5


def test_any_order_of_prompts_gives_the_same(nano: LlamaModel, random_gguf: Path) -> None:
    """A stopped graph leaves a cache that the next prompt can build on."""
    for path in (GGUF, random_gguf):
        fresh: dict[tuple[str, tuple[int, ...]], torch.Tensor] = {}
        with LlamaModel(path, threads=1) as shared:
            blocks = tuple(range(shared.params.num_hidden_layers))
            template = shared.params.template
            order = [(prompt, take) for prompt in PROMPTS[:5] for take in (blocks[-2:], blocks[:1])]
            rng = random.Random(3)
            for prompt, take in [rng.choice(order) for _ in range(14)] + order:
                ids = harmony.conversation(shared.tokenizer, template, "Describe it.", prompt)
                if (prompt, take) not in fresh:
                    with LlamaModel(path, threads=1) as alone:
                        fresh[prompt, take] = alone.hidden_states(ids, take)
                got, wanted = shared.hidden_states(ids, take), fresh[prompt, take]
                assert got.shape == wanted.shape
                assert float((got - wanted).abs().max() / wanted.abs().max()) < 1e-5, (prompt, take)


def test_the_prefix_is_run_once(ran: list[tuple[int, ...]]) -> None:
    with LlamaModel(GGUF, threads=1) as model:
        prefix = model.params.template.prefix_tokens
        for prompt in ("a cat", "two dogs and a house", "a cat"):
            model.hidden_states(encode(model, prompt), TAKE)
        one, two = encode(model, "a cat"), encode(model, "two dogs and a house")
        assert sum(map(len, ran)) == len(one) + len(two) - prefix + len(one) - prefix
        ran.clear()
        other = harmony.conversation(model.tokenizer, model.params.template, "Another prefix.", "a cat")
        model.hidden_states(other, TAKE)
        model.hidden_states(one, TAKE)  # the first prefix is forgotten by now
        assert sum(map(len, ran)) == len(other) + len(one)
        ran.clear()
        model.hidden_states(one, (*TAKE[:-1], TAKE[-1] - 1))  # a block whose states were not kept
        assert sum(map(len, ran)) == len(one)


def test_the_graph_stops_at_the_last_block(random_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    observe = Context._observe

    def noting(self: Context, tensor: int, ask: bool, data: object) -> bool:
        seen.append(self.lib.name(tensor))
        return observe(self, tensor, ask, data)

    monkeypatch.setattr(Context, "_observe", noting)
    with LlamaModel(random_gguf, threads=1) as model:
        model.hidden_states([1, 2, 3], (0, 1))
        assert seen[-1] == "l_out-1"
        assert not [name for name in seen if name.endswith("-2") or name.startswith("result")]


def test_longer_than_a_batch(random_gguf: Path) -> None:
    """More tokens than are computed at once, in a context that had to grow."""
    encoder = LensGptOssEncoder(tiny.TEXT)
    encoder.load_state_dict({k: v for k, v in tiny.random_text_encoder().items() if k != "lm_head.weight"})
    ids = torch.randint(0, 400, (700,), generator=torch.Generator().manual_seed(2)).tolist()
    with LlamaModel(random_gguf, threads=1, context=1024) as model:
        for length in (30, 700, 30):
            got = model.hidden_states(ids[:length], (0, 2))
            assert min(cosines(got, by_torch(encoder.eval(), ids[:length], (0, 2)))) >= 0.9999
        with pytest.raises(ValueError, match="1025 tokens"):
            model.hidden_states([1] * 1025, (0,))


def test_what_cannot_be_asked(nano: LlamaModel) -> None:
    blocks, tokens = nano.params.num_hidden_layers, nano.params.vocab_size
    for ids, take in (([], TAKE), ([1], ()), ([1], (blocks,)), ([1], (-1,)), ([tokens], TAKE), ([-1], TAKE)):
        with pytest.raises(ValueError):
            nano.hidden_states(ids, take)
    assert nano.hidden_states([1], TAKE).isfinite().all()


def test_what_a_callback_raises_comes_through(nano: LlamaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C lands in a callback more often than not; ctypes alone would print it and go on."""
    ids = asked(nano, "three ships on a calm sea")
    answered, states = answer(nano, ids), nano.hidden_states(ids, TAKE)

    def interrupted() -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        answer(nano, ids, stop=interrupted)
    calls = 0
    read = nano._opened().lib.read

    def failing(tensor: int) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise MemoryError("no room")
        return read(tensor)

    monkeypatch.setattr(nano._opened().lib, "read", failing)
    with pytest.raises(MemoryError, match="no room"):
        nano.hidden_states(ids, TAKE)
    assert calls == 2  # the graph was stopped there
    assert torch.equal(nano.hidden_states(ids, TAKE), states)
    assert answer(nano, ids) == answered


def test_a_changed_llama_cpp_is_an_error(nano: LlamaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were blocks' outputs renamed or cut to the last token, that would be said and not passed on."""
    lib = nano._opened().lib
    name, read = lib.name, lib.read
    monkeypatch.setattr(lib, "name", lambda tensor: name(tensor).replace("l_out", "layer_out"))
    with pytest.raises(LensError, match="shows 0 of 5 tokens"):
        nano.hidden_states([1, 2, 3, 4, 5], TAKE)
    monkeypatch.setattr(lib, "name", name)
    monkeypatch.setattr(lib, "read", lambda tensor: read(tensor)[-nano.params.hidden_size :])
    with pytest.raises(LensError, match="shows 1 of 5 tokens"):
        nano.hidden_states([1, 2, 3, 4, 5], TAKE)


def test_repacked_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rearranged, the weights are the same; where llama.cpp would crash with them, they stay as they are."""
    path, ids = tmp_path / "model.gguf", list(range(60))
    tokenizer = tiny.small_tokenizer().to_str()
    write_text_encoder_gguf(path, tiny.random_text_encoder(), tiny.TEXT, tokenizer, dtype="Q8_0")
    with LlamaModel(path, threads=1) as plain, LlamaModel(path, threads=1, repack=True) as packed:
        assert not plain.repacked
        assert packed.repacked is not library().uses_amx()
        assert min(cosines(packed.hidden_states(ids, (0, 1, 2)), plain.hidden_states(ids, (0, 1, 2)))) > 0.999
    monkeypatch.setattr(Library, "uses_amx", lambda _: True)
    with LlamaModel(path, threads=1, repack=True) as packed:
        assert not packed.repacked
        assert packed.hidden_states(ids, (2,)).isfinite().all()


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, wanted in (("3", 3), ("1", 1)):
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        assert default_threads() == wanted
    for value in ("", "0", "many"):
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        assert 1 <= default_threads() <= (os.cpu_count() or 1)
