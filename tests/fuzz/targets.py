"""All fuzz targets by name."""

from tests.fuzz.decoders import DECODER_TARGETS
from tests.fuzz.endpoints import ENDPOINT_TARGETS
from tests.fuzz.web import WEB_TARGETS

TARGETS = {target.name: target for target in (*DECODER_TARGETS, *WEB_TARGETS, *ENDPOINT_TARGETS)}
