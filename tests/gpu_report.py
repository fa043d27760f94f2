"""The report of gpu_check.py: reads what programs wrote, and writes it as Markdown."""
import json
import math
import re

import gpu_profile

# Counters of `bench` that are ratios to a library.
RATIOS = ("ours/cuDNN", "ours/cuBLAS")


def benchmarks(file):
    """The figures of one run of `bench`: {"peaks": .., "benchmarks": [..]}. Raises RuntimeError
    when one of them went wrong."""
    report = json.loads(file.read_text())
    rows = []
    for benchmark in report["benchmarks"]:
        name = benchmark["name"].rsplit("/iterations:", 1)[0]
        if benchmark.get("error_occurred"):
            raise RuntimeError(f"{name}: {benchmark.get('error_message')}")
        counters = {key: value for key, value in benchmark.items()
                    if isinstance(value, (int, float)) and (" " in key or "/" in key)}
        rows.append({"name": name, "ms": benchmark["real_time"], **counters})
    if not rows:
        raise RuntimeError("no benchmark ran")
    context = report["context"]
    peaks = {key: context[key] for key in context
             if key == "copy GB/s" or key.startswith(("matmul", "cuDNN", "cuBLAS"))}
    return {"peaks": peaks, "benchmarks": rows}


def training(file):
    """The last figures of a run's metrics.jsonl, with the PSNR of the held-out images in dB, noisy
    and denoised, at each timestep."""
    found = {}
    for line in map(json.loads, file.read_text().splitlines()):
        found.update((key, value) for key, value in line.items() if key != "eval")
        for point in line.get("eval", []):
            found[f"PSNR at t = {point['t']}"] = (
                f"{point['noisy_psnr']:.2f} -> {point['denoised_psnr']:.2f} dB")
    if not any(key.startswith("PSNR") for key in found):
        raise RuntimeError(f"{file} has no PSNR")
    return found


def geometric_mean(values):
    return math.exp(sum(map(math.log, values)) / len(values))


def table(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines] + [""]


def number(value):
    if not isinstance(value, (int, float)):
        return value
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def steps_with_figures(report, part):
    steps = report["parts"].get(part, {}).get("steps", {})
    return {name: step["figures"] for name, step in steps.items() if "figures" in step}


def bench_lines(report):
    """Ratios to the libraries by kind of benchmark, then the shapes of the lesson model."""
    figures = steps_with_figures(report, "bench").values()
    rows = [row for step in figures for row in step["benchmarks"]]
    if not rows:
        return []
    peaks = next(iter(figures))["peaks"]
    lines = ["## Kernels", "", *table(["measured of this GPU", ""], [
        [key, f"{float(value):.0f}" if re.fullmatch(r"[\d.]+", value) else value]
        for key, value in peaks.items()])]

    kinds = {}
    for row in rows:
        for ratio in RATIOS:
            if ratio in row:
                kinds.setdefault(("/".join(row["name"].split("/")[:3]), ratio), []).append(row[ratio])
    if kinds:
        lines += table(["kernel", "ratio of times", "shapes", "geometric mean", "best", "worst"], [
            [kind, ratio, len(values), number(geometric_mean(values)), number(min(values)),
             number(max(values))] for (kind, ratio), values in kinds.items()])

    shown = [row for row in rows if re.search(r"(/|_)lesson(_|,|$)", row["name"])]
    columns = ["GFLOP/s", "of matmul", "GB/s", "of copy", "cuDNN ms", "ours/cuDNN", "cuBLAS ms",
               "ours/cuBLAS", "images/s", "peak MB"]
    columns = [column for column in columns if any(column in row for row in shown)]
    lines += table(["at the shapes of the lesson model", "ms", *columns], [
        [row["name"], number(row["ms"]), *(number(row.get(column, "")) for column in columns)]
        for row in shown])
    return lines


def torch_lines(report):
    """PyTorch's steps, and ratios to ours of the same case and precision."""
    ours = {}  # by "lesson-128" and "bf16"
    for figures in steps_with_figures(report, "bench").values():
        for row in figures["benchmarks"]:
            if row["name"].startswith("training_step/"):
                _, precision, case = row["name"].split("/")
                ours[case.replace("_batch_", "-"), precision] = row
    rows = []
    for figures in steps_with_figures(report, "torch").values():
        for variant in figures["variants"]:
            why = variant.get("skipped") or variant.get("failed")
            row = ours.get((variant["case"], variant["precision"].removesuffix("-norm")), {})

            def ratio(our, their, row=row, variant=variant):
                return number(row[our] / variant[their]) if our in row and their in variant else ""

            rows.append([variant["case"], variant["compile"], variant["precision"],
                         why.splitlines()[0] if why else number(variant["ms"]),
                         number(variant.get("images_per_second", "")),
                         number(variant.get("peak_mb", "")), ratio("ms", "ms"),
                         ratio("peak MB", "peak_mb")])
    if not rows:
        return []
    return ["## A training step in PyTorch", "",
            *table(["case", "torch.compile", "precision", "ms", "images/s", "peak MB",
                    "time: ours/PyTorch", "peak: ours/PyTorch"], rows)]


def profile_lines(report):
    """Kernels of a step, by ncu."""
    lines = []
    for case, figures in steps_with_figures(report, "profile").items():
        header, rows = gpu_profile.table_rows(figures["kernels"], figures["predicted"])
        lines += [f"## profile: a step of {case} by kernels", "",
                  "By ncu: each launch by itself, from cold caches, at its clock; the sum is more than"
                  " a step.", "", *table(header, rows)]
    return lines


def other_lines(report):
    lines = []
    for part in ("build", "primitives", "train"):
        for name, figures in steps_with_figures(report, part).items():
            lines += [f"## {part}: {name}", "", *(f"    {key}: {value}" for key, value in
                                                  figures.items() if key != "output")]
            lines += ["    " + line for line in figures.get("output", "").splitlines()] + [""]
    return lines


def markdown(report):
    lines = [f"# {report['gpu']}", "",
             f"{report['date']}, driver {report['driver']}, compute capability "
             f"{report['capability']}, commit {report['commit']}, sources {report['sources']}.", ""]
    rows = []
    for name, part in report["parts"].items():
        steps = part["steps"].values()
        rows.append([name, part["status"], f"{part['seconds']:.0f}",
                     sum(step["status"] == "done" for step in steps),
                     sum(step["status"] == "failed" for step in steps), part.get("reason", "")])
    lines += table(["part", "status", "seconds", "steps done", "failed", ""], rows)
    failed = [f"- {part} {name}: {step['reason']}" for part, value in report["parts"].items()
              for name, step in value["steps"].items() if step["status"] == "failed"]
    if failed:
        lines += ["## Failed", "", *failed, ""]
    return "\n".join([*lines, *other_lines(report), *bench_lines(report),
                      *profile_lines(report), *torch_lines(report)])
