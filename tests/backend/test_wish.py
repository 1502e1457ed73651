"""A wish on all its ways: flags, record, command line, JSON, and over one another.

Why it can be trusted: hypothesis draws the wishes, the words go through Typer's own parser, the record through JSON
text; what comes out is compared with what went in, never with a second writing of the table.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any, get_origin

import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from backend.errors import LensError
from backend.events import Generation
from backend.picture import metadata
from backend.requests import build_request
from backend.settings import Settings, keys
from backend.types import Expander, GenerationRequest, LoraMode, LoraUse, ModelIdentity, Sampler
from backend.wish import ROWS, USUAL, Wish, rows_of
from backend.wishes.command_words import command_words, wish_of
from lens_cli.lazy import build
from lens_cli.options import takes_wish
from lens_cli.terminal.wording import command_line

TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=12)
PROMPT = TEXT.map(str.strip).filter(bool)
NUMBER = st.floats(0, 100, allow_nan=False).map(lambda value: value + 0.0)  # no -0.0, which "0" is printed for
# The same wishes in every run: a suite that fails now and then teaches people to run it again.
QUICK = settings(
    max_examples=60, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Any value of a row's type, as a person can type it."""
    if get_origin(kind) is tuple:
        return st.lists(TEXT, min_size=1, max_size=3).map(tuple)
    plain = {str: TEXT, int: st.integers(-5, 2**70), float: NUMBER, bool: st.booleans()}
    return plain[kind] if kind in plain else st.sampled_from(kind)


def wishes(*names: str) -> st.SearchStrategy[Wish]:
    """Wishes of any of these fields, each given or not."""
    some = {name: st.none() | values(ROWS[name].kind) for name in names}
    if "loras" in some:  # as a person types them, or as a picture records them
        some["loras"] |= st.lists(st.builds(LoraUse, path=TEXT, sha256=TEXT, scale=NUMBER), min_size=1).map(tuple)
    return st.fixed_dictionaries({}, optional=some).map(lambda given: Wish(**given))


TYPED = [row.name for row in rows_of("gen")]

heard: list[Wish] = []


@takes_wish("gen")
def hear(*, words: Annotated[list[str] | None, typer.Argument()] = None, prompt: str | None = None, wish: Wish) -> None:
    heard.append(replace(wish, prompt=" ".join(words) if words else prompt))


GEN = build("gen", hear)


def typed(words: list[str]) -> Wish:
    """What a command that takes the flags of `lens gen` hears of these words."""
    GEN.main(words, standalone_mode=False)
    return heard.pop()


# -------------------------------------------------------------------------------------------------------- command line


@QUICK
@given(wishes(*TYPED), st.none() | PROMPT)
def test_what_is_printed_is_typed_back(wish: Wish, prompt: str | None) -> None:
    """Prompts and negative prompts that begin with hyphens, empty lists, long numbers: the same wish."""
    wish = replace(
        wish,
        prompt=prompt,
        no_metadata=wish.no_metadata or None,
        no_history=wish.no_history or None,
        open=wish.open or None,
    )  # there is no flag for "with"
    loras = tuple(use.text if isinstance(use, LoraUse) else use for use in wish.loras) if wish.loras else None
    assert typed(command_words(wish)) == replace(wish, loras=loras)


def test_the_words_of_a_wish() -> None:
    wish = Wish(prompt="-a", negative_prompt="", seeds=("5..7", "-1"), guidance=2.5, compiled=False, show=True)
    assert command_words(wish) == [
        *["--prompt=-a", "--guidance", "2.5", "--negative-prompt=", "--seed", "5..7", "--seed", "-1"],
        *["--no-compile", "--show"],
    ]
    assert command_words(Wish()) == []


# -------------------------------------------------------------------------------------------- request, record and JSON

REQUESTS = st.builds(
    lambda size, **more: GenerationRequest(width=size[0], height=size[1], **more),
    size=st.sampled_from([(128, 128), (336, 192), (400, 400)]),
    prompt=PROMPT,
    negative_prompt=PROMPT | st.just(""),
    model=st.just("nano"),
    seeds=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=4).map(tuple),
    steps=st.integers(1, 250),
    guidance=st.floats(1.5, 100),  # at 1 the negative prompt goes
    rl_strength=st.sampled_from([0.0, 0.25, 1.0, 1.5]),  # this model has an adapter of its own
    compiled=st.booleans(),
    **{name: values(ROWS[name].kind) for name in ("sampler", "dtype", "encoder", "quant")},
    device=st.sampled_from(["auto", "cuda:1"]),
    vram=st.none() | st.integers(2 * 10**9, 10**12),
)
SETTINGS = wishes("sampler", "dtype", "encoder", "quant", "lora_mode").flatmap(
    lambda wish: st.builds(
        replace,
        st.just(wish),
        steps=st.none() | st.integers(1, 250),
        guidance=st.none() | st.floats(0, 100),
        negative_prompt=st.none() | PROMPT,
        ar=st.sampled_from([None, "16:9"]),
        base=st.sampled_from([None, 128, 1024]),
        loras=st.sampled_from([None, ("sky=0.5",)]),
    )
)


@QUICK
@given(REQUESTS, SETTINGS)
def test_a_request_comes_back_under_any_settings(request: GenerationRequest, chosen: Wish) -> None:
    """From its wish, and from the last line of a run, as it would be typed: nothing that was set bends it."""
    under = Settings(generate=chosen)
    assert build_request(wish_of(request), under, pytest.fail).request == request
    program, command, *words = shlex.split(command_line(request, chosen))
    assert (program, command) == ("lens", "gen")
    assert build_request(typed(words), under, pytest.fail).request == request


@QUICK
@given(REQUESTS, SETTINGS, st.none() | st.builds(Expander, **{
    **dict.fromkeys(("kind", "model", "system_prompt", "instructions_sha256", "effort"), TEXT),
    "temperature": st.none() | NUMBER, "seed": st.none() | st.integers(),
}))  # fmt: skip
def test_a_picture_s_record_gives_its_request_back(
    request: GenerationRequest, chosen: Wish, expander: Expander | None
) -> None:
    """Through JSON, and under any settings but those of the memory plan, which is this machine's affair."""
    request = replace(
        request, seeds=request.seeds[:1], vram=None, original_prompt=expander and "before", expander=expander
    )
    text = metadata.dump_record(metadata.make_record(finished(request), pixels=""))
    wish = metadata.wish_from(metadata.load_record(text, "a.png"), "a.png")
    assert json.loads(text)["sampler"] in ("FlowMatchEuler", "DPM++ 2M")
    again = build_request(wish, Settings(generate=chosen), pytest.fail).request
    assert replace(again, encoder=request.encoder, quant=request.quant) == request
    assert (again.encoder, again.quant) == (finished(request).encoder, finished(request).quant or "auto")


def finished(request: GenerationRequest) -> Generation:
    """The picture of a request in which all ran as it was asked for."""
    exact = request.encoder if request.encoder != "auto" else "exact"
    return Generation(
        image=Image.new("RGB", (1, 1)), request=request, index=0, seed=request.seeds[0],
        model=ModelIdentity(name=request.model), sigmas=(1.0, 0.0), dtype=str(request.dtype), device="cpu",
        encoder=type(request.encoder)(exact), quant=None if request.quant in ("auto", "none") else request.quant,
        compiled=request.compiled, template_date="2026-05-26", timings={}, versions={},
    )  # fmt: skip


def test_loras_are_found_again_by_their_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record knows base name and hash; the mode is the one that all ran in."""
    from backend.lora.names import lora_sha256

    monkeypatch.chdir(tmp_path)
    Path("sky.safetensors").write_bytes(b"not opened, only hashed")
    use = LoraUse(path="sky.safetensors", sha256=lora_sha256(Path("sky.safetensors")), scale=0.5, mode=LoraMode.live)
    wish = Wish(prompt="a", loras=(use,), lora_mode=LoraMode.live)
    request = build_request(wish, Settings(generate=Wish(loras=("other",))), pytest.fail).request
    assert request.loras == (replace(use, path=str(tmp_path / "sky.safetensors")),)
    with pytest.raises(LensError, match="SHA-256 0"):
        build_request(replace(wish, loras=(replace(use, sha256="0"),)), Settings(), pytest.fail)


def test_a_record_from_before_a_choice() -> None:
    """Pictures are older than every row that has a usual value; such a row is then what it was before it was there."""
    whole = metadata.make_record(finished(build_request(Wish(prompt="a"), Settings(), pytest.fail).request), pixels="")
    old = {key: whole[key] for key in ("prompt", "model", "seed", "width", "height", "steps", "guidance")}
    wish = metadata.wish_from(old, "a.png")
    # None is a model without an adapter in a request; a picture from before there was one is made without it.
    usual = USUAL | {"rl_strength": 0.0}
    assert {name: getattr(wish, name) for name in usual if ROWS[name].record} == {
        name: value for name, value in usual.items() if ROWS[name].record
    }
    assert wish.sampler is Sampler.euler
    for key in old:
        with pytest.raises(LensError, match=f"damaged: {key}"):
            metadata.wish_from({name: value for name, value in old.items() if name != key}, "a.png")


# ----------------------------------------------------------------------------------------------------- one over another


@QUICK
@given(wishes(*ROWS.keys() - {"expander"}), wishes(*ROWS.keys() - {"expander"}))
def test_overridden_by(one: Wish, other: Wish) -> None:
    """What the other gives holds; nothing is made up; the empty wish changes nothing, on either side."""
    both = one.overridden_by(other)
    assert both.given().items() >= other.given().items()
    assert both.given().items() <= {**one.given(), **other.given()}.items()
    assert one.overridden_by(Wish()) == Wish().overridden_by(one) == one.overridden_by(one) == one
    assert both.overridden_by(other) == both


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        (Wish(ar="1:1", base=256), Wish(size="64x64"), Wish(size="64x64")),
        (Wish(width=64, height=32), Wish(ar="1:1"), Wish(ar="1:1")),
        (Wish(width=64, height=32), Wish(width=96), Wish(width=96)),  # which will be refused: 96 by what?
        (Wish(ar="1:1"), Wish(base=256), Wish(ar="1:1", base=256)),
        (Wish(vram="8GB"), Wish(profile="cpu"), Wish(profile="cpu")),
        (Wish(prompt="a", original_prompt="b"), Wish(prompt="c"), Wish(prompt="c")),
        (Wish(steps=3, negative_prompt="x"), Wish(negative_prompt=""), Wish(steps=3, negative_prompt="")),
    ],
)
def test_what_contradicts_is_set_aside(one: Wish, other: Wish, both: Wish) -> None:
    assert one.overridden_by(other) == both


# ------------------------------------------------------------------------------------------------------------ the table


def test_the_table_fits_the_request_and_the_settings() -> None:
    """Every field of a request can be wished for under the same name; the settings are the rows that say so."""
    assert {item.name for item in fields(GenerationRequest)} <= set(ROWS) == {item.name for item in fields(Wish)}
    assert [key for key, _ in keys() if key.startswith("generate.")] == [
        f"generate.{row.name}" for row in ROWS.values() if row.setting
    ]
    flags = [flag for row in ROWS.values() for flag in row.flags]
    assert len(flags) == len(set(flags))


def test_a_command_may_put_some_rows_first() -> None:
    names = [row.name for row in rows_of("bench", first=("model", "ar"))]
    assert names[:4] == ["model", "ar", "steps", "guidance"] and "num" not in names
    assert sorted(names) == sorted(row.name for row in rows_of("bench"))
