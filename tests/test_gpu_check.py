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
import types
import unittest

TESTS = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(TESTS))
import bench_pytorch  # noqa: E402
import gpu_report  # noqa: E402

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
    "tessera_tests": """case "$*" in *list-test-names*) echo 'of kernels'; exit 1 ;; esac
        [ "$TESSERA_OVERLAP$TESSERA_BRANCHES$TESSERA_GPU_ONLY" = 001 ]""",
    "check_primitives": "echo 'mma: equal'",
    "compute-sanitizer": "echo '========= ERROR SUMMARY: 0 errors'",
    "bench": """out=/dev/null filter=. list=no
        for argument; do case $argument in
          --benchmark_list_tests) list=yes ;;
          --benchmark_out=*) out=${argument#*=} ;;
          --benchmark_filter=*) filter=${argument#*=} ;;
        esac; done
        names=$(printf '%s/iterations:1/manual_time\\n' conv2d/forward/bf16/lesson_64x64x64 \\
          activation/forward/f32/gelu-tanh_sweep_8x8 training_step/bf16/lesson)
        [ $list = no ] || { echo "$names"; exit; }
        name=$(echo "$names" | grep -E "$filter") || exit 2
        echo '{"context": {"copy GB/s": "4000.5"}, "benchmarks": [{"name": "'$name'",
          "real_time": 2.5, "GFLOP/s": 10, "cuDNN ms": 2, "ours/cuDNN": 1.25}]}' >"$out" """,
    "ncu": """for argument; do [ "$last" = --log-file ] && csv=$argument; last=$argument; done
        [ -z "$csv" ] && { echo '==PROF== Disconnected from process 7'; exit; }
        cp "$FAKES/ncu.csv" "$csv" """,
    "train": """for argument; do [ "$last" = --out ] && out=$argument; last=$argument; done
        mkdir -p "$out"
        echo '{"step": 9, "loss": 0.1}' >"$out/metrics.jsonl"
        echo '{"step": 9, "eval": [{"t": 500, "noisy_psnr": 18.1, "denoised_psnr": 26}]}' \\
          >>"$out/metrics.jsonl" """,
}

# What ncu writes, in its units and with its remarks: what comes before a step, the batch, two
# launches of one kernel and one of another.
NCU = """==PROF== Connected to process 7
"ID","Kernel Name","gpu__time_duration.sum","launch__registers_per_thread",\
"smsp__issue_active.avg.per_cycle_active",\
"smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio",\
"smsp__average_warps_issue_stalled_wait_per_issue_active.ratio"
"","","us","register/thread","inst/cycle","inst","inst"
"0","_ZN7tessera3gpu12round_kernelEPf","7","40","0.25","3.5","0.5"
"1","_ZN7tessera3gpu18elementwise_kernelINS0_9MakeBatchIfEEEEvlT_","7","40","0.25","3.5","0.5"
"2","_ZN7tessera3gpu11mean_kernelEPf","1,000.5","40","0.25","3.5","0.5"
"3","_ZN7tessera3gpu4conv11conv_kernelEPf","20","64","","1","2"
"4","_ZN7tessera3gpu11mean_kernelEPf","3001.5","40","0.75","7.5","0.5"
==WARNING== something
"""


class GpuCheck(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        self.build = self.folder / "build" / "release"
        (self.folder / "tests").mkdir()
        for name in ("gpu_check.py", "gpu_machine.py", "gpu_profile.py", "gpu_report.py",
                     "kernel_names.py"):
            shutil.copy(TESTS / name, self.folder / "tests")
        (self.folder / "tests" / "bench_pytorch.py").write_text(
            "import pathlib, sys\n"
            "pathlib.Path(sys.argv[-1]).write_text('{\"variants\": [{\"case\": \"lesson\","
            " \"compile\": \"no\", \"precision\": \"f32\", \"ms\": 7.25}]}')\n")
        (self.folder / "docs").mkdir()
        (self.folder / "docs" / "predictions.md").write_text(
            "Kernels of training_step/bf16/lesson, microseconds:\n\n"
            "| kernel | launches | H200 | H100 | limit on H200 |\n| --- | ---: | ---: | ---: | --- |\n"
            "| `mean_kernel` | 2 | 1.0 | 7.5 | memory |\n\n")
        self.fakes = self.folder / "fakes"
        (self.fakes / "torch").mkdir(parents=True)
        (self.fakes / "torch" / "__init__.py").write_text(
            "class cuda:\n    is_available = staticmethod(lambda: True)\n")
        (self.fakes / "ncu.csv").write_text(NCU)
        for name, body in PROGRAMS.items():
            self.program(name, body)

    def program(self, name, body):
        folder = {"run": self.folder, "bench": self.build / "bin", "train": self.build / "bin",
                  "tessera_tests": self.build / "bin",
                  "check_primitives": self.build / "bin"}.get(name, self.fakes)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f'#!/bin/sh\necho "{name} $*" >>"$CALLS"\n{body}\n')
        (folder / name).chmod(0o755)

    def check(self, status, *arguments, environment=None):
        """Ends with this status. Returns the programs that were called, and what was said."""
        calls = self.folder / "calls"
        calls.write_text("")
        environment = {**os.environ, "PATH": f"{self.fakes}:{os.environ['PATH']}",
                       "CALLS": str(calls), "FAKES": str(self.fakes), "BUILD": str(self.build),
                       "PYTHONPATH": str(self.fakes), "PYTHONDONTWRITEBYTECODE": "1",
                       **(environment or {})}
        done = subprocess.run([sys.executable, self.folder / "tests" / "gpu_check.py", "--build",
                               self.build, *arguments], env=environment, capture_output=True,
                              text=True, check=False)
        # Each part asks for names and versions, which is no work.
        work = [line for line in calls.read_text().splitlines()
                if not any(word in line for word in ("nvidia-smi", "nvcc", "list", "show-only"))]
        self.assertEqual(done.returncode, status, done.stderr)
        return work, done.stderr

    def report(self):
        return json.loads((self.folder / "build/gpu-check/gpu-report.json").read_text())

    def test_without_a_gpu(self):
        self.program("nvidia-smi", "exit 9")
        work, said = self.check(3)
        self.assertEqual(work, [])
        self.assertEqual(said.count("\n"), 1)
        self.assertIn("no GPU", said)
        self.assertFalse((self.folder / "build" / "gpu-check").exists())

    def test_all_parts_once(self):
        work, _ = self.check(0)
        report = self.report()
        self.assertEqual([(name, part["status"]) for name, part in report["parts"].items()],
                         [(name, "done") for name in ("build", "tests", "primitives", "sanitize",
                                                      "bench", "profile", "torch", "train")])
        self.assertEqual(list(report["parts"]["tests"]["steps"]),
                         ["first", "of kernels", "plain", "last",
                          "tests on the GPU, launches one by one"])
        self.assertEqual(len(report["parts"]["sanitize"]["steps"]), 4 * 3)
        self.assertEqual(len(report["parts"]["torch"]["steps"]), 3 * 2 * 4)
        self.assertEqual(sum(line.startswith("bench") and "_out=" in line for line in work), 5)
        text = (self.folder / "build/gpu-check/gpu-report.md").read_text()
        for expected in ("# Fake GPU", "driver 580.1", "V13.0.48", "mma: equal",
                         "| conv2d/forward/bf16 | ours/cuDNN | 1 | 1.25 |", "18.10 -> 26.00 dB",
                         "| lesson | no | f32 | 7.25 |", "| copy GB/s | 4000 |",
                         "| training_step/bf16/lesson | 2.5 |",
                         "| training_step/bf16/lesson, in one line | 2.5 |",
                         "| training_step/bf16/lesson, one by one | 2.5 |"):
            self.assertIn(expected, text)

        work, _ = self.check(0)
        self.assertEqual(work, [])
        work, _ = self.check(0, "train", "--again")
        self.assertEqual(len(work), 2)

    def test_a_failure_is_reported_and_the_rest_goes_on(self):
        self.program("compute-sanitizer", "case $* in *racecheck*activation*) exit 9;; esac; "
                     + PROGRAMS["compute-sanitizer"])
        (self.fakes / "torch" / "__init__.py").write_text("raise ImportError")
        _, said = self.check(1)
        self.assertIn("racecheck activation: failed: status 9", said)
        parts = self.report()["parts"]
        self.assertEqual(parts["sanitize"]["status"], "failed")
        self.assertEqual(parts["torch"]["status"], "skipped")
        self.assertIn("no python3 of this machine has a PyTorch", parts["torch"]["reason"])
        self.assertEqual(parts["train"]["status"], "done")

    def test_a_profile_of_a_step(self):
        self.program("nvidia-smi", "echo 'Fake H100, 580.1, 9.0'")
        work, _ = self.check(0, "profile")
        runs = [line for line in work if line.startswith("ncu") and "--log-file" in line]
        self.assertEqual([line.partition("--batch ")[2].split()[0] for line in runs], ["32", "128"])
        text = (self.folder / "build/gpu-check/gpu-report.md").read_text()
        # Sums of times, means by time; what ncu did not measure is left out.
        for row in ("| `mean_kernel` | 2 | 4002 | 7.5 |  | 62 |  |  |  |  |  | 40 |"
                    " barrier 6.5, wait 0.5 |",
                    "| `conv_kernel` | 1 | 20 |  |  |  |  |  |  |  |  | 64 | wait 2.0, barrier 1.0 |",
                    "| **all that are predicted** | 2 | 4002 | 7.5 |", "| **all** | 3 | 4022 |  |"):
            self.assertIn(row, text)
        self.assertNotIn("round_kernel", text)
        self.assertNotIn("MakeBatch", text)
        # A second run has no folder of the first one in its way.
        self.program("ncu", PROGRAMS["ncu"] + '\nmkdir -p "$BUILD/../gpu-check/profile-lesson"')
        self.check(0, "profile", "--again")
        self.program("ncu", '[ ! -d "$BUILD/../gpu-check/profile-lesson" ] || exit 1; '
                     + PROGRAMS["ncu"])
        self.check(0, "profile", "--again")

    def test_a_profiler_that_may_not_run(self):
        self.program("ncu", "echo '==ERROR== ERR_NVGPUCTRPERM: no permission'; exit 1")
        self.check(0, "profile")
        part = self.report()["parts"]["profile"]
        self.assertEqual(part["status"], "skipped")
        self.assertIn("ERR_NVGPUCTRPERM", part["reason"])
        for table in ("==ERROR== no kernel\n", NCU.replace("gpu__time", "gpu_time"),
                      "\n".join(NCU.splitlines()[:3]) + "\n",
                      "\n".join(NCU.splitlines()[:5]) + "\n", NCU.replace("3001.5", "n/a"), ""):
            (self.fakes / "ncu.csv").write_text(table)
            self.program("ncu", PROGRAMS["ncu"])
            _, said = self.check(1, "profile", "--again")
            self.assertIn("lesson: failed: ncu", said)

    def test_figures_that_are_missing_are_a_failure(self):
        self.program("train", "exit 0")
        _, said = self.check(1, "train")
        self.assertIn("metrics.jsonl", said)

    def test_nothing_follows_a_failed_build(self):
        self.program("run", "exit 1")
        work, _ = self.check(1)
        self.assertEqual(work, ["run build"])

    def test_what_did_not_fit_is_done_by_the_next_call(self):
        self.program("bench", PROGRAMS["bench"].replace("name=", "sleep 4; name=", 1))
        self.check(4, "bench", "--limit", "7")
        self.assertEqual(len(self.report()["parts"]["bench"]["steps"]), 1)
        self.program("bench", PROGRAMS["bench"])
        work, _ = self.check(0, "bench")
        self.assertEqual(len(work), 4)

    def test_a_step_that_never_fits_fails(self):
        self.program("check_primitives", "exec sleep 30")
        _, said = self.check(1, "primitives", "--limit", "1.5")
        self.assertIn("not done after", said)

    def test_a_program_that_is_not_built(self):
        for part, name in (("tests", "tessera_tests"), ("primitives", "check_primitives"),
                           ("sanitize", "bench"), ("bench", "bench"), ("train", "train")):
            (self.build / "bin" / name).rename(self.folder / name)
            work, said = self.check(1, part)
            self.assertEqual(work, [])
            self.assertIn(f"{name} is missing: ./run gpu-check build makes it", said)
            # Once it is there, the part begins without --again.
            (self.folder / name).rename(self.build / "bin" / name)
            self.check(0, part)

    def test_tests_that_cannot_be_listed(self):
        self.program("ctest", "exit 1")
        _, said = self.check(1, "tests")
        self.assertIn("tests: failed", said)
        self.assertIn("its steps are not known", said)

    def test_a_build_that_is_cut_short_goes_on(self):
        self.program("run", f"[ -e half ] || {{ touch half; exec sleep 30; }}; {PROGRAMS['run']}"
                     .replace("half", str(self.folder / "build" / "half")))
        self.check(4, "--limit", "3")
        self.assertEqual(list(self.report()["parts"]), ["build"])  # nothing follows half a build
        work, _ = self.check(0, "build")
        self.assertEqual(work, ["run build"])

    def test_training_that_is_cut_short_goes_on(self):
        self.program("train", """for argument; do
            [ "$last" = --out ] && out=$argument; [ "$last" = --resume ] && resume=$argument
            last=$argument; done
            if [ -z "$resume$TESSERA_OVERLAP" ]; then
              mkdir -p "$out"
              trap 'touch "$out/checkpoint.safetensors"; exit 143' TERM
              sleep 30 & wait
            fi
            out=${resume:-$out}
            """ + PROGRAMS["train"].partition("done\n")[2])
        train = self.folder / "build/gpu-check/train"
        work, _ = self.check(4, "train", "--limit", "3")
        self.assertEqual(len(work), 1)
        work, _ = self.check(0, "train", "--again")  # repeats what was finished
        other = f"train --device cuda --preset lesson --out {train}-one-by-one --epochs 1"
        self.assertEqual(work, [f"train --resume {train}", other])
        work, _ = self.check(4, "train", "--again", "--limit", "3")
        self.assertEqual(work, [f"train --device cuda --preset lesson --out {train} --epochs 2"])

    def test_a_sanitizer_that_may_not_run(self):
        for output, why in (
                ("echo '========= Error: Target application terminated before first instrumented "
                 "API call'; exit 1", "before first instrumented"),
                ("echo 'no permission to attach'; exit 9", "no permission to attach"),
                ("exit 1", "status 1")):
            self.program("compute-sanitizer", output)
            work, _ = self.check(0, "sanitize", "--again")
            part = self.report()["parts"]["sanitize"]
            self.assertEqual(part["status"], "skipped")
            self.assertIn(why, part["reason"])
            self.assertEqual(sum(line.startswith("compute-sanitizer") for line in work), 1)
        # What fails without it, too, is a failure.
        self.program("bench", PROGRAMS["bench"].replace("name=", "exit 1; name=", 1))
        self.check(1, "sanitize", "--again")

    def test_pytorch_is_sought_outside_of_the_prefix(self):
        """./run --offline puts a python3 without PyTorch and its libraries in front."""
        outside = self.folder / "outside"
        outside.mkdir()
        (outside / "python3").write_text(
            f'#!/bin/sh\necho "outer python LIB=$LD_LIBRARY_PATH CPATH=$CPATH" >>"$CALLS"\n'
            f'PYTHONPATH={self.fakes} exec {sys.executable} "$@"\n')
        (outside / "python3").chmod(0o755)
        inside = {"LD_LIBRARY_PATH": "", "CPATH": "/prefix", "PYTHONPATH": str(self.folder),
                  "TESSERA_OUTER_PATH": f"{outside}:/usr/bin:/bin",
                  "TESSERA_OUTER_LD_LIBRARY_PATH": "/outer/lib"}
        work, _ = self.check(0, "torch", environment=inside)
        # One call finds it, and each step has the environment from outside.
        self.assertEqual(work, ["outer python LIB=/outer/lib CPATH="] * (1 + 3 * 2 * 4))

    def test_other_sources_start_over(self):
        def repeats():
            work, _ = self.check(0, "primitives")
            return bool(work)

        def change_and_check(clone):
            self.assertFalse(repeats())
            (self.folder / "tests" / "new.cpp").write_text("a" if clone else "b")
            self.assertTrue(repeats(), "a file that git does not track")
            self.assertFalse(repeats())
            (self.folder / "tests" / "new.cpp").write_text("c" if clone else "d")
            self.assertTrue(repeats(), "its contents")
            (self.folder / "build" / "anything").write_text("e" if clone else "f")
            self.assertFalse(repeats(), "a file of a build")

        self.assertTrue(repeats())
        change_and_check(False)
        self.assertIn("commit unknown",
                      (self.folder / "build/gpu-check/gpu-report.md").read_text())
        (self.folder / ".gitignore").write_text("build/\ncalls\nfakes/\n__pycache__/\n")
        for command in (["init", "-q"], ["add", "-A"],
                        ["-c", "user.name=n", "-c", "user.email=e", "commit", "-qm", "m"]):
            subprocess.run(["git", "-C", self.folder, *command], check=True)
        repeats()
        change_and_check(True)
        self.assertRegex(self.report()["commit"], "^[0-9a-f]{40} and changes$")

    def test_another_driver_starts_over(self):
        self.check(0, "primitives")
        self.program("nvidia-smi", "echo 'Fake GPU, 590.0, 9.0'")
        work, _ = self.check(0, "primitives")
        self.assertEqual(len(work), 1)
        self.assertEqual(self.report()["driver"], "590.0")
        self.assertEqual(len(list((self.folder / "build/gpu-check").glob("gpu-report*.json"))), 2)


class BenchPytorch(unittest.TestCase):
    def test_rounds_of_steps_that_nothing_waits_for(self):
        done = []  # what PyTorch was told to do, a letter each

        class Event:
            def __init__(self, enable_timing):
                self.at = None if enable_timing else "no timing"

            def record(self):
                self.at = len(done)
                done.append("|")

            def synchronize(self):
                done.append("w")

            def elapsed_time(self, end):
                return 1e3 * (end.at - self.at - 1)  # a second for each step

        def step():
            done.append("s")
            return types.SimpleNamespace(item=lambda: 0.5)

        torch = types.SimpleNamespace(cuda=types.SimpleNamespace(
            Event=Event, synchronize=lambda: done.append("w")))
        self.assertEqual(bench_pytorch.measure(torch, step, "cuda", 3, 25), (1, 1, 0.5))
        ten = "w|ssssssssss|w"
        self.assertEqual("".join(done), "w|s|w" + "sss" + ten + ten + "w|sssss|w")


class Report(unittest.TestCase):
    def test_steps_beside_pytorch(self):
        def part(**figures):
            return {"steps": {"one": {"figures": figures}}}

        bench = [{"name": "training_step/bf16/lesson_batch_128", "ms": 30, "peak MB": 1200}]
        torch = [{"case": "lesson-128", "compile": "no", "precision": precision, "ms": 50,
                  "peak_mb": 3000} for precision in ("f32", "bf16", "bf16-norm")]
        torch.append({**torch[1], "skipped": "for want of it"})
        lines = gpu_report.torch_lines({"parts": {
            "bench": part(benchmarks=bench), "torch": part(variants=torch)}})
        for row in ("| lesson-128 | no | f32 | 50 |  | 3000 |  |  |",
                    "| lesson-128 | no | bf16 | 50 |  | 3000 | 0.6 | 0.4 |",
                    "| lesson-128 | no | bf16-norm | 50 |  | 3000 | 0.6 | 0.4 |"):
            self.assertIn(row, lines)


if __name__ == "__main__":
    unittest.main()
