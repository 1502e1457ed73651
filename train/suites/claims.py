"""The paper's claims in miniature: each a pair of ways to draw Lens-Nano's prompts, and what of it was found.

A claim of a gain is shown where the difference's interval lies above zero, and the opposite is where it lies below. A
claim that something is kept is shown where the interval lies above minus its margin. What has no weights here has no
number, and the table says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from train.evals.nano import EvalComparison, EvalReport
from train.suites.paper import MODELS, RL_SUBSETS

SHOWN, NOT_SHOWN, OPPOSITE, UNMEASURED = "shown", "not shown", "the opposite", "not measured"
MARGIN = 0.05  # of a score: what "kept" may lose


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to draw the prompts."""

    name: str  # of its folder
    role: str = "nano"  # a name in ROLES: whose weights
    steps: int | None = None  # None: the model's own
    size: tuple[int, int] | None = None  # width, height; None: the model's own square
    prompt: str | None = None  # a role of ROLES: the system prompt its reasoner reads; None: no reasoner
    requests: bool = False  # the requests in other words than the model's, in place of the prompts


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A result that was measured by another program and is said as it was."""

    difference: float
    interval: tuple[float, float]
    says: str
    command: str


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One row of the table."""

    id: str
    says: str
    paper: str  # its number
    kind: Literal["gain", "kept"]
    before: Arm | None = None
    after: Arm | None = None
    kinds: tuple[str, ...] = ()  # of prompts; empty: all
    images: int = 1  # of each prompt
    recorded: Recorded | None = None
    beside: str = ""  # what a reader of the row should know besides
    margin: float = MARGIN


# What an arm is drawn with, and where it is looked for where nobody names it: presets, then files of these names in the
# folders of models and LoRAs, then system prompts.
ROLES: Mapping[str, str] = {
    "nano": "the model as it ships",
    "base": "the model before reward tuning: a preset nano-base, or nano at --rl-strength 0",
    "turbo": "the distilled model: a preset nano-turbo",
    "rl": "reward tuning on all prompts: nano where it has such an adapter, else a preset or LoRA nano-rl",
    "rl-half": "… on half of them: a LoRA nano-rl-half",
    "rl-quarter": "… on a quarter: a LoRA nano-rl-quarter",
    "rl-no-text": "… without prompts of text: a LoRA nano-rl-no-text",
    "prompt": "the system prompt that ships for Nano's reasoner: nano",
    "first-prompt": "the prompt that a search began with: nano-first",
    "searched-prompt": "the prompt that it ended with: nano-searched",
}

_NANO = Arm(name="nano")
_GENEVAL = {name: row["geneval"] for name, row in MODELS.items() if "geneval" in row}
_LENS, _TURBO, _PLAIN = "Lens (20 steps)", "Lens-Turbo (4 steps)", "Lens, no reasoner"
_PARTS = {name: row.get("geneval") for name, row in RL_SUBSETS.items()}


def _size(width: int, height: int, what: str) -> Claim:
    return Claim(
        id=f"{width}x{height}", says=f"{what} that training never had works as well", kind="kept",
        paper="no number: generalises to ratios 1:2 to 2:1 and areas up to 1440²",
        before=_NANO, after=Arm(name=f"nano-{width}x{height}", size=(width, height)),
    )  # fmt: skip


def _subset(role: str, name: str, part: str) -> Claim:
    return Claim(
        id=role, says=f"reward tuning on all prompts beats tuning on {name}", kind="gain",
        paper=f"GenEval {_PARTS[part]:.3f} → {_PARTS['all prompts']:.3f}",
        before=Arm(name=role, role=role), after=Arm(name="rl", role="rl"),
    )  # fmt: skip


CLAIMS: tuple[Claim, ...] = (
    Claim(
        id="captions", says="dense captions teach more than brief ones", kind="gain",
        paper="Figure 5: dense above mixed and brief on GenEval (no numbers in its text)",
        recorded=Recorded(
            difference=-0.09, interval=(-0.19, 0.01),
            says="brief requests drawn right, of 90: after dense captions 35, brief 43, mixed 42; the last stretch of "
            "a training only; the interval takes three seeds' pictures of a prompt as independent, so it is too narrow",
            command="python -m benchmarks.caption_ablation --steps 120 --scenes 384 --kinds single_object colors "
            "--limit 30",
        ),
    ),
    Claim(
        id="reasoner", kind="gain",
        says="a reasoner's rewrites are drawn better than requests in words that the model does not know",
        paper=f"GenEval {_GENEVAL[_PLAIN]:.3f} → {_GENEVAL[_LENS]:.3f} (GPT-5.5), "
        f"{_GENEVAL['Lens, GPT-OSS-20B']:.3f} (GPT-OSS-20B)",
        before=Arm(name="nano-requests", requests=True),
        after=Arm(name="nano-requests-reasoner", prompt="prompt", requests=True),
    ),
    Claim(
        id="own-words", says="rewriting what is said in the model's own words costs nothing", kind="kept",
        paper="no number", before=_NANO, after=Arm(name="nano-reasoner", prompt="prompt"),
    ),
    Claim(
        id="search", says="a searched system prompt beats the one that the search began with", kind="gain",
        paper=f"no number of its own; Qwen-Image {_GENEVAL['Qwen-Image 20B']:.3f} → "
        f"{_GENEVAL['Qwen-Image, GPT-5.5']:.3f} with a reasoner and the searched prompt",
        before=Arm(name="nano-first-prompt", prompt="first-prompt", requests=True),
        after=Arm(name="nano-searched-prompt", prompt="searched-prompt", requests=True),
    ),
    Claim(
        id="rl", says="reward tuning beats the base model", kind="gain", paper="no row of the base model",
        beside="three pictures of each prompt, drawn with an earlier decoder, gave +0.036 [+0.012, +0.060] "
        "(`lens train rl measure`)",
        before=Arm(name="base", role="base"), after=Arm(name="rl", role="rl"),
    ),
    _subset("rl-quarter", "a quarter of them", "a quarter of the prompts"),
    _subset("rl-half", "half of them", "half of the prompts"),
    Claim(
        id="rl-no-text", says="prompts that ask for text teach text (three pictures each)", kind="gain",
        paper=f"CVTG {RL_SUBSETS['without text prompts']['cvtg-accuracy']:.3f} → "
        f"{RL_SUBSETS['all prompts']['cvtg-accuracy']:.3f}",
        before=Arm(name="rl-no-text", role="rl-no-text"), after=Arm(name="rl", role="rl"), kinds=("text",),
        images=3,  # of 50 prompts
    ),
    Claim(
        id="turbo", says="four steps of the distilled model draw as well as twenty", kind="kept",
        paper=f"GenEval {_GENEVAL[_LENS]:.3f} → {_GENEVAL[_TURBO]:.3f}",
        before=_NANO, after=Arm(name="turbo", role="turbo"),
    ),
    _size(320, 256, "a ratio (5:4)"),
    _size(336, 176, "a ratio (21:11)"),
    _size(224, 224, "a size between two (224 of 192 and 256)"),
    _size(320, 320, "a size between two (320 of 256 and 384)"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What of a claim was found."""

    claim: Claim
    verdict: str
    why: str = ""  # not measured: what is not here
    before: float | None = None  # scores: means of the kinds
    after: float | None = None
    difference: float | None = None
    interval: tuple[float, float] | None = None
    pairs: int = 0  # of pictures

    def data(self) -> dict[str, Any]:
        claim = self.claim
        return {
            "claim": claim.id, "says": claim.says, "paper": claim.paper, "verdict": self.verdict, "why": self.why,
            "before": self.before, "after": self.after, "difference": self.difference,
            "interval": None if self.interval is None else list(self.interval), "pairs": self.pairs,
        }  # fmt: skip


def verdict_of(claim: Claim, interval: tuple[float, float]) -> str:
    """Whether an interval of `after` less `before` shows the claim, its opposite, or neither."""
    least = 0.0 if claim.kind == "gain" else -claim.margin
    low, high = interval
    return SHOWN if low > least else OPPOSITE if high < least else NOT_SHOWN


def recorded_finding(claim: Claim) -> Finding:
    """The row of what another program measured."""
    recorded = claim.recorded
    assert recorded is not None, "the claim has a record"
    return Finding(
        claim=claim, verdict=verdict_of(claim, recorded.interval), difference=recorded.difference,
        interval=recorded.interval, why=f"measured before: {recorded.says} (`{recorded.command}`)",
    )  # fmt: skip


def finding(claim: Claim, before: EvalReport, after: EvalReport) -> Finding:
    """Hold two evaluations of the same prompts against a claim. Raises ValueError where they share no picture."""
    comparison = EvalComparison.of(_only(before, claim.kinds), _only(after, claim.kinds))
    difference, interval = comparison.overall
    return Finding(
        claim=claim, verdict=verdict_of(claim, interval), before=_only(before, claim.kinds).overall,
        after=_only(after, claim.kinds).overall, difference=difference, interval=interval,
        pairs=comparison.micro.total,
    )  # fmt: skip


def _only(report: EvalReport, kinds: Sequence[str]) -> EvalReport:
    if not kinds:
        return report
    return EvalReport(results=[result for result in report.results if result.kind in kinds])


def arms_of(claims: Sequence[Claim]) -> list[Arm]:
    """Every arm once, in the claims' order."""
    found = [arm for claim in claims for arm in (claim.before, claim.after) if arm is not None]
    return list({arm.name: arm for arm in found}.values())


def page(findings: Sequence[Finding], *, about: Sequence[str]) -> str:
    """The table as Markdown; `about`: lines on what was measured and how."""
    lines = [
        "# The paper's claims, in miniature", "",
        "Measured on Lens-Nano's drawn world by its rule-based verifier: a direction on a small model, no proof about",
        "the published one. Scores are means over the kinds of prompts; differences are paired over prompts and seeds,",
        "with 95 % intervals. *Shown*: the interval lies above zero (of a claim that something is kept: above −0.05).",
        "*The opposite*: it lies below. Otherwise *not shown*.", "",
        *about, "",
        "| Claim | In the paper | Here: before → after | Difference | Pairs | |",
        "|---|---|---|---|--:|---|",
    ]  # fmt: skip
    for one in findings:
        scores = "–" if one.before is None or one.after is None else f"{one.before:.3f} → {one.after:.3f}"
        delta = "–"
        if one.difference is not None and one.interval is not None:
            delta = f"{one.difference:+.3f} [{one.interval[0]:+.3f}, {one.interval[1]:+.3f}]"
        more = "; ".join(text for text in (one.why, one.claim.beside) if text)
        verdict = f"**{one.verdict}**" + (f": {more}" if more else "")
        cells = (one.claim.says, one.claim.paper, scores, delta, str(one.pairs or "–"), verdict)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
