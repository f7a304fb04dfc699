"""Imported by the server of the data-loader processes, for all of them: the pipeline without torch.

Loading has no use for torch, which would take a second and some 150 MB of the server of every rank. webdataset takes it
for not installed while it is imported here. A transform that needs torch can import it all the same.
"""

import importlib
import sys
from typing import Any, cast

_modules = cast(dict[str, Any], sys.modules)
_hidden = "torch" not in _modules
if _hidden:
    _modules["torch"] = None  # to import it raises ModuleNotFoundError
try:
    importlib.import_module("hmtl_dist.data.stream.pipeline")
finally:
    if _hidden:
        del _modules["torch"]
