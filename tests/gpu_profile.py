"""A training step by kernels, as Nsight Compute (ncu) sees them: the command, and a table of what it
found beside what was predicted. For gpu_check.py."""
import csv
import os
import re
import shutil

from kernel_names import demangle, short_name

SECTIONS = ("SpeedOfLight", "LaunchStats", "Occupancy", "SchedulerStats", "WarpStateStats",
            "ComputeWorkloadAnalysis", "MemoryWorkloadAnalysis")
TENSOR = "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_elapsed"
TIME = "gpu__time_duration.sum"
# Columns of the table: what ncu calls them.
COLUMNS = {
    "tensor %": TENSOR,
    "issue %": "smsp__issue_active.avg.per_cycle_active",
    "L1, shared %": "l1tex__throughput.avg.pct_of_peak_sustained_active",
    "L2 %": "lts__throughput.avg.pct_of_peak_sustained_elapsed",
    "memory %": "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed",
    "warps %": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "waves": "launch__waves_per_multiprocessor",
    "registers": "launch__registers_per_thread",
}
STALL = re.compile(r"smsp__average_warps_issue_stalled_(?!not_issued)(\w+?)_per_issue_active\.ratio$")
BATCH = re.compile(r"elementwise_kernel<MakeBatch")  # what a step begins with
NANOSECONDS = {"ns": 1, "nsecond": 1, "us": 1e3, "usecond": 1e3, "ms": 1e6, "msecond": 1e6}


def find_ncu():
    """Nsight Compute's program, or None."""
    return next((path for path in (shutil.which("ncu"), "/usr/local/cuda/bin/ncu")
                 if path and os.access(path, os.X_OK)), None)


def command(ncu, file, program):
    """Runs `program` and writes what it finds of every launch to `file`: each kernel by itself, with
    cold caches, at the clock that ncu sets."""
    sections = [word for section in SECTIONS for word in ("--section", section)]
    return [ncu, *sections, "--metrics", TENSOR, "--csv", "--page", "raw", "--print-units", "base",
            "--print-kernel-base", "mangled", "--log-file", file, *program]


def launches(text):
    """[{"kernel": name, "us": time, "stalls": {reason: warps}, and COLUMNS that there are}] of
    ncu's table, from behind the batch that is made on. Raises RuntimeError where there is none."""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        said = [line for line in lines if line.startswith("==ERROR==")] or lines[-1:] or ["nothing"]
        raise RuntimeError(f"ncu wrote no table: {said[0]}")
    head, units, *rows = csv.reader(lines[start:])
    if TIME not in head:
        raise RuntimeError(f"ncu's table has no {TIME}")
    found = []
    names = demangle(row[head.index("Kernel Name")] for row in rows if len(row) == len(head))
    for row in rows:
        if len(row) != len(head):  # what ncu says at the end
            continue
        values = {name: number(cell) for name, cell in zip(head, row)}
        name = row[head.index("Kernel Name")]
        if not values[TIME]:
            raise RuntimeError(f"ncu gives no time of a launch of {names[name]}")
        one = {"kernel": re.sub(r"\b\w+::", "", short_name(names[name])),  # as predictions say it
               "us": values[TIME] * NANOSECONDS[units[head.index(TIME)]] / 1e3,
               "stalls": {match[1]: value for key, value in values.items()
                          if (match := STALL.match(key)) and value is not None}}
        for column, metric in COLUMNS.items():
            if values.get(metric) is not None:
                one[column] = values[metric] * (100 if metric.endswith("per_cycle_active") else 1)
        found.append(one)
    batches = [i for i, launch in enumerate(found) if BATCH.match(launch["kernel"])]
    found = found[batches[0] + 1 if batches else 0:]
    if not found:
        raise RuntimeError("ncu saw no launch of a step")
    return found


def number(cell):
    try:
        return float(cell.replace(",", ""))
    except ValueError:
        return None


def by_kernel(found):
    """The same of each kernel, the longest first: sums of times, means by time of the rest."""
    kernels = {}
    for launch in found:
        kernels.setdefault(launch["kernel"], []).append(launch)
    rows = []
    for name, group in kernels.items():
        us = sum(launch["us"] for launch in group)
        reasons = {reason for launch in group for reason in launch["stalls"]} - {"selected"}
        stalls = sorted(((mean(group, lambda one, r=reason: one["stalls"].get(r)), reason)
                         for reason in reasons), reverse=True)
        rows.append({"kernel": name, "launches": len(group), "us": us,
                     **{column: mean(group, lambda one, c=column: one.get(c)) for column in COLUMNS},
                     "stalls": [[reason, value] for value, reason in stalls[:3]]})
    return sorted(rows, key=lambda row: -row["us"])


def mean(group, get):
    """Of what get(launch) is where it is something, by time."""
    pairs = [(get(launch), launch["us"]) for launch in group]
    pairs = [(value, us) for value, us in pairs if value is not None]
    time = sum(us for _, us in pairs)
    return sum(value * us for value, us in pairs) / time if time else None


def predicted(text, gpu, benchmark):
    """{kernel: us} of a benchmark's table of kernels in docs/predictions.md, in the column of the
    card that the GPU's name contains; {} where there is none."""
    _, _, rest = text.partition(f"Kernels of {benchmark}, microseconds:\n\n")
    rows = [[cell.strip() for cell in re.split(r" ?\| ", line.strip("| "))]
            for line in rest.split("\n\n")[0].splitlines()]
    if len(rows) < 3:
        return {}
    def names(card):  # "RTX4090": RTX 4090; A100 is no A1000
        spaced = re.sub("(?<=[A-Z])(?=[0-9])", " ?", card)
        return spaced != card and re.search(spaced + "(?![0-9A-Za-z])", gpu)
    column = next((i for i, card in enumerate(rows[0]) if i > 0 and names(card)), None)
    if column is None:
        return {}
    return {row[0].strip("`"): float(row[column]) for row in rows[2:]}


def table_rows(kernels, expected):
    """(header, rows) of the report, the sums last: cuBLAS's kernels, for example, are not predicted."""
    def cell(value):
        return "" if value is None else f"{value:.1f}" if abs(value) < 10 else f"{value:.0f}"

    header = ["kernel", "launches", "us", "predicted", *COLUMNS, "warps that wait, an issue"]
    rows = [[f"`{row['kernel']}`", row["launches"], cell(row["us"]),
             cell(expected.get(row["kernel"])), *(cell(row[column]) for column in COLUMNS),
             ", ".join(f"{reason} {value:.1f}" for reason, value in row["stalls"])]
            for row in kernels]
    for name, group in (("all that are predicted", [r for r in kernels if r["kernel"] in expected]),
                        ("all", kernels)):
        known = [expected[row["kernel"]] for row in group if row["kernel"] in expected]
        rows.append([f"**{name}**", sum(row["launches"] for row in group),
                     cell(sum(row["us"] for row in group)),
                     cell(sum(known) if len(known) == len(group) else None),
                     *[""] * (len(COLUMNS) + 1)])
    return header, rows
