#!/usr/bin/env python3
"""What each kernel takes of a multiprocessor: registers, shared memory, stack, spills, occupancy.

kernel_resources.py compile COMMAND...   runs nvcc with -Xptxas=-v and keeps what ptxas says of the
                                         kernels beside the object file (x.cu.o.ptxas)
kernel_resources.py table BUILD          the table of all kernels of a build directory, also written
                                         to BUILD/kernel-resources.md, and with one row for all
                                         instantiations to kernel-summary.md; fails when a kernel
                                         spills that is not in kernel_spills.txt

Blocks are as large as the tests launched them (BUILD/kernel-launches.json, by kernel_launches.py):
shared memory is dynamic, and no object file knows its size. A kernel that the tests never launched
is an error: the host model may not have it. Where that file is missing or older than the kernels,
the occupancy is that by registers of blocks of 256 threads, marked by a "?"; a lone "?" stands for
an architecture whose limits are not known here.
"""
import argparse
import json
import pathlib
import re
import subprocess
import sys
from typing import NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from kernel_names import demangle, is_kernel, short_name  # noqa: E402

SKIPPED = 77  # exit status of a test that could not run


class Limits(NamedTuple):
    """Of one multiprocessor."""
    warps: int
    blocks: int
    shared: int  # bytes
    shared_unit: int  # in which blocks get it
    shared_reserved: int  # of each block


# CUDA C++ Programming Guide, "Compute Capabilities", table of technical specifications, and
# cuda_occupancy.h: the architectures of nvcc 13. Everywhere: 65,536 registers, given to warps in
# units of 256, and warps spread over 4 partitions.
LIMITS = {
    75: Limits(32, 16, 64 << 10, 256, 0),
    80: Limits(64, 32, 164 << 10, 128, 1024),
    86: Limits(48, 16, 100 << 10, 128, 1024),
    87: Limits(48, 16, 164 << 10, 128, 1024),
    88: Limits(48, 16, 100 << 10, 128, 1024),
    89: Limits(48, 24, 100 << 10, 128, 1024),
    90: Limits(64, 32, 228 << 10, 128, 1024),
    100: Limits(64, 32, 228 << 10, 128, 1024),
    103: Limits(64, 32, 228 << 10, 128, 1024),
    110: Limits(48, 24, 228 << 10, 128, 1024),
    120: Limits(48, 24, 100 << 10, 128, 1024),
    121: Limits(48, 24, 100 << 10, 128, 1024),
}
REGISTERS, REGISTER_UNIT, PARTITIONS, WARP = 65536, 256, 4, 32


def up(value, unit):
    return -(-value // unit) * unit


def occupancy(architecture, threads, registers, shared):
    """The share of a multiprocessor's warps that can be resident, 0 to 1: the fewest blocks that
    its warps, registers, shared memory (bytes of a block) and block slots allow. The rules are
    those of cuda_occupancy.h in the toolkit. None for an architecture that LIMITS lacks."""
    limits = LIMITS.get(architecture)
    if not limits:
        return None
    warps = up(threads, WARP) // WARP
    blocks = min(limits.blocks, limits.warps // warps)
    if registers:
        per_partition = REGISTERS // PARTITIONS // up(registers * WARP, REGISTER_UNIT)
        blocks = min(blocks, per_partition * PARTITIONS // warps)
    per_block = up(shared + limits.shared_reserved, limits.shared_unit)
    if per_block:
        blocks = min(blocks, limits.shared // per_block)
    return blocks * warps / limits.warps


class Kernel(NamedTuple):
    name: str  # mangled
    architecture: str  # sm_90a
    registers: int
    shared: int  # bytes that are static
    stack: int  # bytes of local memory of a thread
    spills: int  # bytes stored and loaded

    @property
    def capability(self):
        return int(re.match(r"sm_(\d+)", self.architecture)[1])


def parse_ptxas(text):
    """The kernels of ptxas -v's messages."""
    found = []
    parts = re.split(r"Compiling entry function '(\S+)' for '(\S+)'", text)
    for name, architecture, body in zip(parts[1::3], parts[2::3], parts[3::3]):
        # Functions that were not inlined have properties, too: the kernel's own go by its name.
        own = re.search(r"Function properties for %s\s+(\d+) bytes stack frame, (\d+) bytes spill "
                        r"stores, (\d+) bytes spill loads" % re.escape(name), body)
        used = re.search(r"Used (\d+) registers(.*)", body)
        if not own or not used:
            raise SystemExit(f"what does ptxas say of {name}?\n{body}")
        shared = re.search(r"(\d+) bytes smem", used[2])
        found.append(Kernel(name, architecture, int(used[1]), int(shared[1]) if shared else 0,
                            int(own[1]), int(own[2]) + int(own[3])))
    return found


LOSS = re.compile(r"ptxas info.*Potential Performance Loss: (.*)")


def losses(text):
    """What ptxas says of kernels that it compiles as nobody meant them: {kernel, or "?": why}."""
    found = {}
    for why in LOSS.findall(text):
        reason, _, name = why.partition(" in the function ")
        found[name.strip("'") or "?"] = reason
    return found


def compile_and_keep(command):
    """Runs the compiler. What ptxas reports of resources goes to a file, everything else, and what
    it warns of, out."""
    run = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    report, rest = [], []
    for line in run.stderr.splitlines(keepends=True):
        is_report = re.match(r"ptxas info|\s+\d+ bytes stack frame", line)
        if is_report:
            report.append(line)
        if not is_report or LOSS.match(line):
            rest.append(line)
    sys.stderr.write("".join(rest))
    if run.returncode == 0 and "-o" in command:
        pathlib.Path(command[command.index("-o") + 1] + ".ptxas").write_text("".join(report))
    return run.returncode


def allowed_spills(path):
    """{pattern of short names: reason} of lines "pattern: reason"; # begins a comment."""
    allowed = {}
    for line in path.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            pattern, _, reason = line.partition(": ")
            if not reason.strip():
                raise SystemExit(f"{path}: no reason: {line}")
            allowed[pattern] = reason.strip()
    return allowed


def reason_for(name, allowed):
    return next((reason for pattern, reason in allowed.items() if re.fullmatch(pattern, name)), None)


def largest_block(launches, name, capability):
    """Threads and dynamic shared bytes of a kernel's largest block, at this capability if the tests
    launched it there; None when they never did."""
    all_launches = launches.get(name, {}).get("blocks", [])
    here = [b for b in all_launches if b["capability"] == capability] or all_launches
    if not here:
        return None
    return max(b["threads"] for b in here), max(b["shared"] for b in here)


def block_of(launches, name, kernel):
    """Threads, shared bytes and occupancy of a kernel's largest block. The last is None where it is
    not known, and where the block of another architecture does not fit: the kernel is of that one
    alone."""
    threads, dynamic = largest_block(launches, name, kernel.capability) or (256, 0)
    share = occupancy(kernel.capability, threads, kernel.registers, kernel.shared + dynamic)
    launched = launches.get(name, {}).get("blocks", [])
    if share == 0 and not any(b["capability"] == kernel.capability for b in launched):
        share = None
    return threads, kernel.shared + dynamic, share


def table(kernels, launches, allowed):
    """The lines of the table, and what is wrong with the kernels. launches: None where no tests ran
    these kernels."""
    demangled = demangle(k.name for k in kernels)
    names = {m: short_name(d) for m, d in demangled.items()}
    lines = ["| kernel | arch | threads | shared | registers | stack | spills | occupancy |",
             "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"]
    # Kernels of other names are not looked for among the launches.
    errors = [f"{name}: a kernel's name ends in _kernel" for m, name in sorted(names.items())
              if not is_kernel(demangled[m])]
    if launches is not None:
        errors += [f"{name}: nvcc compiles it, and no test launches it on the host model"
                   for name in sorted(set(names.values())) if not largest_block(launches, name, 0)]
    for k in sorted(set(kernels), key=lambda k: (names[k.name], k.capability, k)):
        name = names[k.name]
        threads, shared, share = block_of(launches or {}, name, k)
        sure = largest_block(launches or {}, name, k.capability) or share is None
        lines.append(f"| `{name}` | {k.architecture} | {threads} | {shared} | {k.registers} | "
                     f"{k.stack} | {k.spills} | {percent(share)}{'' if sure else '?'} |")
        if share == 0:
            errors.append(f"{name} ({k.architecture}): a block of {threads} threads does not fit")
        if (k.stack or k.spills) and not reason_for(name, allowed):
            errors.append(f"{name} ({k.architecture}): {k.spills} bytes of spills, {k.stack} of "
                          f"stack, and no reason for them in kernel_spills.txt")
    for pattern in allowed:
        if not any(re.fullmatch(pattern, name) for name in names.values()):
            errors.append(f"kernel_spills.txt: no kernel is called {pattern}")
    return lines, errors


def percent(share):
    return "?" if share is None else f"{share:.0%}"


def family(name):
    """sum_kernel of sum_kernel<float, 4>; elementwise_kernel<Add> of elementwise_kernel<Add<..>>."""
    head, _, arguments = name.partition("<")
    functor = re.fullmatch(r"([A-Z]\w*)(?:<.*>)?>", arguments)
    return f"{head}<{functor[1]}>" if functor else head


def span(values, unit=""):
    known = [value for value in values if value is not None]
    if not known:
        return "?"
    low, high = min(known), max(known)
    return f"{low}{unit}" if low == high else f"{low} to {high}{unit}"


def summary(kernels, launches):
    """The lines of a table with one row for all instantiations of a kernel."""
    names = {m: short_name(d) for m, d in demangle(k.name for k in kernels).items()}
    families = {}
    for k in set(kernels):
        families.setdefault(family(names[k.name]), []).append(k)
    lines = ["| kernel | instantiations | threads | shared | registers | stack and spills | "
             "occupancy | launched by |", "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |"]
    for name, members in sorted(families.items()):
        blocks = [block_of(launches, names[k.name], k) for k in members]
        shares = [None if share is None else round(100 * share) for _, _, share in blocks]
        tests = sorted({t for k in members for t in launches.get(names[k.name], {}).get("tests", [])})
        more = f" and {len(tests) - 2} more" if len(tests) > 2 else ""
        lines.append(f"| `{name}` | {len({k.name for k in members})} | {span([b[0] for b in blocks])}"
                     f" | {span([shared for _, shared, _ in blocks])} | "
                     f"{span([k.registers for k in members])} | "
                     f"{span([k.stack + k.spills for k in members])} | {span(shares, '%')} | "
                     f"{'; '.join(tests[:2])}{more} |")
    return lines


def show(build, reasons=pathlib.Path(__file__).with_name("kernel_spills.txt")):
    logs = [p for p in sorted(build.rglob("*.cu.o.ptxas")) if p.with_suffix("").exists()]
    kernels = [k for log in logs for k in parse_ptxas(log.read_text())]
    if not kernels:
        print("kernel resources: skipped, nvcc has built no kernels here")
        return SKIPPED
    launch_file = build / "kernel-launches.json"
    newest = max(log.stat().st_mtime for log in logs)
    launches = (json.loads(launch_file.read_text())
                if launch_file.exists() and launch_file.stat().st_mtime >= newest else None)
    allowed = allowed_spills(reasons)
    lines, errors = table(kernels, launches, allowed)
    lost = losses("".join(log.read_text() for log in logs))
    names = demangle(lost)
    errors += [f"{short_name(names[name])}: {why}" for name, why in sorted(lost.items())]
    text = "\n".join(lines) + "\n"
    (build / "kernel-resources.md").write_text(text)
    (build / "kernel-summary.md").write_text("\n".join(summary(kernels, launches or {})) + "\n")
    print(text)
    for error in errors:
        print("error:", error)
    return 1 if errors else 0


def main():
    if sys.argv[1:2] == ["compile"]:
        return compile_and_keep(sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("table").add_argument("build", type=pathlib.Path)
    return show(parser.parse_args().build)


if __name__ == "__main__":
    sys.exit(main())
