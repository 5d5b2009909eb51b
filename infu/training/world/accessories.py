"""Glasses and hats as meshes: vertices float32 (V, 9), position, normal and extra (3); triangles (T, 3)."""

from __future__ import annotations

import numpy as np

Mesh = tuple[np.ndarray, np.ndarray]
ROUND, SQUARE = 1.0, 0.5  # exponents of the frames' superellipses


def make_glasses(kind: str, bridge: float) -> tuple[Mesh, Mesh]:
    """`kind`: "round", "square" or "sun"; `bridge`: how far the nose's stands out (z). -> frame, lenses."""
    power = ROUND if kind == "round" else SQUARE
    high = 0.33 if kind == "round" else 0.29 if kind == "square" else 0.34
    wide = 0.36 if kind == "round" else 0.41
    around = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    x = np.sign(np.cos(around)) * np.abs(np.cos(around)) ** power * wide
    y = np.sign(np.sin(around)) * np.abs(np.sin(around)) ** power * high - 0.06
    tubes, lenses = [], []
    for side in (-1, 1):
        at = x + side * 0.5
        rim = np.stack([at, y, bridge - 0.16 * (np.abs(at) - 0.15) ** 2], 1)
        tubes.append(tube(rim, 0.026, closed=True))
        lenses.append(disc(rim))
        hinge = [side * (0.5 + wide), 0.05, bridge - 0.10]
        bow = np.array(
            [hinge, [side * 1.16, 0.07, bridge - 0.4], [side * 1.3, 0.05, -0.5], [side * 1.3, -0.02, -1.2]]
        )
        tubes.append(tube(bow, 0.028, closed=False))
    inner = 0.5 - wide
    nose = np.array([[-inner, 0.02, bridge], [0, 0.08, bridge + 0.05], [inner, 0.02, bridge]])
    return join(tubes + [tube(nose, 0.026, closed=False)]), join(lenses)


def make_hat(kind: str, centre: np.ndarray, radii: np.ndarray) -> tuple[Mesh, Mesh | None]:
    """Over a skull's ellipsoid. -> crown (its extra: the way up from the rim) and brim; a beanie has none."""
    loose = {"beanie": (1.12, 1.2, 1.12), "cap": (1.10, 1.06, 1.10), "sun hat": (1.10, 1.16, 1.10)}[kind]
    radii = radii * loose
    around = np.linspace(-np.pi, np.pi, 49)
    front = 0.5 + 0.5 * np.cos(around)
    rim = 0.02 + (0.24 if kind == "beanie" else 0.30) * front  # elevation of the rim: higher in front
    t = np.linspace(0, 1, 12)
    up = rim[:, None] + (np.pi / 2 - rim[:, None]) * t
    flat = np.cos(up) ** (1 if kind == "beanie" else 0.8)
    shape = np.stack([flat * np.sin(around)[:, None], np.sin(up), flat * np.cos(around)[:, None]], 2)
    crown = grid(centre + shape * radii, shape / radii, np.broadcast_to(1.6 * t, up.shape))
    if kind == "beanie":
        return crown, None
    reach = np.linspace(0, 1, 6)
    if kind == "cap":
        wide = 0.95 * np.clip(np.cos(around * 1.25), 0, 1) ** 0.6 * (np.abs(around) < 1.25)
        drop = 0.30
    else:
        wide, drop = np.full_like(around, 0.95), 0.35
    edge = centre + shape[:, 0] * radii
    out = np.stack([np.sin(around), np.zeros_like(around), np.cos(around)], 1)
    points = edge[:, None] + (out * wide[:, None])[:, None] * reach[:, None]
    points[..., 1] -= (
        drop * wide[:, None] * reach**1.5
        + (0.12 * np.sin(around) ** 2)[:, None] * reach * (wide > 0)[:, None]
    )
    up_normals = np.broadcast_to(np.array([0, 1.0, 0]), points.shape) + 0.3 * out[:, None]
    return crown, grid(points, up_normals, np.full(points.shape[:2], 0.5))


def tube(path: np.ndarray, radius: float, closed: bool, sides: int = 6) -> Mesh:
    """A round bar along a path (n, 3)."""
    along = np.roll(path, -1, 0) - np.roll(path, 1, 0)
    if not closed:
        along[0], along[-1] = path[1] - path[0], path[-1] - path[-2]
    across = np.cross(along, [0.1, 0.3, 1.0])
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    third = np.cross(along, across)
    third /= np.linalg.norm(third, axis=1, keepdims=True)
    angle = np.linspace(0, 2 * np.pi, sides + 1)
    normals = across[:, None] * np.cos(angle)[:, None] + third[:, None] * np.sin(angle)[:, None]
    points = path[:, None] + radius * normals
    if closed:
        points, normals = np.concatenate([points, points[:1]]), np.concatenate([normals, normals[:1]])
    return grid(points, normals, np.zeros(points.shape[:2]))


def disc(rim: np.ndarray) -> Mesh:
    """A lens: the fan of a rim (n, 3), bulging a little in its normals."""
    points = np.concatenate([rim.mean(0, keepdims=True), rim])
    normals = (points - points[0]) * 0.6 + np.array([0, 0, 1])
    last = np.arange(1, len(rim) + 1)
    triangles = np.stack([np.zeros_like(last), last, np.roll(last, -1)], 1)
    return pack(points, normals, np.zeros(len(points))), triangles.astype(np.int32)


def grid(points: np.ndarray, normals: np.ndarray, extra: np.ndarray) -> Mesh:
    """Points (a, b, 3) -> quads between neighbours."""
    a, b = points.shape[:2]
    start = (np.arange(a - 1)[:, None] * b + np.arange(b - 1)).reshape(-1, 1, 1)
    triangles = start + np.array([[0, 1, b], [1, b + 1, b]])
    vertices = pack(points.reshape(-1, 3), normals.reshape(-1, 3), extra.reshape(-1))
    return vertices, triangles.reshape(-1, 3).astype(np.int32)


def pack(points: np.ndarray, normals: np.ndarray, extra: np.ndarray) -> np.ndarray:
    normals = normals / (np.linalg.norm(normals, axis=1, keepdims=True) + 1e-9)
    zeros = np.zeros((len(points), 2))
    return np.concatenate([points, normals, extra[:, None], zeros], 1).astype(np.float32)


def join(meshes: list[Mesh]) -> Mesh:
    starts = np.cumsum([0] + [len(vertices) for vertices, _ in meshes])
    triangles = [t + start for (_, t), start in zip(meshes, starts, strict=False)]
    return np.concatenate([v for v, _ in meshes]), np.concatenate(triangles).astype(np.int32)
