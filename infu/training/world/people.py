"""Who is seen and how: a person (what stays theirs) and a look (what changes from picture to picture), each
drawn from a seed. All that a picture shows is in these two; `captions.py` puts them into words.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from infu.training.world.bust import Bust

Colour = tuple[float, float, float]  # sRGB, 0..255

COLOURS: dict[str, Colour] = {
    "red": (186, 40, 42),
    "orange": (226, 122, 42),
    "yellow": (230, 196, 72),
    "green": (52, 132, 70),
    "blue": (48, 88, 176),
    "purple": (116, 62, 148),
    "pink": (226, 138, 164),
    "brown": (116, 78, 50),
    "white": (232, 231, 228),
    "grey": (132, 134, 138),
    "black": (36, 36, 40),
}
HAIR: dict[str, Colour] = {
    "black": (26, 21, 20),
    "brown": (88, 55, 34),
    "blond": (206, 164, 100),
    "red": (160, 72, 34),
    "grey": (168, 166, 164),
}
EYES: dict[str, Colour] = {
    "brown": (84, 52, 28),
    "hazel": (112, 84, 46),
    "blue": (88, 128, 168),
    "green": (96, 128, 88),
}
SKIN = np.array([[96, 62, 45], [214, 168, 130], [236, 190, 164]])  # African, Asian, Caucasian ancestry
HAIRCUTS = ("bald", "cropped", "short", "swept", "curly", "bob", "long", "wavy", "bun")
PLACES = ("park", "beach", "mountains", "forest", "city", "night", "room", "library", "snow")
STYLES = ("photo", "drawing", "watercolour")
EXPRESSIONS: dict[str, dict[str, float]] = {
    "neutral": {},
    "smiling": {"mouth-corner-puller": 0.9, "eye-left-slit": 0.2, "eye-right-slit": 0.2},
    "laughing": {
        "mouth-corner-puller": 0.9,
        "mouth-open": 0.42,
        "mouth-upward-retraction": 0.35,
        "eye-left-slit": 0.3,
        "eye-right-slit": 0.3,
    },
    "surprised": {
        "mouth-open": 0.7,
        "eyebrows-left-up": 0.9,
        "eyebrows-right-up": 0.9,
        "eye-left-opened-up": 0.6,
        "eye-right-opened-up": 0.6,
    },
    "sad": {"mouth-depression": 0.9, "eyebrows-left-inner-up": 0.9, "eyebrows-right-inner-up": 0.9},
    "angry": {
        "eyebrows-left-down": 0.9,
        "eyebrows-right-down": 0.9,
        "mouth-compression": 0.5,
        "nose-compression": 0.4,
        "mouth-depression": 0.3,
    },
}
PAIRS = (("incr", "decr"), ("up", "down"), ("in", "out"), ("forward", "backward"), ("convex", "concave"))
VARIED = ("cheek", "chin", "eyebrows", "eyes", "forehead", "head", "mouth", "nose", "ears")
POSTURE = ("head-trans", "head-age", "head-angle", "head-scale-depth")  # no one's likeness
TENDER = ("eye-height", "eye-push", "head-scale-horiz")  # larger moves tear lids or squash heads
FACES = ("diamond", "oval", "rectangular", "round", "square", "triangular", "invertedtriangular")


@dataclass(frozen=True, eq=False)
class Person:
    """`weights` (targets,) of the bust; the rest is paint and habit."""

    seed: int
    weights: np.ndarray
    male: bool
    age: float  # 0 young, 1 old
    skin: Colour
    eyes: str
    hair: str
    hair_tint: float
    haircut: str
    parting: float  # where the hair parts, x
    fringe: bool
    hairline: float
    beard: str  # "", "stubble", "moustache", "goatee", "beard"
    glasses: str  # "", "round", "square"
    brows: float
    lips: float
    freckles: float
    flush: float


@dataclass(frozen=True, eq=False)
class Look:
    """One picture of a person. Angles in radians; lengths in distances between the eyes."""

    seed: int
    hair: str
    haircut: str
    fringe: bool
    beard: str
    glasses: str
    hat: str  # "", "beanie", "cap", "sun hat"
    hat_colour: str
    garment: str  # "t-shirt", "sweater", "shirt", "suit", "dress"
    pattern: str  # "plain", "striped", "checked", "dotted"
    colour: str
    second_colour: str
    expression: str
    strength: float
    backdrop: str  # a colour, or one of PLACES
    style: str
    yaw: float
    pitch: float
    roll: float
    shoulders: float  # their yaw
    gaze: tuple[float, float]
    width: float  # what the picture's width shows
    centre: tuple[float, float]
    light: tuple[float, float, float]
    ambient: float


def make_person(seed: int, bust: Bust) -> Person:
    """The same seed is the same person, on every machine."""
    rng = np.random.default_rng([seed, 1])
    ancestry = rng.dirichlet([0.35] * 3)
    male = bool(rng.random() < 0.5)
    age = float(rng.beta(1, 1.7))
    hair = np.array([0.25, 0.33, 0.24, 0.12, 0.06] if ancestry[2] > 0.5 else [0.74, 0.2, 0.02, 0.02, 0.02])
    if age > 0.6:
        hair = hair * 0.4 + np.array([0, 0, 0, 0, 0.6])
    eyes = [0.4, 0.2, 0.25, 0.15] if ancestry[2] > 0.5 else [0.85, 0.15, 0, 0]
    if male:
        cut = pick(rng, dict(bald=1, cropped=2, short=3, swept=3, curly=2, bob=0.5, long=0.5, wavy=0.5))
    else:
        cut = pick(rng, dict(cropped=0.4, short=0.6, curly=2, bob=3, long=3, wavy=3, bun=2))
    beards = dict(none=5, stubble=1.5, moustache=1, goatee=1, beard=2.5)
    tone = (ancestry[:, None] * SKIN).sum(0) * rng.uniform(0.88, 1.06) + rng.normal(0, 4, 3)
    return Person(
        seed=seed,
        weights=draw_weights(rng, bust, ancestry, male, age),
        male=male,
        age=age,
        skin=tuple(np.clip(tone, 35, 248).tolist()),
        eyes=pick(rng, dict(zip(EYES, eyes, strict=True))),
        hair=pick(rng, dict(zip(HAIR, hair, strict=True))),
        hair_tint=float(rng.uniform(0.82, 1.2)),
        haircut=cut,
        parting=float(rng.choice([-0.45, 0.0, 0.45])),
        fringe=bool(rng.random() < 0.3),
        hairline=float(rng.uniform(-0.04, 0.14) + (0.1 if male and age > 0.5 else 0)),
        beard=pick(rng, beards).replace("none", "") if male else "",
        glasses=pick(rng, {"": 8, "round": 1, "square": 1}),
        brows=float(rng.uniform(0.9, 1.7) if male else rng.uniform(0.6, 1.15)),
        lips=float(rng.uniform(0.15, 0.4) if male else rng.uniform(0.4, 1)),
        freckles=float(max(0, rng.uniform(-2, 1))) * float(ancestry[2]),
        flush=float(rng.uniform(0.1, 0.6)),
    )


def draw_weights(
    rng: np.random.Generator, bust: Bust, ancestry: np.ndarray, male: bool, age: float
) -> np.ndarray:
    """Weights (targets,) of a face of its own: macrodetails sum to 1, details vary on both sides alike."""
    weights = np.zeros(len(bust.targets), np.float32)
    maleness = rng.uniform(0.78, 1) if male else rng.uniform(0, 0.22)
    for people, share in zip(("african", "asian", "caucasian"), ancestry, strict=True):
        for sex, of_sex in (("male", maleness), ("female", 1 - maleness)):
            for years, of_age in (("young", 1 - age), ("old", age)):
                weights[bust.targets[f"macrodetails/{people}-{sex}-{years}"]] += share * of_sex * of_age
    for more, less in paired(bust):
        name = more.split("/")[1].removeprefix("l-")
        limit = 0.3 if name.startswith(TENDER) else 0.75
        value = float(np.clip(rng.normal(0, 0.26 * (0.4 if limit < 0.5 else 1)), -limit, limit))
        target = more if value > 0 else less
        for side in {target, target.replace("/l-", "/r-")}:
            weights[bust.targets[side]] += abs(value)
    weights[bust.targets[f"head/head-{rng.choice(FACES)}"]] += rng.uniform(0, 0.7)
    return weights


def paired(bust: Bust) -> list[tuple[str, str]]:
    """Targets that are one another's opposite; of those with two sides, the left."""
    pairs = []
    for name in bust.targets:
        group, detail = name.split("/")
        if group not in VARIED or detail.startswith(("r-", *POSTURE)):
            continue
        for more, less in PAIRS:
            other = name.removesuffix(more) + less
            if name.endswith(f"-{more}") and other in bust.targets:
                pairs.append((name, other))
    return pairs


def make_look(person: Person, number: int, style: str | None = None) -> Look:
    """Picture `number` of a person: mostly their own hair, beard and glasses, and another day's clothes,
    place and expression. `style`: one of STYLES; None: drawn, two of three a photo."""
    rng = np.random.default_rng([person.seed, 2, number])
    own = rng.random() < 0.75
    cuts = HAIRCUTS[1:5] if person.male else HAIRCUTS[4:]
    hat = pick(rng, {"": 8, "beanie": 0.7, "cap": 0.7, "sun hat": 0.6})
    garments = {"t-shirt": 3, "sweater": 2, "shirt": 2, "suit": 1.5 if person.male else 0.7}
    pattern = pick(rng, dict(plain=6, striped=1.5, checked=1.2, dotted=0.8))
    garment = pick(rng, garments if person.male else {**garments, "dress": 2})
    colour, second = rng.choice(list(COLOURS), 2, replace=False)
    yaw = float(np.clip(rng.normal(0, 0.26), -0.62, 0.62))
    return Look(
        seed=int(rng.integers(2**31)),
        hair=person.hair if own or rng.random() < 0.5 else str(rng.choice(list(HAIR))),
        haircut=person.haircut if own else str(rng.choice(cuts)),
        fringe=person.fringe,
        beard=person.beard if rng.random() < 0.9 else "",
        glasses=person.glasses
        if rng.random() < 0.7
        else pick(rng, {"": 7, "round": 1, "square": 1, "sun": 1}),
        hat=hat,
        hat_colour=str(rng.choice(list(COLOURS))),
        garment=garment,
        pattern="plain" if garment == "suit" else pattern,
        colour=str(colour),
        second_colour=str(second),
        expression=pick(rng, dict(neutral=3, smiling=3, laughing=1.5, surprised=1.2, sad=0.9, angry=0.9)),
        strength=float(rng.uniform(0.8, 1.1)),
        backdrop=str(rng.choice(list(COLOURS))) if rng.random() < 0.5 else str(rng.choice(PLACES)),
        style=style or pick(rng, dict(photo=4, drawing=1, watercolour=1)),
        yaw=yaw,
        pitch=float(np.clip(rng.normal(0.02, 0.08), -0.2, 0.2)),
        roll=float(np.clip(rng.normal(0, 0.05), -0.15, 0.15)),
        shoulders=yaw * 0.4 + float(rng.normal(0, 0.1)),
        gaze=(float(rng.normal(0, 0.08)), float(rng.normal(0, 0.04))),
        width=float(rng.uniform(3.9, 4.9)),
        centre=(float(rng.normal(0, 0.1)), float(rng.uniform(-0.6, -0.3))),
        light=(float(rng.choice([-1, 1]) * rng.uniform(0.15, 0.95)), float(rng.uniform(0.3, 0.9)), 1.0),
        ambient=float(rng.uniform(0.42, 0.6)),
    )


def pick(rng: np.random.Generator, weights: dict[str, float]) -> str:
    """One of the names, as often as its weight says."""
    shares = np.array(list(weights.values()))
    return str(rng.choice(list(weights), p=shares / shares.sum()))


def look_weights(person: Person, look: Look, bust: Bust) -> np.ndarray:
    """The person's weights with the look's expression on top (targets,)."""
    weights = person.weights.copy()
    for side in ("left", "right"):  # the bust's lids hang; a person who is photographed opens them
        weights[bust.targets[f"expression/eye-{side}-opened-up"]] += 0.3
    for name, value in EXPRESSIONS[look.expression].items():
        weights[bust.targets[f"expression/{name}"]] += value * look.strength
    return weights
