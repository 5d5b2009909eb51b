"""Several people in one picture, on both backends: the released latents, masks, faces, refusals."""

import numpy as np
import pytest
from golden import FOLDERS, read_golden
from plugin_cases import PLUGINS, read_case

from backends import load_backend
from infu import Cancelled, ControlNet, GenerationRequest, Person, generate, room
from infu.errors import InvalidRequest, UnknownName


@pytest.fixture(scope="module", params=["pytorch", "mlx"])
def backend(request):
    return load_backend(request.param, **FOLDERS, dtype="float32")


def first_as_own(request: GenerationRequest) -> GenerationRequest:
    """The same, with the first of the people as the request's own person."""
    first, *others = request.plugins
    return request.replace(
        id_embedding=first.id_embedding,
        control_keypoints=first.control_keypoints,
        infusenet_conditioning_scale=first.scale,
        id_mask=first.mask,
        plugins=others,
    )


@pytest.mark.parametrize("way", [lambda request: request, first_as_own], ids=["people", "own"])
def test_latents_are_the_released_nodes(backend, way):
    request, golden = read_case("two_people")
    result = generate(way(request), backend, noise=golden["noise"])
    # float32, latents of size 4; an area average in the masks' place is off by 0.03.
    np.testing.assert_allclose(result.latents, golden["latents"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(result.pixels[0], golden["image"], rtol=0, atol=1e-4)


def test_one_by_one_they_are_as_together(backend, monkeypatch):
    request, golden = read_case("two_people")
    monkeypatch.setattr(room, "TOKENS_AT_ONCE", 1)
    result = generate(request, backend, noise=golden["noise"])
    np.testing.assert_allclose(result.latents, golden["latents"], rtol=0, atol=1e-4)


def test_one_person_everywhere_is_the_request_with_a_face_bit_for_bit(backend):
    golden = read_golden("control")
    request = golden.request
    wanted = generate(request, backend, noise=golden.noise)
    person = Person(
        mask="whole",
        id_embedding=request.id_embedding,
        control_keypoints=request.control_keypoints,
        scale=request.infusenet_conditioning_scale,
    )
    moved = request.replace(id_embedding=None, control_keypoints=None, plugins=[person])
    result = generate(moved, backend, noise=golden.noise)
    np.testing.assert_array_equal(result.latents, wanted.latents)


def test_scale_0_is_bit_for_bit_as_if_absent(backend):
    request, golden = read_case("two_people")
    (first, second) = request.plugins
    absent = Person(mask=second.mask, id_image="no such file", scale=0)
    wanted, result = (
        generate(request.replace(plugins=plugins), backend, golden["noise"])
        for plugins in ([first], [first, absent])
    )
    np.testing.assert_array_equal(result.latents, wanted.latents)


def test_an_empty_region_adds_nothing(backend):
    """A mask of zeros leaves no residual, and so the picture of plain FLUX."""
    request, golden = read_case("two_people")
    nowhere = [Person(mask=np.zeros((8, 8)), id_embedding=p.id_embedding) for p in request.plugins]
    plain, result = (
        generate(request.replace(plugins=plugins), backend, golden["noise"]) for plugins in ([], nowhere)
    )
    np.testing.assert_allclose(result.latents, plain.latents, rtol=0, atol=1e-6)


def test_three_people_beside_a_controlnet_in_an_odd_size(backend):
    embeddings = np.random.default_rng(0).standard_normal((3, 512)).astype(np.float32)
    regions = ("left_third", "middle_third", "right_third")
    people = [Person(mask=m, id_embedding=e) for m, e in zip(regions, embeddings, strict=True)]
    hint = np.zeros((90, 70, 3), np.uint8)
    request = GenerationRequest("x", width=70, height=90, seed=1, num_steps=2, num_images=2)
    plugins = [*people, ControlNet(PLUGINS / "pro2", hint, 0.5)]
    result = generate(request.replace(plugins=plugins), backend)
    swapped = generate(request.replace(plugins=plugins[::-1], num_images=1), backend)
    assert result.pixels.shape == (2, 90, 70, 3)
    np.testing.assert_allclose(swapped.latents[0], result.latents[0], rtol=0, atol=1e-4)  # sums' order


def test_each_picture_of_a_batch_in_an_odd_size_is_the_single_run_and_a_stopped_one_leaves_no_trace(backend):
    embeddings = np.random.default_rng(0).standard_normal((2, 512)).astype(np.float32)
    people = [Person(mask=m, id_embedding=e) for m, e in zip(("left", "right"), embeddings, strict=True)]
    plain = GenerationRequest("x", width=70, height=90, seed=1, num_steps=2, max_sequence_length=16)
    before = generate(plain, backend).latents
    request = plain.replace(plugins=people)
    both = generate(request.replace(num_images=2), backend).latents
    for k in range(2):
        alone = generate(request.replace(seed=1 + k), backend).latents
        np.testing.assert_array_equal(both[k], alone[0])
    assert np.abs(both[:1] - before).max() > 0.05

    def stop(*_):
        raise Cancelled

    with pytest.raises(Cancelled):
        generate(request, backend, on_step=stop)
    np.testing.assert_array_equal(generate(plain, backend).latents, before)


@pytest.mark.parametrize("name", ["pytorch", "mlx"])
def test_a_quantised_model_keeps_them_apart(name):
    """8 bits are half a percent of a layer's output; exchanged masks move the latents by 2.3."""
    request, golden = read_case("two_people")
    made = generate(request, load_backend(name, **FOLDERS, dtype="float32", quantize=8), golden["noise"])
    assert 1e-5 < np.abs(made.latents - golden["latents"]).max() < 0.2


def test_a_persons_photograph_pose_and_mask_are_read_as_the_requests_own():
    """The mini model, whose face stack reads the photograph of a real person."""
    from skimage.data import astronaut

    backend = load_backend("pytorch")
    common = dict(prompt="x", width=64, height=64, seed=1, num_steps=1)
    own = GenerationRequest(id_image=astronaut(), pose="profile_left", id_mask="left", **common)
    person = Person(mask="left", id_image=astronaut(), pose="profile_left")
    further = GenerationRequest(plugins=[person], **common)
    one, other = generate(own, backend), generate(further, backend)
    np.testing.assert_array_equal(one.latents, other.latents)
    assert other.metadata["plugins"] == [
        {"person": True, "scale": 1.0, "pose": "profile_left", "region": "left"}
    ]


def test_what_is_wrong_is_said():
    backend = load_backend("pytorch", **FOLDERS, dtype="float32")
    vector = np.zeros(512, np.float32)
    request = GenerationRequest("x", width=64, height=64, num_steps=1)
    for wrong, error, told in (
        ({"id_mask": "left"}, InvalidRequest, "give a photograph"),
        ({"plugins": [Person(mask="lefft", id_embedding=vector)]}, UnknownName, "Did you mean 'left'"),
        ({"plugins": [Person(mask=np.full((4, 4), 2.0), id_embedding=vector)]}, InvalidRequest, "A mask is"),
        ({"plugins": [Person(mask="left", id_embedding=vector[:9])]}, InvalidRequest, "has 9 numbers"),
    ):
        with pytest.raises(error, match=told):
            generate(request.replace(**wrong), backend)
    plain = load_backend("pytorch", base_model_path=FOLDERS["base_model_path"])
    with pytest.raises(InvalidRequest, match="without InfiniteYou"):
        generate(request.replace(plugins=[Person(mask="left", id_embedding=vector)]), plain)
    with pytest.raises(InvalidRequest, match="needs a mask"):
        Person(id_embedding=vector)
    with pytest.raises(InvalidRequest, match="needs a face"):
        Person(mask="left")
