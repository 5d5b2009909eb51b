"""A person and a look -> a picture and its labels, by OpenGL (moderngl; Mesa's software renderer will do).

Everything is drawn twice: as the key light sees it, for the shadows, and as the camera does. `shaders/` holds
one fragment shader a material.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import moderngl
import numpy as np

from infu.errors import InfuError
from infu.training.world.backdrops import draw_backdrop
from infu.training.world.bust import load_bust
from infu.training.world.captions import make_caption
from infu.training.world.people import Look, Person, look_weights, make_look, make_person
from infu.training.world.scene import Item, Pose, camera, light_camera, light_uniforms, make_scene
from infu.training.world.styles import apply_style

SHADERS = Path(__file__).parent / "shaders"
SHADOW_MAP = 320
OVERSAMPLED = 2  # each way
HAIR_IN_SHADOW = 3  # one strand of so many, thicker: strands are in no order
MATERIALS = {"skin": "mesh", "eye": "mesh", "cloth": "mesh", "plain": "mesh", "strand": "strand"}
LAYOUTS = {
    "mesh": ("3f 3f 3f 3f", "position", "normal", "paint", "extra"),
    "strand": ("3f 3f 3f", "position", "tangent", "strand"),
}


@dataclass(frozen=True, eq=False)
class Render:
    """`picture`: uint8 RGB (H, W, 3); `keypoints`: float32 (5, 2), pixels, ordered as in `infu.detectors`."""

    person: Person
    look: Look
    caption: str
    picture: np.ndarray
    keypoints: np.ndarray


class Renderer:
    """Draws pictures of width x height. One OpenGL context, to be used from one thread."""

    def __init__(self, width: int = 128, height: int = 160):
        # llvmpipe's threads wait for one another: two processes of one thread do more than one of two.
        os.environ.setdefault("LP_NUM_THREADS", "1")
        self.size, self.bust = (width, height), load_bust()
        self._gl = gl = open_context()
        self._programs = {
            name: gl.program(read_shader(f"{shape}.vert"), read_shader("common.glsl", f"{name}.frag"))
            for name, shape in MATERIALS.items()
        }
        self._shadow_programs = {
            shape: gl.program(read_shader(f"{shape}.vert"), read_shader("shadow.frag")) for shape in LAYOUTS
        }
        self._depth = gl.depth_texture((SHADOW_MAP, SHADOW_MAP))
        self._depth.compare_func = ""
        self._depth.repeat_x = self._depth.repeat_y = False
        self._shadows = gl.framebuffer(depth_attachment=self._depth)
        large = width * OVERSAMPLED, height * OVERSAMPLED
        self._frame = gl.framebuffer([gl.texture(large, 4)], gl.depth_renderbuffer(large))
        gl.blend_func = (gl.SRC_ALPHA, gl.ONE_MINUS_SRC_ALPHA, gl.ONE, gl.ONE_MINUS_SRC_ALPHA)

    def render(self, seed: int, number: int, style: str | None = None) -> Render:
        """Picture `number` of person `seed`: the same every time. `style`: of `people.STYLES`; None: any."""
        return self.render_person(seed, [number], style)[0]

    def render_person(self, seed: int, numbers: list[int], style: str | None = None) -> list[Render]:
        person = make_person(seed, self.bust)
        return self.render_looks(person, [make_look(person, number, style) for number in numbers])

    def render_looks(self, person: Person, looks: list[Look]) -> list[Render]:
        shapes = self.bust.shape(np.stack([look_weights(person, look, self.bust) for look in looks]))
        return [self._render(person, look, vertices) for look, vertices in zip(looks, shapes, strict=True)]

    def _render(self, person: Person, look: Look, vertices: np.ndarray) -> Render:
        pose, view = Pose(look), camera(look, self.size)
        layer = self._draw(make_scene(person, look, vertices, pose, self.bust), person, look, view)
        picture = draw_backdrop(look, self.size) * (1 - layer[..., 3:] / 255) + layer[..., :3]
        picture = np.rint(picture).clip(0, 255).astype(np.uint8)
        picture = apply_style(picture, look.style, np.random.default_rng([look.seed, 7]))
        keypoints = self._pixels(pose(self.bust.five_points(vertices)), view)
        return Render(person, look, make_caption(person, look), picture, keypoints)

    def _draw(self, items: list[Item], person: Person, look: Look, view: np.ndarray) -> np.ndarray:
        """-> float32 RGBA (H, W, 4), 0..255, colours multiplied by their opacity."""
        gl, light_view, kept = self._gl, light_camera(look), {}
        gl.enable_only(gl.DEPTH_TEST)
        self._shadows.use()
        self._shadows.clear(depth=1.0)
        for item in items:
            if item.solid:
                shape = MATERIALS[item.material]
                part = HAIR_IN_SHADOW if shape == "strand" else 1
                uniforms = {"view": light_view, "thickness": 0.05}
                self._draw_item(self._shadow_programs[shape], item, uniforms, kept, part)
        self._depth.use(0)
        self._frame.use()
        self._frame.clear()
        gl.enable(gl.BLEND)
        shared = {"view": view, "light_view": light_view, "shadow_map": 0, "seed": float(person.seed % 97)}
        shared |= light_uniforms(look)
        for item in items:
            self._draw_item(self._programs[item.material], item, shared | item.uniforms, kept)
        pixels = np.frombuffer(self._frame.read(components=4), np.uint8)
        for resource in kept.values():
            resource.release()
        pixels = pixels.reshape(self.size[1] * OVERSAMPLED, self.size[0] * OVERSAMPLED, 4)[::-1].astype(
            np.float32
        )
        return cv2.resize(pixels, self.size, interpolation=cv2.INTER_AREA)

    def _draw_item(
        self, program: moderngl.Program, item: Item, uniforms: dict, kept: dict, part: int = 1
    ) -> None:
        """The first of `part` parts of its triangles. `kept`: the picture's buffers by what they hold:
        parts of the bust share theirs, and so do both passes."""
        for name, value in uniforms.items():
            if name in program:
                if isinstance(value, np.ndarray):
                    program[name].write(np.ascontiguousarray(value.T, np.float32))
                else:
                    program[name].value = value
        for array in (item.vertices, item.triangles):
            if id(array) not in kept:
                kept[id(array)] = self._gl.buffer(np.ascontiguousarray(array))
        layout, *names = LAYOUTS[MATERIALS[item.material]]
        content = kept[id(item.vertices)], layout, *names
        mesh = self._gl.vertex_array(program, [content], kept[id(item.triangles)], skip_errors=True)
        mesh.render(vertices=item.triangles.size // (3 * part) * 3)
        mesh.release()

    def _pixels(self, points: np.ndarray, view: np.ndarray) -> np.ndarray:
        clip = np.concatenate([points, np.ones((len(points), 1))], 1) @ view.T
        ndc = clip[:, :2] / clip[:, 3:]
        return ((ndc * (1, -1) + 1) / 2 * self.size).astype(np.float32)


def open_context() -> moderngl.Context:
    backend = {"backend": "egl"} if sys.platform == "linux" else {}  # a Mac has its own, without a screen too
    try:
        return moderngl.create_context(standalone=True, **backend)
    except Exception as error:  # moderngl and glcontext raise nothing narrower
        raise InfuError(
            "The mini world is drawn by OpenGL without a screen, and EGL did not start. On Debian and Ubuntu "
            "install libegl1 and libgl1-mesa-dri."
        ) from error


def read_shader(*names: str) -> str:
    return "\n".join((SHADERS / name).read_text() for name in names)
