"""A photograph -> what a ControlNet follows: its edges (OpenCV), its depth (Depth Anything) or the poses of
the people in it (ViTPose), the last two by transformers and torch, imported when they are first needed.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from infu.checks import check_integer
from infu.errors import InvalidRequest, MissingFile, ModelError, PhotoError, UnknownName
from infu.images import Photo, fit_picture, pad_picture
from infu.keypoints import DIMMED, draw_limb
from infu.models import HINT_MODELS, find_hint_model
from infu.plugins import HINTS
from infu.request import MAX_SIZE, MIN_SIZE

CANNY = (100, 200)  # thresholds, XLabs' annotator's
SURE = 0.3  # from this score on a joint is drawn, or a person looked at
COCO_PERSON = 0
# A pose as OpenPose and DWPose draw it. Joints: nose, neck, right shoulder, elbow, wrist, the same left,
# right hip, knee, ankle, the same left, right eye, left eye, right ear, left ear.
FROM_COCO = (0, None, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)  # None: midway of the shoulders
SHOULDERS = (5, 6)
LIMBS = ((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13),
         (1, 0), (0, 14), (14, 16), (0, 15), (15, 17))  # fmt: skip
COLOURS = ((255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0),
           (0, 255, 85), (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (85, 0, 255),
           (170, 0, 255), (255, 0, 255), (255, 0, 170), (255, 0, 85))  # fmt: skip
JOINT_RADIUS = 4


def make_hint(
    kind: str, photo: Photo, width: int, height: int, model: str | Path | None = None
) -> np.ndarray:
    """The hint of a photograph, cut to the output's shape about its middle: uint8 RGB (height, width, 3).

    `kind` is one of `HINTS`. `model`, of "depth" and "pose": a folder or hub id of another network than ours
    (`models.HINT_MODELS`). Raises `PhotoError`, `InvalidRequest`, `ModelError` where a network or its package
    is not here.
    """
    if kind not in HINTS:
        raise UnknownName("hint", kind, HINTS)
    if model is not None and kind not in HINT_MODELS:
        raise InvalidRequest(f"A {kind} hint is made without a network: leave its model out.")
    width = check_integer("width", width, MIN_SIZE, MAX_SIZE)
    height = check_integer("height", height, MIN_SIZE, MAX_SIZE)
    picture = fit_picture(photo, width, height)
    if kind == "canny":
        edges = cv2.Canny(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), *CANNY)
        return np.repeat(edges[:, :, None], 3, axis=2)
    return find_depth(picture, model) if kind == "depth" else find_poses(picture, model)


def check_hint(kind: str | None) -> None:
    """Raise `ModelError` where what makes a hint of this kind is not here."""
    for network in {"depth": ("depth",), "pose": ("people", "pose")}.get(kind, ()):
        find_network(network, None)


def read_hint(
    photo: Photo,
    kind: str | None,
    size: tuple[int, int],
    run_size: tuple[int, int],
    model: str | Path | None = None,
) -> np.ndarray:
    """What a ControlNet is given, uint8 RGB as large as the run: the hint that `photo` is (`kind` None), or
    that is made of it; beyond `size` (width, height) its edge is repeated."""
    made = fit_picture(photo, *size) if kind is None else make_hint(kind, photo, *size, model)
    return pad_picture(made, *run_size)


def find_depth(picture: np.ndarray, model: str | Path | None) -> np.ndarray:
    """uint8 RGB (H, W, 3) -> the same, grey: what is near is bright, over the whole range."""
    estimate = load_depth(find_network("depth", model))
    depth = estimate(Image.fromarray(picture))["predicted_depth"].float().cpu().numpy()  # (H, W)
    low, high = depth.min(), depth.max()
    grey = ((depth - low) / max(high - low, np.finfo(np.float32).tiny) * 255).round().astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def find_poses(picture: np.ndarray, model: str | Path | None) -> np.ndarray:
    """uint8 RGB (H, W, 3) -> the poses of the people in it, drawn on black. Raises `PhotoError` for none."""
    import torch

    find_people, processor, network = load_pose(find_network("people", None), find_network("pose", model))
    image = Image.fromarray(picture)
    found = find_people(image, threshold=SURE)
    person = find_people.model.config.id2label[COCO_PERSON]
    boxes = [box_of(item["box"]) for item in found if item["label"] == person]
    if not boxes:
        raise PhotoError("No person was found in the picture whose pose was to be taken. Choose another.")
    inputs = processor(image, boxes=[boxes], return_tensors="pt")
    experts = {}
    if network.config.backbone_config.num_experts > 1:  # ViTPose++: the first is COCO's
        experts = {"dataset_index": torch.zeros(len(boxes), dtype=torch.long)}
    with torch.inference_mode():
        outputs = network(**inputs, **experts)
    (people,) = processor.post_process_pose_estimation(outputs, boxes=[boxes])
    joints = np.stack([person["keypoints"].numpy() for person in people])  # (P, 17, 2)
    scores = np.stack([person["scores"].numpy() for person in people])  # (P, 17)
    return draw_poses(joints, scores, picture.shape[1], picture.shape[0])


def box_of(box: dict[str, float]) -> list[float]:
    """Left, top, width, height, as ViTPose's processor wants it."""
    return [box["xmin"], box["ymin"], box["xmax"] - box["xmin"], box["ymax"] - box["ymin"]]


def draw_poses(joints: np.ndarray, scores: np.ndarray, width: int, height: int) -> np.ndarray:
    """People's joints in COCO's order, (P, 17, 2) in pixels, and how sure they are, (P, 17) -> uint8 RGB
    (height, width, 3), as OpenPose's and DWPose's drawings that ControlNets were trained with."""
    canvas = np.zeros((height, width, 3), np.uint8)
    people = [to_openpose(*person) for person in zip(joints, scores, strict=True)]
    for points, seen in people:
        for (a, b), colour in zip(LIMBS, COLOURS, strict=False):  # the last colour is a joint's alone
            if seen[a] and seen[b]:
                draw_limb(canvas, points[a], points[b], colour)
    canvas = (canvas * DIMMED).astype(np.uint8)
    for points, seen in people:
        for (x, y), drawn, colour in zip(points, seen, COLOURS, strict=True):
            if drawn:
                cv2.circle(canvas, (int(x), int(y)), JOINT_RADIUS, colour, -1)
    return canvas


def to_openpose(joints: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One person's joints (17, 2) and scores -> OpenPose's (18, 2), and which of them are seen."""
    middle, both = joints[list(SHOULDERS)].mean(axis=0), scores[list(SHOULDERS)].min()
    points = np.stack([middle if i is None else joints[i] for i in FROM_COCO])
    return points, np.array([both if i is None else scores[i] for i in FROM_COCO]) >= SURE


# The networks: read once, kept for the next picture. They are small and run on the CPU, a second a picture:
# the device is full of the model, and on ZeroGPU there is none outside a run.


def find_network(kind: str, model: str | Path | None) -> Path:
    """The folder of a hint's network, fetched where it is a hub id. Raises `ModelError`."""
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ModuleNotFoundError:
        raise ModelError(
            f"A {kind} hint made here needs torch and transformers. Install them with "
            "`pip install '.[pytorch]'`, or give the finished hint as the picture."
        ) from None
    if model is not None:
        return find_hint_model(kind, model)
    try:
        return find_hint_model(kind)
    except MissingFile:
        made = "pose" if kind == "people" else kind
        raise MissingFile(
            f"What makes a {made} hint is not here, or not all of it. Run `python -m infu download --hint "
            f"{made}`, or give the finished hint as the picture."
        ) from None


@lru_cache(maxsize=1)
def load_depth(folder: Path) -> Any:
    return load_pipeline("depth-estimation", folder)


@lru_cache(maxsize=1)
def load_pose(people: Path, folder: Path) -> tuple[Any, Any, Any]:
    """What finds people, and the processor and network of their joints."""
    from transformers import AutoImageProcessor, VitPoseForPoseEstimation

    try:
        processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
        network = VitPoseForPoseEstimation.from_pretrained(folder).eval()
    except (OSError, ValueError, TypeError, RuntimeError):
        raise ModelError(f"{folder.name!r} is no ViTPose that transformers reads. Choose another.") from None
    return load_pipeline("object-detection", people), processor, network


def load_pipeline(task: str, folder: Path) -> Any:
    from transformers import pipeline

    try:
        return pipeline(task, model=str(folder), device="cpu")
    except (OSError, ValueError, TypeError, RuntimeError, KeyError):
        raise MissingFile(
            f"{folder.name!r} holds no network for {task} that transformers reads. Choose another."
        ) from None
