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
};

}  // namespace subspace_adv
