"""Whether a plug-in can run on the model that is loaded, found out before a run: whether its weights are
here, are what they are given as, were made for this model, and have room beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from infu.controlnet import check_widths
from infu.errors import InvalidRequest
from infu.hints import check_hint
from infu.ip_adapter import check_size, open_adapter
from infu.models import find_controlnet, find_image_encoder
from infu.pipeline import NO_FACES
from infu.plugins import ControlNet, IPAdapter, OminiControl, Person, Plugin, PuLID
from infu.pulid import open_pulid
from infu.pulid_photo import find_encoders
from infu.request import GenerationRequest
from infu.room import check_room
from infu.weights.controlnet import read_controlnet
from infu.weights.lora import TRANSFORMER
from infu.weights.ominicontrol import read_adapter as read_ominicontrol
from infu.weights.vision import read_vision

if TYPE_CHECKING:
    from backends.base import Backend


def check_plugin(plugin: Plugin, backend: Backend, request: GenerationRequest) -> None:
    """Raise `InfuError` where it cannot, in a picture of this request's size. Its pictures are not looked
    at."""
    match plugin:
        case IPAdapter():
            check_ip_adapter(plugin, backend)
        case OminiControl():
            read_ominicontrol(backend.read_lora(plugin.path))
        case ControlNet():
            file = read_controlnet(find_controlnet(plugin.path))
            check_widths(file, backend.module_shapes[TRANSFORMER])
            file.find_mode(plugin.mode or plugin.hint)
            check_hint(plugin.hint)
        case PuLID():
            open_pulid(plugin, backend)
            find_encoders(plugin.encoders)
        case Person() if backend.model_version is None:
            raise InvalidRequest(NO_FACES)
    check_room(request.replace(plugins=[plugin]), backend)


def check_ip_adapter(plugin: IPAdapter, backend: Backend) -> None:
    path, file = open_adapter(plugin, backend)
    encoder = read_vision(find_image_encoder(plugin.image_encoder, path, file.instantx))
    check_size(encoder.embedding_size, file)
