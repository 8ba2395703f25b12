// Arrays of float64 numbers, aligned for vectors and padded to whole ones, and what is summed over them.
#pragma once

#include <cmath>

#include "lanes.h"

namespace subspace_adv {
namespace {

inline int64_t whole_vectors(int64_t count) { return (count + kDoubles - 1) / kDoubles * kDoubles; }

// Zeros; a row begins at a whole vector.
class Matrix {
 public:
  bool allocate(int64_t rows, int64_t columns) {
    stride_ = whole_vectors(columns);
    return data_.allocate(rows * stride_);
  }
  double* operator[](int64_t row) { return data_ + row * stride_; }
  const double* operator[](int64_t row) const { return data_ + row * stride_; }
  int64_t stride() const { return stride_; }

 private:
  Array<double> data_;
  int64_t stride_ = 0;
};

inline Doubles load(const double* p) {
  Doubles v;
  memcpy(&v, p, sizeof v);
  return v;
}

inline double sum(Doubles v) {
  double total = 0;
  for (int lane = 0; lane < kDoubles; ++lane) total += v[lane];
  return total;
}

// Of whole vectors: `count` is a multiple of kDoubles.
inline double dot(const double* a, const double* b, int64_t count) {
  Doubles even = {}, odd = {};
  int64_t i = 0;
  for (; i + 2 * kDoubles <= count; i += 2 * kDoubles) {
    even += load(a + i) * load(b + i);
    odd += load(a + i + kDoubles) * load(b + i + kDoubles);
  }
  if (i < count) even += load(a + i) * load(b + i);
  return sum(even + odd);
}

inline double sum(const double* a, int64_t count) {
  Doubles total = {};
  for (int64_t i = 0; i < count; i += kDoubles) total += load(a + i);
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
