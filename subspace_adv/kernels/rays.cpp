// Crossings of rays. Compiled once per instruction set, as bracket.cpp.

#include "bracket.h"
#include "crossings.h"

namespace subspace_adv {

constexpr int64_t kRaysTaken = 16;  // from the queue at a time

bool NAMED(cross_, INSTRUCTION_SET)(RayBatch& batch) {
  const int64_t m = batch.neurons;
  Crossings crossings;
  if (!crossings.allocate(m)) return false;
  while (true) {
    const int64_t begin = __atomic_fetch_add(&batch.next, kRaysTaken, __ATOMIC_RELAXED);
    if (begin >= batch.rays) return true;
    const int64_t end = attack_detail::smaller(begin + kRaysTaken, batch.rays);
    for (int64_t ray = begin; ray < end; ++ray) {
      const double once = 1;
      const Around along{m, 1, batch.z + ray * m, batch.rate + ray * m, batch.head + ray * m, batch.offset[ray],
                         nullptr, nullptr};
      const Ray found = crossings.first(along, &once);
      batch.lower[ray] = found.lower, batch.upper[ray] = found.upper;
    }
  }
}

}  // namespace subspace_adv
