// Faults that the host model finds, each shown on a broken kernel beside its correct twin. Messages
// name kernel, block and thread.
#include <sys/wait.h>
#include <unistd.h>

#include "kernels/cuda/ptx/grid_dependency.h"
#include "tests/simt_device.h"

namespace tessera::simt {
namespace {

// A fault in thread `thread` of block `block` of `kernel` whose message has `what`.
void check_fault(const std::string& message, const std::string& what, const std::string& kernel,
                 const std::string& block, const std::string& thread) {
  CHECK_THAT(message, Catch::Contains(what));
  CHECK_THAT(message, Catch::Contains(concat("kernel ", kernel_text(kernel), ", block ", block,
                                             ", thread ", thread)));
}

// Adds up what a thread and its neighbour put into shared memory. Broken: one is left out.
template <bool broken>
void shared_sum_kernel(float* out) {
  auto& values = shared_memory<float[64]>();
  if (!broken || threadIdx.x != 7) values[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = values[threadIdx.x] + values[(threadIdx.x + 1) % 64];
}

template <bool broken>
void global_sum_kernel(const float* in, float* out) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  out[i] = in[broken ? i + 1 : i] * 2;
}

// `half` of the block comes to another barrier, or to none.
enum class Barrier { Right, TwoLines, EarlyReturn };
template <Barrier barrier>
void barrier_kernel(int* out) {
  auto& values = shared_memory<int[64]>();
  const unsigned i = threadIdx.x;
  values[i] = int(i);
  if (barrier == Barrier::EarlyReturn && i == 9) return;
  if (barrier == Barrier::TwoLines && i >= 32)
    __syncthreads();
  else
    __syncthreads();
  out[i] = values[63 - i];
}

enum class Named { Right, Counts, NoSuchBarrier, OddCount, TooMany, HalfWarps };
template <Named named>
void named_barrier_kernel() {
  const int id = named == Named::NoSuchBarrier ? 16 : 3;
  const int count = named == Named::OddCount                          ? 33
                    : named == Named::TooMany                         ? 96
                    : named == Named::HalfWarps                       ? 32
                    : named == Named::Counts && threadIdx.x / 32 == 1 ? 32
                                                                      : 64;
  if (named == Named::HalfWarps && threadIdx.x % 32 >= 16) return;
  block_barrier(id, count, 0, "named", Where::current());
}

enum class Lanes { Right, NotInMask, OtherMask, LeftOut, NoSource, Exited };
template <Lanes lanes>
void lanes_kernel(int* out) {
  const unsigned i = threadIdx.x;
  unsigned mask = 0x0000FFFF;
  int source = 3;
  if (i >= 16) return;
  if (lanes == Lanes::NotInMask && i == 4) mask &= ~(1u << 4);
  if (lanes == Lanes::OtherMask && i == 4) mask = 0x000000FF;
  if (lanes == Lanes::LeftOut) mask = 0x0001FFFF;  // lane 16 has ended
  if (lanes == Lanes::NoSource) source = 20;
  if (lanes == Lanes::Exited && i == 5) return;
  out[i] = __shfl_sync(mask, int(i), source);
}

void missing_lane_kernel(int* out) { out[threadIdx.x] = __shfl_sync(~0u, 1, 31); }  // 31 threads

template <int offset>
void vector_kernel(const float* in, float* out) {
  const auto v = load_vector<float4>(in + offset + 4 * threadIdx.x);
  store_vector(out + 4 * threadIdx.x, v);
}
template <int offset>
void vector_store_kernel(float* out) {
  store_vector(out + offset + 4 * threadIdx.x, make_float4(1, 2, 3, 4));
}
template <int offset>
void atomic_kernel(char* to) {
  atomicAdd(reinterpret_cast<unsigned*>(to + offset), 1);
}

// Aligned as their types are, which is less than their sizes.
void wide_vector_kernel(const double* in, double* out) {
  store_vector(out + 2, load_vector<double4>(in + 2));
}
void triple_kernel(const float* in, float* out) { store_vector(out, load_vector<float3>(in + 1)); }

void shared_kernel() {
  if (threadIdx.x == 2) shared_memory<char[2000]>()[1999] = 0;
}

template <bool broken>
void flag_kernel(unsigned* flag) {
  if (threadIdx.x == (broken ? 99 : 0)) atomicExch(flag, 1);
  while (atomicAdd(flag, 0) == 0) yield_thread("the flag");
}

template <bool broken>
void cluster_kernel() {
  if (!broken || blockIdx.x != 1 || threadIdx.x != 3) cluster_sync();
}

template <bool broken>
void next_kernel() {
  if (!broken || blockIdx.x != 1 || threadIdx.x != 3) ptx::begin_kernel();
}

void reduce_kernel(unsigned* out) { out[threadIdx.x] = __reduce_add_sync(~0u, threadIdx.x); }

void wild_kernel(int* out, const int* index) {
  if (threadIdx.x == 3) out[int64_t{1} << 45 | index[0]] = 1;
}
void endless_kernel(int* out, int depth) {
  if (threadIdx.x != 3) return;
  volatile char frame[4096];
  frame[0] = char(depth);
  endless_kernel(out, depth + 1);
  out[frame[0] & 1] = 1;
}

// What the kernel prints when its process dies of it.
template <class F>
std::string crash_of(F f) {
  int ends[2];
  REQUIRE(pipe(ends) == 0);
  const pid_t child = fork();
  if (child == 0) {
    for (int number : {SIGSEGV, SIGBUS}) signal(number, SIG_DFL);  // not Catch2's
    dup2(ends[1], STDERR_FILENO);
    options().workers = 1;
    f();
    _exit(0);
  }
  close(ends[1]);
  std::string text;
  char buffer[4096];
  for (ssize_t n; (n = read(ends[0], buffer, sizeof buffer)) > 0;) text.append(buffer, size_t(n));
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  CHECK(status != 0);
  return text;
}

}  // namespace

TEST_CASE("arithmetic on shared memory that was never written", "[simt]") {
  in_every_order([] {
    options().trap_uninitialised = true;
    Array<float> out(64);
    run<shared_sum_kernel<false>>(dim3(2), dim3(64), 256, out);
    CHECK(out[7] == 2);
    const std::string message =
        fault_of_launch<shared_sum_kernel<true>>(dim3(2), dim3(64), 256, out);
    CHECK_THAT(message,
               Catch::Contains("uninitialised value") &&
                   Catch::Contains(kernel_text("shared_sum_kernel<true>") + ", block (") &&
                   (Catch::Contains("thread (6,0,0)") || Catch::Contains("thread (7,0,0)")));
  });
}

TEST_CASE("arithmetic on global memory that was never written", "[simt]") {
  const ScopedOptions scope(options());
  options().trap_uninitialised = true;
  Array<float> out(64), in(65);
  for (int i = 0; i < 64; ++i) in[i] = 1;
  CHECK(fault_of_launch<global_sum_kernel<false>>(dim3(2), dim3(32), 0, in, out) == "");
  check_fault(fault_of_launch<global_sum_kernel<true>>(dim3(2), dim3(32), 0, in, out),
              "uninitialised value", "global_sum_kernel<true>", "(1,0,0)", "(31,0,0)");
}

TEST_CASE("divergent barriers", "[simt]") {
  in_every_order([] {
    Array<int> out(64);
    CHECK(fault_of_launch<barrier_kernel<Barrier::Right>>(dim3(1), dim3(64), 256, out) == "");
    CHECK(out[5] == 58);
    const auto message =
        fault_of_launch<barrier_kernel<Barrier::TwoLines>>(dim3(1), dim3(64), 256, out);
    CHECK_THAT(message, Catch::Contains("divergent barriers") &&
                            Catch::Contains(kernel_text("barrier_kernel")) &&
                            Catch::Contains(", block (0,0,0), thread ("));
  });
}

TEST_CASE("a thread that left while others wait", "[simt]") {
  in_every_order([] {
    Array<int> out(64);
    const auto message =
        fault_of_launch<barrier_kernel<Barrier::EarlyReturn>>(dim3(3), dim3(64), 256, out);
    CHECK_THAT(message, Catch::Contains("__syncthreads is never completed") &&
                            Catch::Contains(kernel_text("barrier_kernel")) &&
                            Catch::Contains(", block (") &&
                            Catch::Contains("thread (9,0,0) has ended"));
  });
}

TEST_CASE("named barriers that do not agree or do not exist", "[simt]") {
  const auto fault = [](auto named) {
    return fault_of_launch<named_barrier_kernel<named.value>>(dim3(1), dim3(64), 0);
  };
  const auto of = []<Named n>() { return std::integral_constant<Named, n>{}; };
  CHECK(fault(of.operator()<Named::Right>()) == "");
  check_fault(fault(of.operator()<Named::Counts>()), "divergent barriers",
              "named_barrier_kernel<tessera::simt::<unnamed>::Named::Counts>", "(0,0,0)",
              "(32,0,0)");
  check_fault(fault(of.operator()<Named::NoSuchBarrier>()), "barrier 16 does not exist",
              "named_barrier_kernel<tessera::simt::<unnamed>::Named::NoSuchBarrier>", "(0,0,0)",
              "(0,0,0)");
  check_fault(fault(of.operator()<Named::OddCount>()), "must be a multiple of 32",
              "named_barrier_kernel<tessera::simt::<unnamed>::Named::OddCount>", "(0,0,0)",
              "(0,0,0)");
  check_fault(fault(of.operator()<Named::TooMany>()), "barrier 3 for 96 threads in a block of 64",
              "named_barrier_kernel<tessera::simt::<unnamed>::Named::TooMany>", "(0,0,0)",
              "(0,0,0)");
  check_fault(fault(of.operator()<Named::HalfWarps>()),
              "named of 32 threads: 16 of warp 0 came, and not the others",
              "named_barrier_kernel<tessera::simt::<unnamed>::Named::HalfWarps>", "(0,0,0)",
              "(47,0,0)");
}

TEST_CASE("bad lane masks", "[simt]") {
  Array<int> out(32);
  const auto fault = [&](auto lanes) {
    return fault_of_launch<lanes_kernel<lanes.value>>(dim3(1), dim3(32), 0, out);
  };
  const auto of = []<Lanes l>() { return std::integral_constant<Lanes, l>{}; };
  const auto kernel = [](const char* lanes) {
    return concat("lanes_kernel<tessera::simt::<unnamed>::Lanes::", lanes, '>');
  };
  CHECK(fault(of.operator()<Lanes::Right>()) == "");
  CHECK(out[9] == 3);
  check_fault(fault(of.operator()<Lanes::NotInMask>()), "by a lane that is not in it",
              kernel("NotInMask"), "(0,0,0)", "(4,0,0)");
  check_fault(fault(of.operator()<Lanes::OtherMask>()), "bad lane mask: lanes wait",
              kernel("OtherMask"), "(0,0,0)", "(4,0,0)");
  check_fault(fault(of.operator()<Lanes::LeftOut>()), "__shfl_sync is never completed",
              kernel("LeftOut"), "(0,0,0)", "(0,0,0)");
  check_fault(fault(of.operator()<Lanes::NoSource>()), "reads lane 20, which takes no part",
              kernel("NoSource"), "(0,0,0)", "(15,0,0)");
  check_fault(fault(of.operator()<Lanes::Exited>()), "__shfl_sync is never completed",
              kernel("Exited"), "(0,0,0)", "(0,0,0)");
  check_fault(fault_of_launch<missing_lane_kernel>(dim3(1), dim3(31), 0, out),
              "reads lane 31, which takes no part", "missing_lane_kernel", "(0,0,0)", "(30,0,0)");
}

TEST_CASE("misaligned vectors and atomics", "[simt]") {
  Array<float> in(std::vector<float>(40, 1)), out(40);
  Array<char> bytes(std::vector<char>(16));
  CHECK(fault_of_launch<vector_kernel<4>>(dim3(1), dim3(8), 0, in, out) == "");
  check_fault(fault_of_launch<vector_kernel<1>>(dim3(1), dim3(8), 0, in, out),
              "misaligned load of 16 bytes", "vector_kernel<1>", "(0,0,0)", "(0,0,0)");
  CHECK(fault_of_launch<vector_store_kernel<4>>(dim3(1), dim3(8), 0, out) == "");
  check_fault(fault_of_launch<vector_store_kernel<2>>(dim3(1), dim3(8), 0, out),
              "misaligned store of 16 bytes", "vector_store_kernel<2>", "(0,0,0)", "(0,0,0)");
  Array<double> doubles(std::vector<double>(6, 1)), out_doubles(6);
  CHECK(fault_of_launch<wide_vector_kernel>(dim3(1), dim3(1), 0, doubles, out_doubles) == "");
  CHECK(fault_of_launch<triple_kernel>(dim3(1), dim3(1), 0, in, out) == "");
  CHECK(fault_of_launch<atomic_kernel<4>>(dim3(1), dim3(1), 0, bytes) == "");
  check_fault(fault_of_launch<atomic_kernel<2>>(dim3(1), dim3(1), 0, bytes),
              "misaligned atomic on 4 bytes", "atomic_kernel<2>", "(0,0,0)", "(0,0,0)");
}

TEST_CASE("more shared memory than asked for, and than the profile has", "[simt]") {
  const ScopedOptions scope(options());
  CHECK(fault_of_launch<shared_kernel>(dim3(1), dim3(4), 2000) == "");
  check_fault(fault_of_launch<shared_kernel>(dim3(1), dim3(4), 1999),
              "uses 2000 bytes of shared memory, launched with 1999", "shared_kernel", "(0,0,0)",
              "(2,0,0)");
  for (const auto& [capability, kilobytes] : {std::pair(75, 64), {80, 163}, {89, 99}, {90, 227}}) {
    options().profile = profile_of(capability);
    const size_t limit = size_t(kilobytes) * 1024;
    CHECK(fault_of_launch<shared_kernel>(dim3(1), dim3(4), limit) == "");
    CHECK_THAT(fault_of_launch<shared_kernel>(dim3(1), dim3(4), limit + 1),
               Catch::Contains(concat("launch of ", kernel_text("shared_kernel"), " with ",
                                      limit + 1, " bytes of shared memory, sm_", capability)));
  }
}

TEST_CASE("launches that no GPU accepts", "[simt]") {
  Array<unsigned> out(1);
  CHECK_THAT(fault_of_launch<reduce_kernel>(dim3(1), dim3(1025), 0, out),
             Catch::Contains("reduce_kernel with 1025 threads"));
  CHECK(fault_of_launch<reduce_kernel>(dim3(1), dim3(1, 1, 65), 0, out) != "");
  CHECK(fault_of_launch<reduce_kernel>(dim3(0), dim3(1), 0, out) != "");
  CHECK(fault_of_launch<reduce_kernel>(dim3(1, 65536), dim3(1), 0, out) != "");
}

TEST_CASE("a loop that polls for what never comes", "[simt]") {
  in_every_order([] {
    for (int workers : {1, 3}) {
      options().workers = workers;
      Array<unsigned> flag(std::vector{0u});
      CHECK(fault_of_launch<flag_kernel<false>>(dim3(4), dim3(33), 0, flag) == "");
      flag[0] = 0;
      const auto message = fault_of_launch<flag_kernel<true>>(dim3(4), dim3(33), 0, flag);
      CHECK_THAT(message, Catch::Contains("deadlock: the flag is never completed: kernel ") &&
                              Catch::Contains(kernel_text("flag_kernel<true>") + ", block (") &&
                              Catch::Contains("), thread ("));
    }
  });
}

TEST_CASE("cluster_sync that not all threads reach, or in a launch without clusters", "[simt]") {
  const ScopedOptions scope(options());
  options().profile = profile_of(90);
  in_every_order([] {
    TestStream stream;
    launch<cluster_kernel<false>>({stream, dim3(4), dim3(8), 0, 4});
    stream.wait();
    launch<cluster_kernel<true>>({stream, dim3(4), dim3(8), 0, 2});
    CHECK_THAT(fault_of([&] { stream.wait(); }),
               Catch::Contains("cluster_sync is never completed") &&
                   Catch::Contains(kernel_text("cluster_kernel<true>") + ", block ("));
    launch<cluster_kernel<false>>({stream, dim3(4), dim3(8)});
    CHECK_THAT(fault_of([&] { stream.wait(); }), Catch::Contains("without clusters"));
  });
}

TEST_CASE("a kernel that may overlap another and does not wait for it", "[simt]") {
  in_every_order([] {
    TestStream stream;
    launch_next<next_kernel<false>>({stream, dim3(4), dim3(8)});
    launch<next_kernel<true>>({stream, dim3(4), dim3(8)});
    stream.wait();
    launch_next<next_kernel<true>>({stream, dim3(4), dim3(8)});
    check_fault(fault_of([&] { stream.wait(); }), "has not waited for the kernel before",
                "next_kernel<true>", "(1,0,0)", "(3,0,0)");
  });
}

TEST_CASE("an instruction that the profile lacks", "[simt]") {
  const ScopedOptions scope(options());
  Array<unsigned> out(32);
  for (int capability : {80, 89, 90}) {
    options().profile = profile_of(capability);
    CHECK(fault_of_launch<reduce_kernel>(dim3(1), dim3(32), 0, out) == "");
    CHECK(out[3] == 496);
  }
  options().profile = profile_of(75);
  check_fault(fault_of_launch<reduce_kernel>(dim3(1), dim3(32), 0, out),
              "__reduce_add_sync needs sm_80, this is sm_75", "reduce_kernel", "(0,0,0)",
              "(0,0,0)");
}

TEST_CASE("a crash says where it was", "[simt]") {
  Array<int> out(8), index(std::vector{1});
  const auto wild = crash_of([&] { run<wild_kernel>(dim3(2), dim3(8), 0, out, index); });
  CHECK_THAT(wild, Catch::Contains("::wild_kernel, block (0,0,0), thread (3,0,0)"));
  const auto deep = crash_of([&] { run<endless_kernel>(dim3(2), dim3(8), 0, out, 0); });
  CHECK_THAT(deep, Catch::Contains("::endless_kernel, block (0,0,0), thread (3,0,0)"));
}

// The same line of two files. Last in this file, whose lines end here.
template <bool lanes>
void two_files_kernel() {
  if (threadIdx.x % 2)
#line 1000 "one.cu"
    lanes ? __syncwarp() : __syncthreads();
  else
#line 1000 "other.cu"
    lanes ? __syncwarp() : __syncthreads();
}

TEST_CASE("barriers at the same line of two files are two", "[simt]") {
  CHECK_THAT(fault_of_launch<two_files_kernel<false>>(dim3(1), dim3(32), 0),
             Catch::Contains("divergent barriers") && Catch::Contains("other.cu:1000") &&
                 Catch::Contains("one.cu:1000"));
  CHECK_THAT(fault_of_launch<two_files_kernel<true>>(dim3(1), dim3(32), 0),
             Catch::Contains("bad lane mask") && Catch::Contains("other.cu:1000") &&
                 Catch::Contains("one.cu:1000"));
}

}  // namespace tessera::simt
