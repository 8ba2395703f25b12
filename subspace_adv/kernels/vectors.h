// Arrays of float64 numbers, aligned for vectors and padded to whole ones, and what is summed over them.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace subspace_adv {
namespace {

#if defined(__AVX512F__)
constexpr int kWide = 8;
#elif defined(__AVX2__)
constexpr int kWide = 4;
#else
constexpr int kWide = 2;
#endif

typedef double Doubles __attribute__((vector_size(8 * kWide)));

inline int64_t whole_vectors(int64_t count) { return (count + kWide - 1) / kWide * kWide; }

// Zeros; a row begins at a whole vector.
class Matrix {
 public:
  Matrix() = default;
  Matrix(const Matrix&) = delete;
  Matrix& operator=(const Matrix&) = delete;
  ~Matrix() { free(data_); }

  bool allocate(int64_t rows, int64_t columns) {
    free(data_);
    stride_ = whole_vectors(columns);
    size_t bytes = (8 * rows * stride_ + 63) / 64 * 64 + 64;
    data_ = static_cast<double*>(aligned_alloc(64, bytes));
    if (data_) memset(data_, 0, bytes);
    return data_ != nullptr;
  }
  double* operator[](int64_t row) { return data_ + row * stride_; }
  const double* operator[](int64_t row) const { return data_ + row * stride_; }
  int64_t stride() const { return stride_; }

 private:
  double* data_ = nullptr;
  int64_t stride_ = 0;
};

inline Doubles load(const double* p) {
  Doubles v;
  memcpy(&v, p, sizeof v);
  return v;
}

inline double sum(Doubles v) {
  double total = 0;
  for (int lane = 0; lane < kWide; ++lane) total += v[lane];
  return total;
}

// Of whole vectors: `count` is a multiple of kWide.
inline double dot(const double* a, const double* b, int64_t count) {
  Doubles even = {}, odd = {};
  int64_t i = 0;
  for (; i + 2 * kWide <= count; i += 2 * kWide) {
    even += load(a + i) * load(b + i);
    odd += load(a + i + kWide) * load(b + i + kWide);
  }
  if (i < count) even += load(a + i) * load(b + i);
  return sum(even + odd);
}

inline double sum(const double* a, int64_t count) {
  Doubles total = {};
  for (int64_t i = 0; i < count; i += kWide) total += load(a + i);
  return sum(total);
}

// a += factor·b
inline void add(double* __restrict a, double factor, const double* __restrict b, int64_t count) {
  for (int64_t i = 0; i < count; ++i) a[i] += factor * b[i];
}

inline double largest(double a, double b) { return a > b ? a : b; }
inline double least(double a, double b) { return a < b ? a : b; }

}  // namespace
}  // namespace subspace_adv
