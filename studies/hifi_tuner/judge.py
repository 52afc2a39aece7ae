"""A judge of pictograms: which noun, whose rendition, which scene; and features to compare by.

    [conv, conv, conv] -> 128 features -> a softmax each over nouns, renditions and scenes

learned by maximum likelihood on composites of all individuals, the subject among them: the judge
may know what the base does not. Its features stand in for DINO's and its probabilities for CLIP's
score of a prompt; they are neither, and numbers by them compare within this page alone.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

import probgen as pg
from probgen import dist, nets
from probgen.backends import resolve
from probgen.backends.protocol import Backend
from probgen.data import PICTOGRAM_RENDITIONS, Pictograms, pictograms
from probgen.engine.fitted import Fitted
from probgen.inference import ELBO, SVI
from studies.hifi_tuner.pictogram_base import NOUNS, SCENES

HEADS = {"noun": NOUNS, "rendition": PICTOGRAM_RENDITIONS, "scene": SCENES}
FEATURES = nets.ConvEncoder((32, 64, 96), 128, activation="silu")


@pg.model
def labelled(x: Any) -> None:
    """Labels given pictures [n, 24, 24, 3] in [-1, 1]."""
    with pg.data_plate():
        h = pg.net("features", FEATURES)(x)
        for name, words in HEADS.items():
            logits = pg.net(name, nets.Dense(len(words)))(pg.ops.silu(h))
            pg.sample(name, dist.Categorical(logits=logits))


@dataclasses.dataclass(frozen=True, eq=False)
class Judge:
    """A fitted judge.

    Attributes:
        fitted: `labelled` with its parameters.
        accuracy: of held-out composites, by head.
    """

    fitted: Fitted
    accuracy: dict[str, float]

    def features(self, x: Any) -> np.ndarray:
        """[n, 128] of pictures."""
        return self._run(x)[0]

    def probabilities(self, x: Any) -> dict[str, np.ndarray]:
        """[n, words] by head."""
        return self._run(x)[1]

    def _run(self, x: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        b = resolve(self.fitted.info["backend"], "cpu")
        params = b.tree_map(b.asarray, dict(self.fitted.params))
        h = FEATURES.apply(params["features"], b.asarray(np.asarray(x, np.float32)))
        found = {
            name: b.to_numpy(
                b.ops.softmax(nets.Dense(len(words)).apply(params[name], b.ops.silu(h)))
            )
            for name, words in HEADS.items()
        }
        return b.to_numpy(h), found


def composites(count: int, seed: int, **options: Any) -> Pictograms:
    """As the base's pictures, of all individuals."""
    options = {"nouns": NOUNS, "scenes": SCENES, "scale": (0.65, 0.9), **options}
    return pictograms(count, seed, **options)


def labels(given: Pictograms) -> dict[str, np.ndarray]:
    """Of the heads, counted as these count them."""
    from probgen.data import PICTOGRAM_SCENES, pictogram_nouns

    at = {
        "noun": [NOUNS.index(pictogram_nouns()[i]) for i in given["noun"]],
        "rendition": list(given["rendition"]),
        "scene": [SCENES.index(PICTOGRAM_SCENES[i]) for i in given["scene"]],
    }
    return {k: np.asarray(v, np.int64) for k, v in at.items()}


def judge(
    *, num_pictures: int = 6000, num_steps: int = 1500, seed: int = 0,
    backend: str | Backend = "auto",
) -> Judge:  # fmt: skip
    """Learned on composites, tried on a thousand others."""
    train, test = composites(num_pictures, seed + 10), composites(1000, seed + 11)
    fitted = pg.fit(
        labelled, labels(train), SVI(ELBO(), pg.Adam(pg.CosineDecay(2e-3, num_steps))),
        inputs={"x": train["x"]}, num_steps=num_steps, batch_size=64, seed=seed, backend=backend,
        progress_bar=False,
    )  # fmt: skip
    found = Judge(fitted, {})
    said = found.probabilities(test["x"])
    right = {k: float((said[k].argmax(1) == v).mean()) for k, v in labels(test).items()}
    return dataclasses.replace(found, accuracy=right)
