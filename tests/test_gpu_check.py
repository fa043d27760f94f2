#!/usr/bin/env python3
"""Runs gpu_check.py where nvidia-smi, ctest and our programs are small scripts: which steps are run
and repeated, what the report says, the status."""
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

TESTS = pathlib.Path(__file__).resolve().parent

# What the programs do, by name. Each call is noted in $CALLS.
PROGRAMS = {
    "nvidia-smi": "echo 'Fake GPU, 580.1, 9.0'",
    "run": 'mkdir -p "$BUILD"; echo "CMAKE_CUDA_COMPILER:FILEPATH=$FAKES/nvcc" >"$BUILD/CMakeCache.txt"',
    "nvcc": "echo 'Cuda compilation tools, release 13.0, V13.0.48'",
    "ctest": """case "$*" in
        *show-only*) echo '{"tests": [{"name": "plain"}, {"name": "of kernels"},
          {"name": "last", "properties": [{"name": "FIXTURES_CLEANUP", "value": ["log"]}]},
          {"name": "first", "properties": [{"name": "FIXTURES_SETUP", "value": ["log"]}]}]}' ;;
        esac""",
    "tessera_tests": "echo 'of kernels'; exit 1",
    "check_primitives": "echo 'mma: equal'",
    "compute-sanitizer": "echo '========= ERROR SUMMARY: 0 errors'",
    "bench": """for argument; do case $argument in
          --benchmark_list_tests)
            echo 'conv2d/forward/bf16/lesson_64x64x64/iterations:1/manual_time'
            echo 'gelu/forward/f32/exact_sweep_8x8/iterations:1/manual_time'
            exit ;;
          --benchmark_out=*) out=${argument#*=} ;;
          --benchmark_filter=*) filter=${argument#*=} ;;
        esac; done
        name=$(printf '%s\\n' conv2d/forward/bf16/lesson_64 gelu/forward/f32/exact_sweep_8x8 |
          grep -E "$filter")
        echo '{"context": {"copy GB/s": "4000.5"}, "benchmarks": [{"name": "'$name'/iterations:1",
          "real_time": 2.5, "GFLOP/s": 10, "cuDNN ms": 2, "ours/cuDNN": 1.25}]}' >"$out" """,
    "train": """for argument; do [ "$last" = --out ] && out=$argument; last=$argument; done
        mkdir -p "$out"
        echo '{"step": 9, "loss": 0.1}' >"$out/metrics.jsonl"
        echo '{"step": 9, "eval": [{"t": 500, "noisy_psnr": 18.1, "denoised_psnr": 26}]}' \\
          >>"$out/metrics.jsonl" """,
}


class GpuCheck(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        self.build = self.folder / "build" / "release"
        for name in ("tests", "apps"):
            (self.folder / name).mkdir()
        for name in ("gpu_check.py", "gpu_report.py"):
            shutil.copy(TESTS / name, self.folder / "tests")
        (self.folder / "apps" / "bench_pytorch.py").write_text(
            "import pathlib, sys\n"
            "pathlib.Path(sys.argv[-1]).write_text('{\"variants\": [{\"case\": \"lesson\","
            " \"compile\": \"no\", \"precision\": \"f32\", \"ms\": 7.25}]}')\n")
        self.fakes = self.folder / "fakes"
        (self.fakes / "torch").mkdir(parents=True)
        (self.fakes / "torch" / "__init__.py").touch()
        for name, body in PROGRAMS.items():
            self.program(name, body)

    def program(self, name, body):
        folder = {"run": self.folder, "bench": self.build / "bin", "train": self.build / "bin",
                  "tessera_tests": self.build / "bin",
                  "check_primitives": self.build / "bin"}.get(name, self.fakes)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f'#!/bin/sh\necho "{name} $*" >>"$CALLS"\n{body}\n')
        (folder / name).chmod(0o755)

    def check(self, *arguments):
        """Returns status, the programs that were called, and what was said."""
        calls = self.folder / "calls"
        calls.write_text("")
        environment = {**os.environ, "PATH": f"{self.fakes}:{os.environ['PATH']}",
                       "CALLS": str(calls), "FAKES": str(self.fakes), "BUILD": str(self.build),
                       "PYTHONPATH": str(self.fakes), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run([sys.executable, self.folder / "tests" / "gpu_check.py", "--build",
                               self.build, *arguments], env=environment, capture_output=True,
                              text=True, check=False)
        # Each part asks for names and versions, which is no work.
        work = [line for line in calls.read_text().splitlines()
                if not any(word in line for word in ("nvidia-smi", "nvcc", "list", "show-only"))]
        return done.returncode, work, done.stderr

    def report(self):
        return json.loads((self.folder / "build/gpu-check/gpu-report.json").read_text())

    def test_without_a_gpu(self):
        self.program("nvidia-smi", "exit 9")
        status, work, said = self.check()
        self.assertEqual((status, work), (3, []))
        self.assertEqual(said.count("\n"), 1)
        self.assertIn("no GPU", said)
        self.assertFalse((self.folder / "build" / "gpu-check").exists())

    def test_all_parts_once(self):
        status, work, said = self.check()
        self.assertEqual(status, 0, said)
        report = self.report()
        self.assertEqual([(name, part["status"]) for name, part in report["parts"].items()],
                         [(name, "done") for name in ("build", "tests", "primitives", "sanitize",
                                                      "bench", "torch", "train")])
        self.assertEqual(list(report["parts"]["tests"]["steps"]), ["first", "of kernels", "plain", "last"])
        self.assertEqual(len(report["parts"]["sanitize"]["steps"]), 4 * 2)
        self.assertEqual(len(report["parts"]["torch"]["steps"]), 3 * 2 * 4)
        self.assertEqual(sum(line.startswith("bench") and "_out=" in line for line in work), 2)
        text = (self.folder / "build/gpu-check/gpu-report.md").read_text()
        for expected in ("# Fake GPU", "driver 580.1", "V13.0.48", "mma: equal",
                         "| conv2d/forward/bf16 | ours/cuDNN | 1 | 1.25 |", "18.10 -> 26.00 dB",
                         "| lesson | no | f32 | 7.25 |", "| copy GB/s | 4000 |"):
            self.assertIn(expected, text)

        status, work, said = self.check()
        self.assertEqual((status, work), (0, []), said)
        status, work, said = self.check("train", "--again")
        self.assertEqual((status, len(work)), (0, 1), said)

    def test_a_failure_is_reported_and_the_rest_goes_on(self):
        self.program("compute-sanitizer", "case $* in *racecheck*gelu*) exit 9;; esac")
        (self.build / "bin" / "check_primitives").unlink()
        status, _, said = self.check()
        self.assertEqual(status, 1)
        self.assertIn("racecheck gelu: failed: status 9", said)
        parts = self.report()["parts"]
        self.assertEqual(parts["sanitize"]["status"], "failed")
        self.assertEqual(parts["primitives"]["status"], "skipped")
        self.assertEqual(parts["train"]["status"], "done")

    def test_figures_that_are_missing_are_a_failure(self):
        self.program("train", "exit 0")
        status, _, said = self.check("train")
        self.assertEqual(status, 1, said)
        self.assertIn("metrics.jsonl", said)

    def test_nothing_follows_a_failed_build(self):
        self.program("run", "exit 1")
        status, work, _ = self.check()
        self.assertEqual((status, work), (1, ["run build"]))

    def test_what_did_not_fit_is_done_by_the_next_call(self):
        self.program("bench", PROGRAMS["bench"].replace("name=", "sleep 4; name=", 1))
        status, work, said = self.check("bench", "--limit", "7")
        self.assertEqual(status, 4, said)
        self.assertEqual(len(self.report()["parts"]["bench"]["steps"]), 1)
        status, work, said = self.check("bench")
        self.assertEqual((status, len(work)), (0, 1), said)

    def test_a_step_that_never_fits_fails(self):
        self.program("check_primitives", "exec sleep 30")
        status, _, said = self.check("primitives", "--limit", "1.5")
        self.assertEqual(status, 1)
        self.assertIn("not done after", said)

    def test_another_driver_starts_over(self):
        self.assertEqual(self.check("primitives")[0], 0)
        self.program("nvidia-smi", "echo 'Fake GPU, 590.0, 9.0'")
        status, work, said = self.check("primitives")
        self.assertEqual((status, len(work)), (0, 1), said)
        self.assertEqual(self.report()["driver"], "590.0")
        self.assertEqual(len(list((self.folder / "build/gpu-check").glob("gpu-report*.json"))), 2)


if __name__ == "__main__":
    unittest.main()
