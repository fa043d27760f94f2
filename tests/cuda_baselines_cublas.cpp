// cuBLAS for linear. It has matrices by columns: one of ours, by rows, is its own transpose there.
#include <cublas_v2.h>

#include "tests/cuda_baselines.h"

namespace tessera {
namespace {

struct Functions {
  explicit Functions(const SharedLibrary& library)
      : create(library.find<decltype(create)>("cublasCreate_v2")),
        destroy(library.find<decltype(destroy)>("cublasDestroy_v2")),
        set_stream(library.find<decltype(set_stream)>("cublasSetStream_v2")),
        get_version(library.find<decltype(get_version)>("cublasGetVersion_v2")),
        gemm(library.find<decltype(gemm)>("cublasGemmEx")) {}
  decltype(&cublasCreate_v2) create;
  decltype(&cublasDestroy_v2) destroy;
  decltype(&cublasSetStream_v2) set_stream;
  decltype(&cublasGetVersion_v2) get_version;
  // Its C++ overloads take more types than this one.
  cublasStatus_t (*gemm)(cublasHandle_t, cublasOperation_t, cublasOperation_t, int, int, int,
                         const void*, const void*, cudaDataType, int, const void*, cudaDataType,
                         int, const void*, void*, cudaDataType, int, cublasComputeType_t,
                         cublasGemmAlgo_t);
};

void check(cublasStatus_t status, const char* what) {
  ENSURE(status == CUBLAS_STATUS_SUCCESS, what, ": cuBLAS status ", int(status));
}

cudaDataType cuda_type(DType dtype) { return dtype == DType::bf16 ? CUDA_R_16BF : CUDA_R_32F; }

class Cublas : public CublasLibrary {
 public:
  Cublas(Stream& stream, const SharedLibrary& library) : stream_(stream), functions_(library) {
    check(functions_.create(&handle_), "cublasCreate");
    check(functions_.set_stream(handle_, static_cast<cudaStream_t>(stream.native())),
          "cublasSetStream");
  }
  ~Cublas() override { functions_.destroy(handle_); }

  std::string version() const override {
    int version = 0;
    check(functions_.get_version(handle_, &version), "cublasGetVersion");
    return concat("cuBLAS ", version);
  }

  LibraryCall linear(int64_t N, int64_t C, int64_t K, Direction direction,
                     const Arithmetic& arithmetic) override {
    const auto tensor = [&](int64_t rows, int64_t columns, DType dtype) {
      return random_tensor(stream_, {rows, columns}, dtype);
    };
    const DType storage = arithmetic.storage;
    const Tensor x = tensor(N, C, storage), w = tensor(K, C, storage);
    const Tensor y = tensor(N, K, storage);  // or dy
    switch (direction) {
      case Direction::Forward:  // y^T [K,N] = w x^T
        return product({K, N, C}, {w, CUBLAS_OP_T}, {x, CUBLAS_OP_N}, y, arithmetic);
      case Direction::DataGradient:  // dx^T [C,N] = w^T dy^T
        return product({C, N, K}, {w, CUBLAS_OP_N}, {y, CUBLAS_OP_N}, tensor(N, C, storage),
                       arithmetic);
      case Direction::WeightGradient:  // dw^T [C,K] = x^T dy
        return product({C, K, N}, {x, CUBLAS_OP_N}, {y, CUBLAS_OP_T}, tensor(K, C, DType::f32),
                       arithmetic);
      case Direction::Backward:
        break;
    }
    return nullptr;
  }

 private:
  struct Sizes {
    int64_t m, n, k;
  };
  struct Factor {
    Tensor matrix;
    cublasOperation_t operation;
  };

  LibraryCall product(const Sizes& s, const Factor& a, const Factor& b, Tensor c,
                      const Arithmetic& arithmetic) {
    const auto compute = arithmetic.storage == DType::f32 && arithmetic.math == Math::tf32
                             ? CUBLAS_COMPUTE_32F_FAST_TF32
                             : CUBLAS_COMPUTE_32F;
    const auto call = [=, this]() mutable {
      const float one = 1, zero = 0;
      check(functions_.gemm(handle_, a.operation, b.operation, int(s.m), int(s.n), int(s.k), &one,
                            a.matrix.raw(), cuda_type(a.matrix.dtype()), int(a.matrix.dim(1)),
                            b.matrix.raw(), cuda_type(b.matrix.dtype()), int(b.matrix.dim(1)),
                            &zero, c.raw(), cuda_type(c.dtype()), int(c.dim(1)), compute,
                            CUBLAS_GEMM_DEFAULT),
            "cublasGemmEx");
    };
    return call;
  }

  Stream& stream_;
  Functions functions_;
  cublasHandle_t handle_ = nullptr;
};

}  // namespace

std::unique_ptr<CublasLibrary> open_cublas(Stream& stream) {
  if (stream.device().type() != DeviceType::cuda) return nullptr;
  const SharedLibrary library(concat("libcublas.so.", CUBLAS_VER_MAJOR));
  if (!library) return nullptr;
  return std::make_unique<Cublas>(stream, library);
}

}  // namespace tessera
