"""The text the system speaks: system prompts and the refusal policy, one Markdown file each, and their one loader.

A file is a front matter and a body:

    ---
    name: general
    purpose: one line
    contract: decision
    version: 1
    ---
    The text itself.

`contract` says what the text leaves to the program:

* `decision`: the policy and the form of the answer are added when it is sent (`compose`)
* `complete`: the text is sent exactly as it stands; the model knows policy and form from its training

A file without a front matter is a plain body whose contract is not said (None); whoever uses it decides.

Light ring: standard library only. This is the lowest layer, so its error is its own: `PromptError`.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
CONTRACTS = ("decision", "complete")
POLICY = "policy"
_KEYS = ("name", "purpose", "contract", "version")
_FILE_LIMIT = 64_000  # bytes: thirty times our longest; a picture or a book given by mistake is refused


class PromptError(ValueError):
    """A prompt that is not there or cannot be read. `str(error)` says what, `hint` what to do."""

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True, kw_only=True)
class SystemPrompt:
    """One text for a language model's instructions."""

    name: str  # as a person types it; of a plain file its stem
    purpose: str  # one line for lists; empty for a plain file
    contract: str | None  # a name in CONTRACTS; None: not said
    version: int  # raised with every change of the text; 0: not said
    body: str  # without outer blank lines

    @property
    def sha256(self) -> str:
        """Identity of the text, whatever it is called."""
        return hashlib.sha256(self.body.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One entry of the policy's closed list."""

    name: str  # "self-harm"
    text: str  # what is refused, and what is not, as it stands in the file


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One request with a known right decision, to measure a reasoner's refusals."""

    allowed: bool  # True: must be rewritten; False: must be refused
    rule: str  # the rule that it breaks, or the one that it only seems to touch
    language: str  # ISO 639-1
    request: str


def names() -> tuple[str, ...]:
    """Every system prompt that is part of the package, in alphabetical order; the policy is none."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.md") if path.stem != POLICY))


def own_names(folder: Path) -> tuple[str, ...]:
    """The names in a person's folder of prompts, in alphabetical order; none where there is no folder."""
    return tuple(sorted(path.stem for path in folder.glob("*.md") if is_name(path.stem)))


def is_name(text: str) -> bool:
    """Whether a prompt may be called so: small letters, digits and hyphens, 40 at most, beginning with a letter."""
    return bool(re.fullmatch(r"[a-z][a-z0-9-]{0,39}", text))


def load(name_or_path: str, own: Path | None = None) -> SystemPrompt:
    """A prompt by its name, or a file by its path. A name wins over a file of the same name; `./general` is a path.

    `own`: a person's folder of prompts, `NAME.md` each; the package's names win. Raises PromptError: unknown (lists the
    known ones), unreadable, too long, not UTF-8, empty, a front matter with unknown keys or values.
    """
    wanted = name_or_path.strip()
    if wanted in names():
        return _read(FOLDER / f"{wanted}.md")
    mine = own_names(own) if own is not None else ()
    if own is not None and wanted in mine:
        return _read(own / f"{wanted}.md")
    path = Path(wanted).expanduser()
    if wanted and path.is_file():
        return _read(path)
    near = difflib.get_close_matches(wanted, (*names(), *mine), n=1)
    known = f"known: {', '.join((*names(), *mine))}; or the path of a file"
    raise PromptError(
        f"there is no system prompt {name_or_path!r}", hint=f"did you mean {near[0]!r}? {known}" if near else known
    )


@functools.cache
def policy() -> SystemPrompt:
    """The closed list of what is refused."""
    return _read(FOLDER / f"{POLICY}.md")


@functools.cache
def rules() -> tuple[Rule, ...]:
    """The policy's rules, in its order: every `## name` with the text below it."""
    _, *parts = re.split(r"^## +", policy().body, flags=re.MULTILINE)
    found = (part.split("\n", 1) for part in parts)
    return tuple(Rule(name=name.strip(), text=text.strip()) for name, text in found)


def rule_names() -> tuple[str, ...]:
    """What a refusal may name."""
    return tuple(rule.name for rule in rules())


@functools.cache
def probes() -> tuple[Probe, ...]:
    """Requests to be allowed and requests to be refused, in mild wording and several languages."""
    found: list[Probe] = []
    for stem, allowed in (("allow", True), ("deny", False)):
        _, *lines = (FOLDER / "probes" / f"{stem}.tsv").read_text("utf-8").splitlines()
        for line in lines:
            rule, language, request = line.split("\t")
            found.append(Probe(allowed=allowed, rule=rule, language=language, request=request))
    return tuple(found)


def captioning(name_or_path: str) -> SystemPrompt:
    """The instructions for describing a picture: `dense`, `brief`, or a file by its path. Raises PromptError."""
    return _find("captions", name_or_path, "captioning prompt")


def rubric_text(name_or_path: str) -> SystemPrompt:
    """What makes prompts with rubrics: `write` and `questions` instruct a model, `global` is itself the one question
    asked of every picture. Or a file by its path. Raises PromptError."""
    return _find("rubrics", name_or_path, "rubric text")


def search_text(name_or_path: str) -> SystemPrompt:
    """What a prompt search tells a model: `write` instructs the writer. Or a file by its path. Raises PromptError."""
    return _find("search", name_or_path, "text of the search")


def answer_form(contract: str) -> str:
    """The last part of composed instructions: `json` or `plain`. Raises PromptError for another word."""
    if contract == "json":
        return _read(FOLDER / "forms" / "json.md").body.replace("{rules}", ", ".join(rule_names()))
    if contract == "plain":
        return _read(FOLDER / "forms" / "plain.md").body.replace("{rules}", ", ".join(rule_names()))
    raise PromptError(f"there is no form of answer {contract!r}", hint="known: json, plain")


def compose(system: SystemPrompt, contract: str, form: str) -> str:
    """What is really sent as instructions: the text alone (`complete`), or text, policy and form of answer.

    `form` is `json` or `plain`. Raises PromptError for another contract or form.
    """
    if contract == "complete":
        return system.body
    if contract != "decision":
        raise PromptError(f"there is no contract {contract!r}", hint=f"known: {', '.join(CONTRACTS)}")
    return f"{system.body}\n\n{policy().body}\n\n{answer_form(form)}"


def _find(folder: str, name_or_path: str, what: str) -> SystemPrompt:
    wanted = name_or_path.strip()
    known = sorted(path.stem for path in (FOLDER / folder).glob("*.md"))
    if wanted in known:
        return _read(FOLDER / folder / f"{wanted}.md")
    path = Path(wanted).expanduser()
    if wanted and path.is_file():
        return _read(path)
    hint = f"known: {', '.join(known)}; or the path of a file"
    raise PromptError(f"there is no {what} {name_or_path!r}", hint=hint)


def _read(path: Path) -> SystemPrompt:
    try:
        with path.open("rb") as file:
            data = file.read(_FILE_LIMIT + 1)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise PromptError(f"cannot read the system prompt {path}: {reason}", hint="check the path") from error
    if len(data) > _FILE_LIMIT:
        raise PromptError(f"{path} is longer than {_FILE_LIMIT:,} bytes", hint="a system prompt is a page or two")
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise PromptError(f"{path} is not UTF-8 text", hint="save it as UTF-8") from None
    head, body = _split(text, path)
    if not body:
        raise PromptError(f"the system prompt {path} is empty", hint="write what the model shall do")
    if head is None:
        return SystemPrompt(name=path.stem, purpose="", contract=None, version=0, body=body)
    contract = head.get("contract", CONTRACTS[0])
    if contract not in CONTRACTS:
        raise PromptError(f"{path}: unknown contract {contract!r}", hint=f"known: {', '.join(CONTRACTS)}")
    version = head.get("version", "0")
    if not re.fullmatch(r"[0-9]{1,6}", version):
        raise PromptError(f"{path}: the version {version!r} is no whole number", hint="write version: 1")
    return SystemPrompt(
        name=head.get("name") or path.stem,
        purpose=head.get("purpose", ""),
        contract=contract,
        version=int(version),
        body=body,
    )


def _split(text: str, path: Path) -> tuple[dict[str, str] | None, str]:
    """(front matter or None, body). Raises PromptError for a line that is no known `key: value`."""
    found = re.match(r"---\n(.*?)\n---(?:\n|$)", text, re.DOTALL)
    if not found:
        return None, text.strip()
    head: dict[str, str] = {}
    for line in found.group(1).splitlines():
        if not line.strip():
            continue
        key, colon, value = line.partition(":")
        if not colon or key.strip() not in _KEYS:
            raise PromptError(f"{path}: unknown line {line!r} in the front matter", hint=f"known: {', '.join(_KEYS)}")
        head[key.strip()] = value.strip()
    return head, text[found.end() :].strip()
