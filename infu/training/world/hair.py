"""Hair and beards as strands: from roots on the skin, grown step by step, combed, pulled down, kept outside.

A strand is a line of points; `shaders/strand.vert` makes a ribbon of it. Lengths: distances between the eyes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from infu.training.world.bust import Bust, around, load_bust
from infu.training.world.people import Look, Person

AXIS = np.array([0, 0, -1.2], np.float32)  # the head's, from above
TORSO = np.array([0, -5.3, -1.75], np.float32), np.array([4.4, 2.5, 1.4], np.float32)  # centre, radii
CANDIDATES = 14000  # roots over the whole skin of head and jaw; a style takes those in its region


@dataclass(frozen=True)
class Cut:
    strands: int
    thickness: float
    length: float
    points: int
    comb: str  # a case of `comb`
    lift: float = 0.0  # how far the outermost strands lie above the skull
    gravity: float = 0.1
    curl: float = 0.0
    turns: float = 0.0
    end: float = -9.0  # the height at which scissors cut

    @property
    def lies(self) -> bool:
        """On the skull, not away from it."""
        return self.comb not in ("grown", "beard")


CUTS = {
    "cropped": Cut(2600, 0.015, 0.13, 3, "grown"),
    "short": Cut(2200, 0.022, 0.60, 6, "side", 0.16, 0.10),
    "swept": Cut(2200, 0.022, 0.95, 7, "back", 0.26, 0.03),
    "curly": Cut(2300, 0.030, 0.60, 9, "grown", gravity=0.06, curl=0.12, turns=2.0),
    "bob": Cut(1900, 0.030, 4.0, 11, "parted", 0.20, 0.45, end=-1.55),
    "long": Cut(1900, 0.032, 6.4, 13, "parted", 0.22, 0.45, end=-4.0),
    "wavy": Cut(1900, 0.034, 6.0, 15, "parted", 0.36, 0.38, curl=0.12, turns=3.0, end=-3.4),
    "bun": Cut(2200, 0.020, 2.3, 8, "up", 0.06, 0.0),
}
BEARD = Cut(1700, 0.016, 0.26, 4, "beard", gravity=0.35, curl=0.02, turns=1.5)
MOUSTACHE = Cut(420, 0.015, 0.20, 4, "beard", gravity=0.25)


@dataclass(frozen=True, eq=False)
class Strands:
    """`points` (N, K, 3), `tints` (N,) about 0.3 (deep inside) to 1, `thickness` of a ribbon's half."""

    points: np.ndarray
    tints: np.ndarray
    thickness: float


@dataclass(frozen=True, eq=False)
class Roots:
    """Places on the skin, the same on everyone: a triangle's corners (N, 3) and their shares (N, 3); what the
    bust's `paint` and `extra` are there."""

    corners: np.ndarray
    shares: np.ndarray
    paint: np.ndarray
    extra: np.ndarray

    def of(self, values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """Values of vertices (V, C) -> of the chosen roots (n, C)."""
        return np.einsum("nk,nkc->nc", self.shares[chosen], values[self.corners[chosen]])


@lru_cache(maxsize=1)
def load_roots() -> Roots:
    bust, rng = load_bust(), np.random.default_rng(0)
    triangles = bust.triangles["skin"]
    a, b, c = (bust.paint[triangles[:, i]] for i in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    near = bust.extra[triangles].max(1)  # of the triangle's corners
    ears = (abs(a[:, 0]) > 1.13) & (abs(a[:, 1] + 0.25) < 0.6)
    area[((near[:, 1] < 0) & (near[:, 2] < 0)) | ears] = 0
    area[near[:, 2] > 0] *= 3  # a beard is small, and seen from near
    corners = triangles[rng.choice(len(triangles), CANDIDATES, p=area / area.sum())]
    u, v = np.sqrt(rng.random(CANDIDATES)), rng.random(CANDIDATES)
    shares = np.stack([1 - u, u * (1 - v), u * v], 1).astype(np.float32)
    roots = Roots(corners, shares, np.empty(0), np.empty(0))
    everywhere = np.arange(CANDIDATES)
    return Roots(corners, shares, roots.of(bust.paint, everywhere), roots.of(bust.extra, everywhere))


def fit_skull(bust: Bust, vertices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ellipsoid, centre (3,) and radii (3,), that this head's scalp lies on."""
    scalp, front = vertices[bust.scalp], vertices[bust.forehead, 2].max()
    back = scalp[:, 2].min()
    centre = np.array([0, 0.35, (front + back) / 2], np.float32)
    radii = np.array([abs(scalp[:, 0]).max(), scalp[:, 1].max() - centre[1], (front - back) / 2], np.float32)
    return centre, radii * 1.02


def grow_hair(person: Person, look: Look, vertices: np.ndarray, normals: np.ndarray) -> list[Strands]:
    """The look's hair and beard on this head (V, 3), before it is turned."""
    roots, rng = load_roots(), np.random.default_rng([person.seed, 3])
    skull = fit_skull(load_bust(), vertices)
    grown = []
    if look.haircut in CUTS:
        cut = CUTS[look.haircut]
        line = person.hairline + rng.normal(0, 0.03, CANDIDATES)
        grows = roots.extra[:, 1] > line
        if cut.comb == "up":
            grows &= (
                roots.paint[:, 1] > -0.4
            )  # the rest of the nape is not seen, and would come through the face
        if look.hat and cut.comb != "parted":
            grows &= roots.paint[:, 1] < 0.55  # what the hat covers does not come through it
        scalp = np.flatnonzero(grows)[: cut.strands]
        grown.append(grow(cut, scalp, person, look, vertices, normals, skull, rng))
        if look.haircut == "bun" and not look.hat:
            grown.append(wind_bun(skull, rng))
    if look.beard in ("beard", "goatee", "moustache"):
        x, y = abs(roots.paint[:, 0]), roots.paint[:, 1]
        bare = (roots.extra[:, 2] > 0.02) & (roots.extra[:, 0] < 0.2)
        upper = bare & (y > -1.06) & (x < 0.5)
        lower = bare & ((y < -1.3) & (x < 0.4)) if look.beard == "goatee" else bare
        if look.beard != "moustache":
            grown.append(
                grow(
                    BEARD,
                    np.flatnonzero(lower | upper)[: BEARD.strands],
                    person,
                    look,
                    vertices,
                    normals,
                    skull,
                    rng,
                )
            )
        else:
            grown.append(grow(MOUSTACHE, np.flatnonzero(upper), person, look, vertices, normals, skull, rng))
    return grown


def grow(cut, chosen, person, look, vertices, normals, skull, rng) -> Strands:
    """One kind of hair from its roots; `chosen` (n,) of `load_roots`."""
    roots, count = load_roots(), len(chosen)
    start, normal, paint = (roots.of(x, chosen) for x in (vertices, normals, load_bust().paint))
    layer = rng.random(count).astype(np.float32) ** 0.7  # 0 on the skin, 1 outermost
    lift = 0.02 + cut.lift * layer
    if look.hat:
        lift = np.where(start[:, 1] > 0.3, np.minimum(lift, 0.05), lift)
    fringe = (around(paint) < 0.62) & (paint[:, 2] > -0.55) & look.fringe & (cut.comb in ("parted", "side"))
    fringe &= not look.hat
    length = cut.length * rng.uniform(0.8, 1.1, count)
    length[fringe] = np.clip(start[fringe, 1] - rng.uniform(0.42, 0.6, fringe.sum()), 0.15, 1.6) * 1.25
    end = cut.end + rng.normal(0, 0.06 if cut.end > -2 else 0.2, count)
    curtain = 0.74 + rng.normal(0, 0.05, count)  # the angle from which hair may hang beside the face
    clump = np.round(np.arctan2(start[:, 0], start[:, 2] + 1.2) * 5 + start[:, 1] * 2) * 1.7 + rng.normal(
        0, 0.5, count
    )
    combed = comb(cut.comb, paint, normal, person, fringe)
    wild = rng.normal(0, 0.12, (count, 3))
    position, direction = start.copy(), combed + 0.6 * normal
    points, alive = [start], np.ones(count, bool)
    for k in range(1, cut.points):
        step = k / (cut.points - 1)
        pull = np.array([0, -cut.gravity * (0.6 + 2 * step), 0])
        held = (1 - step) ** 2 * (np.clip(position[:, 1:2], 0, 1) if cut.comb == "parted" else 1)
        direction = unit(unit(direction) + 0.6 * combed * held + pull + wild * (1 - step))
        if cut.comb == "parted":  # what falls has lost its swing
            direction[:, ::2] *= np.clip(0.6 + 0.6 * (position[:, 1:2] - 0.4), 0.2, 1)
            direction += towards_neck(position)
        moved = position + unit(direction) * (length / (cut.points - 1))[:, None]
        if cut.lies:
            moved = lay_on(moved, *skull, lift * min(1, 3 * step), -1.6 if cut.comb == "up" else -0.1)
            moved = push_out(moved, *TORSO, 0.02 + 0.06 * layer)
            if cut.comb == "parted":
                moved = np.where(fringe[:, None], moved, draw_curtain(moved, curtain))
            alive &= moved[:, 1] > end
        direction = np.where(alive[:, None], moved - position, direction)
        position = np.where(alive[:, None], moved, position)
        points.append(position)
    points = np.stack(points, 1)  # (n, K, 3)
    if cut.curl:
        points += curl(cut, points.shape[1], clump) * np.where(fringe, 0.2, 1)[:, None, None]
    tints = 0.30 + 0.5 * layer + rng.uniform(-0.12, 0.2, count)
    return Strands(points.astype(np.float32), tints.astype(np.float32), cut.thickness)


def comb(name: str, paint: np.ndarray, normal: np.ndarray, person: Person, fringe: np.ndarray) -> np.ndarray:
    """The direction (n, 3) in which hair is combed at its roots."""
    x, y, z = paint.T
    away = np.where(x > person.parting, 1, -1) * np.minimum(1, 0.35 + abs(x - person.parting))
    flat = np.zeros_like(x)
    if name == "grown":
        return normal + np.array([0, 0.1, 0.1])
    if name == "beard":
        return 0.45 * normal + np.stack([0.25 * np.sign(x) * (y > -1.06), flat - 0.8, flat], 1)
    if name == "up":
        return unit(np.stack([-x, 1.9 - y, -0.9 - z], 1))
    if name == "back":
        return np.stack([0.15 * away, 0.5 * (z > -0.6), flat - 1], 1)
    front = z > -0.7
    if name == "side":
        side = -np.sign(person.parting or 1)
        combed = np.stack(
            [np.where(y > 0.9, 0.9 * side, 0.15 * np.sign(x)), flat - 0.25, np.where(front, 0.35, -0.5)], 1
        )
    else:
        behind = np.clip((-1.1 - z) / 0.5, 0, 1)  # the back hangs down where it grows, behind the neck
        combed = np.stack([away * (1 - 0.85 * behind), 0.1 - 0.6 * behind, np.where(front, -0.45, -0.1)], 1)
    forward = np.stack([0.25 * np.sign(x - person.parting), flat - 0.35, flat + 1], 1)
    return np.where(fringe[:, None], forward, combed)


def push_out(points: np.ndarray, centre: np.ndarray, radii: np.ndarray, margin: np.ndarray) -> np.ndarray:
    """Points (n, 3) inside an ellipsoid, a margin (n,) around it included, move to its surface."""
    inside = (points - centre) / radii
    size = np.linalg.norm(inside, axis=1) + 1e-6
    return centre + inside * radii * np.maximum(1, (1 + margin / radii.mean()) / size)[:, None]


def lay_on(
    points: np.ndarray, centre: np.ndarray, radii: np.ndarray, margin: np.ndarray, until: float
) -> np.ndarray:
    """Points (n, 3) above a height come onto the ellipsoid's surface, each at its own margin (n,); those
    below only stay outside."""
    inside = (points - centre) / radii
    size = np.linalg.norm(inside, axis=1) + 1e-6
    wanted = (1 + margin / radii.mean()) / size
    share = np.clip((points[:, 1] - until) / 0.5, 0, 1)
    return centre + inside * radii * np.maximum(wanted, share * wanted + (1 - share))[:, None]


def towards_neck(points: np.ndarray) -> np.ndarray:
    """Below the ears hair falls in again, as far as the neck and its own thickness let it (n, 3)."""
    flat = (points - AXIS) * (1, 0, 1)
    radius = np.linalg.norm(flat, axis=1, keepdims=True) + 1e-6
    share = np.clip((-0.2 - points[:, 1:2]) / 0.5, 0, 1) * np.clip((points[:, 1:2] + 2.6) / 0.5, 0, 1)
    return -0.5 * share * np.clip(radius - 1.15, 0, 0.6) * flat / radius


def draw_curtain(points: np.ndarray, curtain: np.ndarray) -> np.ndarray:
    """Hair leaves the face free: below the forehead it hangs from an angle on (n,)."""
    flat = points - AXIS
    radius, angle = np.hypot(flat[:, 0], flat[:, 2]), np.arctan2(flat[:, 0], flat[:, 2])
    least = curtain * np.clip((1.25 - points[:, 1]) / 0.85, 0, 1)
    least = np.where(points[:, 1] < -2.4, curtain * 0.6, least)  # on the chest it may come forward again
    angle = np.where(angle < 0, -1, 1) * np.maximum(abs(angle), least)
    return np.stack([radius * np.sin(angle), points[:, 1], radius * np.cos(angle) + AXIS[2]], 1)


def curl(cut: Cut, count: int, phase: np.ndarray) -> np.ndarray:
    """Waves (n, K, 3) to add: none at the root, the same phase within a lock."""
    along = np.linspace(0, 1, count)
    turn = 2 * np.pi * cut.turns * along + phase[:, None]
    size = cut.curl * np.minimum(1, 3 * along)
    return np.stack([size * np.sin(turn), 0.3 * size * np.cos(turn), size * np.cos(turn)], 2)


def wind_bun(skull: tuple[np.ndarray, np.ndarray], rng: np.random.Generator, strands: int = 420) -> Strands:
    """A knot on top: strands wound around a small ball."""
    centre, radii = skull
    middle = centre + np.array([0, radii[1] + 0.30, -0.25])
    phi, tilt = rng.uniform(0, 2 * np.pi, strands), rng.normal(0, 0.9, strands)
    turn = phi[:, None] + np.linspace(0, 2.2, 9)
    ring = np.stack(
        [np.cos(turn), np.sin(turn) * np.sin(tilt)[:, None] * 0.8, np.sin(turn) * np.cos(tilt)[:, None]], 2
    )
    points = middle + ring * np.array([0.52, 0.45, 0.48]) * rng.uniform(0.8, 1, strands)[:, None, None]
    return Strands(points.astype(np.float32), rng.uniform(0.45, 1, strands).astype(np.float32), 0.022)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / (np.linalg.norm(vectors, axis=-1, keepdims=True) + 1e-6)


def ribbons(strands: Strands, pose) -> tuple[np.ndarray, np.ndarray]:
    """-> vertices float32 (2 N K, 9): posed position, tangent, (side, along, tint); triangles (T, 3)."""
    count, length = strands.points.shape[:2]
    points = pose(strands.points.reshape(-1, 3)).reshape(strands.points.shape)
    tangents = unit(np.gradient(points, axis=1))
    vertices = np.empty((count, length, 2, 9), np.float32)
    vertices[..., :3], vertices[..., 3:6] = points[:, :, None], tangents[:, :, None]
    vertices[..., 6] = (-1, 1)
    vertices[..., 7] = np.linspace(0, 1, length)[:, None]
    vertices[..., 8] = strands.tints[:, None, None]
    return vertices.reshape(-1, 9), strip_triangles(count, length)


@lru_cache(maxsize=64)
def strip_triangles(count: int, length: int) -> np.ndarray:
    start = (np.arange(count)[:, None] * length + np.arange(length - 1)) * 2  # (N, K - 1)
    quad = np.array([[0, 1, 2], [1, 3, 2]])
    return (start[..., None, None] + quad).reshape(-1, 3).astype(np.int32)
