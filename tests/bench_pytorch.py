#!/usr/bin/env python3
"""Times tessera's network and training step in PyTorch, to compare `bench` with.

A step is forward, mean squared error, backward and Adam on one batch that lies on the device,
channels last. Variants are the product of --case, --compile and --precision:

  compile    no (eager), default, max-autotune (torch.compile's modes; the last with CUDA graphs)
  precision  f32, tf32, bf16 (autocast), bf16-norm (autocast, GroupNorm in bf16, too)

A figure is that of `bench` (tests/bench_timer.h, seconds_per_step): seconds of ten steps in a row
that nothing waits for, between two CUDA events (on a CPU by the clock), by their number; the median
of such rounds. peak_mb is the most memory that PyTorch has allocated within one step. What this
PyTorch or machine lacks is skipped, with a line that says so. Status 1 when every variant failed, 3
when there is no PyTorch. Network: tests/golden/unet_reference.py.

    python3 tests/bench_pytorch.py --case lesson --precision bf16 --json torch.json
"""
import argparse
import contextlib
import gc
import json
import pathlib
import statistics
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
CASES = {
    "lesson": {"size": 64, "base": 64, "levels": 3, "batch": 32},
    "lesson-128": {"size": 64, "base": 64, "levels": 3, "batch": 128},
    "quick": {"size": 32, "base": 32, "levels": 3, "batch": 32},
    "tiny": {"size": 16, "base": 8, "levels": 1, "batch": 2},
}
STEPS_IN_A_ROW = 10  # as in tests/bench_timer.h
COMPILE = ("no", "default", "max-autotune")
PRECISION = ("f32", "tf32", "bf16", "bf16-norm")


class Unsupported(Exception):
    """This PyTorch or machine cannot run a variant."""


def norm_in_bf16(torch, model):
    """Autocast computes GroupNorm in f32: here in bf16, of statistics as PyTorch keeps them."""
    def forward(norm, x):
        with torch.autocast(x.device.type, enabled=False):
            return torch.nn.functional.group_norm(
                x.bfloat16(), norm.num_groups, norm.weight.bfloat16(), norm.bias.bfloat16(),
                norm.eps)

    for module in model.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.forward = forward.__get__(module)


def make_step(torch, case, compile_mode, precision, device, patch=None):
    """A function that does one step and returns the loss, a tensor. patch(torch, model) may change
    the network before."""
    sys.path.insert(0, str(ROOT / "tests" / "golden"))
    import unet_reference

    if compile_mode != "no" and not hasattr(torch, "compile"):
        raise Unsupported(f"PyTorch {torch.__version__} has no torch.compile")
    if precision == "tf32" and device == "cpu":
        raise Unsupported("a CPU has no tf32")
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.benchmark = True

    torch.manual_seed(1)
    model = unet_reference.UNet(1, case["base"], case["levels"])
    model = model.to(device, memory_format=torch.channels_last)
    if precision == "bf16-norm":
        norm_in_bf16(torch, model)
    if patch:
        patch(torch, model)
    fused = {"fused": True} if device == "cuda" else {}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, **fused)
    shape = (case["batch"], 1, case["size"], case["size"])
    clean, noisy = (torch.rand(shape).to(device, memory_format=torch.channels_last)
                    for _ in range(2))
    t = torch.randint(0, 1000, shape[:1]).to(device)
    forward = model if compile_mode == "no" else torch.compile(model, mode=compile_mode)
    next_step = getattr(getattr(torch, "compiler", None), "cudagraph_mark_step_begin", None)

    def step():
        if compile_mode == "max-autotune" and next_step:
            next_step()
        optimizer.zero_grad(set_to_none=True)
        cast = (torch.autocast(device, dtype=torch.bfloat16) if precision.startswith("bf16")
                else contextlib.nullcontext())
        with cast:
            prediction = forward(noisy, t)
        loss = torch.nn.functional.mse_loss(prediction.float(), clean)
        loss.backward()
        optimizer.step()
        return loss

    return step


def seconds_of(torch, device, work):
    """Seconds of a function's work, and what it returns; nothing runs before."""
    if device != "cuda":
        start = time.perf_counter()
        result = work()
        return time.perf_counter() - start, result
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    torch.cuda.synchronize()
    events[0].record()
    result = work()
    events[1].record()
    events[1].synchronize()
    return events[0].elapsed_time(events[1]) / 1e3, result


def measure(torch, step, device, warmup, steps):
    """Returns (seconds of the first step, median seconds of a warm one, last loss)."""
    def in_a_row(count):
        for _ in range(count - 1):
            step()
        return step()

    first, loss = seconds_of(torch, device, step)
    if warmup:
        in_a_row(warmup)
    seconds = []
    for done in range(0, steps, STEPS_IN_A_ROW):
        count = min(STEPS_IN_A_ROW, steps - done)
        total, loss = seconds_of(torch, device, lambda count=count: in_a_row(count))
        seconds.append(total / count)
    return first, statistics.median(seconds), loss.item()


def run_variant(torch, name, compile_mode, precision, args):
    """The figures of one variant, or why there are none."""
    variant = {"case": name, **CASES[name], "compile": compile_mode, "precision": precision}
    device = args.device
    try:
        step = make_step(torch, CASES[name], compile_mode, precision, device)
        first, median, loss = measure(torch, step, device, args.warmup, args.steps)
        variant.update(ms=median * 1e3, images_per_second=CASES[name]["batch"] / median,
                       first_step_seconds=first, loss=loss)
        if device == "cuda":  # of a warm step: the first one tries algorithms
            torch.cuda.reset_peak_memory_stats()
            step()
            torch.cuda.synchronize()
            variant["peak_mb"] = torch.cuda.max_memory_allocated() / 1e6
    except Unsupported as reason:
        variant["skipped"] = str(reason)
    except Exception as error:  # pylint: disable=broad-except
        # Whatever a compiler or a missing kernel raises is a result of this variant, not of all.
        variant["failed"] = f"{type(error).__name__}: {str(error).strip()[:300]}"
    step = None
    if hasattr(torch, "_dynamo"):
        torch._dynamo.reset()
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    return variant


def text_of(variant):
    name = "{case:10} compile {compile:12} {precision:9}".format(**variant)
    for why in ("skipped", "failed"):
        if why in variant:
            return f"{name} {why}: {variant[why].splitlines()[0]}"
    return f"{name} {variant['ms']:9.2f} ms  {variant['images_per_second']:9.1f} images/s"


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", choices=CASES, default=["lesson", "lesson-128"])
    parser.add_argument("--compile", nargs="+", choices=COMPILE, default=COMPILE)
    parser.add_argument("--precision", nargs="+", choices=PRECISION, default=PRECISION)
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda where there is one")
    parser.add_argument("--steps", type=int, default=30, help="that are measured")
    parser.add_argument("--warmup", type=int, default=10, help="steps before, besides the first")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write all figures there")
    args = parser.parse_args()
    if args.steps < 1 or args.warmup < 0:
        parser.error("--steps must be at least 1, --warmup at least 0")
    return args


def main():
    args = parse_arguments()
    try:
        import torch
    except ImportError:
        print(f"bench_pytorch: {sys.executable} has no PyTorch (module torch): nothing to compare "
              "with", file=sys.stderr)
        return 3
    if not args.device:
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    machine = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    print(f"PyTorch {torch.__version__} on {machine}")
    variants = []
    for name in args.case:
        for compile_mode in args.compile:
            for precision in args.precision:
                variants.append(run_variant(torch, name, compile_mode, precision, args))
                print(text_of(variants[-1]), flush=True)
    if args.json:
        cudnn = torch.backends.cudnn.version() if args.device == "cuda" else None
        args.json.write_text(json.dumps(
            {"pytorch": torch.__version__, "device": machine, "cuda": torch.version.cuda,
             "cudnn": cudnn, "variants": variants}, indent=1) + "\n")
    return 0 if any("ms" in variant or "skipped" in variant for variant in variants) else 1


if __name__ == "__main__":
    sys.exit(main())
