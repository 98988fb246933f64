"""The report of a chaos run."""

from collections import Counter

from tests.chaos.checker import check, overlaps, percentile_99, recoveries
from tests.chaos.flow_checker import happened
from tests.chaos.run import Run

MOST_ERRORS = 10


def report(run: Run, command: str) -> tuple[list[str], bool]:
    """The lines to print, and whether the run is a proof: no violations, and the faults had an effect."""
    history, violations = run.history, check(run.history)
    begins = Counter(effect.job for effect in history.effects if effect.word == "begin")
    starts = Counter(
        job for job, events in history.events.items() for event in events if event.state == "running"
    )
    crashes = sum(
        max((event.revision.crashes for event in events), default=0) for events in history.events.values()
    )
    outcomes = Counter(submit.outcome for submit in history.submits)
    lines = [
        f"{command}  ({run.seconds:.0f} s)",
        f"faults: {sum(run.faults.values())}: " + shown(run.faults),
        f"jobs: {len(history.events):,}; submits: " + shown(outcomes),
        (
            f"runs started: {sum(begins.values()):,}; starts recorded: {sum(starts.values()):,}; "
            f"reclaimed after a crash: {crashes:,}; overlaps: {overlaps(history.effects)}; "
            f"stale attempts that stopped: {run.lost_leases}"
        ),
        (
            f"cancelled: {len(history.cancelled):,}; dead letters retried: {len(history.replayed):,}; "
            f"dead letters: {len(history.dead_letters):,}; ticks: {len(history.ticks):,}"
        ),
        "situations: " + shown(happened(history)),
        (
            "judged by the history of the bucket; by JSQ_EVENTS where 64 revisions were not enough: "
            f"{len(history.from_log):,} jobs"
        ),
        "recovery of jobs of killed workers: " + spread(recoveries(history)),
        f"longest time without an acknowledged submit: {run.longest_gap:.1f} s",
    ]
    if history.lagging:
        lines.append(f"servers that lagged behind: {', '.join(history.lagging)}")
    for name, found in violations.items():
        lines.append(f"{'ok' if not found else f'{len(found)} VIOLATIONS'}: {name}")
        lines += [f"    {one}" for one in found[:5]]
    lines += [f"error of a client: {error}" for error in history.errors[:MOST_ERRORS]]
    for what, about in run.evidence.items():
        lines += [f"{what}:", *(f"    {one}" for one in about)]
    if not run.faults or not crashes:
        lines.append("no proof: there were no faults, or no job had to run again")
    lacking = [what for what, count in happened(history).items() if not count]
    if lacking:
        lines.append(f"no proof: these situations did not occur: {', '.join(lacking)}")
    return lines, bool(run.faults and crashes and not lacking and not any(violations.values()))


def shown(counted: "Counter[str] | dict[str, int]") -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counted.items()))


def spread(values: list[float]) -> str:
    if not values:
        return "no killed worker was running a job"
    half = values[len(values) // 2]
    return f"{len(values)}, p50 {half:.1f} s, p99 {percentile_99(values):.1f} s, max {values[-1]:.1f} s"
