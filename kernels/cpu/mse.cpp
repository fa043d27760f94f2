// Mean squared error: loss = sum (p - t)^2 / n, dp = 2 (p - t) / n * dloss. The difference is a
// float; squares are added in double, in fixed blocks.
#include "kernels/cpu/loops.h"

namespace tessera {
namespace oracle {

void mse_fwd(Stream&, const Tensor& prediction, const Tensor& target, Tensor& loss) {
  double sum = 0;
  for (int64_t i = 0; i < prediction.numel(); ++i) {
    const double error = prediction.data<double>()[i] - target.data<double>()[i];
    sum += error * error;
  }
  loss.data<double>()[0] = sum / double(prediction.numel());
}

void mse_bwd(Stream&, const Tensor& prediction, const Tensor& target, const Tensor& dloss,
             Grad dprediction) {
  for (int64_t i = 0; i < prediction.numel(); ++i) {
    const double error = prediction.data<double>()[i] - target.data<double>()[i];
    put(dprediction.tensor.data<double>()[i],
        2 * error / double(prediction.numel()) * dloss.data<double>()[0], dprediction.mode);
  }
}

}  // namespace oracle

namespace cpu {

void mse_fwd(Stream& stream, const Tensor& prediction, const Tensor& target, Tensor& loss) {
  const float* t = target.data<float>();
  const int64_t n = prediction.numel();
  const double sum = with_storage(prediction.dtype(), [&]<class T>() {
    return block_sum(stream, n, [p = prediction.data<T>(), t](int64_t i) {
      const float error = to_float(p[i]) - t[i];
      return double(error) * double(error);
    });
  });
  loss.data<float>()[0] = float(sum / double(n));
}

void mse_bwd(Stream&, const Tensor& prediction, const Tensor& target, const Tensor& dloss,
             Grad dprediction) {
  const float* t = target.data<float>();
  const int64_t n = prediction.numel();
  const float scale = float(2.0 / double(n) * dloss.data<float>()[0]);
  with_storage(prediction.dtype(), [&]<class T>() {
    put_all(dprediction.tensor.data<T>(), n, dprediction.mode,
            [=, p = prediction.data<T>()](int64_t i) { return scale * (to_float(p[i]) - t[i]); });
  });
}

}  // namespace cpu

ON_CUDA(mse_bwd)
ON_CUDA(mse_fwd)

void mse_fwd(Stream& stream, const Tensor& prediction, const Tensor& target, Tensor& loss) {
  ENSURE(prediction.numel() > 0, "mse_fwd: the mean of no elements, ", prediction.shape());
  expect("mse_fwd: target", target, prediction.shape(), master_of(prediction.dtype()));
  expect("mse_fwd: loss", loss, {1}, master_of(prediction.dtype()));
  DISPATCH(stream, prediction.dtype(), mse_fwd(stream, prediction, target, loss));
}

void mse_bwd(Stream& stream, const Tensor& prediction, const Tensor& target, const Tensor& dloss,
             Grad dprediction) {
  if (!dprediction) return;
  ENSURE(prediction.numel() > 0, "mse_bwd: the mean of no elements, ", prediction.shape());
  expect("mse_bwd: target", target, prediction.shape(), master_of(prediction.dtype()));
  expect("mse_bwd: dloss", dloss, {1}, master_of(prediction.dtype()));
  expect("mse_bwd: dprediction", dprediction.tensor, prediction.shape(), prediction.dtype());
  DISPATCH(stream, prediction.dtype(), mse_bwd(stream, prediction, target, dloss, dprediction));
}

}  // namespace tessera
