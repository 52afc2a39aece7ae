"""What a family of models can do beyond its program: protocols, asked for by `model.capability`.

An algorithm names the protocol that it needs and refuses a model that is none, in words; a family
has a capability by having the methods, so that a model of your own joins by defining them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

Array = Any
MUCH_LEFT = 0.05  # of a datum's variance at the last step, where a reverse chain starts from pure
# noise; common schedules leave 4e-5 to 5e-3


@runtime_checkable
class Ancestral(Protocol):
    """Draws from itself better than by running its program: by a loop in place of an unrolled one.

    `generate` gives the values of its sites by name, [num_samples, *event]; their law is that of
    the program. `batch` holds inputs with one row a sample.
    """

    def generate(
        self, bound: Any, params: Mapping, key: Any, num_samples: int, batch: Mapping
    ) -> dict[str, Array]: ...


@runtime_checkable
class HasMean(Protocol):
    """Knows E[x | z] for latents z [*batch, d]."""

    def mean(self, bound: Any, params: Mapping, z: Array) -> Array: ...


@runtime_checkable
class TakesBack(Protocol):
    """Draws by steps down an energy that can be taken back: see `models.GradientFlowGenerator`.

    `undone` gives, for data x [*batch, *event], where they came from and, each [*batch]: `log_det`,
    `residual`, `sharpness` and `by_newton`.
    """

    def undone(self, params: Mapping, x: Array) -> Any: ...


@runtime_checkable
class DrawsMean(Protocol):
    """Declares, in place of its program, its latents and x = E[x | z] for them: no density of x."""

    def draw_mean(self) -> Array: ...


@runtime_checkable
class HasPrior(Protocol):
    """Has one latent "z", whose prior may be a model of its own.

    `prior` gives it, or None; its parameters are the model's with "prior/" before the net's name.
    `with_latent` is the same declaration with another prior.
    """

    def prior(self) -> Any: ...

    def with_latent(self, latent: Any) -> Any: ...


@runtime_checkable
class Maximises(Protocol):
    """Knows the M-step of EM in closed form.

    `maximiser` gives (params, batch, latents, weights) -> params, by net, the argmax of

        sum_n sum_c weights[c, n] log p(x_n, z_cn)

    over latents by site, [C, n, *event], with weights [C, n]; None where this instance knows none.
    """

    def maximiser(self) -> Callable | None: ...


@runtime_checkable
class Denoises(Protocol):
    """A chain from noise to data with a net that denoises: see `probgen.models.Diffusion`.

    Attributes:
        denoiser: the net (x_t, t) -> prediction, under that name among the parameters.
        schedule: betas() and alphas_bar(), [T] each.
        shape: of one datum.
        prediction_type: what the net predicts.

    `predict(params, x_t, t, batch, guidance_scale)` asks the net, for x_t [n, *shape] at t [n], an
    index of a step or a fraction between two; `params` by net; `batch` has the program's inputs. It
    is the one way in which algorithms ask it. `table()` gives the constants of each step, by the
    names of `models.Diffusion`; `clean` x_0 from a prediction; `target` what the net is to predict.
    """

    denoiser: Any
    schedule: Any
    shape: Any
    prediction_type: str

    def predict(
        self, params: Mapping, x_t: Array, t: Array, batch: Mapping, guidance_scale: float = 1.0
    ) -> Array: ...

    def table(self) -> dict[str, Any]: ...

    def clean(self, x_t: Array, predicted: Array, row: Mapping) -> Array: ...

    def target(self, x: Array, eps: Array, row: Mapping) -> Array: ...


@runtime_checkable
class Stepwise(Protocol):
    """Has a latent for each of a sampler's steps, to be learned from the noisiest step down.

    Attributes:
        times: of the steps; None where one latent serves all.

    `step_loss(bound)` gives (params, latent, place, batch, key) -> (loss, metrics) of the latent
    [*event] at the step `times[place]`; `latent_of` the latent of a fit without `times` of the same
    declaration, and refuses another's. The guide has them under "subject", {"value": [steps, ...]}.
    """

    times: Any

    def step_loss(self, bound: Any) -> Callable: ...

    def latent_of(self, learned: Any) -> Array: ...


@runtime_checkable
class MapsAttention(Protocol):
    """A `Denoises` whose net attends to a condition, and shows and takes the maps of that.

    `predict_with_maps(params, x_t, t, batch, guidance_scale, replace)` is `predict` with, beside
    its word, the conditional branch's maps by layer [n, heads, pixels, m]; `replace`, a
    `nets.MapReplacement`, has others in their place.
    """

    def predict_with_maps(
        self, params: Mapping, x_t: Array, t: Array, batch: Mapping, guidance_scale: float = 1.0,
        replace: Any = None,
    ) -> tuple[Array, dict[str, Array]]: ...  # fmt: skip


class Pairs(NamedTuple):
    """What a discriminator is to tell apart, [n, ...] each: (real, *given, *labels) from
    (fake, *given, *labels).

    Attributes:
        real, fake: what is judged; the fake one carries the generator's gradient.
        given: what both are conditioned on and a discriminator of the marginal does without.
        labels: what it gets in any case: the step of a chain, inputs.
        strain: [n] nats, -log q(given | fake) up to a constant, by which a fake is held to what it
            is conditioned on where the discriminator does not see that; or None.
    """

    real: Array
    fake: Array
    given: tuple[Array, ...] = ()
    labels: tuple[Array, ...] = ()
    strain: Array | None = None


@runtime_checkable
class MakesPairs(Protocol):
    """Tells an adversarial learner what to judge: its function (params, batch, key) -> `Pairs`.

    Models without it have one datum judged against one draw.
    """

    def pairs(self, bound: Any) -> Callable[[Mapping, Mapping, Any], Pairs]: ...


def prior_of(model: Any) -> Any:
    """The prior of a model's latent where it has one that is a model; else None."""
    return model.prior() if isinstance(model, HasPrior) else None


def embedded(model: Denoises, params: Mapping, inputs: Mapping, x: Array) -> dict[str, Array]:
    """Inputs for many calls of `predict` at the same data x [n, ...]: with what the model makes of
    them once and for all, where it does (`embedded`, as a `Diffusion` does its condition)."""
    make = getattr(model, "embedded", None)
    return dict(inputs) if make is None else make(params, inputs, x)
