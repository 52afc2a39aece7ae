"""`make bench`: probgen against Pyro, NumPyro and hand-written loops; see `docs/performance.md`.

Prints one table and writes it as JSON, with the machine and versions beside it.
"""

import argparse
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import harness  # noqa: E402 - found beside this file, wherever it is run from

# row, as --rows names it: the module whose `contests(setting)` yields it
ROWS = {
    "import": "imports",
    "log_joint": "log_joint",
    "vae_torch": "vae_torch",
    "vae_jax": "vae_jax",
    "nuts": "nuts",
    "scaling": "scaling",
    "langevin": "langevin",
    "chains": "chains",
    "ebm": "ebm",
    "diffusion": "diffusion",
    "subjects": "subjects",
    "flows": "flows",
    "regret": "regret",
    "importance": "importance",
    "again": "again",
    "together": "together",
    "devices": "devices",
}


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default=",".join(ROWS), help="comma-separated; default: all")
    parser.add_argument("--only", default="", help="only contests whose name contains this")
    parser.add_argument("--threads", type=int, default=1, help="more than 1: by the wall clock")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:1")
    parser.add_argument("--rounds", type=int, default=7, help="at least 5 for numbers to quote")
    parser.add_argument("--tiny", action="store_true", help="a check that it runs")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "latest.json")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.rows.split(",")) - set(ROWS))
    if unknown:
        parser.error(f"--rows: got {', '.join(unknown)}, expected some of {', '.join(ROWS)}")
    if options.threads < 1 or options.rounds < 1:
        parser.error("--threads and --rounds: expected at least 1")
    return options


def contests(rows: list[str], only: str, setting: harness.Setting) -> Iterator[harness.Contest]:
    for row in rows:
        yield from importlib.import_module(ROWS[row]).contests(setting, only)


def versions() -> dict[str, str]:
    from importlib import metadata

    names = (
        "probgen",
        "numpy",
        "torch",
        "pyro-ppl",
        "jax",
        "numpyro",
        "optax",
        "flax",
        "zuko",
        "flowjax",
        "torchebm",
        "diffusers",
        "blackjax",
    )
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    setting = harness.Setting(options.threads, options.device, options.rounds, options.tiny)
    harness.set_up(setting)
    rows = []
    for contest in contests(options.rows.split(","), options.only, setting):
        done = harness.run(contest, setting)
        rows += done
        for row in done:
            print("  ".join(harness.cells(row)), file=sys.stderr, flush=True)
    print(
        f"\n{setting.threads} thread(s), {setting.clock_name} clock, {setting.device}, "
        f"median of {setting.rounds} rounds" + (", TINY: ratios say nothing" * setting.tiny)
    )
    print(harness.table(rows))
    document = {
        "machine": harness.machine(),
        "versions": versions(),
        "setting": {**setting._asdict(), "clock": setting.clock_name},
        "rows": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(f"written to {options.out}", file=sys.stderr)
    disagree = [row["row"] for row in rows if not row["agreement"]["holds"]]
    if disagree:
        print(f"sides do not agree: {', '.join(sorted(set(disagree)))}", file=sys.stderr)
    return 1 if disagree else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
