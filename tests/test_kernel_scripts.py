#!/usr/bin/env python3
"""Tests of the scripts that judge kernels: each says what is wrong when something is."""
import pathlib
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import kernel_launches  # noqa: E402
import kernel_names  # noqa: E402
import kernel_resources  # noqa: E402
import mutants  # noqa: E402

ADD = "_ZN7tessera3gpu10add_kernelILi4EEEvPf"
ADD_SIMT = "_ZN7tessera4simt10add_kernelILi4EEEvPf"


def report(stack, spills):
    return (f"ptxas info    : Compiling entry function '{ADD}' for 'sm_90a'\n"
            f"ptxas info    : Function properties for {ADD}\n"
            f"    {stack} bytes stack frame, {spills} bytes spill stores, {spills} bytes spill "
            f"loads\nptxas info    : Used 40 registers, used 1 barriers, 16 bytes smem\n")


class Names(unittest.TestCase):
    def test_short(self):
        for long, short in {
            "void tessera::gpu::each_kernel<tessera::gpu::(anonymous namespace)::Add<float, 4> >"
            "(long, tessera::gpu::(anonymous namespace)::Add<float, 4>)":
                "each_kernel<Add<float, 4>>",
            "tessera::simt::(anonymous namespace)::sum_kernel(float const*, float*)": "sum_kernel",
            "void tessera::gpu::gelu_kernel<(tessera::GeluForm)1>(float*)":
                "gelu_kernel<(GeluForm)1>",
        }.items():
            self.assertEqual(kernel_names.short_name(long), short)
            self.assertTrue(kernel_names.is_kernel(long))
        for other in ("tessera::simt::launch_kernels(int)",
                      "tessera::simt::Launcher<&tessera::simt::sum_kernel>::run(int)",
                      "std::vector<tessera::simt::sum_kernel<int> >::size() const"):
            self.assertFalse(kernel_names.is_kernel(other), other)


class Resources(unittest.TestCase):
    def judge(self, text, allowed=(), launches=()):
        return kernel_resources.table(kernel_resources.parse_ptxas(text), dict(launches),
                                      dict(allowed))

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

    def test_occupancy(self):
        # From cuda_occupancy.h.
        for arguments, blocks, warps in (((80, 256, 64, 0), 4, 64), ((80, 96, 40, 0), 16, 64),
                                         ((90, 128, 32, 65536), 3, 64), ((89, 32, 16, 0), 24, 48),
                                         ((75, 1024, 65, 0), 0, 32), ((86, 64, 16, 0), 16, 48)):
            threads = arguments[1]
            self.assertAlmostEqual(kernel_resources.occupancy(*arguments),
                                   blocks * (threads // 32) / warps)


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
