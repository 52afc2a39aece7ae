"""A latent diffusion of diffusers as one model: its text encoder, its U-Net, and its auto-encoder.

    p(x, z | caption) = p(z | text(caption)) p(x | z)        VAE(latent=Diffusion(condition=text))

What a pipeline has of these is taken, so that one without is the `Diffusion` alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from probgen.engine.fitted import Fitted
from probgen.errors import DeclarationError
from probgen.interop.diffusers_folder import FURTHER, Parts
from probgen.nets.diffusers_text import DiffusersTextEncoder
from probgen.nets.diffusers_vae import DiffusersDecoder, DiffusersEncoder

ALONE = "its U-Net alone, on latents and embeddings: from_diffusers(pipeline.unet, scheduler, ...)."


def parts_of(pipeline: Any) -> Parts:
    """What is taken of a pipeline.

    Raises:
        DeclarationError: a VAE or a text encoder of another class.
    """
    if isinstance(pipeline, Parts):
        return pipeline
    parts = Parts(*(getattr(pipeline, name, None) for name in Parts._fields))
    for name in FURTHER:
        part, known = getattr(parts, name), FURTHER[name]
        if part is not None and not {cls.__name__ for cls in type(part).__mro__} & set(known):
            raise DeclarationError(
                f"from_diffusers: got a {type(pipeline).__name__} with {name}="
                f"{type(part).__name__}, expected a {' or '.join(known)}; {ALONE}"
            )
    return parts


def require_single(module: Any, who: str) -> None:
    """Refuses weights in half precision, in which a gradient, or a difference of two, is lost.

    Raises:
        DeclarationError: names the type.
    """
    kinds = {str(p.dtype).removeprefix("torch.") for p in module.parameters()}
    if half := sorted(kinds - {"float32", "float64"}):
        raise DeclarationError(
            f"from_diffusers: got {who} with weights of type {', '.join(half)}, expected float32; "
            "load it with torch_dtype=torch.float32, or give pipeline.to(torch.float32)."
        )


def text_of(parts: Parts) -> DiffusersTextEncoder | None:
    """The text encoder with its tokenizer, where both are there and the U-Net reads rows.

    Raises:
        DeclarationError: rows of another size than the U-Net reads; an encoder that needs a mask.
    """
    wanted = parts.unet.config.get("cross_attention_dim")
    if parts.text_encoder is None or parts.tokenizer is None or wanted is None:
        return None
    config = parts.text_encoder.config
    if getattr(config, "use_attention_mask", False) or config.hidden_size != wanted:
        raise DeclarationError(
            f"from_diffusers: got a text encoder of rows of size {config.hidden_size} "
            f"(use_attention_mask={getattr(config, 'use_attention_mask', False)}) for a U-Net of "
            f"cross_attention_dim={wanted}, expected the same size, and no mask; {ALONE}"
        )
    require_single(parts.text_encoder, "a text encoder")
    return DiffusersTextEncoder(parts.text_encoder, parts.tokenizer)


def with_pictures(prior: Fitted, vae: Any) -> Fitted:
    """The fitted prior of latents within the auto-encoder that they are of.

    Raises:
        DeclarationError: latents of another number of channels, or shifted ones.
    """
    from probgen.models import VAE, likelihoods

    config, (h, w, c) = vae.config, prior.model.shape  # type: ignore[attr-defined]
    shift = config.get("shift_factor")
    if config["latent_channels"] != c or shift is not None or config["out_channels"] != 3:
        raise DeclarationError(
            f"from_diffusers: got a VAE with latent_channels={config['latent_channels']}, "
            f"out_channels={config['out_channels']}, shift_factor={shift}, expected the U-Net's "
            f"{c} channels, pictures of 3, and no shift; {ALONE}"
        )
    require_single(vae, "a VAE")
    factor = 2 ** (len(config["block_out_channels"]) - 1)
    shape, scale = (h * factor, w * factor, 3), float(config["scaling_factor"])
    encoder = DiffusersEncoder(vae.encoder, vae.quant_conv, scale)
    decoder = DiffusersDecoder(vae.decoder, vae.post_quant_conv, scale, shape)
    model = VAE(prior.model, decoder, likelihoods.Implicit(), encoder, data_range=(0.0, 1.0))
    rng = np.random.default_rng(0)  # which their weights do not ask
    params = {f"prior/{name}": tree for name, tree in prior.params.items()}
    params |= {"encoder": encoder.init(rng), "decoder": decoder.init(rng)}
    info = {**prior.info, "from": f"{prior.info['from']}, {type(vae).__name__}"}
    return Fitted(
        model, params, info=info, shapes={**prior.shapes, "x": shape}, dtypes=prior.dtypes
    )
