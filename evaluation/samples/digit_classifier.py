"""A small classifier of the embedded digits: features "digit-net", and a judge of modes.

    pixels -> 48 principal components -> 256 -> 64 (the features) -> 10 classes

trained by scikit-learn on four fifths of the set, each digit also shifted by one pixel each way,
in a second or two; the fifth that it never saw says how good it is. It needs no framework. Kept in
memory per process, and the same seed gives the same network.
"""

from __future__ import annotations

import functools
import warnings
from typing import Annotated, Any

import numpy as np

from probgen.data import Images, digits, mnist5k, split
from probgen.data.images import require
from probgen.errors import DataError, ShapeError
from probgen.evaluation.samples.checks import as_rows
from probgen.evaluation.samples.estimate import wilson
from probgen.language.declared import checked
from probgen.language.kinds import one_of
from probgen.language.seeds import check_seed

SETS = {"digits": digits, "mnist5k": mnist5k}
COMPONENTS, HIDDEN, EPOCHS = 48, (256, 64), 15


class DigitClassifier:
    """Calling it gives the 64 penultimate features; see `digit_classifier`.

    Attributes:
        name: "digit-net", for results.
        trained_on: name of the set.
        accuracy: share of held-out digits classified right.
        accuracy_interval: its 95 % interval (Wilson).
        num_test: how many were held out.
        classes: their names.
    """

    name = "digit-net"

    def __init__(self, data: Images, seed: int):
        train, test = split(data, 0.8, seed=seed, stratify=True)
        self.trained_on, self.seed, self.classes = data.name, seed, data.classes
        self.shape = data.images.shape[1:]
        self.num_test = len(test)
        decomposition = require("sklearn.decomposition", needed_by="digit_classifier")
        flat = train.images.reshape(len(train), -1).astype(np.float64)
        self._pca = decomposition.PCA(COMPONENTS, svd_solver="full").fit(flat)
        self._scale = float(np.sqrt(self._pca.explained_variance_.mean()))
        self._net = self._train(train)
        self.accuracy = float((self.predict(test.images) == test.labels).mean())
        self.accuracy_interval = wilson(self.accuracy, len(test))

    def _train(self, train: Images) -> Any:
        networks = require("sklearn.neural_network", needed_by="digit_classifier")
        words = require("sklearn.exceptions", needed_by="digit_classifier")
        moved = shifted(train.images)
        labels: Any = np.tile(train.labels, len(moved))  # type: ignore[arg-type]
        net = networks.MLPClassifier(
            HIDDEN, max_iter=EPOCHS, batch_size=200, alpha=1e-2, learning_rate_init=2e-3,
            random_state=self.seed,
        )  # fmt: skip
        with warnings.catch_warnings():
            # The number of epochs is chosen, not waited for.
            warnings.simplefilter("ignore", words.ConvergenceWarning)
            return net.fit(self._inputs(np.concatenate(moved)), labels)

    def _inputs(self, x: Any) -> np.ndarray:
        """[n, 48] float32 principal components of [n, h, w, 1], [n, h, w] or [n, h w]."""
        rows = as_rows(x, "digit_classifier")
        size = int(np.prod(self.shape))
        if len(rows) == 0 or int(np.prod(rows.shape[1:])) != size:
            raise ShapeError(
                f"digit_classifier: got data of shape {rows.shape}, expected [n, "
                f"{', '.join(map(str, self.shape))}] as in {self.trained_on!r}, n >= 1; the other "
                "size is digit_classifier('mnist5k') or ('digits')."
            )
        low, high = float(rows.min()), float(rows.max())
        if low < -1.0 or high > 2.0:
            raise DataError(
                f"digit_classifier: got values in [{low:g}, {high:g}], expected images in about "
                "[0, 1]; scale them with probgen.data.from_levels."
            )
        flat = rows.reshape(len(rows), -1).astype(np.float64)
        return (self._pca.transform(flat) / self._scale).astype(np.float32)

    def __call__(self, x: Any) -> np.ndarray:
        """[n, 64] activations of the last hidden layer."""
        h = self._inputs(x)
        for weight, bias in zip(self._net.coefs_[:-1], self._net.intercepts_[:-1], strict=True):
            h = np.maximum(h @ weight + bias, 0)
        return h.astype(np.float64)

    def probabilities(self, x: Any) -> np.ndarray:
        """[n, 10] probabilities of the classes."""
        return self._net.predict_proba(self._inputs(x)).astype(np.float64)

    def predict(self, x: Any) -> np.ndarray:
        """[n] the likeliest class."""
        return self.probabilities(x).argmax(1)

    def __repr__(self) -> str:
        low, high = self.accuracy_interval
        return (
            f"DigitClassifier({self.trained_on!r}, held-out accuracy {self.accuracy:.3f} "
            f"[{low:.3f}, {high:.3f}], n {self.num_test})"
        )


def shifted(images: np.ndarray) -> list[np.ndarray]:
    """[n, h, w, c] as it is and moved by one pixel each way, zeros coming in."""
    h, w = images.shape[1:3]
    wide = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    moves = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))
    return [wide[:, 1 + a : 1 + a + h, 1 + b : 1 + b + w] for a, b in moves]


@checked
def digit_classifier(
    data: Annotated[str, one_of(SETS)] = "digits", *, seed: int = 0
) -> DigitClassifier:
    """The classifier of one of the embedded sets, trained on the first call.

    Held-out accuracy over seeds is about .995 for "digits" (8x8, 360 held out) and .97 for
    "mnist5k" (28x28, 1,000 held out); the result's `accuracy` is that of this very network.

    Args:
        data: "digits" or "mnist5k".
        seed: of the split, the initial weights and the batches.

    Raises:
        DeclarationError: another set; for other data give `sample_quality` a classifier of yours.

    Example:
        >>> digit_classifier("digits").accuracy > 0.97
        True
    """
    return _kept(data, check_seed(seed, "digit_classifier"))


@functools.lru_cache(maxsize=8)
def _kept(data: str, seed: int) -> DigitClassifier:
    return DigitClassifier(SETS[data](), seed)
