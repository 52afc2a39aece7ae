"""The command line: `probgen demo` and `probgen doctor`.

What goes wrong on purpose (a `ProbgenError`) is one line on stderr and exit code 2, without a
traceback; anything else is a bug and shows one. Progress bars appear on a terminal only.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence

import probgen
from probgen.errors import ProbgenError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code: 0, 1 (doctor found no backend) or 2 (an error)."""
    parser = _parser()
    chosen = parser.parse_args(arguments)
    if chosen.run is None:
        parser.print_help()
        return 0
    # A thread of torch's that waits by spinning takes the core from whoever it waits for: on a busy
    # machine that makes a fit ten times slower. Read when torch is loaded, which is later.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        return chosen.run(chosen)
    except ProbgenError as error:
        print(f"probgen {chosen.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"probgen {chosen.command}: stopped", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="probgen",
        description="Deep generative models, declared once and run on Pyro or NumPyro.",
    )
    parser.add_argument("--version", action="version", version=f"probgen {probgen.__version__}")
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(title="commands", dest="command")

    demo = commands.add_parser(
        "demo",
        help="train, sample and judge a small model of digits; writes a report",
        description="Trains a VAE on the 5,000 MNIST digits that come with the installation, "
        "estimates its likelihood on held-out digits, draws from it, and writes report.html "
        "(readable anywhere, without a network), report.json and the fitted model. About a minute "
        "of work on two cores.",
    )
    demo.add_argument(
        "--backend", default="auto", choices=("auto", "torch", "jax"),
        help="what to run on (default: auto, see `probgen doctor`)",
    )  # fmt: skip
    demo.add_argument("--out", default="runs/demo", metavar="DIR", help="default: %(default)s")
    demo.add_argument("--seed", default=0, type=int, help="default: %(default)s")
    demo.add_argument(
        "--net", default="mlp", choices=("mlp", "conv"),
        help="the networks: dense, or convolutional, which fits better and takes longer "
        "(default: %(default)s)",
    )  # fmt: skip
    demo.add_argument(
        "--quick", action="store_true", help="a few seconds of training; the numbers are worse"
    )
    demo.set_defaults(run=_demo)

    doctor = commands.add_parser(
        "doctor",
        help="what is installed, which devices there are, what would run",
        description="Prints what is installed and whether it works: frameworks, devices, "
        "compilers, data, and what backend='auto' would choose. Exit code 1 when no backend works.",
    )
    doctor.set_defaults(run=_doctor)
    return parser


def _demo(chosen: argparse.Namespace) -> int:
    from probgen.evaluation.demo import Settings, run

    run(
        backend=chosen.backend,
        out=chosen.out,
        seed=chosen.seed,
        settings=Settings.quick(net=chosen.net) if chosen.quick else Settings(net=chosen.net),
        command=_command(chosen),
        say=lambda line: print(line, flush=True),
    )
    return 0


def _command(chosen: argparse.Namespace) -> str:
    """The command that was given, with every choice spelled out."""
    words = ["probgen", "demo", "--backend", chosen.backend, "--net", chosen.net]
    words += ["--seed", str(chosen.seed), "--out", chosen.out]
    return shlex.join([*words, "--quick"] if chosen.quick else words)


def _doctor(chosen: argparse.Namespace) -> int:
    from probgen.backends.doctor import examine

    findings = examine()
    for each in findings:
        mark = {"ok": "ok", "missing": "--", "broken": "!!", "note": "no"}[each.state]
        name = "  " * each.level + each.name
        print(f"{mark}  {name:<12}{each.text}", flush=True)
    works = any(each.name == "auto" and each.state == "ok" for each in findings)
    return 0 if works else 1
