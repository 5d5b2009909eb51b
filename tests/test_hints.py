"""Hints made of a photograph: edges, depth, poses. The networks are real classes at tiny sizes."""

import json
import sys

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import astronaut
from typer.testing import CliRunner

from infu import hints
from infu.cli import app
from infu.errors import InvalidRequest, ModelError, PhotoError, UnknownName
from infu.hints import draw_poses, make_hint, read_hint


def test_canny_follows_the_contours_of_the_photograph():
    """Where the grey photograph is steepest there are edges, where it is flat there are none."""
    hint = make_hint("canny", astronaut(), 256, 320)
    assert hint.shape == (320, 256, 3) and hint.dtype == np.uint8 and set(np.unique(hint)) == {0, 255}
    picture = hints.fit_picture(astronaut(), 256, 320)
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(float)
    steep = np.hypot(*np.gradient(cv2.GaussianBlur(grey, (3, 3), 0)))
    edges = hint[:, :, 0] > 0
    assert 0.01 < edges.mean() < 0.3
    assert steep[edges].mean() > 3 * steep[~edges].mean()


def test_a_finished_hint_of_the_right_size_stays_as_it_is():
    picture = np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8)
    np.testing.assert_array_equal(read_hint(picture, None, (80, 64), (80, 64)), picture)


def test_a_hint_reaches_to_the_edge_of_the_run():
    picture = np.random.default_rng(0).integers(0, 256, (60, 70, 3), np.uint8)
    hint = read_hint(picture, None, (70, 60), (80, 64))
    np.testing.assert_array_equal(hint[:60, :70], picture)
    assert (hint[:, 70:] == hint[:, 69:70]).all() and (hint[60:] == hint[59:60]).all()


@pytest.fixture(scope="module")
def depth_folder(tmp_path_factory):
    """Depth Anything's own classes, a thousandth of their size."""
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

    folder = tmp_path_factory.mktemp("depth")
    backbone = Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=56, patch_size=14,
        out_features=["stage1", "stage2", "stage3", "stage4"], reshape_hidden_states=False,
        apply_layernorm=True, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    DepthAnythingForDepthEstimation(
        DepthAnythingConfig(
            backbone_config=backbone,
            reassemble_hidden_size=16,
            neck_hidden_sizes=[8, 8, 8, 8],
            fusion_hidden_size=8,
            head_hidden_size=8,
        )  # fmt: skip
    ).save_pretrained(folder)
    processor = {
        "image_processor_type": "DPTImageProcessor", "do_resize": True, "do_rescale": True, "do_pad": False,
        "do_normalize": True, "size": {"height": 56, "width": 56}, "ensure_multiple_of": 14,
        "keep_aspect_ratio": True, "resample": 3, "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225], "rescale_factor": 1 / 255,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def test_depth_is_what_the_network_sees_from_far_black_to_near_white(depth_folder):
    from transformers import DepthAnythingForDepthEstimation

    hint = make_hint("depth", astronaut(), 112, 84, depth_folder)
    assert hint.shape == (84, 112, 3) and hint.min() == 0 and hint.max() == 255
    assert (hint == hint[:, :, :1]).all()
    network = DepthAnythingForDepthEstimation.from_pretrained(depth_folder).eval()
    picture = Image.fromarray(hints.fit_picture(astronaut(), 112, 84)).resize((70, 56), 3)  # multiples of 14
    pixels = torch.from_numpy(np.asarray(picture) / 255.0).float().permute(2, 0, 1)[None]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.inference_mode():
        depth = network((pixels - mean[:, None, None]) / std[:, None, None]).predicted_depth[:, None]
        depth = torch.nn.functional.interpolate(depth, (84, 112), mode="bicubic")[0, 0].numpy()
    wanted = (depth - depth.min()) / (depth.max() - depth.min()) * 255
    assert np.abs(hint[:, :, 0] - wanted).max() <= 2  # half a level of rounding, and the processor's own


def test_poses_are_drawn_where_the_joints_are():
    joints = np.zeros((1, 17, 2))
    places = {0: (60, 20), 5: (80, 40), 6: (40, 40), 8: (30, 70), 10: (35, 95)}  # nose, shoulders, right arm
    for joint, place in places.items():
        joints[0, joint] = place
    scores = np.zeros((1, 17))
    scores[0, list(places)] = 0.9
    hint = draw_poses(joints, scores, 120, 120)
    assert tuple(hint[20, 60]) == (255, 0, 0)  # the nose is red
    assert tuple(hint[40, 60]) == (255, 85, 0)  # the neck, midway of the shoulders, orange
    assert tuple(hint[70, 30]) == (255, 255, 0)  # the right elbow, yellow
    assert tuple(hint[55, 35]) == tuple(int(c * 0.6) for c in (255, 170, 0))  # the upper arm, dimmed
    assert not hint[:, 100:].any() and not hint[100:].any()  # joints that were not seen are not drawn
    assert not draw_poses(joints, np.zeros((1, 17)), 120, 120).any()


@pytest.fixture(scope="module")
def pose_folders(tmp_path_factory):
    """ViTPose and the detector of people, their own classes at tiny sizes."""
    from transformers import (
        RTDetrConfig,
        RTDetrForObjectDetection,
        RTDetrResNetConfig,
        VitPoseBackboneConfig,
        VitPoseConfig,
        VitPoseForPoseEstimation,
    )

    torch.manual_seed(0)
    people, pose = tmp_path_factory.mktemp("people"), tmp_path_factory.mktemp("pose")
    resnet = RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    RTDetrForObjectDetection(
        RTDetrConfig(
            backbone_config=resnet,
            encoder_hidden_dim=16,
            encoder_in_channels=[8, 8, 8],
            d_model=16,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
            num_queries=4,
            decoder_layers=1,
            decoder_in_channels=[16] * 3,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            num_denoising=0,
            id2label={0: "person"},
            label2id={"person": 0},
        )  # fmt: skip
    ).save_pretrained(people)
    detr = {"image_processor_type": "RTDetrImageProcessor", "size": {"height": 64, "width": 64}}
    (people / "preprocessor_config.json").write_text(json.dumps(detr))
    backbone = VitPoseBackboneConfig(
        image_size=[64, 48], patch_size=[16, 16], hidden_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    VitPoseForPoseEstimation(VitPoseConfig(backbone_config=backbone, num_labels=17)).save_pretrained(pose)
    processor = {"image_processor_type": "VitPoseImageProcessor", "size": {"height": 64, "width": 48}}
    (pose / "preprocessor_config.json").write_text(json.dumps(processor))
    return people, pose


def test_the_poses_of_the_people_found_are_drawn(pose_folders, monkeypatch):
    """Untrained networks see people everywhere or nowhere, and joints somewhere: here the way is tested."""
    people, pose = pose_folders
    folders = {"people": people, "pose": pose}
    monkeypatch.setattr(hints, "find_hint_model", lambda kind: folders[kind])
    monkeypatch.setattr(hints, "SURE", 0.0)
    hint = make_hint("pose", astronaut(), 96, 128)
    assert hint.shape == (128, 96, 3) and hint.any()
    monkeypatch.setattr(hints, "SURE", 1.0)
    with pytest.raises(PhotoError, match="No person was found"):
        make_hint("pose", astronaut(), 96, 128)


def test_what_cannot_be_made_says_what_to_do(monkeypatch, tmp_path):
    with pytest.raises(UnknownName, match="Did you mean 'canny'"):
        make_hint("cany", astronaut(), 64, 64)
    with pytest.raises(InvalidRequest, match="without a network"):
        make_hint("canny", astronaut(), 64, 64, "owner/name")
    with pytest.raises(ModelError, match="holds no network for depth-estimation"):
        make_hint("depth", astronaut(), 64, 64, tmp_path)
    monkeypatch.setitem(sys.modules, "torch", None)  # as where it is not installed
    with pytest.raises(ModelError, match=r"\[pytorch\].*the finished hint"):
        make_hint("depth", astronaut(), 64, 64)


def test_the_command_line_writes_the_hint(tmp_path):
    photo, file = tmp_path / "photo.png", tmp_path / "hint.png"
    Image.fromarray(astronaut()).save(photo)
    sizes = ["--width", "64", "--height", "80"]
    answer = CliRunner().invoke(app, ["hint", "canny", str(photo), str(file), *sizes])
    assert answer.exit_code == 0 and answer.stdout == f"{file}\n"
    np.testing.assert_array_equal(np.asarray(Image.open(file)), make_hint("canny", photo, 64, 80))
    wrong = CliRunner().invoke(app, ["hint", "canny", str(photo), str(file), "--width", "1"])
    assert wrong.exit_code == 1 and "from 64 to 2048" in wrong.stderr
