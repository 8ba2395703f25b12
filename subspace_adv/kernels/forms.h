// Symmetric matrices of a few dozen rows: definiteness, inverses, and the secular equations of a form on a ball.
#pragma once

#include "vectors.h"

namespace subspace_adv {
namespace {

// The lower triangle L of a = L·Lᵀ, from a's lower triangle; false if a is not positive definite, rounding apart.
inline bool factorize(const Matrix& a, Matrix& lower, int64_t r) {
  for (int64_t j = 0; j < r; ++j) {
    double diagonal = a[j][j];
    for (int64_t k = 0; k < j; ++k) diagonal -= lower[j][k] * lower[j][k];
    if (!(diagonal > 0) || !(diagonal < INFINITY)) return false;
    const double root = std::sqrt(diagonal), inverse = 1 / root;
    lower[j][j] = root;
    for (int64_t i = j + 1; i < r; ++i) {
      double value = a[i][j];
      for (int64_t k = 0; k < j; ++k) value -= lower[i][k] * lower[j][k];
      lower[i][j] = value * inverse;
    }
  }
  return true;
}

// The inverse of a lower triangle, a lower triangle too.
inline void invert(const Matrix& lower, Matrix& inverse, int64_t r) {
  for (int64_t i = 0; i < r; ++i) {
    double* row = inverse[i];
    const double pivot = 1 / lower[i][i];
    for (int64_t j = 0; j < i; ++j) row[j] = 0;
    for (int64_t k = 0; k < i; ++k) {
      const double factor = -lower[i][k] * pivot;
      const double* above = inverse[k];
      for (int64_t j = 0; j <= k; ++j) row[j] += factor * above[j];
    }
    row[i] = pivot;
  }
}

// g + curvature in coordinates in which the curvature is tridiagonal: what depends on a multiplier then costs O(r).
class Tridiagonal {
 public:
  bool allocate(int64_t r) {
    return work_.allocate(r, r) && vectors_.allocate(8, r);
  }

  // Takes a symmetric matrix (its lower triangle is read) and a vector.
  void reduce(const Matrix& a, const double* g, int64_t r) {
    r_ = r;
    for (int64_t i = 0; i < r; ++i) {
      for (int64_t j = 0; j <= i; ++j) work_[i][j] = work_[j][i] = a[i][j];
      gradient()[i] = g[i];
    }
    double* v = vectors_[0];
    double* p = vectors_[1];
    const int64_t stride = work_.stride();
    for (int64_t k = 0; k + 2 < r; ++k) {
      double square = 0;
      for (int64_t i = k + 2; i < r; ++i) square += work_[i][k] * work_[i][k];
      if (square == 0) continue;
      const double first = work_[k + 1][k], size = std::sqrt(first * first + square);
      const double alpha = first > 0 ? -size : size;
      for (int64_t i = 0; i < stride; ++i) v[i] = 0;
      for (int64_t i = k + 1; i < r; ++i) v[i] = work_[i][k];
      v[k + 1] -= alpha;
      const double beta = 2 / (square + v[k + 1] * v[k + 1]);
      double along = 0, turned = 0;
      for (int64_t i = k + 1; i < r; ++i) {
        p[i] = beta * dot(work_[i], v, stride);
        along += p[i] * v[i];
        turned += gradient()[i] * v[i];
      }
      const double half = beta / 2 * along;
      for (int64_t i = k + 1; i < r; ++i) p[i] -= half * v[i];
      for (int64_t i = k + 1; i < r; ++i) {
        double* row = work_[i];
        const double vi = v[i], pi = p[i];
        for (int64_t j = k + 1; j < r; ++j) row[j] -= vi * p[j] + pi * v[j];
      }
      for (int64_t i = k + 1; i < r; ++i) gradient()[i] -= beta * turned * v[i];
      work_[k + 1][k] = alpha;
      for (int64_t i = k + 2; i < r; ++i) work_[i][k] = 0;
    }
    // Gershgorin's bound of the eigenvalues, and their least possible maximum.
    top_ = 0, most_ = 0, slope_ = 0;
    for (int64_t i = 0; i < r; ++i) {
      diagonal()[i] = work_[i][i];
      beside()[i] = i + 1 < r ? work_[i + 1][i] * work_[i + 1][i] : 0;
      const double around = (i ? std::fabs(work_[i][i - 1]) : 0) + (i + 1 < r ? std::fabs(work_[i + 1][i]) : 0);
      top_ = largest(top_, work_[i][i]);
      most_ = largest(most_, work_[i][i] + around);
      slope_ += g[i] * g[i];
    }
    slope_ = std::sqrt(slope_);
  }

  struct Values {
    bool definite;  // whether λ exceeds all eigenvalues; the rest is meant only then
    double square;  // |x|², x = (λ − a)⁻¹g
    double form;    // g·x
    double trace;   // of the inverse
  };

  Values at(double multiplier) {
    double *forward = vectors_[4], *x = vectors_[5], *g = gradient(), *a = diagonal(), *b2 = beside();
    double pivot = multiplier - a[0];
    if (!(pivot > 0)) return {};
    // L·D·Lᵀ of λ − T, whose entries beside the diagonal are −b.
    forward[0] = pivot;
    x[0] = g[0];
    for (int64_t i = 1; i < r_; ++i) {
      const double factor = work_[i][i - 1] / pivot;
      pivot = multiplier - a[i] - b2[i - 1] / pivot;
      if (!(pivot > 0)) return {};
      forward[i] = pivot;
      x[i] = g[i] + factor * x[i - 1];
    }
    Values values = {true, 0, 0, 0};
    double backward = multiplier - a[r_ - 1], next = 0;
    for (int64_t i = r_ - 1; i >= 0; --i) {
      if (i + 1 < r_) backward = multiplier - a[i] - b2[i] / backward;
      const double solution = (x[i] + (i + 1 < r_ ? work_[i + 1][i] * next : 0)) / forward[i];
      values.square += solution * solution;
      values.form += solution * g[i];
      values.trace += 1 / (forward[i] + backward - (multiplier - a[i]));
      next = solution;
    }
    return values;
  }

  double top() const { return top_; }      // at most the largest eigenvalue
  double most() const { return most_; }    // at least
  double slope() const { return slope_; }  // |g|

 private:
  double* gradient() { return vectors_[2]; }
  double* diagonal() { return vectors_[3]; }
  double* beside() { return vectors_[6]; }

  Matrix work_, vectors_;
  int64_t r_ = 0;
  double top_ = 0, most_ = 0, slope_ = 0;
};

}  // namespace
}  // namespace subspace_adv
