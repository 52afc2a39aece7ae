"""The command line: `probgen demo`, `evaluate`, `merge`, `tune` and `doctor`.

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
    _add_merge(commands)
    _add_tune(commands)

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
    evaluate.add_argument(
        "--shard", metavar="I/N",
        help="measure the I-th of N parts of the data alone, for job arrays; no report: see merge",
    )  # fmt: skip
    evaluate.set_defaults(run=_evaluate)


def _add_merge(commands: Any) -> None:
    merge = commands.add_parser(
        "merge",
        help="makes one table of the shards of an evaluation",
        description="Makes the table of all data of the parts that `probgen evaluate --shard I/N` "
        "measured. Shards that are missing, given twice, or of another evaluation are named. The "
        "same evaluate command without --shard then finds the table and writes the report.",
    )
    merge.add_argument(
        "folders", nargs="+", metavar="DIR",
        help="the --out of the shards, whose table then stands there; or single shards",
    )  # fmt: skip
    merge.add_argument("--out", metavar="DIR", help="of the table, for single shards")
    merge.set_defaults(run=_merge)


def _merge(chosen: argparse.Namespace) -> int:
    from probgen.evaluation.page import merged

    merged(chosen.folders, out=chosen.out, say=say)
    return 0


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
        shard=chosen.shard,
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


FOLDER = """\
FOLDER holds PNG or JPEG pictures of one subject, which are cut to the middle and resized:
  dog1.jpg     a picture
  dog1_mask.png or masks/dog1.png   white where the subject is; of all pictures or of none
  dog1.txt     its caption; else, with --word dog, "a dog"

RUN is a folder from save_pretrained of a Diffusion with nets.TextEncoder as its condition, or of a
VAE around one; or a Stable Diffusion as diffusers saves it (needs 'probgen[diffusers]').

The error that is made small is a sum over elements, so the larger the pictures or latents, the
larger the --weight that means the same; a larger one keeps scenes faithful to the prompt, a smaller
one the subject to its pictures.
"""


def _add_tune(commands: Any) -> None:
    tune = commands.add_parser(
        "tune",
        help="learns a subject from a few pictures of it, and draws it where prompts say",
        description="Learns a subject from the pictures in FOLDER, as rows of context of the "
        "frozen text-conditional diffusion in RUN, draws each --prompt with it and without it, and "
        "writes the personalised model, the pictures, report.html and report.json.",
        epilog=FOLDER,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tune.add_argument("folder", metavar="FOLDER", help="pictures, masks and captions, see below")
    tune.add_argument("--base", required=True, metavar="RUN", help="the model, see below")
    tune.add_argument(
        "--prompt", required=True, action="append", metavar="TEXT", dest="prompts",
        help='what to draw, such as "a dog on grass"; give it again for more',
    )  # fmt: skip
    tune.add_argument(
        "--word", metavar="NOUN", help="the subject's noun, which captions and prompts must have"
    )
    for option, kind, default, text in (
        ("--num-tokens", int, 3, "rows of context that are the subject's"),
        ("--weight", float, 0.03, "of the prior that holds these rows at the null text"),
        ("--num-steps", int, 1000, "of learning"),
        ("--learning-rate", float, 5e-3, "of Adam"),
        ("--draws", int, 8, "of picture, step and noise in each step"),
        ("--num-images", int, 4, "of each prompt"),
        ("--guidance", float, 2.0, "of the prompt; 1 for none, 7.5 is usual for Stable Diffusion"),
        ("--seed", int, 0, "of learning and drawing"),
    ):
        tune.add_argument(
            option, default=default, type=kind, metavar="N", help=f"{text} (default: %(default)s)"
        )
    tune.add_argument(
        "--sampler-steps", type=int, metavar="N",
        help="of DDIM (default: 50, or all of a shorter chain)",
    )  # fmt: skip
    tune.add_argument(
        "--stepwise", action="store_true", help="then also rows of each step of the sampler"
    )
    tune.add_argument("--no-mask", action="store_true", help="all of a picture counts")
    tune.add_argument(
        "--clip", metavar="DIR", help="a CLIP of transformers, for fidelity to subject and prompt"
    )
    tune.add_argument(
        "--backend", default="auto", choices=("auto", "torch", "jax"),
        help="what to run on (default: auto, the one that fitted RUN)",
    )  # fmt: skip
    tune.add_argument("--out", default="runs/tune", metavar="DIR", help="default: %(default)s")
    tune.add_argument(
        "--overwrite", action="store_true", help="replace what another such command left there"
    )
    tune.set_defaults(run=_tune)


def _tune(chosen: argparse.Namespace) -> int:
    from probgen.evaluation.subjects import tune

    options = {k: v for k, v in vars(chosen).items() if k not in ("run", "command", "no_mask")}
    folder, base, prompts = (options.pop(name) for name in ("folder", "base", "prompts"))
    tune(
        folder, base, tuple(prompts), masked=not chosen.no_mask, command=_tune_command(chosen),
        say=say, **options,
    )  # fmt: skip
    return 0


def _tune_command(chosen: argparse.Namespace) -> str:
    """The command that was given, with every choice spelled out."""
    words = ["probgen", "tune", chosen.folder, "--base", chosen.base]
    for prompt in chosen.prompts:
        words += ["--prompt", prompt]
    skipped = ("run", "command", "folder", "base", "prompts", "overwrite")
    for name, value in vars(chosen).items():
        option = f"--{name.replace('_', '-')}"
        if name in skipped or value is None or value is False:
            continue
        words += [option] if value is True else [option, str(value)]
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
