"""What a language model wrote -> a decision: rewrite with a prompt, or refuse with a rule. Pure text, no model.

Models break the agreed form in many ways: they fence it, wrap it, leave channel names of the harmony format in it,
answer in prose, apologise. Everything that can be read safely is read; everything else raises ReplyError. A request is
never passed off as its own rewrite.

Standard library only.
"""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, cast

from backend.chat.replies import final_text
from backend.errors import ReplyError, UsageError
from backend.requests import check_prompt
from prompts import rule_names

MODEL_REFUSAL = "model-refusal"  # in place of a rule: the model declined without naming one of the policy
_TRY_AGAIN = "Try another seed or model, or --reasoner off to draw the request as it stands."


class RewriteError(ReplyError):
    """An answer in the right form that cannot be drawn; asking for it in another form would not help."""


@dataclass(frozen=True, kw_only=True)
class Draft:
    """One answer, read and checked for its form."""

    decision: Literal["rewrite", "refuse"]
    prompt: str = ""  # empty where refused
    rule: str | None = None  # a name of the policy, or MODEL_REFUSAL; None where rewritten
    notes: tuple[str, ...] = ()  # what was odd but readable
    left_out: tuple[str, ...] = ()  # fields of the plan that the endpoint does not take: "temperature", "seed"


def schema() -> dict[str, Any]:
    """JSON schema of an answer. No lengths in it: grammar builders unroll them into thousands of rules."""
    rule: dict[str, Any] = {"anyOf": [{"type": "null"}, {"type": "string", "enum": list(rule_names())}]}
    return {
        "type": "object",
        "properties": {
            "decision": {"type": "string", "enum": ["rewrite", "refuse"]},
            "prompt": {"type": "string"},
            "rule": rule,
        },
        "required": ["decision", "prompt", "rule"],
        "additionalProperties": False,
    }


# ------------------------------------------------------------------------------------------------------------- reading


def read_json(text: str) -> Draft:
    """The decision in a JSON object somewhere in `text`. Raises ReplyError, also for a rewrite beyond the limit."""
    found = _find_object(final_text(text))
    if found is None:
        raise ReplyError(f"the reasoner's answer holds no decision: {_excerpt(text)}", hint=_TRY_AGAIN)
    notes = tuple(f"the answer's key {key!r} is ignored" for key in found if key not in ("decision", "prompt", "rule"))
    decision, prompt, rule = found.get("decision"), found.get("prompt"), found.get("rule")
    if decision == "refuse":
        if rule in rule_names():
            return Draft(decision="refuse", rule=str(rule), notes=notes)
        return Draft(decision="refuse", rule=MODEL_REFUSAL, notes=(*notes, f"it names no rule of the policy: {rule!r}"))
    if decision != "rewrite":
        raise ReplyError(f"the reasoner decided {decision!r}, neither rewrite nor refuse", hint=_TRY_AGAIN)
    if rule not in (None, "", "null", "none"):
        raise RewriteError(f"the reasoner contradicts itself: a rewrite, and the rule {rule!r}", hint=_TRY_AGAIN)
    if not isinstance(prompt, str):
        raise ReplyError("the reasoner's answer holds no prompt", hint=_TRY_AGAIN)
    return _rewrite(prompt, notes)


def read_plain(text: str) -> Draft:
    """The decision in a plain answer: `REFUSED: rule`, or the prompt itself. Raises ReplyError.

    An answer in JSON is read as such; an apology is a refusal.
    """
    said = final_text(text)
    if _find_object(said) is not None:
        return read_json(said)
    if refused := re.fullmatch(r"\W*REFUSED:?\s*([\w-]+)?\W*", said, re.IGNORECASE):
        rule = (refused.group(1) or "").lower()
        return Draft(decision="refuse", rule=rule if rule in rule_names() else MODEL_REFUSAL)
    fenced = re.fullmatch(r"```\w*\n(.*?)\n?```", said, re.DOTALL)
    said = " ".join((fenced.group(1) if fenced else said).split())
    if len(said) > 2 and (said[0], said[-1]) in (('"', '"'), ("“", "”")) and not re.search(r'["“”]', said[1:-1]):
        said = said[1:-1].strip()
    return _rewrite(said, ())


def _rewrite(prompt: str, notes: tuple[str, ...]) -> Draft:
    if declines(prompt):
        return Draft(decision="refuse", rule=MODEL_REFUSAL, notes=notes)
    if not prompt.strip():
        raise RewriteError("the reasoner's rewrite is empty", hint=_TRY_AGAIN)
    try:
        return Draft(decision="rewrite", prompt=check_prompt(prompt, "reasoner's rewrite"), notes=notes)
    except UsageError as error:  # too long, or control characters: the model's mistake, not a person's
        raise RewriteError(str(error), hint=_TRY_AGAIN) from error


_BRACES = 100  # where an object is looked for: each may cost a look at the whole answer


def _find_object(text: str) -> dict[str, Any] | None:
    """The first JSON object in `text` that has a `decision` or a `prompt`."""
    decoder = json.JSONDecoder()
    for start in (match.start() for match in islice(re.finditer(r"\{", text), _BRACES)):
        try:
            value, _ = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict) and {"decision", "prompt"} & value.keys():
            return cast("dict[str, Any]", value)
    return None


def _excerpt(text: str) -> str:
    plain = " ".join(text.split())
    return repr(plain[:80] + ("…" if len(plain) > 80 else "")) if plain else "nothing"


# How a refusal in prose begins, in the languages whose speakers we could ask. A prompt for a picture speaks of things,
# not of itself in the first person; quoted words begin with a mark, so a sign that says "Sorry" passes.
_DECLINES = re.compile(
    r"(?:i(?:'m| am) (?:so |very |really )?(?:sorry|unable|not able)|(?:i'm|i am) afraid i |sorry[,.!]|sorry,? but"
    r"|i (?:can(?:'t|not| not)|won't|will not|must decline|have to decline|apologi[sz]e)|as an ai\b|unfortunately,? i "
    r"|(?:es )?tut mir leid|leider kann ich|ich kann (?:das|dies|dabei|dir|ihnen|diese|kein)"
    r"|(?:je suis )?désolée?[, ]|je ne peux pas|lo siento|no puedo |mi dispiace|non posso |desculpe|sinto muito"
    r"|não posso |извините|к сожалению, я|я не могу|很?抱歉[,，。!！ ]|对不起[,，。!！ ]|我无法|我不能"
    r"|申し訳|すみません|죄송|عذرا|عذرًا|آسف|لا أستطيع|क्षमा करें|माफ़ करें|üzgünüm|helaas kan ik|beklager)"
)


def declines(text: str) -> bool:
    """Whether a text is a model's own refusal in prose."""
    plain = unicodedata.normalize("NFC", text).replace("’", "'").lstrip(" *_#>\n").casefold()
    return bool(_DECLINES.match(plain))


# -------------------------------------------------------------------------------------------------------- quoted words

# An ASCII letter or digit beside a straight mark makes it an apostrophe or an inch; some scripts write no blanks there.
_QUOTED = re.compile(
    r"""(?<![A-Za-z0-9])"([^"]{1,2000})"(?![A-Za-z0-9])|“([^“”]{1,2000})”|„([^„“”]{1,2000})[“”]|«([^«»]{1,2000})»"""
    r"""|‹([^‹›]{1,2000})›|「([^「」]{1,2000})」|『([^『』]{1,2000})』|‘([^‘’]{1,2000})’"""
    r"""|(?<![A-Za-z0-9])'([^'\n]{1,2000})'(?![A-Za-z0-9])"""
)


def quoted(text: str) -> tuple[str, ...]:
    """The words within quotation marks of any of the usual kinds, in order, without the marks."""
    found = (next(filter(None, match.groups())) for match in _QUOTED.finditer(text))
    return tuple(words.strip() for words in found if words.strip())


def unquoted(text: str) -> str:
    """The text with a blank for everything within quotation marks, marks included."""
    return _QUOTED.sub(" ", text)


def missing_quotes(request: str, prompt: str) -> tuple[str, ...]:
    """Quoted words of the request that the prompt does not hold letter by letter. Runs of blanks count as one."""

    def plain(text: str) -> str:
        return " ".join(unicodedata.normalize("NFC", text).split())

    return tuple(words for words in quoted(request) if plain(words) not in plain(prompt))
