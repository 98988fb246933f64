"""What a chaos run tells."""

from collections import Counter

from tests.chaos.checker import check, ninety_nine, overlaps, recoveries
from tests.chaos.flow_checker import happened
from tests.chaos.run import Run

MOST_ERRORS = 10


def report(run: Run, command: str) -> tuple[list[str], bool]:
    """The lines to print, and whether the run is a proof: no violation, and the faults did bite."""
    history, violations = run.history, check(run.history)
    begins = Counter(effect.job for effect in history.effects if effect.word == "begin")
    starts = Counter(
        job for job, events in history.events.items() for event in events if event.state == "running"
    )
    crashes = sum(
        max((event.event.crashes for event in events), default=0) for events in history.events.values()
    )
    told = Counter(submit.told for submit in history.submits)
    lines = [
        f"{command}  ({run.seconds:.0f} s)",
        f"faults: {sum(run.faults.values())}: " + shown(run.faults),
        f"jobs: {len(history.events):,}; submits: " + shown(told),
        (
            f"runs begun: {sum(begins.values()):,}; starts recorded: {sum(starts.values()):,}; "
            f"taken over after a crash: {crashes:,}; overlaps: {overlaps(history.effects)}; "
            f"stale attempts that gave up: {run.refused}"
        ),
        (
            f"cancelled: {len(history.cancelled):,}; replayed: {len(history.replayed):,}; "
            f"dead letters: {len(history.letters):,}; ticks: {len(history.ticks):,}"
        ),
        "besides: " + shown(happened(history)),
        "recovery of what a killed worker ran: " + spread(recoveries(history)),
        f"longest time without an acknowledged submit: {run.longest_gap:.1f} s",
    ]
    if history.behind:
        lines.append(f"stayed behind the other servers: {', '.join(history.behind)}")
    for name, found in violations.items():
        lines.append(f"{'ok' if not found else f'{len(found)} VIOLATIONS'}: {name}")
        lines += [f"    {one}" for one in found[:5]]
    lines += [f"told to a client: {error}" for error in history.errors[:MOST_ERRORS]]
    for what, about in run.evidence.items():
        lines += [f"{what}:", *(f"    {one}" for one in about)]
    if not run.faults or not crashes:
        lines.append("no proof: nothing was broken, or nothing had to be run again")
    lacking = [what for what, count in happened(history).items() if not count]
    if lacking:
        lines.append(f"no proof: none of these: {', '.join(lacking)}")
    return lines, bool(run.faults and crashes and not lacking and not any(violations.values()))


def shown(counted: "Counter[str] | dict[str, int]") -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counted.items()))


def spread(values: list[float]) -> str:
    if not values:
        return "none was running anything"
    half = values[len(values) // 2]
    return f"{len(values)}, p50 {half:.1f} s, p99 {ninety_nine(values):.1f} s, max {values[-1]:.1f} s"
