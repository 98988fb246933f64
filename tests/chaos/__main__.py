"""`python -m tests.chaos --seconds 600 --seed 1`: inject faults under load, then check the whole history."""

import argparse
import asyncio
import sys

from tests.chaos.mutant import MUTANTS
from tests.chaos.report import report
from tests.chaos.run import run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=150, help="client operations per second")
    parser.add_argument("--cluster", type=int, choices=(1, 3), default=1, metavar="SERVERS", help="1 or 3")
    parser.add_argument(
        "--disk", action="store_true", help="also fill the disk of the single server; needs root"
    )
    parser.add_argument(
        "--mutant",
        action="append",
        nargs="?",
        const="fencing",
        default=[],
        choices=list(MUTANTS),
        help="run workers without fencing, or without another feature; the checker must detect them",
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="FAULT", help="inject only these faults"
    )
    options = parser.parse_args()
    found = asyncio.run(
        run(
            options.seconds,
            options.seed,
            options.rate,
            servers=options.cluster,
            only=options.only,
            mutants=options.mutant,
            disk=options.disk,
        )
    )
    command = (
        f"python -m tests.chaos --seconds {options.seconds:g} --seed {options.seed} --rate {options.rate:g}"
    )
    command += "".join(f" --only '{fault}'" for fault in options.only)
    command += f" --cluster {options.cluster}" * (options.cluster > 1)
    command += " --disk" * options.disk
    command += "".join(f" --mutant {name}" for name in options.mutant)
    lines, proof = report(found, command)
    print("\n".join(lines))
    sys.exit(0 if proof else 1)


if __name__ == "__main__":
    main()
