#!/usr/bin/env python3
"""Times a training step of `train` beside the same network in PyTorch, on this machine's CPU.

A step is forward, mse, backward and Adam, PyTorch's in float32, train's in --precision. The two
alternate, each run in a process of its own with the same number of threads; a run's figure is the
median step of its second half. The ratio of a round is of two runs that follow each other: where a
virtual machine's processors now have a core each and now share one, for seconds or minutes, its
median says more than the ratio of medians. PyTorch is first tried with both memory formats, and the faster one
is the opponent. Peak memory is the largest resident set of a separate run of 12 steps; with
--precision bf16 the peak of what train takes for tensors (peak_bytes) is set beside that in f32,
too. Needs python3-torch and a built `train`:

    /usr/bin/python3 tests/compare_pytorch.py
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
CASES = {
    "quick": {"size": 32, "base": 32, "levels": 3, "batch": 32},
    "64": {"size": 64, "base": 64, "levels": 3, "batch": 4},
}
MEMORY_FORMATS = ("contiguous", "channels_last")  # NCHW and NHWC
PEAK_STEPS = 12


def pytorch_steps(case, steps, threads, memory_format):
    """Runs in the child: trains on random batches made in advance, returns seconds of each step."""
    import torch

    sys.path.insert(0, str(ROOT / "tests" / "golden"))
    import unet_reference

    torch.set_num_threads(threads)
    torch.manual_seed(1)
    layout = {"contiguous": torch.contiguous_format,
              "channels_last": torch.channels_last}[memory_format]
    model = unet_reference.UNet(1, case["base"], case["levels"]).to(memory_format=layout)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    shape = (case["batch"], 1, case["size"], case["size"])
    batches = [(torch.rand(shape).to(memory_format=layout),
                torch.rand(shape).to(memory_format=layout),
                torch.randint(0, 1000, shape[:1])) for _ in range(4)]
    seconds = []
    for step in range(steps):
        clean, noisy, t = batches[step % len(batches)]
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.mse_loss(model(noisy, t), clean)
        loss.backward()
        optimizer.step()
        loss.item()
        seconds.append(time.perf_counter() - start)
    return seconds


def busy_seconds():
    """Time that all processors of this machine have been busy since it started."""
    user, nice, system, _, _, irq, softirq = map(
        int, pathlib.Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


class Child:
    """A finished process: its output, peak resident bytes, and how many cores others kept busy."""

    def __init__(self, command, threads):
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        start, busy = time.perf_counter(), busy_seconds()
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(command, stdout=output, stderr=errors, env=environment)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            for file in (output, errors):
                file.seek(0)
            self.output = output.read().decode()
            if process.returncode:
                sys.exit(f"{' '.join(command)}: status {process.returncode}\n"
                         + errors.read().decode())
        elapsed, busy = time.perf_counter() - start, busy_seconds() - busy
        self.peak_bytes = usage.ru_maxrss * 1024
        self.other_load = max(0.0, (busy - usage.ru_utime - usage.ru_stime) / elapsed)


def run_pytorch(case, steps, args, memory_format):
    """Returns (median seconds of the second half, Child)."""
    request = json.dumps([case, steps, args.threads, memory_format])
    child = Child([sys.executable, __file__, "--pytorch-child", request], args.threads)
    return statistics.median(json.loads(child.output)[steps // 2:]), child


def run_ours(case, steps, args, precision):
    """The same for `train`: its last metrics line is the median of the steps since the one before.
    The Child has that line's peak_bytes as tensor_bytes."""
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "run"
        child = Child(
            [str(args.train), "--data", args.data, "--preset", "quick",
             "--image-size", str(case["size"]), "--base", str(case["base"]),
             "--levels", str(case["levels"]), "--batch", str(case["batch"]),
             "--steps", str(steps), "--log-every", str(steps // 2), "--eval-every", "0",
             "--checkpoint-every", "0", "--threads", str(args.threads),
             "--precision", precision, "--out", str(out)],
            args.threads)
        lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
        last = [line for line in lines if "seconds_per_step" in line][-1]
        child.tensor_bytes = last["peak_bytes"]
        return last["seconds_per_step"], child


def print_tensor_bytes(ours, in_f32, precision):
    """Prints and keeps the ratio of the peaks of tensors in `precision` and in f32."""
    ours["tensor_bytes_f32"] = in_f32
    ours["ratio_tensor_bytes"] = ours["tensor_bytes"] / in_f32
    print(f"  peak of tensors {precision} {ours['tensor_bytes'] / 1e6:.0f} MB,"
          f" f32 {in_f32 / 1e6:.0f} MB: {ours['ratio_tensor_bytes']:.3f}")


def compare(name, args):
    """Runs one case, prints it round by round and returns its figures."""
    case = CASES[name]
    print("\n{name}: {size}x{size}, base {base}, {levels} levels, batch {batch}"
          .format(name=name, **case))
    formats = {}
    for memory_format in MEMORY_FORMATS:
        formats[memory_format], child = run_pytorch(case, args.steps, args, memory_format)
        print(f"  PyTorch {memory_format:13} {formats[memory_format] * 1e3:8.1f} ms"
              f"   (others kept {child.other_load:.2f} cores busy)")
    faster = min(formats, key=formats.get)
    runs = {"pytorch": lambda steps: run_pytorch(case, steps, args, faster)}
    if not args.pytorch_only:
        runs["ours"] = lambda steps: run_ours(case, steps, args, args.precision)

    result = {**case, "memory_format": faster, "formats": formats}
    times = {who: [] for who in runs}
    for round_number in range(1, args.rounds + 1):
        line = f"  round {round_number}"
        for who, run in runs.items():
            seconds, child = run(args.steps)
            times[who].append(seconds)
            line += f"   {who} {seconds * 1e3:8.1f} ms (others {child.other_load:.2f})"
        print(line, flush=True)
    for who, run in runs.items():
        child = run(PEAK_STEPS)[1]
        peak = child.peak_bytes
        median, fastest = statistics.median(times[who]), min(times[who])
        result[who] = {"seconds": times[who], "median": median, "min": fastest, "peak_bytes": peak}
        if who == "ours":
            result[who]["tensor_bytes"] = child.tensor_bytes
        print(f"  {who:8} median {median * 1e3:8.1f} ms, min {fastest * 1e3:8.1f} ms,"
              f" peak {peak / 1e6:6.0f} MB")
    if "ours" in result and args.precision != "f32":
        print_tensor_bytes(result["ours"], run_ours(case, PEAK_STEPS, args, "f32")[1].tensor_bytes,
                           args.precision)
    if "ours" in result:
        for key in ("median", "min", "peak_bytes"):
            result["ratio_" + key] = result["ours"][key] / result["pytorch"][key]
        result["ratio_rounds"] = statistics.median(
            ours / theirs for ours, theirs in zip(times["ours"], times["pytorch"]))
        print(f"  ours in {args.precision} / PyTorch in f32: " + "rounds {ratio_rounds:.3f},"
              " median {ratio_median:.3f}, min {ratio_min:.3f}, peak {ratio_peak_bytes:.3f}"
              .format(**result))
    return result


def cpu_model():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown"


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--case", choices=CASES, help="default: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=24, help="of each run; the first half warms up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=("f32", "bf16"), default="f32",
                        help="of train's step; PyTorch's is f32")
    parser.add_argument("--train", type=pathlib.Path, default=ROOT / "build/release/bin/train")
    parser.add_argument("--data", default="auto", help="as train's --data")
    parser.add_argument("--pytorch-only", action="store_true", help="do not run train")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--pytorch-child", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if min(args.rounds, args.threads) < 1 or args.steps < 2:
        parser.error("--rounds and --threads must be at least 1, --steps at least 2")
    args.train = args.train.resolve()  # else looked for where programs are
    args.steps -= args.steps % 2  # so that the last metrics line covers exactly the second half
    return args


def main():
    args = parse_arguments()
    if args.pytorch_child:
        print(json.dumps(pytorch_steps(*args.pytorch_child)))
        return
    if not args.pytorch_only and not args.train.is_file():
        sys.exit(f"{args.train}: no such file; build it with ./run build, or give --train")
    print(f"{cpu_model()}, {os.cpu_count()} cores, {args.threads} threads each,"
          f" load {os.getloadavg()[0]:.2f}, {args.rounds} rounds of {args.steps} steps")
    results = {name: compare(name, args) for name in ([args.case] if args.case else CASES)}
    if args.json:
        args.json.write_text(json.dumps({"cpu": cpu_model(), "threads": args.threads,
                                         "precision": args.precision, "steps": args.steps,
                                         "cases": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
