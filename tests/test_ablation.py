#!/usr/bin/env python3
"""apps/ablation.py with a tiny network: the table, runs that are there already, runs that fail.

usage: test_ablation.py TRAIN
"""
import pathlib
import struct
import subprocess
import sys
import tempfile

SCRIPT = pathlib.Path(__file__).resolve().parent.parent / "apps" / "ablation.py"


def write_images(path, count, side):
    """An IDX file of images that differ."""
    pixels = bytes((i * i * 7 + i // side * 31) % 251 for i in range(count * side * side))
    path.write_bytes(struct.pack(">IIII", 0x803, count, side, side) + pixels)


def run(program, folder, *arguments):
    return subprocess.run(
        [sys.executable, SCRIPT, "--train", program, "--out", folder / "out", "--steps", "2",
         "--preset=tiny", "--device", "cpu", "--data", folder / "images", *arguments],
        capture_output=True, text=True)


def expect(condition, result, what):
    if not condition:
        sys.exit(f"{what}\nstatus {result.returncode}\n{result.stdout}{result.stderr}")


def rows_of(result):
    lines = [line for line in result.stdout.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def main():
    program = sys.argv[1]
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_images(folder / "images", 23, 16)

        first = run(program, folder)
        rows = rows_of(first)
        expect(first.returncode == 0, first, "expected status 0")
        expect(len(rows) == 12 and rows[0][0] == "default", first, "expected 12 rows")
        expect(len({row[0] for row in rows}) == 12, first, "expected 12 names")
        # What has other tensors has other counts; no two trainings end alike.
        counts = {row[0]: int(row[1].replace(",", "")) for row in rows}
        for variant in ("down-max", "down-conv", "up-transposed", "no-skips"):
            expect(counts[variant] != counts["default"], first, variant)
        for variant in ("norm-batch", "norm-layer", "no-time-gelu", "activation-relu"):
            expect(counts[variant] == counts["default"], first, variant)
        expect(counts["down-max"] == counts["down-avg"], first, "pools have the same tensors")
        expect(len({tuple(row[2:6]) for row in rows}) == 12, first, "expected 12 results")
        for row in rows:
            expect(float(row[2]) > 0 and all(5 < float(cell) < 60 for cell in row[3:6]), first, row[0])
            expect(float(row[6]) > 0, first, row[0])
            expect((folder / "out" / row[0] / "figure.png").stat().st_size > 100, first, row[0])

        # Again: the runs are there, and are only read.
        times = {path: path.stat().st_mtime_ns for path in folder.rglob("model.safetensors")}
        again = run(program, folder)
        expect(again.returncode == 0 and rows_of(again) == rows, again, "expected the same table")
        expect(times == {path: path.stat().st_mtime_ns for path in times}, again, "runs were redone")

        # One that fails leaves the others, and ends with another status.
        (folder / "out" / "no-skips" / "checkpoint.safetensors").write_text("broken")
        broken = run(program, folder, "--only", "default,no-skips")
        expect(broken.returncode == 1, broken, "expected status 1")
        expect([row[0] for row in rows_of(broken)] == ["default"], broken, "expected one row")
        expect("ablation: error: no-skips: status 1: train: error: " in broken.stderr, broken, "message")

        for wrong in (["--only", "none"], ["--steps", "0"]):
            result = run(program, folder, *wrong)
            expect(result.returncode == 2 and not result.stdout, result, "expected status 2")


if __name__ == "__main__":
    main()
