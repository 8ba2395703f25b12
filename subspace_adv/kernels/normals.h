// Numbers that are drawn about normally, from a key and nothing else.
#pragma once

#include <cstdint>

namespace subspace_adv {
namespace {

// Fills an array with sums of eight uniform numbers of 16 bits, of mean 0 and variance 1: only their directions matter.
// The words are those of SplitMix64 (Steele, Lea and Flood 2014), which begins at the key.
inline void draw_normals(uint64_t key, int64_t count, float* numbers) {
  auto next = [&key] {
    uint64_t word = key += 0x9e3779b97f4a7c15;
    word = (word ^ (word >> 30)) * 0xbf58476d1ce4e5b9;
    word = (word ^ (word >> 27)) * 0x94d049bb133111eb;
    return word ^ (word >> 31);
  };
  constexpr uint64_t kEven = 0x0000ffff0000ffff;
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t a = next(), b = next();
    const uint64_t pairs = (a & kEven) + (a >> 16 & kEven) + (b & kEven) + (b >> 16 & kEven);
    const int32_t sum = (int32_t)((pairs & 0xffffffff) + (pairs >> 32));
    numbers[i] = (float)(sum - 4 * 65535) * 1.8687541e-5f;
  }
}

}  // namespace
}  // namespace subspace_adv
