"""The CPU seconds and the memory of processes, from /proc of Linux. Other systems have no figures."""

import os
from pathlib import Path


def cpu_seconds(pids: list[int]) -> float | None:
    """The CPU seconds of processes, in user and system mode."""
    fields = [stat(pid) for pid in pids]
    found = [field for field in fields if field is not None]
    if not found or not hasattr(os, "sysconf"):
        return None
    return sum(int(field[11]) + int(field[12]) for field in found) / os.sysconf("SC_CLK_TCK")


def memory_mb(pids: list[int]) -> float | None:
    """The resident memory of processes, in MiB."""
    found = [int(line.split()[1]) for pid in pids for line in status(pid) if line.startswith("VmRSS:")]
    return round(sum(found) / 1024, 1) if found else None


def family(pid: int) -> list[int]:
    """A process and all of its descendants."""
    parents = {
        int(path.name): field for path in Path("/proc").glob("[0-9]*") if (field := stat(int(path.name)))
    }
    found = [pid]
    for parent in found:
        found += [child for child, field in parents.items() if int(field[1]) == parent]
    return found


def stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat behind the command's name: the state first."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def status(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return []
