"""Conversations that teach Lens-Nano's language model its two jobs: text features and the reasoner.

`rewrite`   a brief request and a system prompt of guideline sentences -> a short thought, then JSON with a prompt that
            says what the guidelines ask for, or a refusal that names its rule
`describe`  the conversation of the text encoder, around a dense or brief caption
`repeat`    any words, repeated: a small network learns to copy from the context here first, and then everywhere
`list`      a caption -> its things one by one: makes the model gather each thing's colour, size and place

Some guidelines help the picture and some do not (`HELPFUL`): prompt search has something true to find.
"""

from __future__ import annotations

import json
import random
import re
import string
from dataclasses import dataclass

from tokenizers import Tokenizer

from backend.params import TemplateParams
from backend.text.harmony import HarmonyWriter, encode_prompt, system_text
from train.world.outside import STRANGERS, any_script, forbidden, harmless
from train.world.scene_text import (
    NUMBERS,
    PARTS,
    USUALLY,
    Stating,
    around,
    article,
    brief_stating,
    dense,
    kind_name,
    place_of,
)
from train.world.scenes import COLOURS, LAYOUTS, Scene, sample_scene
from train.world.things import KINDS

TASK = "Rewrite the request as one prompt for a picture."
REPEATING = "Repeat the request."
LISTING = "List what the picture shows."
POLICY = "Refuse what the policy forbids and name the rule."

GUIDELINES: dict[str, str] = {
    "colour": "Say the colour of every thing.",
    "count": "Say exactly how many there are.",
    "size": "Say how big each thing is.",
    "place": "Say where each thing stands.",
    "detail": "Describe what each thing looks like.",
    "background": "Say what the background is.",
    "style": "Say how it is drawn.",
    "quote": "Keep quoted words exactly.",
    "praise": "Say that the picture is beautiful.",
    "weather": "Speak of the weather.",
    "extra": "Invent one more thing.",
    "short": "Use very few words.",
}
HELPFUL = (*PARTS, "quote")

_GLUE = "a an the of and with on in under above below beside left right one two three four five small big it is".split()
_WRAPPERS = (
    "{}", "{}", "{}", "{}", "{}", "{}.", "draw {}", "please draw {}", "make a picture of {}", "I want {}", "show me {}",
    "a picture of {}", "can you draw {}?", "a photo of {}", "an image of {}", "paint {}", "{} please",
)  # fmt: skip


@dataclass(frozen=True)
class Dialogue:
    """Token ids and the position from which on the loss counts (what comes before is given, never generated)."""

    ids: tuple[int, ...]
    start: int


def wrap(text: str, rng: random.Random) -> str:
    """`text` as people phrase requests: "draw …", "please", a capital, a full stop."""
    out = rng.choice(_WRAPPERS).format(text)
    return out[0].upper() + out[1:] if rng.random() < 0.25 else out


def system_prompt(names: list[str]) -> str:
    """A reasoner's instructions made of guideline sentences, in the order given."""
    return " ".join([TASK, *(GUIDELINES[name] for name in names), POLICY])


def answer(decision: str, prompt: str, rule: str | None) -> str:
    """The final message: one JSON object, keys in this order."""
    return json.dumps({"decision": decision, "prompt": prompt, "rule": rule}, ensure_ascii=False)


def rewrite_pair(rng: random.Random) -> tuple[str, str, str, str]:
    """(system prompt, request, thought, final answer) of one reasoner example."""
    scene = sample_scene(rng, aspect=rng.choice((1.0, 1.0, 0.75, 1.5)), layouts=LAYOUTS)
    names = [name for name in GUIDELINES if rng.random() < (0.75 if name in HELPFUL else 0.12)]
    rng.shuffle(names)
    if rng.random() < 0.08:
        rule, request = forbidden(rng)
        return system_prompt(names), wrap(request, rng), f"This breaks the rule {rule}.", answer("refuse", "", rule)
    if rng.random() < 0.14:  # not of this world: the words stay, only what stands around a thing is added
        request = harmless(rng)
        added = [] if "short" in names else [part for part in ("background", "style") if part in names]
        prompt = around(request, scene, rng, frozenset(added)) if "short" not in names else request
        thought = "The request has other things. " + (f"Add {', '.join(added)}." if added else "Add nothing.")
        return system_prompt(names), wrap(request, rng), thought, answer("rewrite", prompt, None)
    request, stated = brief_stating(scene, rng)
    if rng.random() < 0.06:  # an already dense request is kept as it is
        request = dense(scene, rng)
        return system_prompt(names), request, "This says enough. Keep it.", answer("rewrite", request, None)
    parts = frozenset(p for p in PARTS if p in names) | stated
    prompt = request if "short" in names else dense(scene, rng, parts)
    if "quote" not in names and rng.random() < 0.6:
        prompt = re.sub(r' that says "[A-Z]+"', "", prompt)
    if "short" not in names:
        if "praise" in names:
            prompt += " It is a beautiful picture."
        if "weather" in names:
            prompt += rng.choice((" The weather is calm and mild.", " A light wind is blowing."))
        if "extra" in names:
            prompt += f" Beside it there is {article(rng.choice(list(COLOURS)) + ' ' + rng.choice(list(KINDS)))}."
    if rng.random() < 0.2 and "detail" not in parts:
        request, prompt = _with_strangers(scene, request, prompt, rng)
    heads = ", ".join(f"{NUMBERS[n]} {kind_name(scene.things[i].kind, n)}" for i, n in scene.groups)
    if any(kind_name(scene.things[i].kind, n) not in request for i, n in scene.groups):  # strangers took their place
        heads = f"{len(scene.groups)} group" + ("s" if len(scene.groups) > 1 else "")
    added = [name for name in GUIDELINES if name in names and name not in stated]
    thought = f"The request has {heads}. " + (f"Add {', '.join(added)}." if added else "Add nothing.")
    return system_prompt(names), wrap(request, rng), thought, answer("rewrite", prompt, None)


def _with_strangers(scene: Scene, request: str, prompt: str, rng: random.Random) -> tuple[str, str]:
    """Replace the things' names by nouns from outside the world, in both texts alike."""
    nouns = rng.sample(STRANGERS, len(scene.groups))
    new: dict[str, str] = {}
    for (index, _), noun in zip(scene.groups, nouns, strict=True):
        if (kind := scene.things[index].kind) in KINDS:
            new |= {KINDS[kind].plural: noun + "s", kind: noun}
    if not new:
        return request, prompt
    old = re.compile(rf"\b({'|'.join(sorted(new, key=len, reverse=True))})\b")  # all at once: a noun may be a kind
    return old.sub(lambda found: new[found[0]], request), old.sub(lambda found: new[found[0]], prompt)


def rewrite(tokenizer: Tokenizer, template: TemplateParams, rng: random.Random) -> Dialogue:
    system, request, thought, final = rewrite_pair(rng)
    writer = HarmonyWriter(tokenizer)
    writer.message("system", system_text(template, "low"))
    writer.message("developer", f"# Instructions\n\n{system}\n\n")
    writer.message("user", request)
    start = len(writer.ids)
    writer.message("assistant", thought, "analysis").message("assistant", final, "final", end="<|return|>")
    return Dialogue(tuple(writer.ids), start)


def caption(scene: Scene, rng: random.Random, dense_share: float) -> str:
    """A dense caption with probability `dense_share`, else a brief one as a person would phrase it."""
    return dense(scene, rng) if rng.random() < dense_share else wrap(brief_stating(scene, rng)[0], rng)


def describe(tokenizer: Tokenizer, template: TemplateParams, rng: random.Random) -> Dialogue:
    scene = sample_scene(rng, aspect=rng.choice((1.0, 1.0, 0.75, 1.5)))
    encoded = encode_prompt(tokenizer, template, caption(scene, rng, 0.75))
    return Dialogue(encoded.ids, encoded.prefix)


def listing(tokenizer: Tokenizer, template: TemplateParams, rng: random.Random) -> Dialogue:
    scene = sample_scene(rng, aspect=rng.choice((1.0, 1.0, 0.75, 1.5)))
    rows = [
        f"{n} {scene.things[i].size} {scene.things[i].colour} {kind_name(scene.things[i].kind)}"
        + (f" {scene.things[i].word}" if scene.things[i].word else "")
        + (f" {place_of(scene.things[i], scene)}" if n == 1 else "")
        for i, n in scene.groups
    ]
    b = scene.background
    rows.append(b.plain or f"{b.sky}, {b.tint or ''} {b.ground}".replace("  ", " "))
    rows.append(scene.style)
    writer = HarmonyWriter(tokenizer)
    writer.message("system", system_text(template, "low"))
    writer.message("developer", f"# Instructions\n\n{LISTING}\n\n")
    writer.open("user")
    start = len(writer.ids)
    writer.text(dense(scene, rng)).control("<|end|>")
    writer.message("assistant", "; ".join(rows), "final", end="<|return|>")
    return Dialogue(tuple(writer.ids), start)


def repeat(tokenizer: Tokenizer, template: TemplateParams, rng: random.Random) -> Dialogue:
    """Words of the world and strangers, letters and signs in any order, given back as they came."""
    pools = (list(COLOURS), list(KINDS), STRANGERS, _GLUE)
    words = [rng.choice(rng.choice(pools)) for _ in range(rng.randint(3, 24))]
    for i in range(len(words)):
        if rng.random() < 0.12:
            words[i] = f'"{"".join(rng.choices(string.ascii_uppercase, k=rng.randint(2, 7)))}"'
        elif rng.random() < 0.05:
            words[i] = "".join(rng.choices(string.ascii_lowercase + string.digits, k=rng.randint(2, 8)))
        elif rng.random() < 0.05:
            words[i] = any_script(rng)
    text = " ".join(words)
    writer = HarmonyWriter(tokenizer)
    writer.message("system", system_text(template, "low"))
    writer.message("developer", f"# Instructions\n\n{REPEATING}\n\n")
    writer.message("user", text)
    writer.open("assistant", "final")
    start = len(writer.ids)
    writer.text(text).control("<|return|>")
    return Dialogue(tuple(writer.ids), start)


MAKERS = {"rewrite": rewrite, "describe": describe, "list": listing, "repeat": repeat}


def caption_of(scene: Scene, rng: random.Random, shares: tuple[float, float, float], often: Stating = USUALLY) -> str:
    """A caption for training the transformer: dense, partly dense or brief with the given shares.

    `often`: what brief ones state; the others always name colours and places.
    """
    way = rng.choices(("dense", "part", "brief"), shares)[0]
    if way == "dense":
        return dense(scene, rng)
    if way == "brief":
        return wrap(brief_stating(scene, rng, often)[0], rng)
    # Colour, count and place stay: without them the caption would hide what tells two pictures apart.
    parts = {"colour", "count", "place"} | {
        part for part in ("size", "detail", "background", "style") if rng.random() < 0.45
    }
    return dense(scene, rng, frozenset(parts))
