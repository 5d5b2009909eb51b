"""The parametric bust (MakeHuman, CC0): weights of its shape targets -> vertices, normals, five points.

Units of what leaves this file: the distance between the eyes is 1, the origin lies between them, x grows to
the picture's right, y up, z towards the viewer.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from scipy import sparse

FILE = Path(__file__).parent / "bust.npz"
PARTS = {  # what is drawn with one material
    "skin": ("body",),
    "eyes": ("helper-l-eye", "helper-r-eye"),
    "lashes": tuple(f"helper-{side}-eyelashes-{i}" for side in "lr" for i in (1, 2)),
    "teeth": ("helper-upper-teeth", "helper-lower-teeth"),
    "tongue": ("helper-tongue",),
    "shirt": ("helper-tights",),
}


class Bust:
    """The mesh and its targets. `paint` (V, 3): every vertex on the mean head, in our units: where a brow or
    a hairline is drawn, it stays on the same skin of everyone. `extra` (V, 3): how much of a lip a vertex is,
    how far above the hairline and how far inside a full beard it lies."""

    def __init__(self):
        with np.load(FILE) as file:
            data = {name: file[name] for name in file.files}
        self.template = data["vertices"].astype(np.float32)
        triangles, groups = data["triangles"].astype(np.int32), [str(name) for name in data["group_names"]]
        self.triangles = {
            part: triangles[np.isin(data["group"], [groups.index(name) for name in names])]
            for part, names in PARTS.items()
        }
        self.right_eye, self.left_eye = (  # of the person: the right eye is at the picture's left
            np.unique(triangles[data["group"] == groups.index(f"helper-{side}-eye")]) for side in "rl"
        )
        self.targets = {str(name): i for i, name in enumerate(data["target_names"])}
        self._deltas = read_deltas(data, len(self.template))
        corners = np.tile(np.arange(len(triangles)), 3)
        ones = np.ones(len(corners), np.float32)
        self._triangles = triangles
        self._around = sparse.csr_matrix(
            (ones, (triangles.T.ravel(), corners))
        )  # (V, T): triangles of a vertex
        self.paint = self.normalise(self._mean())
        lip = data["lip"].astype(np.float32)
        self.extra = np.stack([lip, above_hairline(self.paint), inside_beard(self.paint)], 1).astype(
            np.float32
        )
        skin = np.unique(self.triangles["skin"])
        x, y, z = self.paint[skin].T
        self.scalp = skin[(self.extra[skin, 1] > 0) & (y > 0.4)]
        self.forehead = skin[(abs(x) < 0.4) & (abs(y - 0.75) < 0.25) & (z > -0.9)]
        self.bridge = skin[(abs(x) < 0.12) & (abs(y - 0.02) < 0.12) & (z > 0)]  # of the nose
        # Vertices that stay the nose tip and the mouth corners whatever the weights are.
        nose = skin[np.where((abs(x) < 0.1) & (-1 < y) & (y < -0.2), z, -9).argmax()]
        lips = skin[self.extra[skin, 0] > 0.4]
        self._lower = [nose, lips[self.paint[lips, 0].argmin()], lips[self.paint[lips, 0].argmax()]]

    def shape(self, weights: np.ndarray) -> np.ndarray:
        """float32 (B, targets) -> vertices (B, V, 3), in our units. One product for the whole batch."""
        moved = (weights @ self._deltas).reshape(len(weights), -1, 3) + self.template
        return np.stack([self.normalise(vertices) for vertices in moved])

    def normalise(self, vertices: np.ndarray) -> np.ndarray:
        left, right = vertices[self.left_eye].mean(0), vertices[self.right_eye].mean(0)
        return (vertices - (left + right) / 2) / np.linalg.norm(left - right)

    def normals(self, vertices: np.ndarray) -> np.ndarray:
        """(V, 3) -> unit normals (V, 3): the mean of the triangles around, weighted by their area."""
        a, b, c = (vertices[self._triangles[:, i]] for i in range(3))
        normals = self._around @ np.cross(b - a, c - a)
        return normals / (np.linalg.norm(normals, axis=1, keepdims=True) + 1e-9)

    def eye_centres(self, vertices: np.ndarray) -> np.ndarray:
        """(V, 3) -> (2, 3): the picture's left, then its right."""
        return np.stack([vertices[self.right_eye].mean(0), vertices[self.left_eye].mean(0)])

    def five_points(self, vertices: np.ndarray) -> np.ndarray:
        """(V, 3) -> (5, 3): eye, eye, nose tip, mouth corner, mouth corner; the picture's left first."""
        eyes = self.eye_centres(vertices)
        eyes[:, 2] = vertices[self.right_eye, 2].max()  # the cornea, not the middle of the ball
        return np.concatenate([eyes, vertices[self._lower]])

    def _mean(self) -> np.ndarray:
        """MakeHuman's template is no human: the mean of all its macrodetails is."""
        weights = np.zeros(len(self.targets), np.float32)
        macros = [i for name, i in self.targets.items() if name.startswith("macrodetails/")]
        weights[macros] = 1 / len(macros)
        return (weights @ self._deltas).reshape(-1, 3) + self.template


def around(points: np.ndarray) -> np.ndarray:
    """(..., 3) -> the angle about the head's axis, 0 in front and pi behind."""
    return np.abs(np.arctan2(points[..., 0], points[..., 2] + 1.2))


def above_hairline(paint: np.ndarray) -> np.ndarray:
    """(V, 3) on the mean head -> (V,): above 0 grows hair. Forehead, temple, sideburn, ear, nape."""
    angles = [0, 0.35, 0.58, 0.76, 0.95, 1.15, 1.4, 1.75, 2.1, 2.6, 3.15]
    heights = [1.02, 1.04, 0.98, 0.72, 0.36, -0.1, 0.0, -0.4, -1.1, -1.5, -1.55]
    return paint[:, 1] - np.interp(around(paint), angles, heights)


def inside_beard(paint: np.ndarray) -> np.ndarray:
    """(V, 3) on the mean head -> (V,): above 0 grows a full beard, moustache included."""
    angle, y = around(paint), paint[:, 1]
    cheek = np.interp(angle, [0, 0.2, 0.34, 0.5, 0.8, 1.15], [-0.86, -0.88, -1.02, -1.12, -0.85, -0.15])
    throat = np.interp(angle, [0, 0.6, 1.2], [-2.05, -1.9, -1.3])
    return np.minimum(np.minimum(cheek - y, y - throat), 1.2 - angle)


def read_deltas(data: dict[str, np.ndarray], vertices: int) -> np.ndarray:
    """The file's slices of (vertex, move) -> float32 (targets, 3 V)."""
    counts = data["target_counts"].astype(np.int64)  # uint16 in the file: their sum would overflow
    deltas = np.zeros((len(counts), vertices, 3), np.float32)
    target = np.repeat(np.arange(len(counts)), counts)
    deltas[target, data["target_index"].astype(np.int64)] = data["target_delta"]
    return deltas.reshape(len(counts), -1)


@lru_cache(maxsize=1)
def load_bust() -> Bust:
    return Bust()
