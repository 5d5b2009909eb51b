"""A person and a look -> everything that is drawn: meshes and ribbons in place, each with its material."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from infu.training.world.accessories import Mesh, make_glasses, make_hat
from infu.training.world.backdrops import light_of
from infu.training.world.bust import Bust
from infu.training.world.hair import fit_skull, grow_hair, ribbons
from infu.training.world.people import COLOURS, EYES, HAIR, Look, Person

PIVOT = np.array([0, -1.9, -1.3], np.float32)  # where the neck turns
CAMERA = 14.0  # eye distances away
GARMENTS = ("t-shirt", "sweater", "shirt", "suit", "dress", "beanie", "smooth")  # cases of cloth.frag
PATTERNS = ("plain", "striped", "checked", "dotted")
NECKLINES = {
    "t-shirt": 0.16,
    "sweater": 0.0,
    "shirt": 0.25,
    "suit": 0.45,
    "dress": 0.75,
}  # how deep, in front
FRAMES = ((22, 22, 24), (96, 58, 34), (150, 152, 156))


@dataclass(frozen=True, eq=False)
class Item:
    """`vertices` as the vertex shader of `material` reads them; `triangles` (T, 3); `solid` casts shadows."""

    material: str  # a fragment shader's name
    vertices: np.ndarray
    triangles: np.ndarray
    uniforms: dict = field(default_factory=dict)
    solid: bool = True


class Pose:
    """The look's turn of head and shoulders: places at rest (n, 3) -> posed. Along the neck they blend."""

    def __init__(self, look: Look):
        self.head = rotation(look.yaw, look.pitch, look.roll)
        self.body = rotation(look.shoulders, 0, 0)

    def __call__(self, points: np.ndarray) -> np.ndarray:
        share = self._share(points)
        centred = points - PIVOT
        turned = share * (centred @ self.head.T) + (1 - share) * (centred @ self.body.T)
        return (turned + PIVOT).astype(np.float32)

    def turn(self, directions: np.ndarray, points: np.ndarray) -> np.ndarray:
        share = self._share(points)
        return (share * (directions @ self.head.T) + (1 - share) * (directions @ self.body.T)).astype(
            np.float32
        )

    def _share(self, points: np.ndarray) -> np.ndarray:
        t = np.clip((points[:, 1:2] + 3.3) / 1.5, 0, 1)
        return t * t * (3 - 2 * t)


def rotation(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """Radians; yaw to the picture's right, pitch down, roll counter-clockwise."""
    (cy, cp, cr), (sy, sp, sr) = np.cos([yaw, pitch, roll]), np.sin([yaw, pitch, roll])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    about_z = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return about_z @ about_x @ about_y


def camera(look: Look, size: tuple[int, int]) -> np.ndarray:
    """(4, 4): places to clip space, in perspective."""
    x = 2 / look.width
    y = x * size[0] / size[1]
    return np.array(
        [
            [x, 0, 0, -x * look.centre[0]],
            [0, y, 0, -y * look.centre[1]],
            [0, 0, -0.1, 0],
            [0, 0, -1 / CAMERA, 1],
        ],
        np.float32,
    )


def light_camera(look: Look) -> np.ndarray:
    """(4, 4): the same as the key light sees it, without perspective."""
    forward = np.array(look.light) / np.linalg.norm(look.light)
    right = np.cross([0, 1, 0], forward)
    right /= np.linalg.norm(right)
    axes = np.stack([right, np.cross(forward, right), -forward])
    middle, reach = np.array([0, -0.9, -1.0]), 3.6
    matrix = np.eye(4)
    matrix[:3, :3] = axes / reach
    matrix[:3, 3] = -axes @ middle / reach
    return matrix.astype(np.float32)


def make_scene(person: Person, look: Look, vertices: np.ndarray, pose: Pose, bust: Bust) -> list[Item]:
    """In drawing order: what is seen through comes last."""
    normals = bust.normals(vertices)
    packed = np.concatenate([pose(vertices), pose.turn(normals, vertices), bust.paint, bust.extra], 1)
    packed = packed.astype(np.float32)
    items = [
        Item("skin", packed, bust.triangles["skin"], skin_uniforms(person, look)),
        Item(
            "eye",
            packed,
            bust.triangles["eyes"],
            eye_uniforms(person, look, pose, bust.eye_centres(vertices)),
            False,
        ),
        Item("plain", packed, bust.triangles["teeth"], plain((196, 188, 176), 0.25), False),
        Item("plain", packed, bust.triangles["tongue"], plain((150, 62, 62), 0.1), False),
        Item("plain", packed, bust.triangles["lashes"], plain((22, 17, 16)), False),
        Item("cloth", loosened(packed), bust.triangles["shirt"], cloth_uniforms(look)),
    ]
    for strands in grow_hair(person, look, vertices, normals):
        uniforms = dict(colour=hair_colour(person, look), thickness=strands.thickness, shine=0.35)
        items.append(Item("strand", *ribbons(strands, pose), uniforms))
    if look.hat:
        items += hat_items(look, pose, *fit_skull(bust, vertices))
    if look.glasses:
        items += glasses_items(person, look, pose, vertices, bust)
    return items


def loosened(packed: np.ndarray) -> np.ndarray:
    """The shirt hugs the skin; a little further out it covers it where both turn away from the viewer."""
    moved = packed.copy()
    moved[:, :3] += 0.06 * packed[:, 3:6]
    return moved


def skin_uniforms(person: Person, look: Look) -> dict:
    scalp = {"bald": 0.12, "cropped": 0.75}.get(look.haircut, 0.95)
    beard = {"": 0.0, "stubble": 0.8, "moustache": 0.12, "goatee": 0.3, "beard": 0.45}[look.beard]
    lipstick = ((176, 40, 58), (190, 88, 96), (150, 52, 70))[person.seed % 3]
    return dict(
        skin_colour=unit(person.skin),
        hair_colour=hair_colour(person, look),
        lip_colour=unit(lipstick),
        brows=person.brows,
        lips=person.lips,
        freckles=person.freckles,
        flush=person.flush,
        age=person.age,
        stubble=beard,
        scalp=scalp,
        hairline=person.hairline,
        makeup=0.0 if person.male else max(0.0, person.lips - 0.4),
    )


def eye_uniforms(person: Person, look: Look, pose: Pose, eyes: np.ndarray) -> dict:
    """They look at the viewer, or a little past."""
    left, right = pose(eyes)
    gaze = np.array([look.gaze[0] + 0.25 * look.yaw, look.gaze[1], 1.0])
    gaze /= np.linalg.norm(gaze)
    return dict(
        eye_colour=unit(EYES[person.eyes]), left_eye=tuple(left), right_eye=tuple(right), gaze=tuple(gaze)
    )


def cloth_uniforms(look: Look) -> dict:
    colour = COLOURS[look.colour]
    return dict(
        colour=unit(colour),
        second=unit(COLOURS[look.second_colour]),
        garment=GARMENTS.index(look.garment),
        pattern=PATTERNS.index(look.pattern),
        neckline=NECKLINES[look.garment],
    )


def hat_items(look: Look, pose: Pose, centre: np.ndarray, radii: np.ndarray) -> list[Item]:
    crown, brim = make_hat(look.hat, centre, radii)
    colour = unit(COLOURS[look.hat_colour])
    garment = GARMENTS.index("beanie" if look.hat == "beanie" else "smooth")
    uniforms = dict(colour=colour, second=colour, garment=garment, pattern=0)
    return [mesh_item("cloth", mesh, pose, uniforms) for mesh in (crown, brim) if mesh is not None]


def glasses_items(person: Person, look: Look, pose: Pose, vertices: np.ndarray, bust: Bust) -> list[Item]:
    frame, lenses = make_glasses(look.glasses, float(vertices[bust.bridge, 2].max()) + 0.06)
    dark = look.glasses == "sun"
    frame_colour = FRAMES[0] if dark else FRAMES[person.seed % 3]
    glass = plain((16, 16, 18), 0.2, 0.93) if dark else plain((220, 230, 240), 0.25, 0.06)
    return [
        mesh_item("plain", frame, pose, plain(frame_colour, 0.6)),
        mesh_item("plain", lenses, pose, glass, solid=False),
    ]


def mesh_item(material: str, mesh: Mesh, pose: Pose, uniforms: dict, solid: bool = True) -> Item:
    vertices, triangles = mesh
    at, normals, extra = vertices[:, :3], vertices[:, 3:6], vertices[:, 6:]
    packed = np.concatenate([pose(at), pose.turn(normals, at), at, extra], 1).astype(np.float32)
    return Item(material, packed, triangles, uniforms, solid)


def light_uniforms(look: Look) -> dict:
    light, strength = light_of(look), 0.5 + look.ambient
    direction = np.array(look.light) / np.linalg.norm(look.light)
    return dict(
        key_direction=tuple(direction),
        key_colour=tuple(1.5 * (1.5 - look.ambient) * c for c in light.key),
        sky_colour=tuple(strength * c for c in light.sky),
        ground_colour=tuple(strength * c for c in light.ground),
        rim_colour=light.rim,
    )


def hair_colour(person: Person, look: Look) -> tuple:
    return tuple(min(1.0, c * person.hair_tint) for c in unit(HAIR[look.hair]))


def plain(colour: tuple, gloss: float = 0.0, opacity: float = 1.0) -> dict:
    return dict(colour=unit(colour), gloss=gloss, opacity=opacity)


def unit(colour: tuple) -> tuple:
    return tuple(c / 255 for c in colour)
