"""The command line: `probgen demo`, `probgen evaluate` and `probgen doctor`.

What goes wrong on purpose (a `ProbgenError`) is one line on stderr and exit code 2, without a
traceback; anything else is a bug and shows one. Progress bars appear on a terminal only.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import probgen
from probgen.errors import DeclarationError, ProbgenError, Terminated
from probgen.language.wording import shown
from probgen.progress import say

LONGEST_NAME, LONGEST_PATH = 255, 4000  # bytes: what the file systems in use allow


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
        _check_words(vars(chosen))
        return chosen.run(chosen)
    except ProbgenError as error:
        said = " ".join(str(error).split()).removeprefix(f"{chosen.command}: ")
        print(f"probgen {chosen.command}: {said}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:
        said = str(stopped).removeprefix(f"{chosen.command}: ") or "stopped"
        print(f"probgen {chosen.command}: {said}", file=sys.stderr)
        return 130
    except Terminated:
        return 143  # the line is in the log


def _check_words(chosen: Mapping[str, Any]) -> None:
    """Refuses words that can be no name of a file and no text of a page.

    Raises:
        DeclarationError: a NUL, bytes that are no UTF-8, or a name longer than any system's.
    """
    for option, value in chosen.items():
        for word in value if isinstance(value, list) else [value]:
            if not isinstance(word, str):
                continue
            # Not printable are NUL, and surrogates: they stand for bytes that are no UTF-8.
            is_name = word.isprintable() and len(word) <= LONGEST_PATH
            if not is_name or max(len(p.encode()) for p in word.split(os.sep)) > LONGEST_NAME:
                raise DeclarationError(
                    f"{option}: got {shown(word)!a}, expected a name of printable text, of at most "
                    f"{LONGEST_NAME} bytes between slashes; rename the file, or choose another."
                )


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
        "estimates its likelihood on held-out digits, draws from it, sees whether it can tell "
        "digits from letters and the like, and writes report.html (readable anywhere, without a "
        "network), report.json and the fitted model. Two or three minutes of work on two cores.",
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
        "--quick",
        action="store_true",
        help="less of everything, half a minute in all; the numbers are worse",
    )
    demo.set_defaults(run=_demo)
    _add_evaluate(commands)

    doctor = commands.add_parser(
        "doctor",
        help="what is installed, which devices there are, what would run",
        description="Prints what is installed and whether it works: frameworks, devices, "
        "compilers, data, and what backend='auto' would choose. Exit code 1 when no backend works.",
    )
    doctor.set_defaults(run=_doctor)
    return parser


DATA = """\
data:
  a file       .npz (one array, or one named as the model's site), .npy, or IDX as MNIST's
  a folder     of PNG or JPEG pictures of one size
  a built-in   digits, mnist5k, faces; drawn to the model's size: letters, patches, noise, constants
  inverted:X   1 - x for any of these

Data are given the model's shape, and its values: black and white at 0.5 for a Bernoulli, levels for
a categorical. noise and constants are uniform on [0, 1], or on the range of DATA where these are
real numbers beyond it. The page says what was done; what does not fit is refused. RUN's own DATA
should be held out from its training: `probgen demo` leaves such digits as held_out_digits.npz.

measures: nll, regret (of each datum's own posterior, K = 1), regret-guide (of the whole guide, as
published; slow), complexity, elbo, kl, reconstruction, ratio (needs --background).
"""


def _add_evaluate(commands: Any) -> None:
    evaluate = commands.add_parser(
        "evaluate",
        help="how probable a saved model finds data, and what it can tell from them",
        description="Measures DATA, and further sets by --ood, under the model in RUN (a folder "
        "from save_pretrained, such as runs/demo/model), and writes report.html, report.json and "
        "the table of all data. Finished chunks are kept: the same command after a kill goes on, "
        "and once it is done finds its table; another command needs another --out, or --overwrite.",
        epilog=DATA,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    evaluate.add_argument("run_folder", metavar="RUN", help="the folder of a saved model")
    evaluate.add_argument("data", metavar="DATA", help="the model's own kind of data, see below")
    evaluate.add_argument(
        "--ood", nargs="+", action="extend", default=[], metavar="DATA",
        help="sets that the model should find strange, see below",
    )  # fmt: skip
    evaluate.add_argument(
        "--measures", nargs="+", action="extend", metavar="NAME",
        help="default: nll regret complexity elbo, as far as they suit the model, and ratio with "
        "--background",
    )  # fmt: skip
    evaluate.add_argument(
        "--background", metavar="RUN", help="the model of perturbed data for the measure ratio"
    )
    for option, default, text in (
        ("--num-data", 200, "data of each set at most"),
        ("--particles", 1000, "of each estimate of log p(x)"),
        ("--seed", 0, "of the choice of data, the noise and the bootstrap"),
        ("--chunk-size", 100, "data at a time, for memory"),
    ):
        evaluate.add_argument(
            option, default=default, type=int, metavar="N", help=f"{text} (default: %(default)s)"
        )
    evaluate.add_argument(
        "--backend", default="auto", choices=("auto", "torch", "jax"),
        help="what to run on (default: auto, the one that fitted)",
    )  # fmt: skip
    evaluate.add_argument("--out", metavar="DIR", help="default: RUN-evaluation")
    evaluate.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the report of another evaluation that stands there",
    )
    evaluate.set_defaults(run=_evaluate)


def _evaluate(chosen: argparse.Namespace) -> int:
    from probgen.evaluation.page import run

    run(
        chosen.run_folder,
        chosen.data,
        chosen.ood,
        measures=chosen.measures,
        background=chosen.background,
        num_data=chosen.num_data,
        particles=chosen.particles,
        seed=chosen.seed,
        backend=chosen.backend,
        chunk_size=chosen.chunk_size,
        out=chosen.out,
        overwrite=chosen.overwrite,
        command=_evaluate_command(chosen),
        say=say,
    )
    return 0


def _evaluate_command(chosen: argparse.Namespace) -> str:
    """The command that was given, with every choice spelled out."""
    words = ["probgen", "evaluate", chosen.run_folder, chosen.data]
    words += ["--ood", *chosen.ood] if chosen.ood else []
    words += ["--measures", *chosen.measures] if chosen.measures else []
    for option in ("background", "num_data", "particles", "seed", "chunk_size", "backend", "out"):
        value = getattr(chosen, option)
        words += [] if value is None else [f"--{option.replace('_', '-')}", str(value)]
    return shlex.join(words)


def _demo(chosen: argparse.Namespace) -> int:
    from probgen.evaluation.demo.digits import Settings, run

    run(
        backend=chosen.backend,
        out=chosen.out,
        seed=chosen.seed,
        settings=Settings.quick(net=chosen.net) if chosen.quick else Settings(net=chosen.net),
        command=_command(chosen),
        say=say,
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
        say(f"{mark}  {name:<12}{each.text}")
    works = any(each.name == "auto" and each.state == "ok" for each in findings)
    return 0 if works else 1
