"""The memory plan's arithmetic: sizes worked out by hand, the placement of each card, and that more is never slower.

The hand-worked sizes are those of the published parameters: 56.6 million weights in a block's linears, 48 blocks,
and modulation folded away; 5.49 GB in bfloat16, 2.9 in Q8_0, 1.6 at 4.5 bits.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from backend.errors import OutOfMemoryError, UsageError
from backend.memory import footprint
from backend.memory.footprint import GB, Job, weights
from backend.memory.plan import (
    PROFILES,
    EncoderPlace,
    MachineMemory,
    MemoryPlan,
    ModelBytes,
    Place,
    find_profile,
    make_plan,
    parse_bytes,
    step_down,
)
from backend.memory.resident import ResidentBytes, encodes_beside, resident_bytes
from backend.presets import LENS, NANO
from backend.types import Phase

JOB = Job(params=LENS, width=1024, height=1024, steps=20, guided=True, text_tokens=415, itemsize=2)
MODEL = ModelBytes(job=JOB, held="bf16", mapped=True)
H200 = MachineMemory(device="cuda", card=141 * GB, card_free=140 * GB, host_free=128 * GB)
NO_GPU = MachineMemory(device="cpu", host_free=32 * GB)


def nano(width: int = 256) -> ModelBytes:
    job = Job(params=NANO, width=width, height=width, steps=20, guided=True, text_tokens=64, itemsize=4)
    return ModelBytes(job=job, held="float32", mapped=False)


def sized(model: ModelBytes, width: int, height: int) -> ModelBytes:
    return replace(model, job=replace(model.job, width=width, height=height))


def packed(bits: float) -> ModelBytes:
    return replace(MODEL, job=replace(JOB, block_bits=bits), held=f"{bits} bits")


# ------------------------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize(
    ("bits", "gigabytes"),
    [(None, 5.47), (8.0, 2.76), (8.5, 2.93), (4.5, 1.57), (4.13, 1.44)],
    ids=["bf16", "fp8", "Q8_0", "4.5 bits", "NF4"],
)
def test_transformer_without_modulation(bits: float | None, gigabytes: float) -> None:
    """2 x (7.08 + 2.36 + 18.87) M weights a block; 1.77 MB of folded modulation a step."""
    found = weights(packed(bits).job if bits else JOB)
    assert found.outer + found.blocks == pytest.approx(gigabytes * GB, rel=0.003)
    assert found.folded / 20 == pytest.approx(1.77e6, rel=0.005)


def test_block_and_autoencoder() -> None:
    assert weights(JOB).block == pytest.approx(113.2e6, rel=0.002)
    assert weights(replace(JOB, itemsize=4)).block == pytest.approx(226.5e6, rel=0.002)
    assert weights(JOB).vae == 2 * 84_046_115  # counted by diffusers' own class for the published parameters
    assert weights(nano().job).vae == 4 * 1_721_683


# ------------------------------------------------------------------------------------------------------------ profiles

# At 1024 x 1024 in bfloat16, and the most that the card may take (GB), by hand: 5.5 of weights,
# 0.5 of context and 0.3 of activations leave no room on 6 GB, room for a few strips on 8, and for all on 12.
EXPECTED = {
    "4GB": (Place.pinned, EncoderPlace.gpu, 3.5),
    "6GB": (Place.pinned, EncoderPlace.gpu, 4.5),
    "8GB": (Place.resident, EncoderPlace.gpu, 7.0),
    "12GB": (Place.resident, EncoderPlace.gpu, 8.0),
    "16GB": (Place.resident, EncoderPlace.gpu, 11.0),
    "24GB": (Place.resident, EncoderPlace.gpu, 11.0),
    "80GB": (Place.resident, EncoderPlace.gpu, 18.0),
    "141GB": (Place.resident, EncoderPlace.gpu, 18.0),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_each_card(name: str) -> None:
    place, reader, most = EXPECTED[name]
    for plan in (make_plan(MODEL, H200, profile=name), make_plan(MODEL, H200, vram=find_profile(name).card)):
        assert (plan.profile, plan.place, plan.reader) == (name, place, reader)
        assert plan.fits and plan.peak.most <= most * GB
        assert plan.streamed == (place is not Place.resident)
        assert plan.decode.recomputes == (name == "8GB")  # streamed blocks make room for the VAE
        assert bool(plan.graphs) == (find_profile(name).card >= 12 * GB)
    assert make_plan(MODEL, H200, vram=find_profile(name).card).cap == find_profile(name).card
    assert make_plan(MODEL, H200, profile=name).cap is None


def test_every_profile_has_a_row_above() -> None:
    assert [row.name for row in PROFILES] == ["cpu", *EXPECTED]
    assert all(a.card < b.card and a.share <= b.share for a, b in itertools.pairwise(PROFILES))


def test_four_bits_need_three_and_a_half() -> None:
    for bits in (4.5, 4.13):
        plan = make_plan(packed(bits), H200, vram=4 * GB)
        assert plan.place is Place.resident and plan.peak.most <= 3.5 * GB
    assert make_plan(packed(8.5), H200, vram=6 * GB).place is Place.resident
    assert make_plan(packed(8.5), H200, vram=4 * GB).place is Place.pinned


def test_small_models_are_resident_everywhere() -> None:
    for row in PROFILES[1:]:
        plan = make_plan(nano(), H200, vram=row.card)
        assert (plan.place, plan.decode.recomputes) == (Place.resident, False)
        assert plan.peak.most < 1 * GB


def test_no_gpu() -> None:
    plan = make_plan(MODEL, NO_GPU)
    assert (plan.profile, plan.place, plan.reader) == ("cpu", Place.mapped, EncoderPlace.cpu)
    assert plan.host < 3 * GB < plan.peak.most  # the mapped file counts as resident but is nobody's
    small = make_plan(MODEL, replace(NO_GPU, host_free=plan.host - 1))
    assert small.decode.work > plan.decode.work and small.host < plan.host
    converted = make_plan(replace(MODEL, mapped=False), NO_GPU)
    assert converted.place is Place.resident and converted.host > 5.4 * GB


def test_llama_is_only_taken_when_asked() -> None:
    readers = {make_plan(MODEL, H200, vram=row.card).reader for row in PROFILES[1:]}
    assert readers == {EncoderPlace.gpu}
    assert make_plan(replace(MODEL, llama=True), H200, vram=8 * GB).reader is EncoderPlace.llama
    assert make_plan(replace(MODEL, llama=True), NO_GPU).reader is EncoderPlace.llama


def test_short_of_host_memory() -> None:
    """Pinned blocks take power-of-two pieces: 48 x 128 MiB. Less: from the file, where it holds them as they are."""
    at = replace(H200, host_free=6 * GB)
    assert make_plan(MODEL, replace(at, host_free=8 * GB), vram=6 * GB).place is Place.pinned
    assert make_plan(MODEL, at, vram=6 * GB).place is Place.mapped
    with pytest.raises(OutOfMemoryError, match="even in the leanest plan"):
        make_plan(replace(MODEL, mapped=False), at, vram=6 * GB)


# ------------------------------------------------------------------------------------------------------------ monotone

SPEED = (Place.mapped, Place.pinned, Place.resident)


def rank(plan: MemoryPlan) -> tuple[bool, int, float, int]:
    """Larger is faster."""
    return plan.device != "cpu", SPEED.index(plan.place), -plan.decode.work, plan.graphs


@pytest.mark.parametrize("model", [MODEL, packed(4.5), nano(), sized(MODEL, 1440, 1440), sized(MODEL, 512, 512)])
def test_more_memory_is_never_slower(model: ModelBytes) -> None:
    last = None
    for tenths in range(8, 300):
        try:
            plan = make_plan(model, H200, vram=tenths * GB // 10)
        except OutOfMemoryError:
            assert last is None, "a smaller card managed"
            continue
        assert plan.peak.most <= plan.budget < tenths * GB // 10
        assert last is None or rank(plan) >= rank(last)
        last = plan
    assert last is not None and last.place is Place.resident and not last.decode.recomputes


def test_more_host_memory_is_never_slower() -> None:
    last = None
    for gigabytes in range(1, 20):
        plan = make_plan(MODEL, replace(H200, host_free=gigabytes * GB), vram=6 * GB)
        assert last is None or rank(plan) >= rank(last)
        last = plan


def test_free_memory_counts_not_the_size_of_the_card() -> None:
    card = MachineMemory(device="cuda", card=8_589_934_592, card_free=8_000_000_000, host_free=32 * GB)
    assert make_plan(MODEL, card).profile == "8GB"
    assert make_plan(MODEL, card).place is Place.resident
    busy = make_plan(MODEL, replace(card, card_free=5 * GB))
    assert (busy.profile, busy.place) == ("8GB", Place.pinned)


def test_bigger_pictures_need_more() -> None:
    sizes = [256, 512, 768, 1024, 1440, 2048]
    for place in ("6GB", "24GB"):
        peaks = [make_plan(sized(MODEL, n, n), H200, profile=place).peak for n in sizes]
        assert all(a.denoise < b.denoise for a, b in itertools.pairwise(peaks))
    for device in ("cpu", "cuda"):
        assert footprint.denoising(replace(JOB, width=512), device) < footprint.denoising(JOB, device)


# ----------------------------------------------------------------------------------------------------------- step down


def test_step_down() -> None:
    plan = make_plan(MODEL, H200, vram=24 * GB)
    decode = step_down(MODEL, H200, plan, Phase.decode)
    assert decode is not None and plan.graphs and not decode.graphs  # 0.2 GB of buffers
    decode = step_down(MODEL, H200, decode, Phase.decode)
    assert decode is not None and decode.place is Place.resident and decode.decode.work > plan.decode.work
    assert decode.peak.decode < plan.peak.decode
    denoise = step_down(MODEL, H200, decode, Phase.denoise)
    assert denoise is not None and denoise.place is Place.pinned
    encode = step_down(MODEL, H200, plan, Phase.encode)
    assert encode is not None and encode.reader is EncoderPlace.cpu
    assert (denoise.cap, denoise.profile) == (plan.cap, plan.profile)


def test_step_down_leaves_the_host_its_memory() -> None:
    """What cannot be pinned is read from its file; and nothing is pinned that the host has no room for."""
    pinned = make_plan(MODEL, H200, vram=6 * GB)
    assert pinned.place is Place.pinned and step_down(MODEL, H200, pinned, Phase.denoise) is None
    mapped = step_down(MODEL, H200, pinned, Phase.denoise, on_host=True)
    assert mapped is not None and mapped.place is Place.mapped and mapped.host < pinned.host / 5
    narrow = replace(H200, host_free=6 * GB)  # 48 x 128 MiB are more
    leaner = step_down(MODEL, narrow, make_plan(MODEL, narrow, vram=24 * GB), Phase.denoise)
    assert leaner is not None and leaner.place is Place.mapped
    converted = replace(MODEL, mapped=False)
    last = step_down(converted, narrow, make_plan(converted, narrow, vram=24 * GB), Phase.decode)
    while last is not None:
        assert last.place is Place.resident
        last = step_down(converted, narrow, last, Phase.decode)


def test_step_down_ends() -> None:
    for start in (make_plan(MODEL, H200), make_plan(MODEL, NO_GPU)):
        plan, seen = start, 0
        while (
            following := step_down(MODEL, H200 if start.device == "cuda" else NO_GPU, plan, Phase.decode)
        ) is not None:
            assert following.peak.decode < plan.peak.decode
            plan, seen = following, seen + 1
        assert 0 < seen < 10


# ---------------------------------------------------------------------------------------------------- between requests


def test_what_stays_between_requests() -> None:
    """By hand: 5.49 GB of transformer (with 20 steps of modulation) and 0.17 of VAE, where the plan puts them."""
    plan = make_plan(MODEL, H200, vram=12 * GB)
    assert plan.place is Place.resident
    roomy = resident_bytes(MODEL, replace(plan, graphs=0))
    assert roomy.card == pytest.approx(5.51e9 + 0.168e9, rel=0.003) and roomy.host == 0
    pool = resident_bytes(MODEL, replace(plan, graphs=2)).card - roomy.card
    assert pool == footprint.denoising(JOB, "cuda")  # a graph's own tensors
    pinned = resident_bytes(MODEL, make_plan(MODEL, H200, vram=6 * GB))
    assert pinned.host == 48 * 2**27 + 2 * 84_046_115 and pinned.card < 0.2e9
    on_cpu = make_plan(MODEL, NO_GPU)
    assert resident_bytes(MODEL, on_cpu).host < 0.3e9  # its blocks are pages of their file
    own = resident_bytes(replace(MODEL, mapped=False), on_cpu)
    assert own.host == pytest.approx(5.51e9 + 0.168e9, rel=0.003) and own.card == 0 and own.total == own.host


def test_what_stays_is_free_for_the_next_plan() -> None:
    """A warm engine plans as an empty machine would."""
    for machine in (H200, NO_GPU, replace(H200, card=8 * GB, card_free=7 * GB)):
        plan = make_plan(MODEL, machine)
        stays = resident_bytes(MODEL, plan)
        left = replace(machine, card_free=machine.card_free - stays.card, host_free=machine.host_free - stays.host)
        assert stays.given_back(left) == machine and make_plan(MODEL, stays.given_back(left)) == plan
    assert ResidentBytes(card=5 * GB, host=0).given_back(H200).card_free == H200.card  # never more than there is


def test_a_prompt_is_encoded_beside_the_networks_where_both_fit() -> None:
    for card, beside in ((24 * GB, True), (6.5 * GB, False)):
        plan = make_plan(MODEL, replace(H200, card=round(card), card_free=round(card)))
        resident = ResidentBytes(card=round(5.7 * GB), host=0)
        assert encodes_beside(MODEL, plan, resident) is beside, plan.line()
    on_cpu = make_plan(MODEL, NO_GPU)
    assert encodes_beside(MODEL, on_cpu, ResidentBytes(card=0, host=30 * GB))
    assert not encodes_beside(MODEL, on_cpu, ResidentBytes(card=0, host=32 * GB))


def test_a_plan_is_tight_where_its_phases_do_not_fit_side_by_side() -> None:
    assert not make_plan(MODEL, H200).tight and not make_plan(MODEL, NO_GPU).tight
    assert make_plan(MODEL, H200, vram=8 * GB).tight and make_plan(MODEL, H200, vram=4 * GB).tight


# -------------------------------------------------------------------------------------------------------------- errors


def test_nothing_fits() -> None:
    with pytest.raises(
        OutOfMemoryError, match=r"1024x1024 needs about \d.*GB of memory on the GPU.*; 875 MB"
    ) as raised:
        make_plan(MODEL, H200, vram=1 * GB)
    assert raised.value.exit_code == 6 and "--device cpu" in str(raised.value.hint)
    with pytest.raises(OutOfMemoryError, match=r"needs about \d.*of memory even in the leanest plan; 600 MB") as raised:
        make_plan(MODEL, replace(NO_GPU, host_free=600_000_000))
    assert "smaller picture" in str(raised.value.hint)
    # A profile is a person's word: taken without asking the machine.
    assert not make_plan(sized(MODEL, 8192, 8192), H200, profile="4GB").fits


def test_impossible_wishes() -> None:
    for machine, wish, message in (
        (H200, {"profile": "8GB", "vram": 8 * GB}, "exclude each other"),
        (H200, {"profile": "9GB"}, "unknown profile '9GB'"),
        (NO_GPU, {"vram": 8 * GB}, "on the CPU"),
        (NO_GPU, {"profile": "8GB"}, "on the CPU"),
        (replace(H200, card=8 * GB), {"vram": 12 * GB}, "more than the card has: 8.0 GB"),
    ):
        with pytest.raises(UsageError, match=message):
            make_plan(MODEL, machine, **wish)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GB", 8 * GB), ("8 gb", 8 * GB), ("8g", 8 * GB), ("7.5GB", 7_500_000_000), ("6GiB", 6 * 2**30),
     ("900MB", 900_000_000), ("900 MiB", 900 * 2**20), ("0.141TB", 141 * GB)],
)  # fmt: skip
def test_amounts(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "8", "GB", "-8GB", "0GB", "8XB", "8GB8", "eight", "1e3GB", "8,5GB", "99999TB", "nan"]
)
def test_no_amounts(text: str) -> None:
    with pytest.raises(UsageError, match="is no amount of memory") as raised:
        parse_bytes(text)
    assert "8GB" in str(raised.value.hint)


def test_profile_names() -> None:
    assert find_profile("8gb") is find_profile("8 GB") is find_profile("8GB")
    assert find_profile("CPU").card == 0
    with pytest.raises(UsageError, match="unknown profile '7GB'") as raised:
        find_profile("7GB")
    assert "6GB, 8GB" in str(raised.value.hint)


# --------------------------------------------------------------------------------------------------------------- words


def test_one_line() -> None:
    line = make_plan(MODEL, H200, vram=8 * GB).line()
    assert line.startswith("8GB · transformer resident bf16 5.4 GB · encoder a layer at a time on the GPU · VAE in ")
    assert line.endswith(" GB") and "· peak about " in line and "\n" not in line
    assert "streamed from pinned memory, 3 blocks on the card" in make_plan(MODEL, H200, vram=6 * GB).line()
    assert "in its mapped file" in make_plan(MODEL, NO_GPU).line()


def test_data_holds_the_numbers() -> None:
    plan = make_plan(MODEL, H200, vram=8 * GB)
    data = plan.data()
    assert data["peak_bytes"] == plan.peak.most and data["line"] == plan.line() and data["cap"] == 8 * GB
    assert set(plan.pixels()) == {"encoder_on", "vae_strips"}
