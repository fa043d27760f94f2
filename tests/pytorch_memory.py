#!/usr/bin/env python3
"""Counts what a training step of bench_pytorch.py holds in PyTorch, for want of a GPU that measures.

Every operation of the second step is seen by a TorchDispatchMode, which adds up the storages that
are alive when it has run, as the GPU's allocator would count them (in 512 bytes): parameters,
gradients, Adam's moments, filters cast by autocast, what is saved for the way back, what is on its
way. Not counted is what PyTorch asks for within an operation (workspaces). It runs on the CPU, where
autocast is made to treat GroupNorm as on a GPU (in f32; bench_pytorch.py's bf16-norm: in bf16), with
batches of 2 and 4: at each operation the bytes are a constant and a share per image, which gives
those of any batch. The step is bench_pytorch.py's, eager. Status 3 when there is no PyTorch.

    python3 tests/pytorch_memory.py --case lesson lesson-128 --json counted.json
"""
import argparse
import json
import pathlib
import sys

import bench_pytorch

BATCHES = (2, 4)
GRAIN = 512  # bytes: CUDACachingAllocator


def norm_in_f32(torch, model):
    """GroupNorm as CUDA's autocast has it; the CPU's leaves it alone."""
    def forward(norm, x):
        with torch.autocast(x.device.type, enabled=False):
            return torch.nn.functional.group_norm(
                x.float(), norm.num_groups, norm.weight, norm.bias, norm.eps)

    for module in model.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.forward = forward.__get__(module)


def make_counter(torch):
    from torch.multiprocessing.reductions import StorageWeakRef
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_flatten

    class Counter(TorchDispatchMode):
        """Notes the bytes that are alive after every operation."""

        def __init__(self):
            super().__init__()
            self.storages, self.alive = {}, []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            for value in tree_flatten(result)[0]:
                if isinstance(value, torch.Tensor):
                    storage = value.storage()
                    reference = StorageWeakRef(storage)
                    size = (storage.nbytes() + GRAIN - 1) // GRAIN * GRAIN
                    self.storages.setdefault(reference.cdata, (reference, size))
            self.storages = {key: entry for key, entry in self.storages.items()
                             if not entry[0].expired()}
            self.alive.append(sum(size for _, size in self.storages.values()))
            return result

    return Counter()


def count(torch, case, precision, batch):
    """Bytes alive after each operation of the second step."""
    counter = make_counter(torch)
    patch = norm_in_f32 if precision == "bf16" else None
    with counter:
        step = bench_pytorch.make_step(torch, {**case, "batch": batch}, "no", precision, "cpu",
                                       patch)
        step()  # makes Adam's moments
        counter.alive.clear()
        step()
    return counter.alive


def peak(counts, batch):
    """The highest of the lines through the counts of both batches, in bytes."""
    few, many = BATCHES
    at_few, at_many = counts
    if len(at_few) != len(at_many):
        raise RuntimeError("the operations depend on the batch")
    return max(a + (b - a) * (batch - few) // (many - few) for a, b in zip(at_few, at_many))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", choices=bench_pytorch.CASES,
                        default=["lesson", "lesson-128"])
    parser.add_argument("--precision", nargs="+", choices=("f32", "bf16", "bf16-norm"),
                        default=["f32", "bf16", "bf16-norm"])
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write all figures there")
    args = parser.parse_args()
    try:
        import torch
    except ImportError:
        print(f"pytorch_memory: {sys.executable} has no PyTorch (module torch)", file=sys.stderr)
        return 3
    print(f"PyTorch {torch.__version__}, counted, not measured")
    rows, counts = [], {}
    for name in args.case:
        for precision in args.precision:
            case = dict(bench_pytorch.CASES[name])
            batch = case.pop("batch")
            key = (*case.items(), precision)
            if key not in counts:
                counts[key] = [count(torch, case, precision, few) for few in BATCHES]
            rows.append({"case": name, "precision": precision,
                         "peak_mb": peak(counts[key], batch) / 1e6})
            print("{case:10} {precision:9} {peak_mb:9.1f} MB".format(**rows[-1]), flush=True)
    if args.json:
        args.json.write_text(json.dumps({"pytorch": torch.__version__, "counted": rows}, indent=1)
                             + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
