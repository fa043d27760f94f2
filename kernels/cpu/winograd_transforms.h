// The linear maps of Winograd's F(2x2,3x3), one tile at a time, all of its channels. In one
// dimension, with the last two of the usual order exchanged, so that what a nearest-upsampled patch
// (a, b, b, c) makes zero comes last:
//   patch d  -> (d0 - d2, d1 + d2, d1 - d3, d2 - d1)
//   filter g -> (g0, (g0 + g1 + g2) / 2, g2, (g0 - g1 + g2) / 2)
//   m, their products -> y = (m0 + m1 + m3, m1 - m2 - m3)
// In two, rows and then columns. A gradient goes through the transposed map.
#pragma once

#include "kernels/cpu/loops.h"

namespace tessera::cpu::winograd {

inline constexpr int kSlots = 16;          // products of a tile
inline constexpr int kUpsampledSlots = 9;  // those that are not zero of an upsampled patch

// Where product (i, j) is: those of an upsampled patch come first.
constexpr int slot(int i, int j) { return i < 3 && j < 3 ? 3 * i + j : i == 3 ? 9 + j : 13 + i; }

// What a map makes of the elements a, b, c, d of a row or column.
struct Four {
  float v[4];
};
inline Four of_patch(float a, float b, float c, float d) { return {a - c, b + c, b - d, c - b}; }
inline Four of_outputs(float a, float b) { return {a, a + b, -b, a - b}; }
inline Four of_filter(float a, float b, float c) {
  const float half = 0.5f * (a + c);
  return {a, half + 0.5f * b, c, half - 0.5f * b};
}

// to[slot * pitch + c] from the patch x[4][4] of pixels.
template <class T>
void put_patch(const T* const (&x)[4][4], int64_t C, float* to, int64_t pitch) {
#pragma omp simd
  for (int64_t c = 0; c < C; ++c) {
    Four rows[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j)
      rows[j] = of_patch(to_float(x[0][j][c]), to_float(x[1][j][c]), to_float(x[2][j][c]),
                         to_float(x[3][j][c]));
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const Four row = of_patch(rows[0].v[i], rows[1].v[i], rows[2].v[i], rows[3].v[i]);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) to[slot(i, j) * pitch + c] = row.v[j];
    }
  }
}

// The same of the pixel in the middle of x[3][3] of an image and its neighbours, which is then
// upsampled: nine slots.
template <class T>
void put_upsampled_patch(const T* const (&x)[3][3], int64_t C, float* to, int64_t pitch) {
#pragma omp simd
  for (int64_t c = 0; c < C; ++c) {
    float rows[3][3];
#pragma GCC unroll 3
    for (int j = 0; j < 3; ++j) {
      const float a = to_float(x[0][j][c]), b = to_float(x[1][j][c]), d = to_float(x[2][j][c]);
      rows[0][j] = a - b, rows[1][j] = 2 * b, rows[2][j] = b - d;
    }
#pragma GCC unroll 3
    for (int i = 0; i < 3; ++i) {
      float* row = to + 3 * i * pitch + c;
      row[0] = rows[i][0] - rows[i][1];
      row[pitch] = 2 * rows[i][1];
      row[2 * pitch] = rows[i][1] - rows[i][2];
    }
  }
}

// The gradient of the products from that of the outputs dy[2][2].
template <class T>
void put_outputs_gradient(const T* const (&dy)[2][2], int64_t K, float* to, int64_t pitch) {
#pragma omp simd
  for (int64_t k = 0; k < K; ++k) {
    const Four left = of_outputs(to_float(dy[0][0][k]), to_float(dy[1][0][k])),
               right = of_outputs(to_float(dy[0][1][k]), to_float(dy[1][1][k]));
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const Four row = of_outputs(left.v[i], right.v[i]);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) to[slot(i, j) * pitch + k] = row.v[j];
    }
  }
}

// y[2][2], or what is there plus, b + the outputs of the products m.
template <class T>
void put_outputs(const float* m, int64_t pitch, int64_t K, const float* b, T* const (&y)[2][2],
                 GradMode mode) {
  T *y00 = y[0][0], *y01 = y[0][1], *y10 = y[1][0], *y11 = y[1][1];
  const auto sums = [&](int64_t k, auto put) {
    float top[4], bottom[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const float m1 = m[slot(1, j) * pitch + k], m3 = m[slot(3, j) * pitch + k];
      top[j] = m[slot(0, j) * pitch + k] + m1 + m3;
      bottom[j] = m1 - m[slot(2, j) * pitch + k] - m3;
    }
    put(y00[k], b[k] + (top[0] + top[1] + top[3]));
    put(y01[k], b[k] + (top[1] - top[2] - top[3]));
    put(y10[k], b[k] + (bottom[0] + bottom[1] + bottom[3]));
    put(y11[k], b[k] + (bottom[1] - bottom[2] - bottom[3]));
  };
  if (mode == GradMode::Overwrite) {
#pragma omp simd
    for (int64_t k = 0; k < K; ++k) sums(k, [](T& to, float value) { to = stored<T>(value); });
  } else {
#pragma omp simd
    for (int64_t k = 0; k < K; ++k)
      sums(k, [](T& to, float value) { to = stored<T>(to_float(to) + value); });
  }
}

// The sum of a tile's four outputs, of nine slots: to what an upsampled pixel's gradient comes.
template <class T>
void put_sum_of_outputs(const float* m, int64_t pitch, int64_t K, T* to, GradMode mode) {
  put_row(to, K, mode, [=](int64_t k) {
    float row[3];
#pragma GCC unroll 3
    for (int i = 0; i < 3; ++i)
      row[i] = m[3 * i * pitch + k] + 2 * m[(3 * i + 1) * pitch + k] - m[(3 * i + 2) * pitch + k];
    return row[0] + 2 * row[1] - row[2];
  });
}

// to[slot * pitch + c] from C channels of a filter w[9][C of all]; `turned` by half a turn.
template <class T>
void put_filter(const T* w, int64_t tap, int64_t C, bool turned, float* to, int64_t pitch) {
  const T* taps[9];
  for (int i = 0; i < 9; ++i) taps[i] = w + (turned ? 8 - i : i) * tap;
#pragma omp simd
  for (int64_t c = 0; c < C; ++c) {
    Four rows[3];
#pragma GCC unroll 3
    for (int s = 0; s < 3; ++s)
      rows[s] = of_filter(to_float(taps[s][c]), to_float(taps[3 + s][c]), to_float(taps[6 + s][c]));
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const Four row = of_filter(rows[0].v[i], rows[1].v[i], rows[2].v[i]);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) to[slot(i, j) * pitch + c] = row.v[j];
    }
  }
}

// The gradient of a filter's taps from that of the transformed filter: of all slots, or of the
// first nine.
inline void put_filter_gradient(const float* from, int64_t pitch, int slots, int64_t C, float* dw,
                                int64_t tap, GradMode mode) {
  const auto column = [=](int r, int j, int64_t c) {
    const auto at = [=](int i) { return slot(i, j) < slots ? from[slot(i, j) * pitch + c] : 0.0f; };
    if (r == 1) return 0.5f * (at(1) - at(3));
    return at(r) + 0.5f * (at(1) + at(3));
  };
  for (int r = 0; r < 3; ++r)
    for (int s = 0; s < 3; ++s)
      put_row(dw + (3 * r + s) * tap, C, mode, [=](int64_t c) {
        const float middle = column(r, 1, c), last = slots == kSlots ? column(r, 3, c) : 0.0f;
        if (s == 1) return 0.5f * (middle - last);
        return column(r, s, c) + 0.5f * (middle + last);
      });
}

}  // namespace tessera::cpu::winograd
