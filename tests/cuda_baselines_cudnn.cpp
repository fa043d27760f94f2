// Convolutions by cuDNN's graph API: a graph of one convolution, or of a convolution and the sum
// with its bias. What cuDNN's heuristics propose is tried, and every engine that takes the graph,
// with default knobs; the fastest counts. cuDNN developer guide, "Graph API"; cudnn_graph.h.
#include <cudnn.h>

#include <algorithm>
#include <chrono>
#include <vector>

#include "tests/cuda_baselines.h"

namespace tessera {
namespace {

constexpr int64_t kMaxWorkspace = int64_t{1} << 30;
constexpr size_t kProposals = 16;     // of a mode of the heuristics that are tried, best first
constexpr double kSearchSeconds = 3;  // nothing more is tried after it: some engines compile

struct Functions {
  explicit Functions(const SharedLibrary& library)
      : create(library.find<decltype(create)>("cudnnCreate")),
        destroy(library.find<decltype(destroy)>("cudnnDestroy")),
        set_stream(library.find<decltype(set_stream)>("cudnnSetStream")),
        get_version(library.find<decltype(get_version)>("cudnnGetVersion")),
        error_string(library.find<decltype(error_string)>("cudnnGetErrorString")),
        make(library.find<decltype(make)>("cudnnBackendCreateDescriptor")),
        drop(library.find<decltype(drop)>("cudnnBackendDestroyDescriptor")),
        set(library.find<decltype(set)>("cudnnBackendSetAttribute")),
        get(library.find<decltype(get)>("cudnnBackendGetAttribute")),
        finalize(library.find<decltype(finalize)>("cudnnBackendFinalize")),
        execute(library.find<decltype(execute)>("cudnnBackendExecute")) {}
  decltype(&cudnnCreate) create;
  decltype(&cudnnDestroy) destroy;
  decltype(&cudnnSetStream) set_stream;
  decltype(&cudnnGetVersion) get_version;
  decltype(&cudnnGetErrorString) error_string;
  decltype(&cudnnBackendCreateDescriptor) make;
  decltype(&cudnnBackendDestroyDescriptor) drop;
  decltype(&cudnnBackendSetAttribute) set;
  decltype(&cudnnBackendGetAttribute) get;
  decltype(&cudnnBackendFinalize) finalize;
  decltype(&cudnnBackendExecute) execute;

  void check(cudnnStatus_t status, const char* what) const {
    ENSURE(status == CUDNN_STATUS_SUCCESS, what, ": ", error_string(status));
  }
};

// The type that an attribute's value has in the API.
template <class T>
constexpr cudnnBackendAttributeType_t type_of() {
  if constexpr (std::is_same_v<T, cudnnHandle_t>) return CUDNN_TYPE_HANDLE;
  if constexpr (std::is_same_v<T, cudnnDataType_t>) return CUDNN_TYPE_DATA_TYPE;
  if constexpr (std::is_same_v<T, bool>) return CUDNN_TYPE_BOOLEAN;
  if constexpr (std::is_same_v<T, int64_t>) return CUDNN_TYPE_INT64;
  if constexpr (std::is_same_v<T, float>) return CUDNN_TYPE_FLOAT;
  if constexpr (std::is_same_v<T, cudnnConvolutionMode_t>) return CUDNN_TYPE_CONVOLUTION_MODE;
  if constexpr (std::is_same_v<T, cudnnPointwiseMode_t>) return CUDNN_TYPE_POINTWISE_MODE;
  if constexpr (std::is_same_v<T, cudnnBackendHeurMode_t>) return CUDNN_TYPE_HEUR_MODE;
  if constexpr (std::is_same_v<T, cudnnBackendNumericalNote_t>) return CUDNN_TYPE_NUMERICAL_NOTE;
  return CUDNN_TYPE_VOID_PTR;
}

// A descriptor of the API. Copies share it, and it keeps those that it was made from.
class Descriptor {
 public:
  Descriptor(const Functions& functions, cudnnBackendDescriptorType_t type)
      : functions_(&functions) {
    cudnnBackendDescriptor_t made = nullptr;
    functions.check(functions.make(type, &made), "cudnnBackendCreateDescriptor");
    handle_ = {made, functions.drop};
  }

  template <class T>
  Descriptor& set(cudnnBackendAttributeName_t name, const std::vector<T>& values) {
    return set_raw(name, type_of<T>(), values.size(), values.data());
  }
  template <class T>
  requires(!std::is_same_v<T, Descriptor>) Descriptor& set(cudnnBackendAttributeName_t name,
                                                           const T& value) {
    return set_raw(name, type_of<T>(), 1, &value);
  }
  Descriptor& set(cudnnBackendAttributeName_t name, const Descriptor& value) {
    return set(name, std::vector<Descriptor>{value});
  }
  Descriptor& set(cudnnBackendAttributeName_t name, const std::vector<Descriptor>& values) {
    std::vector<cudnnBackendDescriptor_t> raw;
    for (const Descriptor& value : values) raw.push_back(value.raw()), parts_.push_back(value);
    return set_raw(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, raw.size(), raw.data());
  }
  Descriptor& finalize() {
    functions_->check(functions_->finalize(raw()), "cudnnBackendFinalize");
    return *this;
  }

  // At most `most` values of an attribute.
  template <class T>
  std::vector<T> get(cudnnBackendAttributeName_t name, size_t most) const {
    std::vector<T> values(most);
    int64_t count = 0;
    functions_->check(
        functions_->get(raw(), name, type_of<T>(), int64_t(most), &count, values.data()),
        "cudnnBackendGetAttribute");
    values.resize(std::min(most, size_t(count)));
    return values;
  }
  // The same for descriptors, which the caller makes.
  std::vector<Descriptor> get(cudnnBackendAttributeName_t name, cudnnBackendDescriptorType_t type,
                              size_t most) const {
    std::vector<Descriptor> values;
    std::vector<cudnnBackendDescriptor_t> raws;
    for (size_t i = 0; i < most; ++i) {
      values.emplace_back(*functions_, type);
      raws.push_back(values.back().raw());
    }
    int64_t count = 0;
    functions_->check(functions_->get(raw(), name, CUDNN_TYPE_BACKEND_DESCRIPTOR, int64_t(most),
                                      &count, raws.data()),
                      "cudnnBackendGetAttribute");
    values.erase(values.begin() + std::min<long>(long(most), count), values.end());
    return values;
  }

  cudnnBackendDescriptor_t raw() const { return handle_.get(); }

 private:
  Descriptor& set_raw(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
                      size_t count, const void* values) {
    functions_->check(functions_->set(raw(), name, type, int64_t(count), values),
                      "cudnnBackendSetAttribute");
    return *this;
  }

  const Functions* functions_;
  std::vector<Descriptor> parts_;
  std::shared_ptr<void> handle_;
};

cudnnDataType_t cudnn_type(DType dtype) {
  return dtype == DType::bf16 ? CUDNN_DATA_BFLOAT16 : CUDNN_DATA_FLOAT;
}

// Which tensor of the graph an id names.
enum Id : int64_t { kX = 1, kW, kY, kBias, kSum };

class Cudnn : public CudnnLibrary {
 public:
  Cudnn(Stream& stream, Timer& timer, const SharedLibrary& library)
      : stream_(stream), timer_(timer), functions_(library) {
    functions_.check(functions_.create(&handle_), "cudnnCreate");
    functions_.check(functions_.set_stream(handle_, static_cast<cudaStream_t>(stream.native())),
                     "cudnnSetStream");
  }
  ~Cudnn() override { functions_.destroy(handle_); }

  std::string version() const override {
    const size_t v = functions_.get_version();
    return concat("cuDNN ", v / 10000, '.', v % 10000 / 100, '.', v % 100);
  }

  LibraryCall conv2d(const ConvProblem& p, bool bias, Direction direction,
                     const Arithmetic& arithmetic) override {
    if (direction == Direction::Backward) return nullptr;
    const bool fused = bias && direction == Direction::Forward;
    Data data;
    const auto add = [&](Id id, const Shape& shape, DType dtype) {
      data.ids.push_back(id);
      data.tensors.push_back(random_tensor(stream_, shape, dtype));
    };
    add(kX, p.x(), arithmetic.storage);
    add(kW, p.w(), arithmetic.storage);
    add(kY, p.y(), arithmetic.storage);
    if (fused) add(kBias, {p.K}, DType::f32);
    const bool any_math = arithmetic.storage == DType::bf16 || arithmetic.math == Math::tf32;
    LibraryCall call = fastest(graph(p, fused, direction, arithmetic.storage), data, any_math);
    // Where no kernel adds the bias, the convolution alone.
    return call || !fused ? call : conv2d(p, false, direction, arithmetic);
  }

 private:
  // The tensors of a graph.
  struct Data {
    std::vector<int64_t> ids;
    std::vector<Tensor> tensors;
  };

  Descriptor descriptor(cudnnBackendDescriptorType_t type) const { return {functions_, type}; }

  // dims as the API has them, N C H W or K C R S; in memory the channels are innermost.
  Descriptor tensor(Id id, DType dtype, const std::vector<int64_t>& dims,
                    bool is_virtual = false) const {
    const int64_t C = dims[1], H = dims[2], W = dims[3];
    return descriptor(CUDNN_BACKEND_TENSOR_DESCRIPTOR)
        .set(CUDNN_ATTR_TENSOR_DATA_TYPE, cudnn_type(dtype))
        .set(CUDNN_ATTR_TENSOR_DIMENSIONS, dims)
        .set(CUDNN_ATTR_TENSOR_STRIDES, std::vector<int64_t>{H * W * C, 1, W * C, C})
        .set(CUDNN_ATTR_TENSOR_UNIQUE_ID, int64_t(id))
        .set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, int64_t{16})
        .set(CUDNN_ATTR_TENSOR_IS_VIRTUAL, is_virtual)
        .finalize();
  }

  Descriptor convolution(const ConvSpec& spec) const {
    const std::vector<int64_t> pad{spec.pad_h, spec.pad_w};
    return descriptor(CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR)
        .set(CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_DATA_FLOAT)
        .set(CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_CROSS_CORRELATION)
        .set(CUDNN_ATTR_CONVOLUTION_DILATIONS, std::vector<int64_t>{1, 1})
        .set(CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, std::vector<int64_t>{spec.stride, spec.stride})
        .set(CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, pad)
        .set(CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, pad)
        .set(CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, int64_t{2})
        .finalize();
  }

  // y + bias.
  Descriptor sum(const Descriptor& y, const Descriptor& bias, const Descriptor& result) const {
    const Descriptor add = descriptor(CUDNN_BACKEND_POINTWISE_DESCRIPTOR)
                               .set(CUDNN_ATTR_POINTWISE_MODE, CUDNN_POINTWISE_ADD)
                               .set(CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_DATA_FLOAT)
                               .finalize();
    return descriptor(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR)
        .set(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, add)
        .set(CUDNN_ATTR_OPERATION_POINTWISE_XDESC, y)
        .set(CUDNN_ATTR_OPERATION_POINTWISE_BDESC, bias)
        .set(CUDNN_ATTR_OPERATION_POINTWISE_YDESC, result)
        .finalize();
  }

  // The convolution, or a gradient of it: then y is dy and x or w is what is computed.
  Descriptor operation(Direction direction, const Descriptor& conv, const Descriptor& x,
                       const Descriptor& w, const Descriptor& y) const {
    switch (direction) {
      case Direction::DataGradient:
        return descriptor(CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR)
            .set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX, x)
            .set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W, w)
            .set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY, y)
            .set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC, conv)
            .set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA, 1.f)
            .set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA, 0.f)
            .finalize();
      case Direction::WeightGradient:
        return descriptor(CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR)
            .set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X, x)
            .set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW, w)
            .set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY, y)
            .set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC, conv)
            .set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA, 1.f)
            .set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA, 0.f)
            .finalize();
      default:
        return descriptor(CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR)
            .set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X, x)
            .set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W, w)
            .set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y, y)
            .set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC, conv)
            .set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA, 1.f)
            .set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA, 0.f)
            .finalize();
    }
  }

  Descriptor graph(const ConvProblem& p, bool fused, Direction direction, DType storage) const {
    const Descriptor x = tensor(kX, storage, {p.N, p.C, p.H, p.W});
    const Descriptor w = tensor(kW, storage, {p.K, p.C, p.R, p.S});
    const Descriptor y = tensor(kY, storage, {p.N, p.K, p.P, p.Q});
    std::vector<Descriptor> operations;
    if (fused) {
      // What the convolution hands to the sum is in registers.
      const Descriptor product = tensor(kSum, DType::f32, {p.N, p.K, p.P, p.Q}, true);
      operations = {operation(direction, convolution(p.spec), x, w, product),
                    sum(product, tensor(kBias, DType::f32, {1, p.K, 1, 1}), y)};
    } else {
      operations = {operation(direction, convolution(p.spec), x, w, y)};
    }
    return descriptor(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR)
        .set(CUDNN_ATTR_OPERATIONGRAPH_HANDLE, handle_)
        .set(CUDNN_ATTR_OPERATIONGRAPH_OPS, operations)
        .finalize();
  }

  // Kernels that a mode of the heuristics proposes, best first; none when it has none.
  std::vector<Descriptor> proposals(const Descriptor& graph, cudnnBackendHeurMode_t mode) const {
    try {
      return descriptor(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR)
          .set(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph)
          .set(CUDNN_ATTR_ENGINEHEUR_MODE, mode)
          .finalize()
          .get(CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR, kProposals);
    } catch (const Error&) {
      return {};
    }
  }

  // Whether a kernel rounds f32 operands, as tensor cores do.
  bool rounds(const Descriptor& config) const {
    const auto engines =
        config.get(CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_BACKEND_ENGINE_DESCRIPTOR, 1);
    return std::ranges::any_of(
        engines.at(0).get<cudnnBackendNumericalNote_t>(CUDNN_ATTR_ENGINE_NUMERICAL_NOTE,
                                                       CUDNN_NUMERICAL_NOTE_TYPE_COUNT),
        [](cudnnBackendNumericalNote_t note) {
          return note == CUDNN_NUMERICAL_NOTE_TENSOR_CORE ||
                 note == CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS ||
                 note == CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION;
        });
  }

  // Throws when the kernel is not for this problem.
  LibraryCall planned(const Descriptor& config, const Data& data) const {
    const Descriptor plan = descriptor(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR)
                                .set(CUDNN_ATTR_EXECUTION_PLAN_HANDLE, handle_)
                                .set(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, config)
                                .finalize();
    const int64_t bytes = plan.get<int64_t>(CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, 1).at(0);
    ENSURE(bytes <= kMaxWorkspace, "a kernel wants ", bytes, " bytes of workspace");
    Tensor workspace;
    if (bytes > 0) workspace = Tensor::empty(stream_, {bytes}, DType::u8);
    void* scratch = bytes > 0 ? workspace.raw() : nullptr;
    std::vector<void*> pointers;
    for (Tensor tensor : data.tensors) pointers.push_back(tensor.raw());
    const Descriptor pack = descriptor(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR)
                                .set(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, data.ids)
                                .set(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, pointers)
                                .set(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, scratch)
                                .finalize();
    return [this, plan, pack, data, workspace] {
      functions_.check(functions_.execute(handle_, plan.raw(), pack.raw()), "cudnnBackendExecute");
    };
  }

  // How many engines of cuDNN may take a graph; none when it knows no such pattern.
  int64_t count_engines(const Descriptor& graph) const {
    try {
      return graph.get<int64_t>(CUDNN_ATTR_OPERATIONGRAPH_ENGINE_GLOBAL_COUNT, 1).at(0);
    } catch (const Error&) {
      return 0;
    }
  }

  // Every engine that takes a graph, with default knobs.
  std::vector<Descriptor> engines(const Descriptor& graph) const {
    std::vector<Descriptor> configs;
    const int64_t count = count_engines(graph);
    for (int64_t index = 0; index < count; ++index) try {
        const Descriptor engine = descriptor(CUDNN_BACKEND_ENGINE_DESCRIPTOR)
                                      .set(CUDNN_ATTR_ENGINE_OPERATION_GRAPH, graph)
                                      .set(CUDNN_ATTR_ENGINE_GLOBAL_INDEX, index)
                                      .finalize();
        configs.push_back(descriptor(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR)
                              .set(CUDNN_ATTR_ENGINECFG_ENGINE, engine)
                              .finalize());
      } catch (const Error&) {
        continue;  // it does not take this graph
      }
    return configs;
  }

  LibraryCall fastest(const Descriptor& graph, const Data& data, bool any_math) {
    std::vector<Descriptor> configs = proposals(graph, CUDNN_HEUR_MODE_A);
    for (const auto& more : {engines(graph), proposals(graph, CUDNN_HEUR_MODE_B),
                             proposals(graph, CUDNN_HEUR_MODE_FALLBACK)})
      configs.insert(configs.end(), more.begin(), more.end());
    const auto begin = std::chrono::steady_clock::now();
    LibraryCall best;
    double least = 0;
    for (const Descriptor& config : configs) try {
        const std::chrono::duration<double> searched = std::chrono::steady_clock::now() - begin;
        if (best && searched.count() > kSearchSeconds) break;
        if (!any_math && rounds(config)) continue;
        const LibraryCall call = planned(config, data);
        // Each runs twice, and what may be the fastest is measured as everything else is.
        if (best && median_seconds(timer_, 0, call) > 1.5 * least) continue;
        const double seconds = median_seconds(timer_, 2e-3, call);
        if (!best || seconds < least) best = call, least = seconds;
      } catch (const Error&) {
        continue;  // proposed, and yet not for this problem or too large
      }
    return best;
  }

  Stream& stream_;
  Timer& timer_;
  Functions functions_;
  cudnnHandle_t handle_ = nullptr;
};

}  // namespace

std::unique_ptr<CudnnLibrary> open_cudnn(Stream& stream, Timer& timer) {
  if (stream.device().type() != DeviceType::cuda) return nullptr;
  const SharedLibrary library(concat("libcudnn.so.", CUDNN_MAJOR));
  if (!library) return nullptr;
  return std::make_unique<Cudnn>(stream, timer, library);
}

}  // namespace tessera
