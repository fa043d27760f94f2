// The linear maps of Winograd's F(4x4,3x3), one tile at a time, all of its channels. In one
// dimension, evaluated at 0, +-a, +-b and infinity with a = 1 / sqrt(2) and b = sqrt(2):
//   patch d  -> (d0 - 5/2 d2 + d4, (d4 - 2 d2) +- a (d3 - 2 d1), (d4 - d2 / 2) +- b (d3 - d1 / 2),
//                d1 - 5/2 d3 + d5)
//   filter g -> (g0, -2/3 (g0 +- a g1 + g2 / 2), 1/6 (g0 +- b g1 + 2 g2), g2)
//   m, their products -> y_i = a^i (m1 + (-1)^i m2) + b^i (m3 + (-1)^i m4), and m0 to y0, m5 to y3
// In two, columns and then rows. A gradient goes through the transposed map. With these points, of
// those tried, sums cancel least: three times the rounding error of F(2x2,3x3), in the root mean
// square, where the usual ones, 0, +-1 and +-2, have six (docs/performance.md).
#pragma once

#include "kernels/cpu/loops.h"

namespace tessera::cpu::winograd {

inline constexpr int kTile = 4, kPatch = 6;     // outputs and inputs of a tile, in one dimension
inline constexpr int kSlots = kPatch * kPatch;  // products of a tile

inline constexpr float kA = 0.70710678118654752f, kB = 1.41421356237309505f;

struct Three {
  float v[3];
};
struct Four {
  float v[4];
};
struct Six {
  float v[6];
};

// (sum + difference, sum - difference) in v[i] and v[i + 1].
inline void put_pair(Six& to, int i, float sum, float difference) {
  to.v[i] = sum + difference, to.v[i + 1] = sum - difference;
}
inline Six of_patch(const Six& d) {
  const auto& v = d.v;
  Six to;
  to.v[0] = v[0] - 2.5f * v[2] + v[4];
  put_pair(to, 1, v[4] - 2 * v[2], kA * (v[3] - 2 * v[1]));
  put_pair(to, 3, v[4] - 0.5f * v[2], kB * (v[3] - 0.5f * v[1]));
  to.v[5] = v[1] - 2.5f * v[3] + v[5];
  return to;
}
inline Six of_outputs(const Four& y) {  // transposed: outputs_of()
  const auto& v = y.v;
  Six to;
  to.v[0] = v[0];
  put_pair(to, 1, v[0] + 0.5f * v[2], kA * (v[1] + 0.5f * v[3]));
  put_pair(to, 3, v[0] + 2 * v[2], kB * (v[1] + 2 * v[3]));
  to.v[5] = v[3];
  return to;
}
inline Four outputs_of(const Six& m) {
  const auto& v = m.v;
  const float even_a = v[1] + v[2], odd_a = kA * (v[1] - v[2]), even_b = v[3] + v[4],
              odd_b = kB * (v[3] - v[4]);
  return {{v[0] + even_a + even_b, odd_a + odd_b, 0.5f * even_a + 2 * even_b,
           0.5f * odd_a + 2 * odd_b + v[5]}};
}
inline Six of_filter(const Three& g) {
  const auto& v = g.v;
  constexpr float two_thirds = 2 / 3.0f, sixth = 1 / 6.0f;
  Six to;
  to.v[0] = v[0];
  put_pair(to, 1, -two_thirds * (v[0] + 0.5f * v[2]), -two_thirds * kA * v[1]);
  put_pair(to, 3, sixth * (v[0] + 2 * v[2]), sixth * kB * v[1]);
  to.v[5] = v[2];
  return to;
}
inline Three filter_of(const Six& u) {  // transposed: of_filter()
  const auto& v = u.v;
  constexpr float third = 1 / 3.0f, two_thirds = 2 / 3.0f, sixth = 1 / 6.0f;
  const float even_a = v[1] + v[2], odd_a = v[1] - v[2], even_b = v[3] + v[4], odd_b = v[3] - v[4];
  return {{v[0] - two_thirds * even_a + sixth * even_b,
           sixth * kB * odd_b - two_thirds * kA * odd_a, third * (even_b - even_a) + v[5]}};
}

// Both dimensions: map(columns of `at(i, j)`), then map(rows of that) to put(i, j, value).
template <class To, class From, class Map, class At, class Put>
inline void in_two(Map map, At at, Put put) {
  constexpr int from = sizeof(From) / sizeof(float), to = sizeof(To) / sizeof(float);
  To columns[from];
#pragma GCC unroll 6
  for (int j = 0; j < from; ++j) {
    From column;
#pragma GCC unroll 6
    for (int i = 0; i < from; ++i) column.v[i] = at(i, j);
    columns[j] = map(column);
  }
#pragma GCC unroll 6
  for (int i = 0; i < to; ++i) {
    From row;
#pragma GCC unroll 6
    for (int j = 0; j < from; ++j) row.v[j] = columns[j].v[i];
    const To mapped = map(row);
#pragma GCC unroll 6
    for (int j = 0; j < to; ++j) put(i, j, mapped.v[j]);
  }
}

// to[slot * pitch + c] from the patch x[6][6] of pixels.
template <class T>
void put_patch(const T* const (&x)[kPatch][kPatch], int64_t C, float* to, int64_t pitch) {
#pragma omp simd
  for (int64_t c = 0; c < C; ++c)
    in_two<Six, Six>(
        of_patch, [&](int i, int j) { return to_float(x[i][j][c]); },
        [&](int i, int j, float value) { to[(i * kPatch + j) * pitch + c] = value; });
}

// The gradient of the products from that of the outputs dy[4][4].
template <class T>
void put_outputs_gradient(const T* const (&dy)[kTile][kTile], int64_t K, float* to, int64_t pitch) {
#pragma omp simd
  for (int64_t k = 0; k < K; ++k)
    in_two<Six, Four>(
        of_outputs, [&](int i, int j) { return to_float(dy[i][j][k]); },
        [&](int i, int j, float value) { to[(i * kPatch + j) * pitch + k] = value; });
}

// y[4][4], or what is there plus, b + the outputs of the products m; y[2][2]: b + the sums of 2x2
// outputs each, as upsampled pixels' gradients are.
template <class T, int N>
void put_outputs(const float* m, int64_t pitch, int64_t K, const float* b, T* const (&y)[N][N],
                 GradMode mode) {
  const auto put = [&](int64_t k, auto old) {
    float sums[N][N];
#pragma GCC unroll 16
    for (int i = 0; i < N * N; ++i) sums[i / N][i % N] = b[k];
    in_two<Four, Six>(
        outputs_of, [&](int i, int j) { return m[(i * kPatch + j) * pitch + k]; },
        [&](int i, int j, float value) { sums[i * N / kTile][j * N / kTile] += value; });
#pragma GCC unroll 16
    for (int i = 0; i < N * N; ++i) {
      T& to = y[i / N][i % N][k];
      to = stored<T>(old(to) + sums[i / N][i % N]);
    }
  };
  if (mode == GradMode::Overwrite) {
#pragma omp simd
    for (int64_t k = 0; k < K; ++k) put(k, [](T) { return 0.0f; });
  } else {
#pragma omp simd
    for (int64_t k = 0; k < K; ++k) put(k, [](T value) { return to_float(value); });
  }
}

// to[slot * pitch + c] from C channels of a filter w[9][C of all]; `turned` by half a turn.
template <class T>
void put_filter(const T* w, int64_t tap, int64_t C, bool turned, float* to, int64_t pitch) {
  const T* taps[9];
  for (int i = 0; i < 9; ++i) taps[i] = w + (turned ? 8 - i : i) * tap;
#pragma omp simd
  for (int64_t c = 0; c < C; ++c)
    in_two<Six, Three>(
        of_filter, [&](int i, int j) { return to_float(taps[3 * i + j][c]); },
        [&](int i, int j, float value) { to[(i * kPatch + j) * pitch + c] = value; });
}

// The gradient of a filter's taps from that of the transformed filter.
inline void put_filter_gradient(const float* from, int64_t pitch, int64_t C, float* dw, int64_t tap,
                                GradMode mode) {
  const auto put = [&](int64_t c, bool add) {
    in_two<Three, Six>(
        filter_of, [&](int i, int j) { return from[(i * kPatch + j) * pitch + c]; },
        [&](int i, int j, float value) {
          float& to = dw[(3 * i + j) * tap + c];
          to = add ? to + value : value;
        });
  };
  if (mode == GradMode::Overwrite) {
#pragma omp simd
    for (int64_t c = 0; c < C; ++c) put(c, false);
  } else {
#pragma omp simd
    for (int64_t c = 0; c < C; ++c) put(c, true);
  }
}

}  // namespace tessera::cpu::winograd
