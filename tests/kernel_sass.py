#!/usr/bin/env python3
"""How many instructions the kernels of a build have, by the toolkit's disassembler.

kernel_sass.py BUILD    writes BUILD/kernel-instructions.md: for every kernel and architecture the
                        instructions, and what its main loop has of them. Ends with 1 where one for
                        sm_90 or up does not wait for the kernel before it, or has an access of
                        memory in front of that (kernels/cuda/ptx/grid_dependency.h), or ends an
                        empty group of wgmma; with 77 where there is no cuobjdump or nvcc has built
                        no kernels.

The main loop is the one with the most mma.sync, the shortest of these; only of a kernel without
mma.sync the innermost one that stores, else loads the most vectors (8 or 16 bytes) of global memory:
of the variants of a pass the one with the most accesses, the longest of these. Instructions are counted as they stand there, inner loops once. `bench --predict`
reads the table.
"""
import pathlib
import re
import shutil
import subprocess
import sys
from typing import NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from kernel_names import demangle, short_name  # noqa: E402

SKIPPED = 77


class Code(NamedTuple):
    instructions: int
    # Of the main loop: 0 where there is none.
    loop: int = 0
    mma: int = 0
    stores: int = 0  # of vectors; like the loads, only of a kernel without mma.sync
    loads: int = 0
    outside: int = 0  # instructions outside of all loops with such accesses
    stores_outside: int = 0
    loads_outside: int = 0


STORE = r"(@!?U?P\d+ )?STG\.E\.(\w+\.)*(64|128)\b"
LOAD = r"(@!?U?P\d+ )?LDG\.E\.(\w+\.)*(64|128)\b"


ACCESS = r"(@!?U?P\d+ )?(LDG|LD|LDGSTS|STG|ST|ATOM|ATOMG|RED|REDG|UBLKCP|UTMALDG|UTMASTG)\b"


def instructions_of(lines):
    """(address, text) of those of one function."""
    return [(int(m[1], 16), m[2]) for m in
            (re.match(r"\s+/\*([0-9a-f]{4,})\*/\s+([^;]+);", line) for line in lines) if m]


def early_of(lines):
    """What is wrong with how a function begins, or ""."""
    texts = [text.strip() for _, text in instructions_of(lines)]
    begin = next((i for i, text in enumerate(texts) if re.search(r"\bACQBULK\b", text)), None)
    if begin is None:
        return "does not wait for the kernel before it"
    early = next((text for text in texts[:begin] if re.match(ACCESS, text)), None)
    return f"{early} comes before the wait for the kernel before it" if early else ""


def empty_group_of(lines):
    """Behind a branch among products ptxas has ended their group itself, and wgmma_commit() ends an
    empty one: a wait for all groups but the last would wait for the products."""
    empty = any(re.search(r"\bHGMMA\.\S+ RZ, gdesc\[URZ\], RZ", text)
                for _, text in instructions_of(lines))
    return "ends an empty group of wgmma" if empty else ""


def faults_of(lines):
    return [fault for fault in (early_of(lines), empty_group_of(lines)) if fault]


def code_of(lines):
    """Of the lines of one function."""
    found = instructions_of(lines)
    while found and re.match(r"(NOP|BRA)\b", found[-1][1]):  # what fills up the end
        found.pop()
    starts = {address: i for i, (address, _) in enumerate(found)}
    texts = [text for _, text in found]

    def count(pattern, places):
        return sum(bool(re.match(pattern, texts[i])) for i in places)

    loops = []
    for i, text in enumerate(texts):
        branch = re.search(r"\bBRA(?:\.\w+)*\s+(?:\S+,\s+)?0x([0-9a-f]+)", text)
        first = starts.get(int(branch[1], 16), i) if branch else i
        if first < i:
            loops.append(range(first, i + 1))
    mma, size = max(((count(r".*H(?:G)?MMA", loop), -len(loop)) for loop in loops), default=(0, 0))
    if mma:
        return Code(len(found), -size, mma)
    work = [loop for loop in loops if count(f"{STORE}|{LOAD}", loop)]
    if not work:
        return Code(len(found))
    outside = sorted(set(range(len(texts))).difference(*work))
    inner = [loop for loop in work
             if not any(other != loop and other[0] >= loop[0] and other[-1] <= loop[-1]
                        for other in work)]
    stores, loads, size = max((count(STORE, loop), count(LOAD, loop), len(loop)) for loop in inner)
    return Code(len(found), size, 0, stores, loads, len(outside), count(STORE, outside),
                count(LOAD, outside))


def parse(text, read=code_of):
    """{(mangled name, architecture): read(lines)} of what cuobjdump -sass writes."""
    codes, architecture, name, lines = {}, "", None, []

    def end():
        if name:
            codes[name, architecture] = read(lines)
    for line in text.splitlines():
        target = re.match(r"\s*(?:code for|arch =) (sm_\w+)", line)
        function = re.match(r"\s*Function : (\S+)", line)
        if target or function:
            end()
            name, lines = (function[1] if function else None), []
            architecture = target[1] if target else architecture
        else:
            lines.append(line)
    end()
    return codes


def table(codes):
    names = {m: short_name(d) for m, d in demangle(name for name, _ in codes).items()}
    columns = ("kernel", "arch", *(field.replace("_", " ") for field in Code._fields))
    lines = [f"| {' | '.join(columns)} |", "| --- | --- |" + " ---: |" * len(Code._fields)]
    rows = {(names[name], architecture, code) for (name, architecture), code in codes.items()}
    return lines + [f"| `{name}` | {architecture} | {' | '.join(map(str, code))} |"
                    for name, architecture, code in sorted(rows)]


def main():
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    build = pathlib.Path(sys.argv[1])
    tool = shutil.which("cuobjdump") or shutil.which("/usr/local/cuda/bin/cuobjdump")
    objects = [p.with_suffix("") for p in sorted(build.rglob("*.cu.o.ptxas"))
               if p.with_suffix("").exists()]
    if not tool or not objects:
        print("kernel instructions: skipped,",
              "nvcc has built no kernels here" if tool else "there is no cuobjdump here")
        return SKIPPED
    codes, faults = {}, {}
    for path in objects:
        text = subprocess.run([tool, "-sass", path], check=True, text=True,
                              stdout=subprocess.PIPE).stdout
        codes.update(parse(text))
        faults.update(parse(text, faults_of))
    (build / "kernel-instructions.md").write_text("\n".join(table(codes)) + "\n")
    errors = [f"{short_name(demangle([name])[name])} for {architecture}: {fault}"
              for (name, architecture), found in sorted(faults.items())
              if int(re.search(r"\d+", architecture)[0]) >= 90 for fault in found]
    for error in errors:
        print("error:", error)
    print(f"kernel instructions: of {len(codes)} kernels")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
