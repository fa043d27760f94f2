// linear: y [N,K] = x [N,C] w[K,C]^T + b. The bias is added and summed by kernels of our own, which
// are bound by memory. The products are cuBLAS's on a GPU, plain loops on the host model: the one
// place where these go different ways. cuBLAS is loaded at its first use, so that programs start
// without it, and is not emulated.
#include "kernels/cuda/columns.h"

#ifdef TESSERA_GPU
#include <cublas_v2.h>
#include <dlfcn.h>

#include <climits>
#else
#include <bit>
#include <cmath>
#include <set>
#endif

namespace tessera::TESSERA_CUDA {
namespace {

// A factor of a product, as it is or transposed.
struct Factor {
  const Tensor& matrix;
  bool transposed = false;
};

// As for convolutions: where there are tensor cores, products of f32 may be tf32's.
bool use_tf32(Stream& stream, const Factor& a) {
  return stream.math == Math::tf32 && a.matrix.dtype() == DType::f32 &&
         has_mma(stream.device().info());
}

struct Sizes {
  int64_t M, N, K;
  Sizes(const Factor& a, const Factor& b, const Tensor& c)
      : M(c.dim(0)), N(c.dim(1)), K(a.matrix.dim(a.transposed ? 0 : 1)) {
    ENSURE(a.matrix.dim(a.transposed ? 1 : 0) == M && b.matrix.dim(b.transposed ? 1 : 0) == K &&
               b.matrix.dim(b.transposed ? 0 : 1) == N && a.matrix.dtype() == b.matrix.dtype(),
           "matmul: ", a.matrix.shape(), ", ", b.matrix.shape(), ", ", c.shape());
  }
};

#ifdef TESSERA_GPU

// The library that belongs to the headers of this build. It stays loaded.
void* load_cublas() {
  const std::string name = concat("libcublas.so.", CUBLAS_VER_MAJOR);
  for (const std::string& path : {name, concat(TESSERA_CUDA_LIBRARIES, '/', name)})
    if (void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE)) return library;
  const char* reason = dlerror();
  throw InputError(concat("device cuda needs cuBLAS, which cannot be loaded: ",
                          reason ? reason : name.c_str(), " (use --device cpu)"));
}

// A stream's handle: Stream::state<CuBlas>().
class CuBlas {
 public:
  // cuBLAS's own workspace may depend on what else runs, and its allocation cannot be captured in a
  // graph. Sizes: cuBLAS documentation, cublasSetWorkspace.
  explicit CuBlas(Stream& stream)
      : library_(load_cublas()),
        workspace_(Tensor::empty(
            stream, {int64_t{stream.device().info().capability >= 90 ? 32 : 4} << 20}, DType::u8)) {
    check(function<decltype(cublasCreate_v2)>("cublasCreate_v2")(&handle_), "cublasCreate");
    check(
        function<decltype(cublasSetStream_v2)>("cublasSetStream_v2")(handle_, cuda_stream(stream)),
        "cublasSetStream");
    check(function<decltype(cublasSetWorkspace_v2)>("cublasSetWorkspace_v2")(
              handle_, workspace_.raw(), workspace_.bytes()),
          "cublasSetWorkspace");
    // TF32 only where a call asks for it, and partial sums of bf16 products are float.
    check(function<decltype(cublasSetMathMode)>("cublasSetMathMode")(
              handle_,
              cublasMath_t(CUBLAS_DEFAULT_MATH | CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION)),
          "cublasSetMathMode");
    // Declared twice, with enums and, for C++, with integers.
    gemm_ = function<Gemm>("cublasGemmEx");
  }
  ~CuBlas() {
    if (handle_) function<decltype(cublasDestroy_v2)>("cublasDestroy_v2")(handle_);
  }
  CuBlas(const CuBlas&) = delete;
  CuBlas& operator=(const CuBlas&) = delete;

  // cuBLAS sees row-major matrices as their transposes: c^T = b^T a^T.
  void multiply(const Sizes& s, const Factor& a, const Factor& b, Tensor& c, GradMode mode,
                bool tf32) {
    const float one = 1, beta = mode == GradMode::Accumulate ? 1 : 0;
    const auto size = [](int64_t n) {
      ENSURE(n <= INT_MAX, "matmul: ", n, " is more than cuBLAS takes");
      return int(n);
    };
    const auto pitch = [&](const Tensor& matrix) {
      return size(std::max<int64_t>(matrix.dim(1), 1));
    };
    const auto operation = [](const Factor& f) { return f.transposed ? CUBLAS_OP_T : CUBLAS_OP_N; };
    const auto type = [](const Tensor& t) {
      return t.dtype() == DType::bf16 ? CUDA_R_16BF : CUDA_R_32F;
    };
    check(gemm_(handle_, operation(b), operation(a), size(s.N), size(s.M), size(s.K), &one,
                b.matrix.raw(), type(b.matrix), pitch(b.matrix), a.matrix.raw(), type(a.matrix),
                pitch(a.matrix), &beta, c.raw(), type(c), pitch(c),
                tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
          "cublasGemmEx");
  }

 private:
  // decltype cannot name cublasGemmEx: C++ has an overload of it.
  using Gemm = cublasStatus_t(cublasHandle_t, cublasOperation_t, cublasOperation_t, int, int, int,
                              const void*, const void*, cudaDataType, int, const void*,
                              cudaDataType, int, const void*, void*, cudaDataType, int,
                              cublasComputeType_t, cublasGemmAlgo_t);

  template <class Function>
  Function* function(const char* name) const {
    void* address = dlsym(library_, name);
    if (!address) throw InputError(concat("device cuda: cuBLAS has no ", name));
    return reinterpret_cast<Function*>(address);
  }
  static void check(cublasStatus_t status, const char* call) {
    if (status == CUBLAS_STATUS_ALLOC_FAILED) throw OutOfMemory(concat("out of memory in ", call));
    ENSURE(status == CUBLAS_STATUS_SUCCESS, call, " failed with status ", int(status));
  }

  void* library_;
  Tensor workspace_;
  cublasHandle_t handle_ = nullptr;
  Gemm* gemm_ = nullptr;
};

void multiply(Stream& stream, const Sizes& s, const Factor& a, const Factor& b, Tensor& c,
              GradMode mode) {
  stream.state<CuBlas>().multiply(s, a, b, c, mode, use_tf32(stream, a));
}

#else

// To the nearest tf32, ties away from zero: as ptx::to_tf32, but a NaN keeps its bits.
float to_tf32(float x) {
  if (!std::isfinite(x)) return x;
  return std::bit_cast<float>((std::bit_cast<uint32_t>(x) + 0x1000) & 0xFFFFE000);
}

struct HostFactor {
  const std::byte* data;
  DType dtype;
  int64_t row, column;  // element (i, j) is number i * row + j * column
  bool tf32;
  HostFactor(const Factor& f, bool tf32)
      : data(f.matrix.raw()),
        dtype(f.matrix.dtype()),
        row(f.transposed ? 1 : f.matrix.dim(1)),
        column(f.transposed ? f.matrix.dim(1) : 1),
        tf32(tf32) {}
  auto operator<=>(const HostFactor&) const = default;

  float at(int64_t i, int64_t j) const {
    const int64_t number = i * row + j * column;
    if (dtype == DType::bf16) return to_float(reinterpret_cast<const bf16*>(data)[number]);
    const float x = reinterpret_cast<const float*>(data)[number];
    return tf32 ? to_tf32(x) : x;
  }
};

struct HostProduct {
  HostFactor a, b;
  std::byte* c;
  DType c_dtype;
  int64_t M, N, K;
  GradMode mode;
  auto operator<=>(const HostProduct&) const = default;

  template <class T>
  void run() const {
    T* to = reinterpret_cast<T*>(c);
    for (int64_t m = 0; m < M; ++m)
      for (int64_t n = 0; n < N; ++n) {
        float sum = 0;
        for (int64_t k = 0; k < K; ++k) sum += a.at(m, k) * b.at(k, n);
        put_at(to + m * N + n, sum, mode == GradMode::Accumulate);
      }
  }
  static void run(void* product) {
    const auto& p = *static_cast<const HostProduct*>(product);
    p.c_dtype == DType::bf16 ? p.run<bf16>() : p.run<float>();
  }
};

// The products of a stream, each kept once: a captured graph runs them again.
struct HostProducts {
  explicit HostProducts(Stream&) {}
  std::set<HostProduct> all;
};

void multiply(Stream& stream, const Sizes& s, const Factor& a, const Factor& b, Tensor& c,
              GradMode mode) {
  const bool tf32 = use_tf32(stream, a);
  const HostProduct& kept = *stream.state<HostProducts>()
                                 .all
                                 .insert({HostFactor(a, tf32), HostFactor(b, tf32), c.raw(),
                                          c.dtype(), s.M, s.N, s.K, mode})
                                 .first;
  CUDA_CHECK(
      cudaLaunchHostFunc(cuda_stream(stream), HostProduct::run, const_cast<HostProduct*>(&kept)));
}

#endif

// c [M,N] = a [M,K] b [K,N], or c += a b. Factors are f32 or both bf16, c is f32 or like them; sums
// are kept in float. Factors of f32 may be rounded to tf32 where Stream::math allows it. Throws
// InputError where cuBLAS is needed and cannot be loaded.
void matmul(Stream& stream, Factor a, Factor b, Tensor& c, GradMode mode) {
  const Sizes sizes(a, b, c);
  if (c.numel() > 0) multiply(stream, sizes, a, b, c, mode);
}

// y[n,k] += b[k]
template <class T>
struct AddBias {
  const float* b;
  T* y;
  int64_t K;
  __device__ void operator()(int64_t i) const { put_at(y + i, b[i % K], true); }
};

}  // namespace

void linear_fwd(Stream& stream, const Tensor& x, const Tensor& w, const Tensor& b, Tensor& y) {
  matmul(stream, {x}, {w, true}, y, GradMode::Overwrite);
  if (!b) return;
  with_storage(y.dtype(), [&](auto zero) {
    using T = decltype(zero);
    for_each(stream, y.numel(), AddBias<T>{b.data<float>(), y.data<T>(), y.dim(1)});
  });
}

void linear_bwd_data(Stream& stream, const Tensor& dy, const Tensor& w, Grad dx) {
  matmul(stream, {dy}, {w}, dx.tensor, dx.mode);
}

void linear_bwd_weight(Stream& stream, const Tensor& x, const Tensor& dy, Grad dw, Grad db) {
  if (dw) matmul(stream, {dy, true}, {x}, dw.tensor, dw.mode);
  if (!db) return;
  with_storage(dy.dtype(), [&](auto zero) {
    using T = decltype(zero);
    sum_rows(stream, 1, dy.dim(0), dy.dim(0), dy.dim(1), dy.data<T>(),
             PutSum<float>{db.tensor.data<float>(), db.mode == GradMode::Accumulate, dy.dim(1)});
  });
}

}  // namespace tessera::TESSERA_CUDA
