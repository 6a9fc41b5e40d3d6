"""The real smartapi-python decoder, imported without its network call and without its log folder in the working directory."""

import functools
import os
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import pytest


@functools.cache
def sdk_decoder() -> Callable[[bytes], dict[str, Any]]:
    """`SmartWebSocketV2._parse_binary_data`, bound to a bare object; skips the calling test where the SDK is absent."""
    requests = pytest.importorskip("requests")
    real, here = requests.get, os.getcwd()

    def no_network(*_: object, **__: object) -> None:
        raise requests.ConnectionError("the SDK asks api.ipify.org at import; not here")

    requests.get = no_network
    os.chdir(tempfile.mkdtemp())
    try:
        pytest.importorskip("SmartApi.smartConnect", reason="smartapi-python absent: pip install scalp_nb[angel]")
        from SmartApi.smartWebSocketV2 import SmartWebSocketV2
    finally:
        requests.get = real
        os.chdir(here)
    module = sys.modules["SmartApi.smartConnect"]
    if getattr(module, "get", None) is no_network:
        module.get = real
    bare = SmartWebSocketV2.__new__(SmartWebSocketV2)
    return bare._parse_binary_data  # type: ignore[no-any-return]
