"""The suites of prompts that `lens eval` knows, a row each: where the prompts are from, how their files are read, which
layout their official evaluator walks, and what a full run is.

Light ring: standard library only.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from backend.errors import UsageError

SHIPPED = Path(__file__).resolve().parent
_RAW = "https://raw.githubusercontent.com"
_ONEIG = f"{_RAW}/OneIG-Bench/OneIG-Benchmark/41b49831e79e6dde5323618c164da1c4cf0f699d"
_XOMNI = f"{_RAW}/X-Omni-Team/X-Omni/2b8237bb3789638c290eeda3e83ed81bd3652c3b/textbench"
_UNKNOWN = "none stated (for your own use; not part of lens)"


@dataclass(frozen=True, kw_only=True)
class Suite:
    """One suite."""

    name: str  # as a person types it
    title: str
    prompts: int  # as published
    images: int  # of each prompt, as its official protocol has it
    reader: str  # a name in `train.suites.prompts.READERS`
    layout: str  # a name in `train.suites.layouts.LAYOUTS`
    language: str  # of the prompts: en or zh
    licence: str  # of the prompts
    source: str  # whose they are
    files: tuple[str, ...]  # the prompts' own files; each name is tried in the folder of data
    more: tuple[str, ...] = ()  # beside them: questions and texts of official metrics; scores of these need them
    urls: tuple[tuple[str, str], ...] = ()  # (file, where --fetch gets it); empty: by --data only
    shipped: str = ""  # folder beside this module; empty: not part of the package
    system_prompt: str | None = None  # the paper has one of its own for this suite (Appendix E); None: general
    aspects: int = 0  # how many dimensions the official overall score is the mean of; 0: it is no such mean


def _oneig(name: str, language: str, prompts: int) -> Suite:
    chinese = language == "zh"
    questions = [*("anime", "human", "object"), *(["multilingualism"] if chinese else [])]
    more = [f"Q_D/{kind}{'_zh' if chinese else ''}.json" for kind in questions]
    text, csv = f"text_content{'_zh' if chinese else ''}.csv", f"OneIG-Bench{'-ZH' if chinese else ''}.csv"
    urls = {csv: f"{_ONEIG}/{csv}", text: f"{_ONEIG}/scripts/text/{text}"}
    urls |= {file: f"{_ONEIG}/scripts/alignment/{file}" for file in more}
    return Suite(
        name=name, title=f"OneIG-Bench ({language.upper()})", prompts=prompts, images=4, reader="oneig",
        layout="oneig", language=language, licence=_UNKNOWN, source="OneIG-Bench/OneIG-Benchmark 41b4983",
        files=(csv,), more=(text, *more), urls=tuple(urls.items()), system_prompt="oneig", aspects=5,
    )  # fmt: skip


def _longtext(name: str, language: str, file: str) -> Suite:
    return Suite(
        name=name, title=f"LongText-Bench ({language.upper()})", prompts=160, images=4, reader="longtext",
        layout="longtext", language=language, licence="Apache-2.0", source="X-Omni-Team/X-Omni 2b8237b",
        files=(file,), urls=((file, f"{_XOMNI}/{file}"),), system_prompt="text",
    )  # fmt: skip


_ROWS = (
    Suite(
        name="geneval", title="GenEval", prompts=553, images=4, reader="geneval", layout="geneval", language="en",
        licence="MIT (Copyright 2023 Dhruba Ghosh)", source="djghosh13/geneval",
        files=("evaluation_metadata.jsonl",), shipped="geneval", system_prompt="geneval",
    ),
    _oneig("oneig-en", "en", 1120),
    _oneig("oneig-zh", "zh", 1320),
    _longtext("longtext-en", "en", "text_prompts.jsonl"),
    _longtext("longtext-zh", "zh", "text_prompts_zh.jsonl"),
    Suite(
        name="cvtg", title="CVTG-2K", prompts=2000, images=1, reader="cvtg", layout="cvtg", language="en",
        licence=_UNKNOWN, source="dnkdnk/CVTG-2K (TextCrafter)",
        files=tuple(f"{part}/{regions}.json" for part in ("CVTG", "CVTG-Style") for regions in range(2, 6)),
        urls=(("CVTG-2K.zip", "https://huggingface.co/datasets/dnkdnk/CVTG-2K/resolve/main/CVTG-2K.zip"),),
        system_prompt="text",
    ),
    Suite(
        name="geneval2", title="GenEval 2", prompts=800, images=1, reader="geneval2", layout="geneval2", language="en",
        licence="CC BY-NC 4.0", source="facebookresearch/GenEval2", files=("geneval2_data.jsonl",),
        system_prompt="geneval",
    ),
    Suite(
        name="unigenbench", title="UniGenBench++", prompts=600, images=4, reader="unigenbench", layout="unigenbench",
        language="en", licence="MIT", source="CodeGoat24/UniGenBench",
        files=("test_prompts_en.csv", "test_prompts_en_long.csv", "test_prompts_zh.csv", "test_prompts_zh_long.csv"),
    ),
    Suite(
        name="nano", title="Lens-Nano's world", prompts=350, images=1, reader="nano", layout="flat", language="en",
        licence="MIT", source="this package", files=(), shipped=".",
    ),
)  # fmt: skip
SUITES: Mapping[str, Suite] = MappingProxyType({suite.name: suite for suite in _ROWS})


def suite_of(name: str) -> Suite:
    """The suite called `name`. Raises UsageError with the nearest name."""
    found = SUITES.get(name.strip().lower())
    if found is not None:
        return found
    near = difflib.get_close_matches(name.strip().lower(), SUITES, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UsageError(f"no suite is called {name!r}", hint=f"{hint}There are {', '.join(SUITES)}")
