// Crossings of rays. Compiled once per instruction set, as bracket.cpp.

#include "bracket.h"
#include "crossings.h"

namespace subspace_adv {

bool NAMED(cross_, INSTRUCTION_SET)(RayBatch& batch) {
  const int64_t m = batch.neurons;
  Crossings crossings;
  if (!crossings.allocate(m)) return false;
  while (true) {
    const int64_t begin = __atomic_fetch_add(&batch.next, kRaysTaken, __ATOMIC_RELAXED);
    if (begin >= batch.rays) return true;
    const int64_t end = begin + kRaysTaken < batch.rays ? begin + kRaysTaken : batch.rays;
    for (int64_t ray = begin; ray < end; ++ray) {
      const double once = 1, *z = batch.z + ray * m, *rate = batch.rate + ray * m, *head = batch.head + ray * m;
      // Nothing is known of a network that is no number somewhere.
      const bool is_known = are_finite(z, m) && are_finite(rate, m) && are_finite(head, m);
      const Around along{m, 1, z, rate, head, batch.offset[ray], nullptr, nullptr};
      const Ray found = is_known ? crossings.first(along, &once) : Ray{0, __builtin_inf()};
      batch.lower[ray] = found.lower, batch.upper[ray] = found.upper;
    }
  }
}

}  // namespace subspace_adv
