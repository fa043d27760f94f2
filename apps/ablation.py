#!/usr/bin/env python3
"""Trains the variants of the U-Net briefly, all alike, and prints a table of what they come to.

Each differs from the default network in one choice. Same images, seed, steps and noise; options that
are not listed below go to `train` (./run train --help). Runs are kept in the folder of --out, by the
variant's name: what is finished there is only read, what was stopped goes on. Status 1 when the
training of a variant failed. With the defaults it is 12 times 250 steps of `quick`.
"""
import argparse
import json
import os
import pathlib
import statistics
import struct
import subprocess
import sys

VARIANTS = {  # by name: the flags of train
    "default": [],
    "down-conv": ["--down", "conv"], "down-max": ["--down", "max"], "down-avg": ["--down", "avg"],
    "up-transposed": ["--up", "transposed"],
    "norm-batch": ["--norm", "batch"], "norm-layer": ["--norm", "layer"],
    "norm-instance": ["--norm", "instance"],
    "activation-gelu-tanh": ["--activation", "gelu-tanh"], "activation-relu": ["--activation", "relu"],
    "no-skips": ["--no-skips"], "no-time-gelu": ["--no-time-gelu"],
}
TIMESTEPS = (250, 500, 750)
LAST_STEPS = 20  # that the loss is a mean of


class Failed(Exception):
    pass


def train(program, flags, folder, steps, options):
    """Starts the run in the folder, or goes on with it; its output goes to a file beside it."""
    log = folder.with_suffix(".log")
    there = (folder / "config.json").exists()
    where = ["--resume" if there else "--out", str(folder)]
    command = [program, *where, *flags, "--steps", str(steps), "--log-every", "1", *options]
    with open(log, "w") as out:
        status = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=out,
                                stderr=subprocess.STDOUT).returncode
    if status != 0:
        lines = log.read_text().splitlines() or ["no output"]
        raise Failed(f"status {status}: {lines[-1]}")


def parameters(model):
    """How many numbers a file of weights holds that are trained."""
    with open(model, "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    count = 0
    for name, tensor in header.items():
        if name == "__metadata__" or name.rsplit(".", 1)[-1] in (
                "running_mean", "running_var", "num_batches_tracked"):
            continue
        size = 1
        for dimension in tensor["shape"]:
            size *= dimension
        count += size
    return count


def row(folder):
    """The cells of a finished run, but for its name."""
    with open(folder / "metrics.jsonl") as file:
        lines = [json.loads(line) for line in file]
    steps = [line for line in lines if "eval" not in line]
    evaluations = [line["eval"] for line in lines if "eval" in line]
    if not steps or not evaluations:
        raise Failed(f"no losses or no evaluation in {folder / 'metrics.jsonl'}")
    psnr = {point["t"]: point["denoised_psnr"] for point in evaluations[-1]}
    noisy = {point["t"]: point["noisy_psnr"] for point in evaluations[-1]}
    loss = statistics.mean(line["loss"] for line in steps[-LAST_STEPS:])
    seconds = statistics.median(line["seconds_per_step"] for line in steps)
    cells = [f"{parameters(folder / 'model.safetensors'):,}", f"{loss:.5f}",
             *(f"{psnr[t]:.2f}" for t in TIMESTEPS), f"{seconds:.3f}",
             os.path.relpath(folder / "figure.png")]
    return cells, noisy


def parse_arguments():
    text = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="ablation", description=__doc__, formatter_class=text,
                                     allow_abbrev=False)
    parser.add_argument("--train", required=True, metavar="FILE", help="the program")
    parser.add_argument("--out", required=True, metavar="DIR",
                        help="folder of the runs (./run ablation: build/ablation)")
    parser.add_argument("--steps", type=int, default=250, metavar="N",
                        help="of each variant (default 250)")
    parser.add_argument("--only", default=",".join(VARIANTS), metavar="NAMES",
                        help="some of: " + ", ".join(VARIANTS))
    args, options = parser.parse_known_args()
    if unknown := set(args.only.split(",")) - set(VARIANTS):
        parser.error(f"--only: no variant {sorted(unknown)[0]!r}, there are {', '.join(VARIANTS)}")
    if args.steps < 1:
        parser.error("--steps: expected 1 or more")
    if not {"--preset", "--config"} & {option.split("=")[0] for option in options}:
        options = ["--preset", "quick", *options]
    return args, options


def main():
    args, options = parse_arguments()
    args.train = str(pathlib.Path(args.train).resolve())  # else looked for where programs are
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    names = args.only.split(",")
    rows, noisy, failed = [], {}, []
    for number, name in enumerate(names, 1):
        print(f"ablation: {name} ({number} of {len(names)})", file=sys.stderr, flush=True)
        try:
            train(args.train, VARIANTS[name], out / name, args.steps, options)
            cells, noisy = row(out / name)
            rows.append([name, *cells])
        except (Failed, OSError, ValueError, KeyError) as error:
            print(f"ablation: error: {name}: {error}", file=sys.stderr, flush=True)
            failed.append(name)
    if rows:
        print(f"{args.steps} steps each. Loss: mean of the last {LAST_STEPS} steps. PSNR in dB of "
              "held-out images, which are noisy at " +
              ", ".join(f"{noisy[t]:.2f} (t = {t})" for t in TIMESTEPS) + ".\n")
        head = ["variant", "parameters", "loss", *(f"PSNR, t = {t}" for t in TIMESTEPS),
                "seconds a step", "figure"]
        for cells in [head, ["---"] + ["---:"] * 6 + ["---"], *rows]:
            print("| " + " | ".join(cells) + " |")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
