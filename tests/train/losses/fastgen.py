"""NVIDIA's `modelopt.torch.fastgen`, an independent statement of DMD2's losses (Apache-2.0, ported from FastGen).

Its files are loaded one by one: `import modelopt.torch` would import the whole of the quantisation tool kit.
"""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import distribution
from types import ModuleType

_PACKAGE = "fastgen_alone"


def fastgen(name: str) -> ModuleType:
    """Import one module of the installed package's `torch/fastgen` folder by its name."""
    if _PACKAGE not in sys.modules:
        package = ModuleType(_PACKAGE)
        package.__path__ = [str(distribution("nvidia-modelopt").locate_file("modelopt/torch/fastgen"))]
        sys.modules[_PACKAGE] = package
    return importlib.import_module(f"{_PACKAGE}.{name}")
