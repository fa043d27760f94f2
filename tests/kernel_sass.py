#!/usr/bin/env python3
"""How many instructions the kernels of a build have, by the toolkit's disassembler.

kernel_sass.py BUILD    writes BUILD/kernel-instructions.md: for every kernel and architecture the
                        instructions, those of its main loop, and the mma.sync among these. Ends
                        with 77 where there is no cuobjdump or nvcc has built no kernels.

The main loop is the one with the most mma.sync, the shortest of these; a kernel without mma.sync has
none. Instructions are counted as they stand there, inner loops once. `bench --predict` reads the
table.
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
    loop: int  # of them, 0: no loop with mma.sync
    mma: int  # in the loop


def code_of(lines):
    """Of the lines of one function."""
    found = [(int(m[1], 16), m[2]) for m in
             (re.match(r"\s+/\*([0-9a-f]{4,})\*/\s+([^;]+);", line) for line in lines) if m]
    while found and re.match(r"(NOP|BRA)\b", found[-1][1]):  # what fills up the end
        found.pop()
    starts = {address: i for i, (address, _) in enumerate(found)}
    best = (0, 0)
    for i, (_, text) in enumerate(found):
        branch = re.search(r"\bBRA(?:\.\w+)*\s+(?:\S+,\s+)?0x([0-9a-f]+)", text)
        first = starts.get(int(branch[1], 16), i) if branch else i
        if first < i:
            mma = sum("HMMA" in other for _, other in found[first:i + 1])
            if mma:
                best = max(best, (mma, -(i + 1 - first)))
    return Code(len(found), -best[1], best[0])


def parse(text):
    """{(mangled name, architecture): Code} of what cuobjdump -sass writes."""
    codes, architecture, name, lines = {}, "", None, []

    def end():
        if name:
            codes[name, architecture] = code_of(lines)
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
    lines = ["| kernel | arch | instructions | loop | mma |", "| --- | --- | ---: | ---: | ---: |"]
    rows = {(names[name], architecture, code) for (name, architecture), code in codes.items()}
    return lines + [f"| `{name}` | {architecture} | {code.instructions} | {code.loop} | {code.mma} |"
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
    codes = {}
    for path in objects:
        codes.update(parse(subprocess.run([tool, "-sass", path], check=True, text=True,
                                          stdout=subprocess.PIPE).stdout))
    (build / "kernel-instructions.md").write_text("\n".join(table(codes)) + "\n")
    print(f"kernel instructions: of {len(codes)} kernels")
    return 0


if __name__ == "__main__":
    sys.exit(main())
