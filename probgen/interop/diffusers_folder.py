"""Folders that diffusers' `save_pretrained` wrote: a network, a scheduler, or a pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from probgen.errors import BackendError, DeclarationError

UNETS = ("UNet2DModel", "UNet2DConditionModel")


class _Parts:
    """Network and scheduler of a pipeline's folder."""

    def __init__(self, unet: Any, scheduler: Any) -> None:
        self.unet, self.scheduler = unet, scheduler


def opened(path: Any, local_files_only: bool) -> Any:
    """What a folder of diffusers holds; classes are looked up among a few names, not run.

    Raises:
        DeclarationError: no folder, or none of theirs, or of a class that is not taken.
        BackendError: diffusers is not installed.
    """
    folder = Path(path)
    if not folder.is_dir():
        if local_files_only:
            raise DeclarationError(
                f"from_diffusers: got {str(path)!r}, which is no folder here, expected one that "
                "save_pretrained of diffusers wrote; a name on the Hub is fetched only with "
                "local_files_only=False."
            )
        folder = _fetched(str(path))
    if (folder / "model_index.json").is_file():
        return _Parts(opened(folder / "unet", True), opened(folder / "scheduler", True))
    for name, ends in (("config.json", UNETS), ("scheduler_config.json", ("Scheduler",))):
        if (folder / name).is_file():
            kind = str(json.loads((folder / name).read_text("utf-8")).get("_class_name"))
            if not kind.isidentifier() or not kind.endswith(ends):
                raise DeclarationError(
                    f"from_diffusers: got {folder / name} of a {kind}, expected a "
                    f"{' or '.join(ends)}."
                )
            found = getattr(_library(), kind, None)
            if found is None:
                raise DeclarationError(
                    f"from_diffusers: got {folder / name} of a {kind}, which this version of "
                    "diffusers does not have; install a newer one."
                )
            return found.from_pretrained(folder, local_files_only=True)
    raise DeclarationError(
        f"from_diffusers: got the folder {folder}, expected a model_index.json (a pipeline), "
        "config.json (a network) or scheduler_config.json in it."
    )


def _fetched(name: str) -> Path:
    """A repository of the Hub, in its cache: network and scheduler alone."""
    import huggingface_hub

    wanted = ["model_index.json", "unet/*", "scheduler/*", "config.json", "*.safetensors",
              "scheduler_config.json"]  # fmt: skip
    return Path(huggingface_hub.snapshot_download(name, allow_patterns=wanted))


def _library() -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise BackendError(
            "from_diffusers: diffusers is not installed, expected it to open a folder of its "
            "models; install it with: pip install 'probgen[diffusers]'"
        ) from error
    return diffusers
