"""What `lens bench` measures with: spreads, the memory meter, random weights, and the comparison's bookkeeping.

Expected values are arithmetic on a few numbers, or what the system itself says. Times are never compared with times.
"""

from __future__ import annotations

import itertools
import sys

import pytest
import torch

from backend.bench import random_weights, reference
from backend.bench.compare import Race, Widened, distance
from backend.bench.timing import Clock, Peak, Stopwatch, TimeSpread, Took, added, timed
from backend.errors import NumericsError
from backend.events import PhaseDone, PhaseStarted, StepDone
from backend.model.tensors import transformer_shapes
from backend.params import DiTParams
from backend.types import Phase
from tests.backend.tiny_weights import DIT, VAE

CPU = torch.device("cpu")


def test_spread_and_sums_run_by_run() -> None:
    spread = TimeSpread((3.0, 1.0, 2.0, 10.0))
    assert (spread.median, spread.low, spread.high) == (2.5, 1.0, 10.0)
    # The third run has no partner: it is left out, not counted with half of its time.
    assert added([TimeSpread((1.0, 2.0, 3.0)), TimeSpread((10.0, 20.0))]).samples == (11.0, 22.0)


def test_ratios_are_those_of_neighbouring_runs() -> None:
    race = Race((Took(1.0, 4.0), Took(2.0, 4.0)), (Took(3.0, 8.0), Took(4.0, 16.0)))
    assert race.ratios.samples == (3.0, 2.0)
    assert race.processor_ratios.samples == (2.0, 4.0)
    assert (race.ours.samples, race.reference.samples) == ((1.0, 2.0), (3.0, 4.0))


def test_clock_tells_waiting_from_computing(monkeypatch: pytest.MonkeyPatch) -> None:
    from backend.bench import timing

    wall, processor = itertools.count(100.0, 5.0), itertools.count(7.0, 2.0)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(wall))
    monkeypatch.setattr(timing.time, "process_time", lambda: next(processor))
    assert timed(CPU, lambda: "x") == ("x", Took(5.0, 2.0))
    assert Clock(CPU).read() == Took(5.0, 2.0)
    assert Took(5.0, 2.0).without(Took(1.0, 0.5)) == Took(4.0, 1.5)


def test_a_stopwatch_reads_an_engines_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run by run, a part within its phase; a part is no phase whose memory begins anew."""
    from backend.bench import timing

    ticks = itertools.count(0.0, 1.0)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(ticks))
    monkeypatch.setattr(timing.time, "process_time", lambda: 0.0)
    watch, resets, peaks = Stopwatch(CPU), list[int](), iter([10, 30, 20, 5])
    monkeypatch.setattr(watch.peak, "reset", lambda: resets.append(1))
    monkeypatch.setattr(watch.peak, "read", lambda: next(peaks))

    def done(phase: Phase) -> PhaseDone:
        return PhaseDone(phase=phase, seconds=0.0, peak_bytes=0)

    watch(PhaseStarted(phase=Phase.load_transformer))
    watch(PhaseStarted(phase=Phase.load_vae))
    watch(done(Phase.load_vae))
    watch(done(Phase.load_transformer))
    for steps in ((0.5, 0.25), (0.125,)):
        watch(PhaseStarted(phase=Phase.denoise))
        for seconds in steps:
            watch(StepDone(phase=Phase.denoise, step=1, total=2, image=0, seconds=seconds))
        watch(done(Phase.denoise))
    assert {phase: [took.wall for took in runs] for phase, runs in watch.took.items()} == {
        Phase.load_vae: [1.0], Phase.load_transformer: [3.0], Phase.denoise: [1.0, 1.0]
    }  # fmt: skip
    assert watch.most == {Phase.load_vae: 10, Phase.load_transformer: 30, Phase.denoise: 20}
    assert watch.steps == [[0.5, 0.25], [0.125]] and len(resets) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process reset its high-water mark")
def test_peak_is_that_of_the_phase_alone() -> None:
    peak = Peak(CPU)
    if peak.since_start:
        pytest.skip("this system refuses /proc/self/clear_refs")
    before = peak.read()
    large = torch.ones(50_000_000)  # 200 MB
    with_large = peak.read()
    del large
    peak.reset()
    after = peak.read()
    assert 190e6 < with_large - before < 300e6
    assert abs(after - before) < 50e6


def test_random_weights_are_drawn_alike_twice_and_apart_by_name() -> None:
    table = random_weights.transformer_table(DIT, torch.bfloat16, CPU)
    assert {name: entry.shape for name, entry in table.entries.items()} == transformer_shapes(DIT)
    first, again = (table.tensor("transformer_blocks.0.attn.img_qkv.weight", torch.bfloat16) for _ in range(2))
    assert first.dtype is torch.bfloat16 and torch.equal(first, again)
    other = table.tensor("transformer_blocks.1.attn.img_qkv.weight", torch.bfloat16)
    assert not torch.equal(first, other)
    # Whoever reads it wider reads the same numbers: a packed linear and the reference start from one weight.
    wide = table.tensor("transformer_blocks.0.attn.img_qkv.weight", torch.float32)
    assert wide.dtype is torch.float32 and torch.equal(wide, first.float())
    assert float(wide.std()) == pytest.approx(DIT.dim**-0.5, rel=0.05)
    norm = table.tensor("transformer_blocks.0.img_norm1.weight", torch.float32)
    assert 0.5 < float(norm.min()) and float(norm.max()) < 1.5


def test_random_networks_have_the_published_sizes_without_being_drawn() -> None:
    table = random_weights.transformer_table(DiTParams(), torch.bfloat16, CPU)
    assert len(table.entries) == 1264
    assert sum(torch.Size(entry.shape).numel() for entry in table.entries.values()) == 4_104_225_152


def test_random_pictures_stay_of_order_one() -> None:
    """Finite and not vanishing through the reference, so that an error means something."""
    params = DiTParams(num_layers=12, attention_head_dim=64, num_attention_heads=2, enc_hidden_dim=32)
    table = random_weights.transformer_table(params, torch.float32, CPU)
    lens = reference.ReferenceLens({name: table.tensor(name, torch.float32) for name in table.entries}, params)
    text = random_weights.text_features(params, 5, torch.float32, CPU)
    noise = torch.randn(1, 16, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        latent = reference.denoise(lens, noise, reference.pad_text(text, None), (1.0, 0.5, 0.0), 5.0, (4, 4))
    assert 0.3 < float(latent.std()) < 10
    vae_table = random_weights.vae_table(VAE, torch.float32, CPU)
    vae = reference.build_decoder({name: vae_table.tensor(name, torch.float32) for name in vae_table.entries}, VAE)
    with torch.no_grad():
        assert 0.01 < float(reference.decode(vae, latent, (4, 4)).std()) < 100


def test_distance_is_relative_and_refuses_what_is_not_finite() -> None:
    a, b = torch.tensor([1.0, 2.0, 5.0]), torch.tensor([1.0, 2.0, 4.0])
    got = distance(a, b)
    assert got.maximum == pytest.approx(1 / 4)
    assert got.rms == pytest.approx((1 / 3) ** 0.5 / ((1 + 4 + 16) / 3) ** 0.5)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(NumericsError):
            distance(torch.tensor([1.0, bad]), torch.tensor([1.0, 2.0]))
        with pytest.raises(NumericsError):
            distance(torch.tensor([1.0, 2.0]), torch.tensor([1.0, bad]))


def test_widened_keeps_no_copy() -> None:
    held = {"a": torch.tensor([1.5], dtype=torch.bfloat16)}
    wide = Widened(held)
    assert wide["a"].dtype is torch.float32 and float(wide["a"]) == 1.5
    assert wide.get("b") is None and list(wide) == ["a"] and len(wide) == 1
    held["a"] = torch.tensor([2.5], dtype=torch.bfloat16)
    assert float(wide["a"]) == 2.5
