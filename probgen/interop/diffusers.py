"""Diffusion models of diffusers in our four verbs: networks, schedulers and pipelines.

    from_diffusers(scheduler)              -> a `NoiseSchedule`
    from_diffusers(unet, scheduler)        -> a `Fitted` whose model is a `Diffusion`, on torch
    from_diffusers(pipeline)  (folder)     -> the same, within its VAE, and with its text encoder
    sampler_of(scheduler, num_steps)       -> our sampler of the same numbers, or its inverse
    to_diffusers(fitted, unet)             trained weights back into a network of theirs

Data are [n, h, w, c] here and [n, c, h, w] there. What a scheduler's options say about drawing and
a `Diffusion` does not hold (clipping, which steps are visited) is told in words, or refused where
it would change what the network means. diffusers is imported to open a folder, and only then.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from probgen.engine.fitted import Fitted
from probgen.errors import DeclarationError, ShapeError
from probgen.interop.diffusers_folder import UNETS, opened
from probgen.interop.diffusers_pipeline import parts_of, require_single, text_of, with_pictures
from probgen.nets.conditions import ContextEmbedding
from probgen.nets.diffusers_text import DiffusersTextEncoder
from probgen.nets.diffusers_unet import DiffusersUNet, GivenContext
from probgen.records import store

log = logging.getLogger("probgen")
CLOSE = 3e-6  # of alpha_bar: theirs are rescaled in single precision


def from_diffusers(
    thing: Any,
    scheduler: Any = None,
    *,
    shape: tuple[int, ...] | None = None,
    num_tokens: int | None = None,
    null: Any = None,
    local_files_only: bool = True,
) -> Any:
    """A network, scheduler, pipeline or folder of diffusers as ours.

    Args:
        thing: a `UNet2DModel` or `UNet2DConditionModel`; a scheduler; a pipeline with a `unet` and
            a `scheduler`, as a `StableDiffusionPipeline` (a `vae` of it, and a `text_encoder` with
            its `tokenizer`, are taken too); or a folder of one of these, as their
            `save_pretrained` writes it.
        scheduler: of a network alone: a scheduler, or a folder of one.
        shape: (h, w, c) of what the network denoises; None is what its `sample_size` says.
        num_tokens: m, how many rows the embedding has on which a network is conditioned; of a
            pipeline it leaves the text encoder out.
        null: [m, d], the embedding of no condition, such as an empty prompt's; without it
            classifier-free guidance is refused. Of a pipeline it leaves the text encoder out.
        local_files_only: False lets a name that is no folder here be asked of the Hub.

    Returns:
        Of a scheduler a `NoiseSchedule`. Else a `Fitted` with their weights, on torch: its model is
        a `Diffusion` of the same schedule and prediction type, whose data "x" are [n, h, w, c].
        A network's own condition is the input "condition": the rows [n, m, d] of an embedding
        (`encoder_hidden_states`), or whole numbers [n] (`class_labels`). `fit` goes on from it;
        `generate`, `evaluate` and whatever takes a fitted part take it.

        Of a pipeline with a VAE the model is a `VAE` whose prior that `Diffusion` is, by itself
        `fitted.prior`: pictures "x" [n, H, W, 3] in [0, 1], scaled latents "z" [n, h, w, c]. With
        a text encoder the condition is token ids [n, L] by its own tokenizer,
        `fitted.prior.model.condition.tokens(captions)`, and guidance goes away from the empty one.

    Raises:
        DeclarationError: none of these; a network without a scheduler; a schedule, prediction or
            condition that has no counterpart here; a learned variance; a VAE or text encoder of
            another class than `AutoencoderKL` and `CLIPTextModel`.
        BackendError: diffusers, or for a text encoder transformers, is needed to open a folder and
            is not installed.

    Logs: options of the scheduler that a sampler, and not the model, follows: `sampler_of`.
    """
    if isinstance(thing, str | os.PathLike):
        thing = opened(thing, local_files_only)
    if isinstance(scheduler, str | os.PathLike):
        scheduler = opened(scheduler, local_files_only)
    vae = text = None
    if hasattr(thing, "unet") and hasattr(thing, "scheduler"):
        parts = parts_of(thing)
        scheduler, thing, vae = scheduler or parts.scheduler, parts.unet, parts.vae
        text = text_of(parts) if num_tokens is None and null is None else None
    if _is_scheduler(thing):
        return _schedule(thing)
    name = type(thing).__name__
    if not (hasattr(thing, "named_parameters") and hasattr(thing, "config")):
        raise DeclarationError(
            f"from_diffusers: got {name}, expected a {' or '.join(UNETS)}, a scheduler, a pipeline "
            "with both, or a folder of one of them."
        )
    if not _is_scheduler(scheduler):
        raise DeclarationError(
            f"from_diffusers: got a {name} with scheduler={type(scheduler).__name__}, expected the "
            "scheduler that it was trained with, such as DDPMScheduler(), since a network alone "
            "does not say its noise."
        )
    fitted = _fitted(thing, scheduler, shape, num_tokens, null, text)
    return fitted if vae is None else with_pictures(fitted, vae)


def sampler_of(
    scheduler: Any,
    num_steps: int | None = None,
    eta: float = 0.0,
    guidance_scale: float = 1.0,
    *,
    inverse: bool = False,
) -> Any:
    """Our sampler with a scheduler's own options: clipping, which steps, where the last one ends.

    Args:
        scheduler: a `DDIMScheduler` (`DDIM`), a `DDIMInverseScheduler` (`DDIMInverse`) or a
            `DDPMScheduler` (`Ancestral`), or a folder of one.
        num_steps: as of their `set_timesteps`; None, of a `DDPMScheduler`, is all steps.
        eta: of a `DDIMScheduler`.
        guidance_scale: w of classifier-free guidance; 1 for none.
        inverse: from data to noise: of a `DDIMScheduler` the `DDIMInverse` of its options.

    Raises:
        DeclarationError: another scheduler, or an option of these that has no counterpart here; the
            inverse of one that has none.
    """
    from probgen.inference import DDIM, Ancestral, DDIMInverse

    if isinstance(scheduler, str | os.PathLike):
        scheduler = opened(scheduler, True)
    name, config = type(scheduler).__name__, getattr(scheduler, "config", {})
    if inverse and (eta or name not in ("DDIMScheduler", "DDIMInverseScheduler")):
        raise DeclarationError(
            f"sampler_of: got a {name} with eta={eta:g} and inverse=True, expected a DDIMScheduler "
            "with eta=0, whose steps are a map that can be gone back along; make one of the same "
            "noise by DDIMScheduler.from_config(scheduler.config)."
        )
    known = ("DDIMScheduler", "DDIMInverseScheduler", "DDPMScheduler")
    variance = config.get("variance_type", "fixed_small")
    total = config.get("num_train_timesteps")
    leaps = name == "DDPMScheduler" and num_steps not in (None, total)
    if name not in known or config.get("thresholding") or variance != "fixed_small" or leaps:
        raise DeclarationError(
            f"sampler_of: got a {name} (thresholding={bool(config.get('thresholding'))}, "
            f"variance_type={variance!r}, num_steps={num_steps}), expected a DDIMScheduler or "
            "DDIMInverseScheduler, or a DDPMScheduler of all its steps, without thresholding and "
            "with variance_type='fixed_small'; choose a sampler of probgen.inference by hand "
            "(Ancestral has the variance of the model's own steps)."
        )
    clip = float(config.get("clip_sample_range", 1.0)) if config.get("clip_sample") else None
    if name == "DDPMScheduler":
        return Ancestral(guidance_scale=guidance_scale, clip_sample_range=clip)
    inverse = inverse or name == "DDIMInverseScheduler"
    own: dict[str, Any] = {} if inverse else {"eta": eta}
    return (DDIMInverse if inverse else DDIM)(
        num_steps or 50, guidance_scale=guidance_scale, spacing=config["timestep_spacing"],
        steps_offset=config["steps_offset"], set_alpha_to_one=config["set_alpha_to_one"],
        clip_sample_range=clip, lands="stride", **own,
    )  # fmt: skip


def to_diffusers(fitted: Fitted, unet: Any) -> Any:
    """Puts trained weights into a network of diffusers, in place, and returns it.

    Args:
        fitted: of a `Diffusion` that came by `from_diffusers`.
        unet: a network of the same configuration; `save_pretrained` of it writes their folder.

    Raises:
        ShapeError: names or shapes of the weights differ.
    """
    theirs = dict(unet.named_parameters())
    ours = {
        name.replace("/", "."): value
        for name, value in store.flatten(fitted.params["denoiser"]).items()
    }
    differ = {n for n in theirs.keys() | ours.keys()
              if n not in ours or n not in theirs
              or tuple(theirs[n].shape) != tuple(np.shape(ours[n]))}  # fmt: skip
    if differ:
        raise ShapeError(
            f"to_diffusers: got a {type(unet).__name__} whose weights {sorted(differ)[:3]} (of "
            f"{len(differ)}) have other names or shapes than the fitted ones, expected the network "
            "that from_diffusers was given, or one of its configuration."
        )
    for name, weight in theirs.items():
        weight.data.copy_(weight.new_tensor(np.asarray(ours[name])))
    return unet


# ---- schedules -----------------------------------------------------------------------------------


def _is_scheduler(thing: Any) -> bool:
    return hasattr(thing, "config") and hasattr(thing, "set_timesteps")


def _schedule(scheduler: Any) -> Any:
    """Our schedule of the same numbers, which are compared."""
    from probgen.models import NoiseSchedule

    config, name = scheduler.config, type(scheduler).__name__
    theirs = getattr(scheduler, "alphas_cumprod", None)
    if theirs is None or config.get("trained_betas") is not None:
        raise DeclarationError(
            f"from_diffusers: got a {name} without betas of a named schedule, expected one with "
            "beta_schedule, such as DDPMScheduler, DDIMScheduler or DPMSolverMultistepScheduler."
        )
    keys = ["num_train_timesteps", "beta_schedule"]
    if config["beta_schedule"] != "squaredcos_cap_v2":  # has neither
        keys += ["beta_start", "beta_end"]
    options = {k: config[k] for k in keys}
    if config.get("rescale_betas_zero_snr"):
        options["rescale_betas_zero_snr"] = True
    schedule = NoiseSchedule(**options)
    ours = schedule.alphas_bar()
    theirs = np.asarray(theirs.cpu(), np.float64)
    if ours.shape != theirs.shape or np.abs(ours - theirs).max() > CLOSE:
        raise DeclarationError(
            f"from_diffusers: got a {name} whose alphas_cumprod differ from those of its options "
            f"{options}, expected the same to {CLOSE:g}; it was changed after it was made."
        )
    return schedule


def _said(scheduler: Any) -> list[str]:
    """What its options ask of a sampler, a phrase each."""
    config, said = scheduler.config, []
    if config.get("thresholding"):
        said.append("thresholding of the estimated datum")
    elif config.get("clip_sample"):
        size = config.get("clip_sample_range", 1.0)
        said.append(f"clipping of the estimated datum to [-{size:g}, {size:g}]")
    if (spacing := config.get("timestep_spacing", "trailing")) != "trailing":
        offset = config.get("steps_offset", 0)
        said.append(f"steps spaced {spacing!r}" + (f", moved by {offset}" if offset else ""))
    if not config.get("set_alpha_to_one", True):
        said.append("a last step that stops at alpha_bar_0")
    if (kind := config.get("variance_type", "fixed_small")) not in ("fixed_small", "fixed_large"):
        said.append(f"variance {kind!r} of the ancestral steps")
    return said


# ---- networks ------------------------------------------------------------------------------------


def _fitted(
    unet: Any, scheduler: Any, shape: tuple[int, ...] | None, num_tokens: int | None, null: Any,
    text: DiffusersTextEncoder | None,
) -> Fitted:  # fmt: skip
    from probgen.models import Diffusion

    schedule, config = _schedule(scheduler), scheduler.config
    own, name = unet.config, type(unet).__name__
    require_single(unet, f"a {name}")
    _require_plain(unet, scheduler)
    shape = _shape(own, name) if shape is None else tuple(shape)
    word = _condition(own)
    net = DiffusersUNet(unet, word)
    params: dict[str, Any] = {"denoiser": net.init(np.random.default_rng(0))}
    shapes: dict[str, Any] = {"x": shape}
    condition: Any = None
    dtypes: dict[str, str] = {}
    if text is not None:
        condition, shapes["condition"], dtypes = text, (text.length,), {"condition": "int32"}
        params["condition"] = text.init(np.random.default_rng(0), (text.length,))
    elif word is not None:
        condition, shapes["condition"] = _context(own, word, name, num_tokens, null)
        params["condition"] = {} if null is None else {"null": np.asarray(null, np.float32)}
        dtypes = {"condition": "int32"} if word == "class_labels" else {}
    is_large = config.get("variance_type") == "fixed_large"
    model = Diffusion(
        net, shape, schedule, config.get("prediction_type", "epsilon"), condition=condition,
        variance_type="fixed_large" if is_large else "fixed_small",
    )  # fmt: skip
    left = _said(scheduler)
    if left:
        log.info(
            "from_diffusers: the %s also asks for %s; a model does not hold this, a sampler does: "
            "interop.sampler_of(scheduler, num_steps).",
            type(scheduler).__name__, "; ".join(left),
        )  # fmt: skip
    info = {"backend": "torch", "from": f"diffusers: {name}, {type(scheduler).__name__}",
            "left to samplers": left}  # fmt: skip
    return Fitted(model, params, info=info, shapes=shapes, dtypes=dtypes)


def _context(
    own: Mapping, word: str, name: str, num_tokens: int | None, null: Any
) -> tuple[Any, tuple[int, ...]]:
    """(the condition net, the shape of one datum's condition)."""
    if word == "class_labels":
        return GivenContext(), ()
    rows = num_tokens if null is None else len(null)
    if rows is None or num_tokens not in (None, rows):
        raise DeclarationError(
            f"from_diffusers: got a {name} with cross-attention and num_tokens={num_tokens}"
            f"{'' if null is None else f', null of {rows} rows'}, expected the number of rows of "
            "the embeddings that it is conditioned on, such as num_tokens=77 of CLIP."
        )
    shape = (rows, int(own["cross_attention_dim"]))
    return (GivenContext(shape) if null is None else ContextEmbedding(shape)), shape


def _require_plain(unet: Any, scheduler: Any) -> None:
    """Refuses what would change the meaning of the network's output or its inputs."""
    own, name = unet.config, type(unet).__name__
    variance = scheduler.config.get("variance_type", "fixed_small")
    if own["in_channels"] != own["out_channels"] or str(variance).startswith("learned"):
        raise DeclarationError(
            f"from_diffusers: got a {name} with {own['in_channels']} channels in and "
            f"{own['out_channels']} out, variance_type={variance!r}, expected as many out as in: a "
            "learned variance, or an image beside the noised one, has no counterpart here."
        )
    asked = [k for k in ("addition_embed_type", "encoder_hid_dim_type", "time_cond_proj_dim")
             if own.get(k) is not None]  # fmt: skip
    if own.get("class_embed_type") is not None:
        asked.append("class_embed_type")
    if own.get("time_embedding_type", "positional") == "fourier":
        asked.append("time_embedding_type='fourier' (a noise level in place of a step)")
    if asked:
        raise DeclarationError(
            f"from_diffusers: got a {name} with {', '.join(asked)}, expected a network of the "
            "noised image, the step, and at most one condition: encoder_hidden_states, or "
            "class_labels of num_class_embeds classes."
        )


def _condition(own: Mapping) -> Literal["encoder_hidden_states", "class_labels"] | None:
    if own.get("cross_attention_dim") is not None:
        return "encoder_hidden_states"
    return "class_labels" if own.get("num_class_embeds") is not None else None


def _shape(own: Mapping, name: str) -> tuple[int, int, int]:
    size = own["sample_size"]
    if size is None:
        raise DeclarationError(
            f"from_diffusers: got a {name} with sample_size=None, expected the shape of a datum; "
            "give shape=(height, width, channels)."
        )
    height, width = (size, size) if isinstance(size, int) else size
    return (height, width, own["in_channels"])
