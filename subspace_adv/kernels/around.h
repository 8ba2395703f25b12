// The signed output around a point, as attacks and certificates see it, and the norms they measure in.
#pragma once

#include <cstdint>

namespace subspace_adv {

enum class Norm : int64_t { kL2, kLinf, kL1 };

// s·N, s = sign N(x), over the coordinates c of a perturbation within a region: Σ head·relu(z + rates·c) + offset,
// positive at 0. Rows of neurons.
struct Around {
  int64_t neurons, dimension;
  const double *z, *rates, *head;  // (m), (m, r), (m)
  double offset;
  // What rounding can have made of z, and of rates times a vector of length 1: (m) each.
  const double *z_error, *rate_error;
};

namespace {

constexpr double kTie = 0x1p-36;  // relative to a kink: as near to it a neuron may be on or off

// Bound on the rounding error of an output, relative to the sum of its terms' absolute values, as
// models.two_layer.rounding_allowance: the second part is more than kinks can move it whose order is lost. A neuron that
// is off, farther than `kTie` from its kink, adds exactly nothing, so it is no such term.
inline double rounding_share(int64_t neurons) {
  return 4 * (4 + __builtin_sqrt((double)neurons)) * 0x1p-52 + kTie;
}

inline double rounding_allowance(double magnitude, int64_t neurons) { return rounding_share(neurons) * magnitude; }

inline bool are_finite(const double* numbers, int64_t count) {
  double none = 0;  // NaN, as soon as one is none
  for (int64_t i = 0; i < count; ++i) none += numbers[i] * 0;
  return none == 0;
}

}  // namespace
}  // namespace subspace_adv
