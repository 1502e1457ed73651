"""The whole recipe on a tiny random model in the published layout, against a hand-written one.

Why it can be trusted: the end-to-end test shares nothing with the product but the files and the prompt's token ids.
Its features come from `transformers`, its velocity from the float64 loops of `plain_lens`, its schedule, guidance and
Euler steps are written out below, and its decoder is diffusers' own, loaded by diffusers.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from transformers import GptOssForCausalLM

from backend import engine, loading, pipeline, sampling
from backend.checkpoints.resolve import ModelFiles, resolve_model
from backend.checkpoints.tokenizer_files import load_tokenizer
from backend.engine import Engine
from backend.errors import CancelledError, CheckpointError, NumericsError, OutOfMemoryError, UsageError
from backend.events import Event, Generation, PhaseDone, PhaseStarted, PlanMade, StepDone
from backend.memory.device import choose_device
from backend.memory.machine import choose_arithmetic
from backend.params import TemplateParams
from backend.requests import ResolvedRequest
from backend.text.harmony import encode_prompt
from backend.types import DType, Encoder, Fit, GenerationRequest, InputPicture, Phase
from tests.backend import plain_lens
from tests.backend import tiny_weights as tiny

TEMPLATE = TemplateParams(identity="", instruction="Describe.", thinking="Need.", prefix_tokens=0, max_tokens=256)
REQUEST = GenerationRequest(
    prompt="a red circle", model="tiny", seeds=(5,), width=48, height=64, steps=3, guidance=5.0, device="cpu"
)


def transformer_weights() -> dict[str, Tensor]:
    """Larger than `tiny_weights` has them: every word should reach the pixels."""
    return {
        name: tensor * (3.0 if tensor.dim() == 2 else 1.0) for name, tensor in tiny.random_transformer().items()
    }  # fmt: skip


def write_transformer(folder: Path, state: dict[str, Tensor]) -> None:
    shutil.rmtree(folder / "transformer", ignore_errors=True)
    tiny.write_shards(folder / "transformer", "diffusion_pytorch_model", state)
    (folder / "transformer" / "config.json").write_text(json.dumps(tiny.transformer_config()))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny.write_diffusers(tmp_path_factory.mktemp("model") / "tiny")
    write_transformer(folder, transformer_weights())
    # The number of tokens before the prompt: count them once, as a model's author would.
    with pytest.raises(CheckpointError) as raised:
        encode_prompt(tiny.small_tokenizer(), replace(TEMPLATE, prefix_tokens=-1), "")
    prefix = int(str(raised.value).split(" tokens long")[0].rsplit(maxsplit=1)[-1])
    text = replace(tiny.TEXT, template=replace(TEMPLATE, prefix_tokens=prefix))
    (folder / "text_encoder" / "config.json").write_text(json.dumps(tiny.text_config(text)))
    return folder


@pytest.fixture
def damaged(model: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(model, tmp_path / "damaged"))


def make(
    model: Path, request: GenerationRequest = REQUEST, *, dtype: DType = DType.auto,
    on_event: Callable[[Event], None] = lambda event: None, stop: Callable[[], bool] = lambda: False,
) -> list[Generation]:  # fmt: skip
    resolved = resolved_for(model, replace(request, dtype=dtype))
    return list(Engine().draw(resolved, on_event=on_event, stop=stop))


def resolved_for(model: Path, request: GenerationRequest) -> ResolvedRequest:
    files = resolve_model(str(model))
    return ResolvedRequest(request=request, preset=files.preset, files=files)


def pixels(image: Image.Image) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.asarray(image).astype(np.int64)


def same(a: Generation, b: Generation) -> bool:
    return a.image.tobytes() == b.image.tobytes()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, int]]:
    """(sigma, text tokens) of every run through the transformer's first block."""
    seen: list[tuple[float, int]] = []
    make: Any = engine.Denoiser

    def spied(network: Any, folded: Any, *rest: Any, **more: Any) -> Any:
        def note(_: object, inputs: tuple[Any, ...]) -> None:
            steps = [i for i in range(len(folded.sigmas)) if torch.equal(folded.block(i, 0).image, inputs[2].image)]
            assert len(steps) == 1  # every step's modulation differs
            seen.append((folded.sigmas[steps[0]], inputs[1].shape[1]))

        network.transformer_blocks[0].register_forward_pre_hook(note)
        return make(network, folded, *rest, **more)

    monkeypatch.setattr(engine, "Denoiser", spied)
    return seen


# -------------------------------------------------------------------------------------------- against a plain recipe


def plain_picture(model: Path, request: GenerationRequest) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(H, W, 3) floats in 0 ... 255, by hand."""
    h, w = request.height // 16, request.width // 16
    files = resolve_model(str(model))
    tokenizer, template = load_tokenizer(files), files.preset.params.text.template
    weights = {name: tensor.double().numpy() for name, tensor in transformer_weights().items()}
    encoder = GptOssForCausalLM.from_pretrained(
        model / "text_encoder", attn_implementation="eager", dtype=torch.float32
    )

    def features(prompt: str) -> plain_lens.Array:
        ids = torch.tensor([encode_prompt(tokenizer, template, prompt).ids])
        with torch.no_grad():
            states = encoder(ids, output_hidden_states=True, use_cache=False).hidden_states
        # Entry 0 is the embedding; blocks 0 and 1 of three, so none of them is the normed last one.
        joined = np.stack([states[block + 1][0].double().numpy() for block in (0, 1)], axis=1)
        return joined[template.prefix_tokens :]

    c_text = features(request.prompt)
    u_text = features(request.negative_prompt) if request.negative_prompt.strip() else c_text[:0]

    tokens, steps = h * w, request.steps
    low, high = 8.73809524e-5 * tokens + 1.89833333, 0.00016927 * tokens + 0.45666666
    mu = low + (high - low) * (steps - 10) / 190
    base = [1 - i * (1 - 1 / steps) / (steps - 1) for i in range(steps)]
    sigmas = [math.exp(mu) / (math.exp(mu) + 1 / s - 1) for s in base] + [0.0]

    generator = torch.Generator("cpu").manual_seed(request.seeds[0])
    x = torch.randn(1, tokens, 128, generator=generator)[0].double().numpy()
    config = tiny.transformer_config()
    for sigma, following in itertools.pairwise(sigmas):
        v = plain_lens.velocity(weights, config, x, sigma, c_text, (h, w))
        if request.guidance != 1.0:
            u = plain_lens.velocity(weights, config, x, sigma, u_text, (h, w))
            for token in range(tokens):
                mixed = u[token] + request.guidance * (v[token] - u[token])
                v[token] = mixed * np.linalg.norm(v[token]) / np.linalg.norm(mixed)
        x = x + (following - sigma) * v

    vae: Any = AutoencoderKLFlux2.from_pretrained(model / "vae").eval()
    mean, var = vae.bn.running_mean.double().numpy(), vae.bn.running_var.double().numpy()
    z = np.zeros((1, 32, 2 * h, 2 * w))
    for row in range(h):
        for column in range(w):
            for channel in range(128):
                c, p1, p2 = channel // 4, channel // 2 % 2, channel % 2
                value = x[row * w + column, channel] * math.sqrt(var[channel] + 1e-4) + mean[channel]
                z[0, c, 2 * row + p1, 2 * column + p2] = value
    with torch.no_grad():
        decoded = vae.decode(torch.from_numpy(z).float()).sample[0].double().numpy()
    return (np.clip(decoded, -1, 1).transpose(1, 2, 0) + 1) * 127.5


@pytest.mark.parametrize(
    "change",
    [{}, {"negative_prompt": "blue"}, {"guidance": 1.0, "steps": 2, "seeds": (6,), "width": 32}],
    ids=["blank negative", "negative", "no guidance"],
)
def test_equals_the_plain_recipe(model: Path, change: dict[str, Any]) -> None:
    request = replace(REQUEST, **change)
    made = make(model, request)[0]
    wanted = plain_picture(model, request)
    got = pixels(made.image)
    assert got.shape == wanted.shape == (request.height, request.width, 3)
    assert wanted.std() > 5  # not a flat picture
    # Rounded, not truncated: no further than half a level, and a little for float32.
    assert np.abs(got - wanted).max() < 0.5 + 0.02


# ------------------------------------------------------------------------------------------------------ without files


def test_the_recipe_over_any_networks() -> None:
    """Networks that are functions: the numbers of every step by hand, with what each of them was given."""
    given: list[Any] = []
    text = torch.ones(1, 2, 1, 3)

    def velocity(
        request: GenerationRequest, texts: pipeline.Texts, grid: pipeline.Grid, sigmas: pipeline.Sigmas
    ) -> Any:
        given.append((request.prompt, texts[0] is text, grid, sigmas))
        return lambda x, sigma: x * sigma

    def decode(x: Tensor, grid: pipeline.Grid) -> Tensor:
        given.append(x)
        return torch.full((1, 3, 16 * grid[0], 16 * grid[1]), 0.2)

    networks = pipeline.Networks(
        encode=lambda request: (text, None), velocity=velocity, decode=decode, device=torch.device("cpu"),
        arithmetic="float32",
    )  # fmt: skip
    request = replace(REQUEST, seeds=(3, 8), steps=2)
    events: list[Event] = []
    made = list(pipeline.draw(networks, request, pipeline.Progress(events.append)))
    first, middle, last = sigmas = sampling.schedule(12, 2)
    assert given[0] == ("a red circle", True, (4, 3), sigmas) and len(given) == 3
    for picture, x, seed in zip(made, given[1:], request.seeds, strict=True):
        noise = torch.randn(1, 12, 128, generator=torch.Generator().manual_seed(seed))
        wanted = noise * (1 + (middle - first) * first) * (1 + (last - middle) * middle)
        assert torch.allclose(x, wanted, rtol=1e-6, atol=0)
        assert (picture.seed, picture.sigmas, picture.image.size) == (seed, sigmas, (48, 64))
        assert picture.image.getpixel((0, 0)) == (153, 153, 153)  # (0.2 + 1) * 127.5
        assert set(picture.timings) == {"denoise", "decode"}
    assert [picture.index for picture in pipeline.draw(networks, request, pipeline.Progress(), first=1)] == [1]


# ----------------------------------------------------------------------------------------------- pictures from pictures


def input_picture(path: Path) -> InputPicture:
    return InputPicture(path=str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.fixture
def photo(tmp_path: Path) -> InputPicture:
    """A picture of the request's size, of noise: nothing of it is left by chance."""
    values = np.random.default_rng(4).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "photo.png")
    return input_picture(tmp_path / "photo.png")


def test_strength_1_is_no_picture_and_0_the_picture_through_the_autoencoder(model: Path, photo: InputPicture) -> None:
    """To the bit at 1; at 0 against diffusers' own autoencoder, and nothing runs."""
    events: list[Event] = []
    begun = replace(REQUEST, init=photo, fit=Fit.scale)
    assert same(make(model, replace(begun, strength=1.0))[0], make(model)[0])
    (through,) = make(model, replace(begun, strength=0.0), on_event=events.append)
    assert through.sigmas == (0.0,) and not [event for event in events if isinstance(event, StepDone)]
    vae: Any = AutoencoderKLFlux2.from_pretrained(model / "vae").eval()
    pixels = torch.from_numpy(np.array(Image.open(photo.path))).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        wanted = vae.decode(vae.encode(pixels).latent_dist.mode()).sample
    levels = ((wanted[0].clamp(-1, 1) + 1) * 127.5).round().permute(1, 2, 0).numpy()
    assert np.abs(np.asarray(through.image).astype(int) - levels).max() <= 1


def test_of_a_strength_between_a_part_of_the_steps_runs(model: Path, photo: InputPicture) -> None:
    events: list[Event] = []
    (made,) = make(model, replace(REQUEST, init=photo, fit=Fit.scale, strength=0.6), on_event=events.append)
    assert made.sigmas == sampling.schedule(12, 3)[1:]
    assert [(event.step, event.total) for event in events if isinstance(event, StepDone)] == [(1, 2), (2, 2)]


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_what_a_mask_keeps_is_kept_to_the_byte(
    model: Path, photo: InputPicture, tmp_path: Path, strength: float
) -> None:
    mask = Image.new("L", (48, 64))
    mask.paste(255, (16, 16, 40, 56))
    mask.save(tmp_path / "mask.png")
    request = replace(REQUEST, init=photo, mask=input_picture(tmp_path / "mask.png"), fit=Fit.scale, strength=strength)
    (made,) = make(model, request)
    old, new, keep = np.asarray(Image.open(photo.path)), np.asarray(made.image), np.asarray(mask) == 0
    assert (new[keep] == old[keep]).all() and not (new[~keep] == old[~keep]).all()


def test_a_second_pass_is_the_first_made_larger(model: Path, tmp_path: Path) -> None:
    """The very picture that comes of drawing, enlarging by hand, and beginning from that file."""
    (small,) = make(model)
    small.image.resize((96, 128), Image.Resampling.LANCZOS).save(tmp_path / "large.png")
    large = input_picture(tmp_path / "large.png")
    by_hand = replace(REQUEST, width=96, height=128, init=large, fit=Fit.scale, strength=0.3)
    (made,) = make(model, replace(REQUEST, hires=2.0, hires_strength=0.3))
    assert made.image.size == (96, 128) and same(made, make(model, by_hand)[0])
    assert made.sigmas == small.sigmas


def test_variations_end_in_both_seeds(model: Path) -> None:
    """At amount 0 the picture of the seed that is varied, at 1 that of the other, in between neither."""
    ends = [make(model, replace(REQUEST, seeds=(9,), around=5, amount=amount))[0] for amount in (0.0, 1.0, 0.4)]
    assert same(ends[0], make(model)[0]) and same(ends[1], make(model, replace(REQUEST, seeds=(9,)))[0])
    assert not same(ends[2], ends[0]) and not same(ends[2], ends[1])


# --------------------------------------------------------------------------------------------------------- behaviour


def test_same_request_same_pixels(model: Path) -> None:
    """Twice alike; and each of several seeds as if alone, in the order asked."""
    both = make(model, replace(REQUEST, seeds=(5, 9)))
    assert [(g.seed, g.index) for g in both] == [(5, 0), (9, 1)]
    assert same(both[0], make(model)[0])
    assert same(both[1], make(model, replace(REQUEST, seeds=(9,)))[0])
    assert not same(both[0], both[1])
    swapped = make(model, replace(REQUEST, seeds=(9, 5, 9)))
    assert same(swapped[0], both[1]) and same(swapped[1], both[0]) and same(swapped[2], both[1])


def test_what_travels_with_a_picture(model: Path) -> None:
    request = replace(REQUEST, seeds=(1, 2))
    for index, made in enumerate(make(model, request)):
        assert made.request == request
        assert (made.index, made.seed) == (index, request.seeds[index])
        assert made.image.size == (48, 64) and made.image.mode == "RGB"
        assert made.sigmas == sampling.schedule(12, 3)
        assert (made.dtype, made.device, made.template_date) == ("float32", "cpu", "2026-05-26")
        assert made.encoder is Encoder.exact
        assert set(made.timings) == {str(phase) for phase in Phase} - {"rewrite", "fold", "load vae"}
        assert made.versions["torch"] == torch.__version__ and "lens" in made.versions
        # An installation without extras has no metadata of any other package, and must finish its pictures too.
        lines = [line for line in requires("lens") or [] if "extra ==" not in line]
        assert set(made.versions) - {"lens"} <= {re.split(r"[^\w-]", line, maxsplit=1)[0] for line in lines}
        assert made.model.name == "tiny"
        whole = hashlib.sha256((model / "vae" / "diffusion_pytorch_model.safetensors").read_bytes()).hexdigest()
        assert made.model.sha256["vae"] == whole
        assert set(made.model.sha256) == {"transformer", "text_encoder", "vae", "tokenizer"}


def test_events_in_order(model: Path) -> None:
    events: list[Event] = []
    make(model, replace(REQUEST, seeds=(1, 2), steps=2), on_event=events.append)

    def short(event: Event) -> tuple[Any, ...]:
        if isinstance(event, PhaseStarted):
            return ("start", event.phase, event.total, event.image)
        if isinstance(event, StepDone):
            assert event.seconds > 0 and event.phase == Phase.denoise
            return ("step", event.step, event.total, event.image)
        assert isinstance(event, PhaseDone)
        assert event.seconds >= 0 and event.peak_bytes > 1_000_000
        return ("done", event.phase, event.image)

    expected: list[tuple[Any, ...]] = []
    for phase in (Phase.load_encoder, Phase.encode):
        expected += [("start", phase, None, None), ("done", phase, None)]
    expected.append(("start", Phase.load_transformer, None, None))
    for phase in (Phase.fold, Phase.load_vae):
        expected += [("start", phase, None, None), ("done", phase, None)]
    expected.append(("done", Phase.load_transformer, None))
    for image in (0, 1):
        expected += [("start", Phase.denoise, 2, image), ("step", 1, 2, image), ("step", 2, 2, image)]
        expected += [("done", Phase.denoise, image)]
        expected += [("start", Phase.decode, None, image), ("done", Phase.decode, image)]
    plan, *events = events
    assert isinstance(plan, PlanMade) and plan.reason is None and plan.plan.device == "cpu"
    assert [short(event) for event in events] == expected


def test_guidance_of_one_runs_one_branch(model: Path, calls: list[tuple[float, int]]) -> None:
    sigmas = sampling.schedule(12, 3)[:-1]
    make(model, replace(REQUEST, guidance=1.0, negative_prompt="blue"))
    assert [sigma for sigma, _ in calls] == pytest.approx(sigmas, rel=1e-6)
    assert len({length for _, length in calls}) == 1 and calls[0][1] > 20
    calls.clear()
    make(model)
    assert [sigma for sigma, _ in calls] == pytest.approx([s for s in sigmas for _ in (0, 1)], rel=1e-6)


@pytest.mark.parametrize("blank", ["", "  ", "\n\t "])
def test_a_blank_negative_prompt_is_no_text(model: Path, calls: list[tuple[float, int]], blank: str) -> None:
    made = make(model, replace(REQUEST, negative_prompt=blank))[0]
    lengths = [length for _, length in calls]
    assert lengths[1::2] == [0, 0, 0] and min(lengths[0::2]) > 20
    assert same(made, make(model)[0])


def test_prompts_change_the_picture(model: Path, calls: list[tuple[float, int]]) -> None:
    base = make(model)[0]
    calls.clear()
    negative = make(model, replace(REQUEST, negative_prompt="blue"))[0]
    assert calls[1][1] > 20  # through the same template, which alone has that many tokens
    assert not same(base, negative)
    assert not same(base, make(model, replace(REQUEST, prompt="a blue circle"))[0])
    assert not same(base, make(model, replace(REQUEST, guidance=2.0))[0])
    assert not same(base, make(model, replace(REQUEST, steps=4))[0])
    assert same(make(model, replace(REQUEST, prompt=""))[0], make(model, replace(REQUEST, prompt=""))[0])


@pytest.mark.parametrize(
    ("polls", "finished", "message"),
    [
        (1, 0, "stopped after step 1 of 3"),
        (2, 0, "stopped after step 2 of 3"),
        (3, 1, "stopped after 1 of 2 pictures"),  # not polled after the last step: that picture is worth keeping
        (4, 1, "stopped after step 1 of 3"),
    ],
)
def test_stop_between_steps(model: Path, polls: int, finished: int, message: str) -> None:
    """`stop` turns true at the given poll: finished pictures were handed out, the rest is cancelled."""
    count = 0

    def stop() -> bool:
        nonlocal count
        count += 1
        return count >= polls

    made: list[Generation] = []
    request = replace(REQUEST, seeds=(5, 9))
    with pytest.raises(CancelledError, match=message) as raised:
        for generation in Engine().draw(resolved_for(model, request), on_event=lambda event: None, stop=stop):
            made.append(generation)  # noqa: PERF402  a list() would lose what came before the error
    assert raised.value.exit_code == 130
    assert len(made) == finished
    if made:
        assert same(made[0], make(model)[0])


def test_stop_after_the_last_picture_is_too_late(model: Path) -> None:
    events: list[Event] = []
    steps_done = lambda: sum(isinstance(e, StepDone) for e in events) >= 3  # noqa: E731
    assert len(make(model, on_event=events.append, stop=steps_done)) == 1


# ---------------------------------------------------------------------------------------------------- what goes wrong


def test_nothing_finite_left(damaged: Path) -> None:
    """A weight of NaN in any network is an error that names the stage, never a black picture."""
    state = transformer_weights()
    state["proj_out.bias"][0] = float("inf")
    write_transformer(damaged, state)
    with pytest.raises(NumericsError, match=r"seed 5: the latent is not finite after 3 steps in float32") as raised:
        make(damaged)
    assert "lens models verify" in str(raised.value.hint)

    write_transformer(damaged, transformer_weights())
    vae = tiny.random_vae()
    vae["decoder.conv_out.bias"][1] = float("nan")
    save_file(vae, damaged / "vae" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(NumericsError, match="picture is not finite"):
        make(damaged)

    save_file(tiny.random_vae(), damaged / "vae" / "diffusion_pytorch_model.safetensors")
    text = tiny.random_text_encoder()
    text["model.layers.0.self_attn.o_proj.bias"][0] = float("nan")
    tiny.write_shards(damaged / "text_encoder", "model", text, shards=3)
    with pytest.raises(NumericsError, match="text features are not finite"):
        make(damaged)


def test_no_memory(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (torch.OutOfMemoryError("tried to allocate 2 GiB\nlong story"), MemoryError()):

        def full(*_: object, error: BaseException = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(loading, "load_for_schedules", full)
        with pytest.raises(OutOfMemoryError, match="not enough memory for 48x64 with tiny") as raised:
            make(model)
        assert raised.value.exit_code == 6 and "\n" not in str(raised.value)


# --------------------------------------------------------------------------------------------------- dtype and device


def files_of(model: Path, dtype: torch.dtype, tmp_path: Path) -> ModelFiles:
    folder = Path(shutil.copytree(model, tmp_path / str(dtype)))
    state = {name: tensor.to(dtype) for name, tensor in transformer_weights().items()}
    state["img_in.bias"] = state["img_in.bias"].float()  # a stray float32 tensor does not decide
    write_transformer(folder, state)
    return resolve_model(str(folder))


def test_dtype_rules(model: Path, tmp_path: Path) -> None:
    """auto: bfloat16 on an accelerator; on a CPU what the transformer is stored in; a wish is obeyed."""
    wide, narrow = files_of(model, torch.float32, tmp_path), files_of(model, torch.bfloat16, tmp_path)
    assert choose_arithmetic(DType.auto, "cpu", wide) is DType.float32
    assert choose_arithmetic(DType.auto, "cpu", narrow) is DType.bfloat16
    for device in ("cuda", "mps"):
        assert {choose_arithmetic(DType.auto, device, files) for files in (wide, narrow)} == {DType.bfloat16}
    for files in (wide, narrow):
        for device in ("cpu", "cuda"):
            assert choose_arithmetic(DType.float32, device, files) is DType.float32
            assert choose_arithmetic(DType.bfloat16, device, files) is DType.bfloat16
    assert "float16" not in list(DType)


def test_bfloat16_runs_and_says_so(model: Path) -> None:
    exact, rounded = make(model)[0], make(model, dtype=DType.bfloat16)[0]
    assert rounded.dtype == "bfloat16"
    assert same(rounded, make(model, dtype=DType.bfloat16)[0])
    # The same noise, so the same picture but for rounding.
    assert np.abs(pixels(exact.image) - pixels(rounded.image)).mean() < 8


def test_device_names() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
    for name in ("tpu", "cuda:99", "gpu 0", "", "meta"):
        with pytest.raises(UsageError):
            choose_device(name)
