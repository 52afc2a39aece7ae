"""Training a declared VAE on torch, against Pyro's SVI and a hand-written eager loop.

Pyro's model and guide and the hand-written loop use the same torch modules, and start from the
parameters that our declaration starts from.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from fitting import BATCH, LATENT, Fit, batches, declared, images, initial_params, versus
from harness import Contest, Setting
from torch import nn

# ---- the networks, in torch's own words ---------------------------------------------------------


class Encoder(nn.Module):
    def __init__(self, kind: str):
        super().__init__()
        self.body, self.head = (
            (nn.Sequential(nn.Linear(784, 400), nn.ReLU()), nn.Linear(400, 2 * LATENT))
            if kind == "mlp"
            else (
                nn.Sequential(
                    *(nn.Conv2d(1, 32, 4, 2, 1), nn.ReLU()),
                    *(nn.Conv2d(32, 64, 4, 2, 1), nn.ReLU(), nn.Flatten()),
                ),
                nn.Linear(64 * 49, 2 * LATENT),
            )
        )

    def forward(self, x: Any) -> Any:
        return self.head(self.body(x)).split(LATENT, -1)


class Decoder(nn.Sequential):
    def __init__(self, kind: str):
        super().__init__(
            *(
                (nn.Linear(LATENT, 400), nn.ReLU(), nn.Linear(400, 784))
                if kind == "mlp"
                else (
                    *(nn.Linear(LATENT, 64 * 49), nn.ReLU(), nn.Unflatten(1, (64, 7, 7))),
                    *(nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.ReLU()),
                    nn.ConvTranspose2d(32, 1, 4, 2, 1),
                )
            )
        )


def networks(kind: str, device: str, params: Any = None) -> tuple[Encoder, Decoder]:
    """Both, with our (initial) parameters in torch's layouts; maps are flattened channel first."""
    ours, encoder, decoder = params or initial_params(kind), Encoder(kind), Decoder(kind)
    e, d = ours["encoder"], ours["decoder"]
    if kind == "mlp":
        pairs = [
            *((encoder.body[0], _dense(e["layer0"])), (encoder.head, _dense(e["out"]))),
            *((decoder[0], _dense(d["layer0"])), (decoder[2], _dense(d["out"]))),
        ]
    else:
        head, stem = _dense(e["head"]["out"]), _dense(d["stem"]["out"])
        head["weight"] = _channel_first(head["weight"].T).T
        stem = {k: _channel_first(v) for k, v in stem.items()}
        pairs = [
            (encoder.body[0], _moved(e["conv0"], (3, 2, 0, 1))),
            (encoder.body[2], _moved(e["conv1"], (3, 2, 0, 1))),
            *((encoder.head, head), (decoder[0], stem)),
            (decoder[3], _moved(d["conv0"], (2, 3, 0, 1))),
            (decoder[5], _moved(d["conv1"], (2, 3, 0, 1))),
        ]
    for module, values in pairs:
        state = {k: torch.tensor(np.ascontiguousarray(v)) for k, v in values.items()}
        module.load_state_dict(state)
    return encoder.to(device), decoder.to(device)


def _dense(p: dict) -> dict:
    return {"weight": p["weight"].T, "bias": p["bias"]}


def _moved(p: dict, axes: tuple[int, ...]) -> dict:
    return {"weight": p["weight"].transpose(axes), "bias": p["bias"]}


def _channel_first(x: np.ndarray) -> np.ndarray:
    maps = x.reshape(7, 7, 64, -1).transpose(2, 0, 1, 3)
    return maps.reshape(x.shape)


def data(kind: str, device: str) -> torch.Tensor:
    flat = torch.tensor(images(), device=device)
    return flat.reshape(-1, 784) if kind == "mlp" else flat.reshape(-1, 1, 28, 28)


def _finish(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


# ---- the peers ----------------------------------------------------------------------------------


def by_pyro(kind: str, setting: Setting) -> Fit:
    """Pyro's SVI with the closed-form KL, defaults otherwise, its user's loop over batches."""
    import pyro
    import pyro.distributions as pd
    from pyro.infer import SVI, TraceMeanField_ELBO

    x, (encoder, decoder) = data(kind, setting.device), networks(kind, setting.device)
    event_ndim, names = x.ndim - 1, (f"encoder/{kind}", f"decoder/{kind}")

    def model(x: Any) -> None:
        pyro.module(names[1], decoder)
        with pyro.plate("data", len(x)):
            zero = x.new_zeros(len(x), LATENT)
            z = pyro.sample("z", pd.Normal(zero, 1.0).to_event(1))
            pyro.sample("x", pd.Bernoulli(logits=decoder(z)).to_event(event_ndim), obs=x)

    def guide(x: Any) -> None:
        pyro.module(names[0], encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = encoder(x)
            pyro.sample("z", pd.Normal(loc, log_scale.exp()).to_event(1))

    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), TraceMeanField_ELBO())
    following = batches()
    first = x[torch.as_tensor(batches()()[0])]

    def block() -> None:
        for rows in torch.as_tensor(following(), device=setting.device):
            svi.step(x[rows])
        _finish(setting.device)

    return Fit(block, lambda n: np.array([svi.evaluate_loss(first) / BATCH for _ in range(n)]))


def by_hand(kind: str, setting: Setting) -> Fit:
    """Eager torch, no distributions, fused Adam."""
    x, (encoder, decoder) = data(kind, setting.device), networks(kind, setting.device)
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, 1e-3, fused=True)
    following = batches()
    first = x[torch.as_tensor(batches()()[0])]

    def loss(x: Any) -> Any:
        loc, log_scale = encoder(x)
        z = loc + torch.randn_like(loc) * log_scale.exp()
        reconstruction = F.binary_cross_entropy_with_logits(decoder(z), x, reduction="sum")
        kl = -0.5 * (1 + 2 * log_scale - loc * loc - (2 * log_scale).exp()).sum()
        return (reconstruction + kl) / len(x)

    def block() -> None:
        for rows in torch.as_tensor(following(), device=setting.device):
            optimizer.zero_grad(set_to_none=True)
            loss(x[rows]).backward()
            optimizer.step()
        _finish(setting.device)

    def losses(count: int) -> np.ndarray:
        with torch.no_grad():
            return np.array([float(loss(first)) for _ in range(count)])

    return Fit(block, losses)


def contest(kind: str, setting: Setting, asked: dict[tuple[str, str], Any]) -> Contest:
    """The sides that `asked` names, and its targets."""
    makers: dict[str, Callable[[], Fit]] = {
        "probgen, compiled": lambda: declared(
            kind, "torch", setting, compile="graph" if setting.tiny else "inductor"
        ),
        "probgen, graph only": lambda: declared(kind, "torch", setting, compile="graph"),
        "Pyro SVI": lambda: by_pyro(kind, setting),
        "eager loop, fused Adam": lambda: by_hand(kind, setting),
    }
    return versus(f"{kind} VAE, torch", makers, asked, setting)


MLP = {
    ("probgen, compiled", "Pyro SVI"): 1.6,
    ("probgen, graph only", "Pyro SVI"): 1.3,
    ("probgen, compiled", "eager loop, fused Adam"): 1.0,
    ("probgen, graph only", "eager loop, fused Adam"): None,
}
CONV = {
    ("probgen, compiled", "Pyro SVI"): 1.1,
    ("probgen, compiled", "eager loop, fused Adam"): None,
}


def contests(setting: Setting, only: str = "") -> Iterator[Contest]:
    torch.set_num_threads(setting.threads)
    torch.manual_seed(0)
    for kind, asked in (("mlp", MLP), ("conv", CONV)):
        if only in f"{kind} VAE, torch":
            yield contest(kind, setting, asked)
