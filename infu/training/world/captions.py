"""What a picture shows, in a visitor's words: several wordings of the same facts, not always all of them."""

from __future__ import annotations

import numpy as np

from infu.training.world.people import Look, Person

PLACES = {
    "park": ("in a park", "in a garden", "outdoors in a park"),
    "beach": ("at the beach", "by the sea", "on a sunny beach"),
    "mountains": ("in the mountains", "with mountains in the background"),
    "forest": ("in a forest", "in the woods", "among trees"),
    "city": ("in the city", "on a city street", "in front of buildings"),
    "night": ("at night", "in the city at night", "with city lights at night"),
    "room": ("in a living room", "at home", "indoors, by a window"),
    "library": ("in a library", "in front of bookshelves", "with books behind"),
    "snow": ("in the snow", "in winter, snow behind", "in a snowy landscape"),
}
HAIRCUTS = {
    "bald": ("bald",),
    "cropped": ("with very short {} hair", "with cropped {} hair"),
    "short": ("with short {} hair",),
    "swept": ("with {} hair swept back", "with {} hair combed back"),
    "curly": ("with curly {} hair", "with {} curls"),
    "bob": ("with a {} bob", "with medium-length {} hair", "with chin-length {} hair"),
    "long": ("with long {} hair", "with long straight {} hair"),
    "wavy": ("with long wavy {} hair", "with wavy {} hair"),
    "bun": ("with {} hair in a bun", "with {} hair tied up"),
}
EXPRESSIONS = {
    "neutral": ("with a neutral expression", "looking serious", "with a calm face"),
    "smiling": ("smiling", "with a smile", "with a gentle smile"),
    "laughing": ("laughing", "with a big smile", "smiling broadly"),
    "surprised": ("looking surprised", "surprised, with an open mouth"),
    "sad": ("looking sad", "with a sad face"),
    "angry": ("looking angry", "frowning"),
}
BEARDS = {
    "stubble": "with stubble",
    "moustache": "with a moustache",
    "goatee": "with a goatee",
    "beard": "with a beard",
}
GLASSES = {"round": "round glasses", "square": "glasses", "sun": "sunglasses"}
STYLES = {
    "photo": ("", "a photo of ", "a portrait of ", "a photograph of ", "portrait photo of "),
    "drawing": ("a pencil drawing of ", "a line drawing of ", "a sketch of "),
    "watercolour": ("a watercolour of ", "a watercolor painting of ", "a watercolour painting of "),
}
DROPPED = 0.08  # of the facts, so that a short prompt works too


def make_caption(person: Person, look: Look, wording: int = 0, own: float = 1.0) -> str:
    """One of many: each `wording` is another, the same each time. `own`: how often hair and beard are told;
    what learns a face beside the caption has to learn what the caption leaves to the face."""
    rng = np.random.default_rng([look.seed, 11, wording])

    def one(choices: tuple[str, ...]) -> str:
        return choices[rng.integers(len(choices))]

    hair = "" if look.hat and look.haircut == "bald" else one(HAIRCUTS[look.haircut]).format(look.hair)
    beard = BEARDS.get(look.beard, "")
    if own < 1:
        hair, beard = (fact if rng.random() < own else "" for fact in (hair, beard))
    facts = [hair, beard, join_worn(look, rng), one(EXPRESSIONS[look.expression])]
    facts.append(one(PLACES[look.backdrop]) if look.backdrop in PLACES else one_backdrop(look.backdrop, rng))
    facts = [fact for fact in facts if fact and rng.random() > DROPPED]
    if rng.random() < 0.3:
        rng.shuffle(facts)
    who = one(STYLES[look.style]) + name_person(person, rng)
    return who + (" " if facts and facts[0].startswith("with") else ", " if facts else "") + ", ".join(facts)


def name_person(person: Person, rng: np.random.Generator) -> str:
    name = "man" if person.male else "woman"
    if person.age > 0.6:
        return ("an old ", "an elderly ")[rng.integers(2)] + name
    if person.age < 0.2 and rng.random() < 0.6:
        return "a young " + name
    return "a " + name


def join_worn(look: Look, rng: np.random.Generator) -> str:
    """Clothes, glasses and hat after one verb."""
    pattern = "" if look.pattern == "plain" else f"{look.pattern} "
    worn = [f"{article(look.colour)} {look.colour} {pattern}{look.garment}"]
    if look.glasses:
        worn.append(GLASSES[look.glasses])
    if look.hat:
        worn.append(f"{article(look.hat_colour)} {look.hat_colour} {look.hat}")
    rng.shuffle(worn)
    words = ", ".join(worn[:-1]) + (" and " if len(worn) > 1 else "") + worn[-1]
    return ("wearing ", "in ")[int(rng.random() < 0.25)] + words


def one_backdrop(colour: str, rng: np.random.Generator) -> str:
    wording = ("{} background", "on a plain {} background", "in front of {} {} wall")[rng.integers(3)]
    return wording.format(*((article(colour), colour) if wording.count("{}") == 2 else (colour,)))


def article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
