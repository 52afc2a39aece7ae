"""All GPUs against one, for test_devices.py: `torch` under torchrun (NCCL), or `jax`, a mesh."""

import os
import sys

import numpy as np
from parallel_cases import CASES, fitted, numbers

from probgen import backends

NAMES = ("svi", "persistent chains", "adversarial", "distillation")


def main(name):
    b = backends.load(name, "cuda:0" if name == "torch" else "gpu")
    for case in NAMES:
        assert case in CASES
        many = numbers(fitted(case, b, devices="all"))
        if os.environ.get("RANK", "0") == "0":
            one = numbers(fitted(case, b))
            assert one.keys() == many.keys()
            for n, value in one.items():  # float32
                np.testing.assert_allclose(many[n], value, rtol=2e-3, atol=2e-4, err_msg=n)


if __name__ == "__main__":
    main(sys.argv[1])
