"""Words from outside the transformer's training captions for things, colours and numbers of the drawn world.

For each kind its other English names and its German, French and Spanish ones; for colours and numbers likewise. Data
only: `train.world.requests` puts requests together from it. No word here names another kind of the world.
"""

from __future__ import annotations

from dataclasses import dataclass

from train.world.scenes import COLOURS
from train.world.things import KINDS

LANGUAGES = ("de", "fr", "es")


@dataclass(frozen=True, kw_only=True)
class Noun:
    """A thing's name in another language."""

    gender: str  # m, f or n
    one: str
    many: str


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What a kind is called besides its own name."""

    other: tuple[tuple[str, str], ...]  # (singular, plural) in English
    young: tuple[str, str] | None  # (singular, plural): a small one of its kind, "kitten"
    foreign: dict[str, Noun]
    colour: str  # that it usually has


# kind | usual colour | other names: singular, or singular/plural; *: a small one | de | fr | es: gender one/many
_ROWS = """
ball | red | sphere, orb | m Ball/Bälle | f balle/balles | f pelota/pelotas
star | yellow | pentagram | m Stern/Sterne | f étoile/étoiles | f estrella/estrellas
heart | red | love heart | n Herz/Herzen | m cœur/cœurs | m corazón/corazones
gem | turquoise | jewel, gemstone, diamond | m Edelstein/Edelsteine | m bijou/bijoux | f gema/gemas
cube | blue | cubic block | m Würfel/Würfel | m cube/cubes | m cubo/cubos
ring | yellow | hoop, finger band | m Ring/Ringe | m anneau/anneaux | m anillo/anillos
arrow | red | pointer | m Pfeil/Pfeile | f flèche/flèches | f flecha/flechas
moon | yellow | crescent, half moon | m Mond/Monde | f lune/lunes | f luna/lunas
sun | yellow | sunburst | f Sonne/Sonnen | m soleil/soleils | m sol/soles
cloud | gray | cumulus/cumuli | f Wolke/Wolken | m nuage/nuages | f nube/nubes
balloon | red | helium balloon | m Luftballon/Luftballons | m ballon/ballons | m globo/globos
kite | purple | paper kite | m Drachen/Drachen | m cerf-volant/cerfs-volants | f cometa/cometas
rocket | red | spaceship, spacecraft/spacecraft | f Rakete/Raketen | f fusée/fusées | m cohete/cohetes
plane | blue | airplane, aeroplane, jet | n Flugzeug/Flugzeuge | m avion/avions | m avión/aviones
apple | red | pippin | m Apfel/Äpfel | f pomme/pommes | f manzana/manzanas
pear | green | conference pear | f Birne/Birnen | f poire/poires | f pera/peras
banana | yellow | plantain | f Banane/Bananen | f banane/bananes | m plátano/plátanos
cherry | red | morello/morellos | f Kirsche/Kirschen | f cerise/cerises | f cereza/cerezas
mushroom | red | toadstool, fungus/fungi | m Pilz/Pilze | m champignon/champignons | f seta/setas
flower | pink | blossom, daisy/daisies | f Blume/Blumen | f fleur/fleurs | f flor/flores
tree | green | oak, maple, *sapling | m Baum/Bäume | m arbre/arbres | m árbol/árboles
pine tree | green | fir, spruce, conifer | m Nadelbaum/Nadelbäume | m sapin/sapins | m pino/pinos
cactus | green | succulent | m Kaktus/Kakteen | m cactus/cactus | m cacto/cactos
leaf | green | frond | n Blatt/Blätter | f feuille/feuilles | f hoja/hojas
house | red | home, cottage, *hut | n Haus/Häuser | f maison/maisons | f casa/casas
castle | gray | fortress/fortresses, palace | n Schloss/Schlösser | m château/châteaux | m castillo/castillos
tent | orange | marquee, wigwam | n Zelt/Zelte | f tente/tentes | f tienda/tiendas
car | red | automobile, sedan | n Auto/Autos | f voiture/voitures | m coche/coches
bus | yellow | coach/coaches, omnibus/omnibuses | m Bus/Busse | m autobus/autobus | m autobús/autobuses
boat | blue | sailboat, yacht, *dinghy/dinghies | n Boot/Boote | m bateau/bateaux | m barco/barcos
umbrella | purple | parasol, brolly/brollies | m Regenschirm/Regenschirme | m parapluie/parapluies | m paraguas/paraguas
cup | blue | mug, teacup | f Tasse/Tassen | f tasse/tasses | f taza/tazas
bottle | green | flask | f Flasche/Flaschen | f bouteille/bouteilles | f botella/botellas
vase | blue | urn | f Vase/Vasen | m vase/vases | m jarrón/jarrones
lamp | orange | table light | f Lampe/Lampen | f lampe/lampes | f lámpara/lámparas
candle | red | taper | f Kerze/Kerzen | f bougie/bougies | f vela/velas
book | blue | novel, volume | n Buch/Bücher | m livre/livres | m libro/libros
key | yellow | door key, latchkey | m Schlüssel/Schlüssel | f clé/clés | f llave/llaves
bell | yellow | chime | f Glocke/Glocken | f cloche/cloches | f campana/campanas
hat | brown | cap, fedora | m Hut/Hüte | m chapeau/chapeaux | m sombrero/sombreros
crown | yellow | tiara, diadem | f Krone/Kronen | f couronne/couronnes | f corona/coronas
chair | brown | seat, stool | m Stuhl/Stühle | f chaise/chaises | f silla/sillas
clock | blue | timepiece, alarm clock | f Uhr/Uhren | f horloge/horloges | m reloj/relojes
cupcake | pink | muffin, fairy cake | n Törtchen/Törtchen | m petit gâteau/petits gâteaux | f magdalena/magdalenas
robot | gray | android, droid | m Roboter/Roboter | m robot/robots | m robot/robots
ghost | purple | phantom, spook, spectre | n Gespenst/Gespenster | m fantôme/fantômes | m fantasma/fantasmas
fish | orange | trout/trout, carp/carp | m Fisch/Fische | m poisson/poissons | m pez/peces
bird | blue | sparrow, songbird, *chick | m Vogel/Vögel | m oiseau/oiseaux | m pájaro/pájaros
duck | yellow | mallard, *duckling | f Ente/Enten | m canard/canards | m pato/patos
cat | orange | feline, tomcat, *kitten, *kitty/kitties | f Katze/Katzen | m chat/chats | m gato/gatos
rabbit | brown | hare, *bunny/bunnies | m Hase/Hasen | m lapin/lapins | m conejo/conejos
butterfly | purple | monarch, swallowtail | m Schmetterling/Schmetterlinge | m papillon/papillons | f mariposa/mariposas
snail | brown | gastropod | f Schnecke/Schnecken | m escargot/escargots | m caracol/caracoles
turtle | green | tortoise, terrapin | f Schildkröte/Schildkröten | f tortue/tortues | f tortuga/tortugas
"""

TONES: dict[str, tuple[str, ...]] = {  # shades that a picture's twelve colours stand for
    "red": ("crimson", "scarlet", "ruby"),
    "orange": ("tangerine", "amber"),
    "yellow": ("golden", "lemon yellow", "canary yellow"),
    "green": ("emerald", "olive", "jade"),
    "turquoise": ("teal", "aqua", "cyan"),
    "blue": ("navy", "azure", "sapphire"),
    "purple": ("violet", "lilac", "mauve"),
    "pink": ("rosy", "magenta", "fuchsia"),
    "brown": ("chestnut", "chocolate brown", "tan"),
    "black": ("ebony", "jet black"),
    "gray": ("grey", "ashen", "slate gray"),
    "white": ("snow white", "ivory"),
}
# de: the stem, which takes an ending, or =word without one. fr, es: m f mm ff, or one word and its plural.
_COLOURS = """
red | rot | rouge rouges | rojo roja rojos rojas
orange | =orange | orange orange | naranja naranjas
yellow | gelb | jaune jaunes | amarillo amarilla amarillos amarillas
green | grün | vert verte verts vertes | verde verdes
turquoise | türkis | turquoise turquoise | turquesa turquesas
blue | blau | bleu bleue bleus bleues | azul azules
purple | =lila | violet violette violets violettes | morado morada morados moradas
pink | =rosa | rose roses | rosado rosada rosados rosadas
brown | braun | marron marron | marrón marrones
black | schwarz | noir noire noirs noires | negro negra negros negras
gray | grau | gris grise gris grises | gris grises
white | weiß | blanc blanche blancs blanches | blanco blanca blancos blancas
"""
FOREIGN_NUMBERS = {
    "de": ("null", "ein", "zwei", "drei", "vier", "fünf"),
    "fr": ("zéro", "un", "deux", "trois", "quatre", "cinq"),
    "es": ("cero", "un", "dos", "tres", "cuatro", "cinco"),
}
FOREIGN_AND = {"de": "und", "fr": "et", "es": "y"}
FOREIGN_SIDES = {  # before a noun phrase; German ones take the dative, the French "de" elides
    "de": {"left of": "links von", "right of": "rechts von", "above": "über", "below": "unter"},
    "fr": {"left of": "à gauche d'", "right of": "à droite d'", "above": "au-dessus d'", "below": "en dessous d'"},
    "es": {"left of": "a la izquierda de", "right of": "a la derecha de", "above": "encima de", "below": "debajo de"},
}


def _pair(text: str) -> tuple[str, str]:
    one, _, many = text.partition("/")
    return one, many or one + "s"


def _entries() -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    for line in _ROWS.strip().splitlines():
        kind, colour, names, *foreign = (cell.strip() for cell in line.split("|"))
        words = [name.strip() for name in names.split(",")]
        young = [_pair(word[1:]) for word in words if word.startswith("*")]
        nouns = {}
        for language, cell in zip(LANGUAGES, foreign, strict=True):
            gender, both = cell.split(" ", 1)
            one, many = _pair(both)
            nouns[language] = Noun(gender=gender, one=one, many=many)
        found[kind] = Entry(
            other=tuple(_pair(word) for word in words if not word.startswith("*")),
            young=young[0] if young else None,
            foreign=nouns,
            colour=colour,
        )
    return found


ENTRIES = _entries()
assert set(ENTRIES) == set(KINDS) and {entry.colour for entry in ENTRIES.values()} <= set(COLOURS)


def _colours() -> dict[str, dict[str, tuple[str, ...]]]:
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    for line in _COLOURS.strip().splitlines():
        colour, *cells = (cell.strip() for cell in line.split("|"))
        found[colour] = {language: tuple(cell.split()) for language, cell in zip(LANGUAGES, cells, strict=True)}
    return found


_FOREIGN_COLOURS = _colours()


def foreign_phrase(kind: str, n: int, colour: str | None, language: str, *, dative: bool = False) -> str:
    """ "drei rote Äpfel", "une pomme rouge": `n` things of a kind; `colour` None: unsaid. German knows a dative."""
    noun = ENTRIES[kind].foreign[language]
    number = FOREIGN_NUMBERS[language][n]
    name = noun.one if n == 1 else noun.many
    forms = () if colour is None else _FOREIGN_COLOURS[colour][language]
    if language == "de":
        word = ""
        if forms:
            ending = "" if forms[0].startswith("=") else _german_ending(noun.gender, n, dative)
            word = forms[0].lstrip("=") + ending + " "
        if n == 1:
            number = {"m": "ein", "f": "eine", "n": "ein"}[noun.gender]
            number = {"m": "einem", "f": "einer", "n": "einem"}[noun.gender] if dative else number
        return f"{number} {word}{name}"
    if n == 1 and noun.gender == "f":
        number += "e" if language == "fr" else "a"
    if not forms:
        return f"{number} {name}"
    if len(forms) == 2:
        return f"{number} {name} {forms[n > 1]}"
    return f"{number} {name} {forms[2 * (n > 1) + (noun.gender == 'f')]}"


def _german_ending(gender: str, n: int, dative: bool) -> str:
    if dative:
        return "en"
    return "e" if n > 1 else {"m": "er", "f": "e", "n": "es"}[gender]
