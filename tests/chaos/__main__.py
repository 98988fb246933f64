"""`python -m tests.chaos --seconds 600 --seed 1`: break everything, then judge the whole history."""

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
    parser.add_argument("--rate", type=float, default=150, help="acts of the clients a second")
    parser.add_argument("--cluster", type=int, choices=(1, 3), default=1, metavar="SERVERS", help="1 or 3")
    parser.add_argument("--disk", action="store_true", help="fill the one server's disk too; asks for root")
    parser.add_argument(
        "--mutant",
        action="append",
        nargs="?",
        const="fencing",
        default=[],
        choices=list(MUTANTS),
        help="workers without fencing, or without something else: must be found out",
    )
    parser.add_argument("--only", action="append", default=[], metavar="FAULT", help="these faults alone")
    asked = parser.parse_args()
    found = asyncio.run(
        run(
            asked.seconds,
            asked.seed,
            asked.rate,
            servers=asked.cluster,
            only=asked.only,
            mutants=asked.mutant,
            disk=asked.disk,
        )
    )
    command = f"python -m tests.chaos --seconds {asked.seconds:g} --seed {asked.seed} --rate {asked.rate:g}"
    command += "".join(f" --only '{fault}'" for fault in asked.only)
    command += f" --cluster {asked.cluster}" * (asked.cluster > 1)
    command += " --disk" * asked.disk
    command += "".join(f" --mutant {name}" for name in asked.mutant)
    lines, proof = report(found, command)
    print("\n".join(lines))
    sys.exit(0 if proof else 1)


if __name__ == "__main__":
    main()
