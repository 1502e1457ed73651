"""The numbers of the Lens paper (arXiv 2605.21573) that a run can be held against: tables 1, 2, 5 and 6.

Resolution, pictures a prompt, seeds and rewrites a prompt of these are not stated there. Tables 3 and 4 (the parts of
OneIG and GenEval) are not in the text that this was taken from. Light ring: standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

# Columns: a metric of a suite, as `train.suites.scores.Metric.paper` names it.
_TABLE_2 = ("oneig-en", "oneig-zh", "geneval", "longtext-en", "cvtg-accuracy", "cvtg-ned", "cvtg-clip")
_TABLE_5 = ("cvtg-2", "cvtg-3", "cvtg-4", "cvtg-5")
_TABLE_6 = ("oneig-en", "geneval", "longtext-en", "cvtg-accuracy", "cvtg-ned", "cvtg-clip")
REASONER = "GPT-5.5"  # of the paper's Lens rows, with a searched system prompt

_ROWS_2 = """
Kolors 2.0              .434 .426 -    .258 -    -    -
Seedream 3.0            .530 .528 .843 .896 .592 .854 .782
Seedream 4.0            .573 .554 .840 .921 .892 .951 .785
GPT Image 1 [High]      .533 .474 .840 .956 .857 .948 .798
Nano Banana 2.0         .578 .567 -    .981 -    -    -
Janus-Pro 7B            .267 .240 .800 .019 -    -    -
BAGEL 14B               .361 .370 -    .373 -    -    -
HiDream-I1-Full 17B     .477 .337 .833 .543 -    -    -
SD3.5 Large 8B          .462 -    .710 -    .655 .847 .780
FLUX.1 [Dev] 12B        .434 -    .660 .607 .496 .688 .740
FLUX.2-Klein 9B         .532 .430 .848 .864 -    -    -
Z-Image-Turbo 6B        .528 .507 .823 .917 .859 .928 .805
Z-Image 6B              .546 .535 .840 .935 .867 .937 .797
Qwen-Image 20B          .539 .548 .868 .943 .829 .930 .806
Hunyuan-Image-3.0 80B   -    -    .720 -    .765 .877 .812
LongCat-Image 6B        -    -    .870 -    .866 .936 .786
Lens-Turbo (4 steps)    .554 .519 .914 .927 .889 .965 .815
Lens (20 steps)         .557 .525 .930 .937 .869 .951 .814
"""
_ROWS_5 = """
Seedream 3.0            .628 .596 .604 .561
Seedream 4.0            .890 .915 .899 .887
GPT Image 1 [High]      .878 .866 .873 .822
SD3.5 Large 8B          .729 .683 .657 .594
FLUX.1 [Dev] 12B        .609 .553 .466 .432
Z-Image-Turbo 6B        .887 .866 .863 .835
Z-Image 6B              .901 .872 .865 .851
Qwen-Image 20B          .837 .836 .831 .816
Hunyuan-Image-3.0 80B   .830 .764 .738 .728
LongCat-Image 6B        .913 .874 .856 .831
Lens-Turbo (4 steps)    .893 .892 .894 .878
Lens (20 steps)         .897 .881 .872 .827
"""
_ROWS_6 = """
Lens, no reasoner       .532 .843 .893 .849 .933 .796
Qwen-Image, GPT-5.5     .567 .926 .962 .891 .947 .787
Lens, GPT-OSS-20B       .559 .874 .924 .888 .958 .821
Lens, Qwen3-0.6B        .522 .820 .866 .865 .943 .800
Lens, Qwen3-1.7B        .542 .875 .912 .864 .942 .801
Lens, Qwen3-4B          .546 .871 .922 .883 .953 .823
"""


def _read(text: str, columns: tuple[str, ...]) -> dict[str, dict[str, float]]:
    table: dict[str, dict[str, float]] = {}
    for line in text.strip().splitlines():
        name, numbers = line[:24].strip(), line[24:].split()
        pairs = zip(columns, numbers, strict=True)
        table[name] = {column: float(number) for column, number in pairs if number != "-"}
    return table


def _tables() -> Mapping[str, Mapping[str, float]]:
    found = _read(_ROWS_2, _TABLE_2)
    for more in (_read(_ROWS_5, _TABLE_5), _read(_ROWS_6, _TABLE_6)):
        for name, row in more.items():
            found[name] = found.get(name, {}) | row
    return MappingProxyType(found)


MODELS = _tables()  # model -> metric -> score
# Table 1: DiffusionNFT for 180 steps on parts of the 8,406 prompts.
RL_SUBSETS = MappingProxyType(
    {
        "a quarter of the prompts": {"geneval": 0.916},
        "half of the prompts": {"geneval": 0.920},
        "all prompts": {"geneval": 0.930, "cvtg-accuracy": 0.869, "cvtg-ned": 0.951, "oneig-en-text": 0.960},
        "without text prompts": {"cvtg-accuracy": 0.832, "cvtg-ned": 0.928, "oneig-en-text": 0.946},
    }
)


def peer(model: str, rewritten: bool) -> str | None:
    """The paper's row that a run of one of the published models is closest to; None: it has none."""
    if model == "lens":
        return "Lens (20 steps)" if rewritten else "Lens, no reasoner"
    return "Lens-Turbo (4 steps)" if model == "lens-turbo" and rewritten else None
