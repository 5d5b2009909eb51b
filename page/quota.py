"""How many seconds of a GPU a request needs on ZeroGPU: computed from its size, before one is asked for.

The floating-point operations of a step are counted (torch's FlopCounterMode on the full-size networks, at
1024 x 1024 with 512 text tokens: 74.38e12 in the DiT, 17.00e12 in InfuseNet) and carried to other sizes: the
linear layers grow with the tokens, attention with their square. What a GPU does of them in a second is an
estimate.
"""

import math
from collections.abc import Mapping

from infu.memory import RELEASED, TEXT_TOKENS, Network
from infu.plugins import ControlNet, OminiControl
from infu.request import GenerationRequest

DIT = (6.457e9, 57 * 3072)  # weights that a token meets, and blocks times width
INFUSENET = (1.718e9, 14 * 3072)  # and about a ControlNet: the unions have 5 + 10 blocks
OBJECT_TOKENS = 1024  # of OminiControl's picture, at most
IDENTITY_TOKENS = 8
RATE = 90e12  # operations a second of half an RTX PRO 6000 Blackwell, bfloat16, not compiled; estimated
LARGE = 1.5  # `spaces` multiplies by this what is asked of such a half
START, ENCODE, DECODE = 5.0, 2.0, 1.5  # seconds: a process, the text encoders, a megapixel of the VAE
TO_GPU, FROM_FILES = 3e9, 1e9  # bytes a second: of the whole model at a start, of InfuseNet at a switch


def seconds_needed(
    request: GenerationRequest, networks: Mapping[str, Network] = RELEASED, switched: bool = False
) -> float:
    """Seconds on half a card, from the start of a process that holds nothing yet. `networks`: the sizes of
    the model's (`memory.read_networks`); `switched`: InfuseNet's other version has to be loaded."""
    start = START + sum(2 * network.total for network in networks.values()) / TO_GPU
    if switched:
        start += 2 * networks["infusenet"].total / FROM_FILES
    return start + seconds_of_work(request, networks)


def seconds_of_work(request: GenerationRequest, networks: Mapping[str, Network] = RELEASED) -> float:
    """Seconds on half a card that holds the model already: what a visitor's quota is charged from the second
    picture on."""
    share = networks["transformer"].total / RELEASED["transformer"].total
    width, height = request.run_size
    picture = operations(request) / RATE + DECODE * width * height / 1e6
    return share * (ENCODE + request.num_images * picture)


def asked_for(seconds: float) -> int:
    """What to ask ZeroGPU for, so that a half gets `seconds`."""
    return math.ceil(seconds / LARGE)


def operations(request: GenerationRequest) -> float:
    """Of all steps of one picture of FLUX.1-dev with InfiniteYou."""
    width, height = request.run_size
    image = width // 16 * (height // 16)
    text = request.max_sequence_length or TEXT_TOKENS
    passes = infused = 0
    opposed = request.true_cfg_scale > 1 and request.negative_prompt is not None
    for step in range(request.num_steps):
        passes += 1 + (opposed and step >= request.true_cfg_start_step)
        infused += request.infuses(step) * len(request.people)
    beside = [type(plugin) for plugin in request.networks]
    seen = OBJECT_TOKENS * beside.count(OminiControl)
    controlled = request.num_steps * beside.count(ControlNet) * one_pass(image + text, *INFUSENET)
    return (
        controlled
        + passes * one_pass(image + text + seen, *DIT)
        + infused * one_pass(image + IDENTITY_TOKENS, *INFUSENET)
    )


def one_pass(tokens: int, weights: float, breadth: int) -> float:
    """Multiplications and additions: 2 a weight and token; 4 a pair of tokens and channel, in attention."""
    return 2 * weights * tokens + 4 * breadth * tokens**2
