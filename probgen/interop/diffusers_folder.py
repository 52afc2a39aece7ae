"""Folders that diffusers' `save_pretrained` wrote: a network, a scheduler, or a pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from probgen.errors import BackendError, DeclarationError

UNETS = ("UNet2DModel", "UNet2DConditionModel")
# Of a pipeline's further parts: the classes that are taken, by its own name for the part.
FURTHER = {"vae": ("AutoencoderKL",), "text_encoder": ("CLIPTextModel",),
           "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast")}  # fmt: skip


class Parts(NamedTuple):
    """What is taken of a pipeline, or of its folder; None where it has no such part."""

    unet: Any
    scheduler: Any
    vae: Any = None
    text_encoder: Any = None
    tokenizer: Any = None


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
        further = {name: _further(folder, name) for name in FURTHER}
        return Parts(opened(folder / "unet", True), opened(folder / "scheduler", True), **further)
    for name, ends in (("config.json", UNETS), ("scheduler_config.json", ("Scheduler",))):
        if (folder / name).is_file():
            kind = str(json.loads((folder / name).read_text("utf-8")).get("_class_name"))
            if not kind.isidentifier() or not kind.endswith(ends):
                raise DeclarationError(
                    f"from_diffusers: got {folder / name} of a {kind}, expected a "
                    f"{' or '.join(ends)}."
                )
            return _loaded("diffusers", kind, folder)
    raise DeclarationError(
        f"from_diffusers: got the folder {folder}, expected a model_index.json (a pipeline), "
        "config.json (a network) or scheduler_config.json in it."
    )


def _further(folder: Path, name: str) -> Any:
    """A pipeline's VAE, text encoder or tokenizer, as its model_index.json names it, or None."""
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    library, kind = index.get(name) or (None, None)
    if kind is None:
        return None
    if kind not in FURTHER[name] or library not in ("diffusers", "transformers"):
        raise DeclarationError(
            f"from_diffusers: got a pipeline with {name}={kind} of {library}, expected a "
            f"{' or '.join(FURTHER[name])}; its U-Net alone, on latents and embeddings: "
            "from_diffusers(folder / 'unet', folder / 'scheduler', num_tokens=...)."
        )
    return _loaded(library, kind, folder / name)


def _loaded(library: str, kind: str, folder: Path) -> Any:
    found = getattr(_library(library), kind, None)
    if found is None:
        raise DeclarationError(
            f"from_diffusers: got {folder} of a {kind}, which this version of {library} does not "
            "have; install a newer one."
        )
    return found.from_pretrained(folder, local_files_only=True)


def _fetched(name: str) -> Path:
    """A repository of the Hub, in its cache: the parts that are taken, in single precision."""
    import huggingface_hub

    weights = ("diffusion_pytorch_model*.safetensors", "model*.safetensors", "*.json", "*.txt")
    rooms = ("", "unet/", "scheduler/", *(f"{part}/" for part in FURTHER))
    wanted = [room + file for room in rooms for file in weights]
    others = ["*.fp16.*", "*.non_ema.*", "*non_ema*"]
    path = huggingface_hub.snapshot_download(name, allow_patterns=wanted, ignore_patterns=others)
    return Path(path)


def _library(name: str) -> Any:
    try:
        if name == "transformers":
            import transformers

            return transformers
        import diffusers

        return diffusers
    except ImportError as error:
        raise BackendError(
            f"from_diffusers: {name} is not installed, expected it to open a folder of its "
            "models; install it with: pip install 'probgen[diffusers]'"
        ) from error
