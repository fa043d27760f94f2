#!/usr/bin/env python3
"""Tests of the scripts that judge kernels: each says what is wrong when something is."""
import contextlib
import io
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import kernel_launches  # noqa: E402
import kernel_names  # noqa: E402
import kernel_resources  # noqa: E402
import kernel_sass  # noqa: E402
import mutants  # noqa: E402

ADD = "_ZN7tessera3gpu10add_kernelILi4EEEvPf"
ADD_SIMT = "_ZN7tessera4simt10add_kernelILi4EEEvPf"


def report(stack, spills, name=ADD, architecture="sm_90a"):
    return (f"ptxas info    : Compiling entry function '{name}' for '{architecture}'\n"
            f"ptxas info    : Function properties for {name}\n"
            f"    {stack} bytes stack frame, {spills} bytes spill stores, {spills} bytes spill "
            f"loads\nptxas info    : Used 40 registers, used 1 barriers, 16 bytes smem\n")


class Names(unittest.TestCase):
    def test_short(self):
        for long, short in {
            "void tessera::gpu::each_kernel<tessera::gpu::(anonymous namespace)::Add<float, 4> >"
            "(long, tessera::gpu::(anonymous namespace)::Add<float, 4>)":
                "each_kernel<Add<float, 4>>",
            "tessera::simt::(anonymous namespace)::sum_kernel(float const*, float*)": "sum_kernel",
            "void tessera::gpu::gelu_kernel<(tessera::Activation)1>(float*)":
                "gelu_kernel<(Activation)1>",
            "void tessera::simt::gemm::gemm_kernel<tessera::simt::conv::Image<float> >(float*)":
                "gemm::gemm_kernel<conv::Image<float>>",
        }.items():
            self.assertEqual(kernel_names.short_name(long), short)
            self.assertTrue(kernel_names.is_kernel(long))
        for other in ("tessera::simt::launch_kernels(int)",
                      "tessera::simt::Launcher<&tessera::simt::sum_kernel>::run(int)",
                      "std::vector<tessera::simt::sum_kernel<int> >::size() const",
                      "void tessera::simt::gemm::gemm_kernel<4>(int)::{lambda(int)#1}::operator()(int) const",
                      "void tessera::simt::sum_kernel<4>(int)::{lambda(int)#1}::_FUN(int)"):
            self.assertFalse(kernel_names.is_kernel(other), other)


class Resources(unittest.TestCase):
    def judge(self, text, allowed=(), launches=None):
        return kernel_resources.table(kernel_resources.parse_ptxas(text), launches, dict(allowed))

    def test_good_kernel(self):
        block = {"capability": 80, "threads": 128, "shared": 48 << 10}
        lines, errors = self.judge(report(0, 0), launches={"add_kernel<4>": {"blocks": [block]}})
        self.assertEqual(errors, [])
        # Four blocks of four warps by shared memory.
        self.assertEqual(lines[2], "| `add_kernel<4>` | sm_90a | 128 | 49168 | 40 | 0 | 0 | 25% |")

    def test_spills_need_a_reason(self):
        for stack, spills in ((8, 8), (16, 0)):
            self.assertEqual(len(self.judge(report(stack, spills))[1]), 1)
            self.assertEqual(self.judge(report(stack, spills), {"add_kernel<.*>": "why"})[1], [])
        self.assertEqual(len(self.judge(report(0, 0), {"gone_kernel": "why"})[1]), 1)

    def test_block_that_does_not_fit(self):
        block = {"capability": 90, "threads": 1024, "shared": 230 << 10}
        self.assertEqual(
            len(self.judge(report(0, 0), launches={"add_kernel<4>": {"blocks": [block]}})[1]), 1)

    def test_kernel_of_another_architecture(self):
        block = {"capability": 90, "threads": 256, "shared": 200 << 10}
        lines, errors = self.judge(report(0, 0, architecture="sm_80"),
                                   launches={"add_kernel<4>": {"blocks": [block]}})
        self.assertEqual(errors, [])
        self.assertTrue(lines[2].endswith(" | ? |"), lines[2])

    def test_kernel_for_nvcc_alone(self):
        for launches in ({}, {"add_kernel<4>": {"tests": [], "blocks": []}}):
            lines, errors = self.judge(report(0, 0), launches=launches)
            self.assertEqual(len(errors), 1)
            self.assertIn("add_kernel<4>: nvcc compiles it, and no test", errors[0])
        # Where no tests ran, nobody can say.
        lines, errors = self.judge(report(0, 0))
        self.assertEqual(errors, [])
        self.assertTrue(lines[2].endswith("| 75%? |"), lines[2])

    def test_kernel_of_another_name(self):
        errors = self.judge(report(0, 0, "_ZN7tessera3gpu7add_allILi4EEEvPf"))[1]
        self.assertEqual(errors, ["add_all<4>: a kernel's name ends in _kernel"])

    def test_unknown_architecture(self):
        block = {"add_kernel<4>": {"blocks": [{"capability": 90, "threads": 128, "shared": 0}]}}
        text = report(0, 0, architecture="sm_999") + report(0, 0)
        lines, errors = self.judge(text, launches=block)
        self.assertEqual(errors, [])
        self.assertEqual([line.split(" | ")[-1] for line in lines[2:]], ["75% |", "? |"])
        summary = kernel_resources.summary(kernel_resources.parse_ptxas(text), block)
        self.assertIn(" | 75% | ", summary[2])

    def test_serialized_products(self):
        loss = ("ptxas info    : (C7515) Potential Performance Loss: wgmma.mma_async instructions "
                f"are serialized due to a reason in the function '{ADD}'\n")
        self.assertEqual(kernel_resources.losses(loss + report(0, 0) + loss),
                         {ADD: "wgmma.mma_async instructions are serialized due to a reason"})
        self.assertEqual(kernel_resources.losses(report(0, 0)), {})
        with tempfile.TemporaryDirectory() as folder:
            build = pathlib.Path(folder)
            (build / "add.cu.o").touch()
            compiler = [sys.executable, "-c", f"import sys; sys.stderr.write({loss + report(0, 0)!r})"]
            run = subprocess.run([sys.executable, kernel_resources.__file__, "compile", *compiler,
                                  "-o", build / "add.cu.o"], stderr=subprocess.PIPE, text=True)
            self.assertEqual((run.returncode, run.stderr), (0, loss))
            self.assertEqual(self.show(build), 1)

    def test_launches_of_an_older_build(self):
        with tempfile.TemporaryDirectory() as folder:
            build = pathlib.Path(folder)
            (build / "add.cu.o").touch()
            (build / "add.cu.o.ptxas").write_text(report(0, 0))
            self.assertEqual(self.show(build), 0)
            (build / "kernel-launches.json").write_text("{}")
            self.assertEqual(self.show(build), 1)
            os.utime(build / "kernel-launches.json", (1, 1))
            self.assertEqual(self.show(build), 0)

    def show(self, build):
        with contextlib.redirect_stdout(io.StringIO()):
            return kernel_resources.show(build, pathlib.Path("/dev/null"))  # no reasons

    def test_occupancy(self):
        # From cuda_occupancy.h.
        for arguments, blocks, warps in (((80, 256, 64, 0), 4, 64), ((80, 96, 40, 0), 16, 64),
                                         ((90, 128, 32, 65536), 3, 64), ((89, 32, 16, 0), 24, 48),
                                         ((75, 1024, 65, 0), 0, 32), ((86, 64, 16, 0), 16, 48),
                                         ((87, 128, 32, 65536), 2, 48), ((110, 32, 16, 0), 24, 48),
                                         ((103, 128, 32, 65536), 3, 64), ((121, 256, 64, 0), 4, 48)):
            threads = arguments[1]
            self.assertAlmostEqual(kernel_resources.occupancy(*arguments),
                                   blocks * (threads // 32) / warps)


class Instructions(unittest.TestCase):
    def test_loops_of_products(self):
        def line(address, text):
            return f"        /*{address:04x}*/    {text} ;   /* 0x01 */\n         /* 0x02 */\n"
        body = "".join(line(16 * i, text) for i, text in enumerate((
            "MOV R1, c[0x0][0x28]", "HMMA.16816.F32.BF16 R0, R4, R8, R0",  # before the loop
            "LDSM.16.M88.4 R4, [R2]", "HMMA.16816.F32.BF16 R0, R4, R8, R0",
            "@!P1 BRA 0x20", "HMMA.16816.F32.BF16 R0, R4, R8, R0",
            "HMMA.16816.F32.BF16 R4, R4, R8, R4", "IADD3 R2, R2, 0x10, RZ", "@P0 BRA 0x20",
            "@P0 BRA 0xa0", "EXIT", "BRA 0xb0", "NOP")))
        text = (f"\tcode for sm_80\n\t\tFunction : {ADD}\n{body}"
                f"\tcode for sm_90a\n\t\tFunction : {ADD}\n{line(0, 'EXIT')}")
        codes = kernel_sass.parse(text)
        self.assertEqual(codes, {(ADD, "sm_80"): (11, 7, 3, 0, 0, 0, 0, 0),
                                 (ADD, "sm_90a"): (1, 0, 0, 0, 0, 0, 0, 0)})
        self.assertEqual(kernel_sass.table(codes),
                         ["| kernel | arch | instructions | loop | mma | stores | loads | outside |"
                          " stores outside | loads outside |",
                          "| --- | --- |" + 8 * " ---: |",
                          "| `add_kernel<4>` | sm_80 | 11 | 7 | 3 | 0 | 0 | 0 | 0 | 0 |",
                          "| `add_kernel<4>` | sm_90a | 1 | 0 | 0 | 0 | 0 | 0 | 0 | 0 |"])

    def test_loops_of_vectors(self):
        load, store = "LDG.E.128.CONSTANT R4, desc[UR4][R2.64]", "STG.E.64 desc[UR4][R2.64], R4"
        # Two variants of a pass, of which the second one loads more; a loop of scalars.
        lines = (load, "LDG.E R4, [R2]", load, "@P0 " + store, "@P0 BRA 0x20", "EXIT",
                 load, "@!P1 " + load, "FADD R4, R4, R5", store, "@P0 BRA 0x60",
                 "LDG.E R4, [R2]", "STG.E [R2], R4", "@P0 BRA 0xb0", "EXIT")
        text = "".join(f"        /*{16 * i:04x}*/  {line} ;\n" for i, line in enumerate(lines))
        self.assertEqual(kernel_sass.code_of(text.splitlines()), (15, 5, 0, 1, 2, 7, 0, 1))
        # Without stores the loads count, and an outer loop's are not the main loop's.
        lines = (load, load, load, "@P0 BRA 0x20", load, "@P0 BRA 0x10", "EXIT")
        text = "".join(f"        /*{16 * i:04x}*/  {line} ;\n" for i, line in enumerate(lines))
        self.assertEqual(kernel_sass.code_of(text.splitlines()), (7, 2, 0, 0, 1, 2, 0, 1))

    def test_kernels_wait_before_they_touch_memory(self):
        def early(*lines):
            return kernel_sass.early_of(f"        /*{16 * i:04x}*/    {line} ;   /* 0x01 */"
                                        for i, line in enumerate(lines))
        self.assertEqual(early("LDC R1, c[0x0][0x28]", "ACQBULK", "LDG.E R2, desc[UR4][R2.64]"), "")
        self.assertEqual(early("S2R R0, SR_TID.X", "EXIT"), "does not wait for the kernel before it")
        for access in ("LDG.E.CONSTANT R2, desc[UR4][R2.64]", "@!P0 STG.E desc[UR4][R2.64], R3",
                       "LDGSTS.E.BYPASS.128 [R2], desc[UR4][R4.64]"):
            self.assertEqual(early("S2R R0, SR_TID.X", access, "ACQBULK", "EXIT"),
                             f"{access} comes before the wait for the kernel before it")

    def test_empty_groups_of_wgmma(self):
        def faults(*lines):
            return kernel_sass.faults_of([f"        /*{16 * i:04x}*/    {line} ;   /* 0x01 */"
                                          for i, line in enumerate(("ACQBULK", *lines))])
        product = "HGMMA.64x128x16.F32.BF16 R24, gdesc[UR20], R24"
        self.assertEqual(faults(product, product + ", gsb0"), [])
        self.assertEqual(faults(product + ", gsb0", "WARPGROUP.ARRIVE",
                                "HGMMA.64x8x16.F16 RZ, gdesc[URZ], RZ, !UPT, gsb0"),
                         ["ends an empty group of wgmma"])


class Launches(unittest.TestCase):
    def test_a_kernel_that_nobody_launches(self):
        launched = {ADD_SIMT: {"tests": {"sums"}, "blocks": {(80, 256, 0)}}}
        names = {ADD_SIMT: "add_kernel<4>", "_Zother": "other_kernel"}
        text, data = kernel_launches.report(names, launched)
        self.assertIn("| `add_kernel<4>` | sums |", text)
        self.assertIn("| `other_kernel` | **never** |", text)
        self.assertEqual(data["other_kernel"]["tests"], [])
        self.assertEqual(data["add_kernel<4>"]["blocks"],
                         [{"capability": 80, "threads": 256, "shared": 0}])

    def test_global_functions_have_a_name_and_a_beginning(self):
        with tempfile.TemporaryDirectory() as folder:
            (pathlib.Path(folder) / "a.cu").write_text(
                "template <class T, int N>\n"
                "__global__ void __launch_bounds__(f(Tile::kThreads))\n"
                "    good_kernel(T a, int b) {\n  ptx::begin_kernel();\n}\n"
                "__global__ void early_kernel(int* a) {\n  *a = 1;\n  ptx::begin_kernel();\n}\n"
                "__global__ void empty_kernel() {}\n"
                "// a __global__ function, void comment(int)\n"
                "__global__ void probe() {}\n"
                "__global__ void also_kernel();\n")
            (pathlib.Path(folder) / "b.h").write_text(
                "__global__ __launch_bounds__(256) void kernel_of_sums(int n) { launch_kernel(n); }")
            self.assertEqual([" ".join(error.split()[:3]) for error in
                              kernel_launches.misdeclared(pathlib.Path(folder))],
                             ["a.cu: early_kernel does", "a.cu: empty_kernel does",
                              "a.cu: probe is", "b.h: kernel_of_sums is"])


KERNEL = """
__device__ __forceinline__ float inside(const float* x, int i, int n) {
  return i >= 0 && i < n ? x[i] : 0.0f;  // i < m is not code
}
__global__ void sum_kernel(const float* x, int64_t n) {
  constexpr bool wide = kSize < 8;
  if (threadIdx.x >= n) return;
  for (int i = 0; i < n; ++i) ptx::cp_async_commit();
  ptx::cp_async_wait<kStages - 2>();
  if constexpr (kSize < 4) __syncthreads();
  if (row + a[i < 3] <
      rows && !done)
    __syncwarp(mask);
}
void launcher(int n) {
  if (n < 1) return;
}
"""


class Mutants(unittest.TestCase):
    def test_sites(self):
        sites = mutants.find_sites("sum.cu", KERNEL)
        self.assertEqual([(s.line, s.kind, s.text, s.instead) for s in sites if s.kind == "bounds"],
                         [(3, "bounds", "i >= 0", "true"), (3, "bounds", "i < n", "true"),
                          (7, "bounds", "threadIdx.x >= n", "false"),
                          (11, "bounds", "row + a[i < 3] < rows", "true")])
        self.assertEqual([(s.line, s.kind, s.text) for s in sites if s.kind != "bounds"],
                         [(8, "commit", "ptx::cp_async_commit()"),
                          (9, "wait", "ptx::cp_async_wait<kStages - 2>()"),
                          (10, "barrier", "__syncthreads()"), (13, "barrier", "__syncwarp(mask)")])

    def test_planting(self):
        text = "__device__ int f(int i) { return i < n ? 1 : 0; }\n"
        planted = mutants.with_mutants(text, [(7, mutants.find_sites("f.h", text)[0])])
        self.assertIn("return (::mutant(7) ? true : i < n) ? 1 : 0;", planted)


if __name__ == "__main__":
    unittest.main()
