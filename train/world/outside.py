"""Requests from outside the drawn world, for the language model only: harmless ones to keep, forbidden ones to refuse.

Each is put together from short lists, so that the model learns a kind of request and not a list of sentences. None is
a probe of `prompts/probes`, which measure what was learnt (held by a test).
"""

from __future__ import annotations

import random

from prompts import rule_names
from train.world.scene_text import article
from train.world.things import KINDS

RULES = rule_names()
_NOUNS = (
    "dragon wizard knight horse elephant lion tiger bear wolf fox monkey penguin owl frog spider bee ant whale shark "
    "dolphin crab octopus dinosaur unicorn mermaid pirate princess king queen astronaut doctor baby girl boy man woman "
    "dog cow pig sheep goat chicken mouse truck bicycle motorcycle tractor ship submarine helicopter train bridge "
    "tower church windmill barn garden fountain statue door window ladder box basket bag shirt shoe sock glove ring "
    "watch phone computer camera radio guitar piano violin trumpet drum spoon fork knife plate bowl pan pot bread "
    "cheese egg pizza burger cookie carrot tomato potato onion pumpkin lemon grape strawberry peach rose tulip "
    "sunflower bush forest mountain volcano island lake river waterfall rainbow planet comet robot monster alien "
    "skeleton witch vampire zombie toy doll puzzle dice card flag tent rope anchor compass map treasure coin sword "
    "shield bow lantern mirror pillow bed sofa desk shelf carpet curtain bench swing slide sandcastle snowman"
).split()
STRANGERS = tuple(noun for noun in _NOUNS if noun not in KINDS)  # a ring, a robot and a tent are of this world
_ADJECTIVES = (
    "old wooden tiny happy sad golden broken kitchen paper glass angry sleepy rusty shiny striped fluffy ancient "
    "magic little huge friendly lonely wild steel velvet frozen burning smiling plastic stone silver clever ruined"
).split()
_STUFF = "tea coffee soup milk honey water flour sugar rice wine juice butter salt leaves wool sand gold smoke".split()
_VESSELS = "cup glass bottle pot bowl jar bucket spoon barrel pile sack jug".split()
_DOING = (
    "riding", "holding", "eating", "chasing", "looking at", "sleeping on", "hiding behind", "dancing with", "fixing",
    "carrying", "dreaming of", "jumping over", "talking to", "painting", "pulling", "guarding", "washing", "cutting",
)  # fmt: skip
_WHERE = (
    "on the moon", "in a kitchen", "at night", "in the rain", "under water", "on a wooden table", "in a museum",
    "on a busy street", "in an old library", "in the desert", "at the market", "in autumn light", "by the fire",
    "on a train", "in a hospital", "at school", "on a roof", "behind a fence", "in space", "on a film poster",
)  # fmt: skip
_SOUNDS_BAD = (  # harmless, though one word may alarm
    "a pirate with a curved sword", "a castle under siege, seen from far away", "a bandage on a finger",
    "a skeleton that dances", "a haunted house with bats", "a pill box on a shelf", "fake blood on a vampire's cape",
    "a soldier who comes home", "a toy gun in a shop window", "a statue of a nude goddess", "a chef with a big knife",
    "a shooting star", "a shot of a quiet lake", "a killer whale", "a wild strawberry", "a couple in swimwear",
    "a mother with a newborn baby", "a boxing match", "a cemetery in the snow", "a burning candle", "a black eye mask",
    "a wine cellar", "a crime novel on a desk", "a witch trial in a history book", "a drawing of the human heart",
    "a doctor's needle", "a scary clown", "a wrecked ship", "a volcano that destroys a village", "children at a pool",
    "a girl in a summer dress", "a boy on a swing", "a poppy field", "a chemistry set", "a hunter and his dog",
)  # fmt: skip
_OTHER_TONGUES = (
    "ein roter Apfel", "eine Katze auf dem Dach", "drei blaue Bälle", "ein Haus am See", "ein alter Mann mit Hut",
    "une pomme rouge", "un chat sur une chaise", "trois ballons jaunes", "une maison dans la forêt",
    "un bateau vert", "una manzana roja", "un gato negro", "tres globos azules", "una casa en la colina",
    "una mela rossa", "un pesce arancione", "due stelle gialle", "um carro verde", "uma flor roxa", "красный шар",
    "кошка на крыше", "три синих мяча", "дом у озера", "зелёная рыба", "старое дерево", "一只红色的猫",
    "两只蓝色的鸟", "山上的房子", "三个黄色的气球", "海边的树", "赤いりんご", "丘の上の家", "빨간 공",
    "파란 고양이", "تفاحة حمراء", "قطة على السطح", "ثلاث كرات زرقاء", "लाल गेंद", "kırmızı bir balon",
    "czerwona piłka", "een blauwe vis", "ett rött hus", "🎈🎈🎈", "🐱 + 🌙", "a 🚗 on a 🌉", "🌻🌻 and a 🐝",
)  # fmt: skip
_SCRIPTS = (
    (0x61, 0x7B),
    (0xE0, 0xFF),
    (0x430, 0x450),
    (0x4E00, 0x9FA0),
    (0x3042, 0x3094),
    (0x621, 0x64A),
    (0x1F600, 0x1F640),
)

_CHILD = ("a child", "a little girl", "a schoolboy", "two teenagers", "a twelve-year-old", "a young girl", "small kids")
_ADULT = ("a woman", "a man", "two people", "a couple", "three men", "my girlfriend", "a nurse")
_KNOWN = ("a famous singer", "the president", "my neighbour", "an actress", "my boss", "a football star", "my ex")
_GROUP = ("one religion", "one race", "migrants", "disabled people", "gay people", "one nation", "women")
_FORBIDDEN: dict[str, tuple[tuple[str, ...], ...]] = {  # rule -> alternatives for each place of a sentence
    "minors": (("a sexual picture of", "a naked picture of", "an erotic drawing of", "a sexy photo of"), _CHILD),
    "explicit": (_ADULT, ("having sex", "naked and aroused", "in a porn film", "in an explicit nude scene")),
    "degrading": (_KNOWN, ("naked", "on a leash", "humiliated in public", "undressed", "crawling in the dirt")),
    "deception": (
        ("a fake", "a forged", "a false", "a counterfeit"),
        ("passport", "court letter", "bank note", "news photo of a politician", "police badge", "press photo"),
    ),
    "hate": (("a hateful poster about", "a racist cartoon of", "a slur against", "vermin that stands for"), _GROUP),
    "extremism": (
        ("a recruitment poster for", "a glorious picture of", "a flag that praises", "propaganda for"),
        ("an armed sect", "a nazi rally", "a bombing", "a mass shooter", "holy war"),
    ),
    "self-harm": (
        ("how to", "a poster that tells people to", "steps to", "a picture that praises people who"),
        ("cut yourself", "starve", "end your life", "commit suicide", "hurt yourself"),
    ),
    "weapons-drugs": (
        ("how to build", "steps to make", "a plan for", "instructions for"),
        ("a bomb", "a printed gun", "meth", "poison", "a silencer", "nerve gas"),
    ),
    "gore": (
        ("a corpse", "a severed head", "guts", "a tortured man", "a torn body"),
        ("in bloody detail", "all over the floor", "with open wounds", "cut to pieces"),
    ),
    "private-data": (
        ("my neighbour's", "her real", "a real person's", "my teacher's"),
        ("home address on a sign", "phone number", "credit card number", "medical record", "password"),
    ),
}  # fmt: skip


def harmless(rng: random.Random) -> str:
    """A request that Lens-Nano cannot draw well and must neither refuse nor turn into something else."""

    def thing() -> str:
        noun = rng.choice(STRANGERS)
        return article(f"{rng.choice(_ADJECTIVES)} {noun}" if rng.random() < 0.5 else noun)

    way = rng.random()
    if way < 0.14:
        return rng.choice(_SOUNDS_BAD)
    if way < 0.30:
        return rng.choice(_OTHER_TONGUES)
    if way < 0.45:
        text = f"{article(rng.choice(_VESSELS))} of {rng.choice(_STUFF)}"
    elif way < 0.65:
        text = f"{thing()} {rng.choice(_DOING)} {thing()}"
    elif way < 0.8:
        text = f"{thing()} and {thing()}"
    else:
        text = thing()
    return f"{text} {rng.choice(_WHERE)}" if rng.random() < 0.5 else text


def forbidden(rng: random.Random) -> tuple[str, str]:
    """(rule, request): what the policy does not allow."""
    rule = rng.choice(RULES)
    return rule, " ".join(rng.choice(options) for options in _FORBIDDEN[rule])


def any_script(rng: random.Random) -> str:
    """Letters of one script without meaning: what is copied byte by byte."""
    low, high = rng.choice(_SCRIPTS)
    return "".join(chr(rng.randrange(low, high)) for _ in range(rng.randint(1, 5)))
