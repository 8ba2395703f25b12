// Exact crossings of rays: where a signed output first falls to zero, but for rounding (F5 in docs/theory.md). As
// `models.two_layer.crossing_by_xla`.
#pragma once

#include <float.h>

#include "around.h"
#include "lanes.h"

namespace subspace_adv {
namespace {

// Where a signed output first falls to zero along a ray, in units of the direction's length.
struct Ray {
  double lower;  // no flip before this point, whatever the rounding
  double upper;  // a flip here, whatever the rounding; inf if none is known
};

namespace attack_detail {

typedef double Quad __attribute__((vector_size(32)));

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline bool is_finite(double x) { return x - x == 0; }
inline double size_of(double x) { return __builtin_fabs(x); }

inline double dot_of_sizes(const double* a, const double* b, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += size_of(a[i] * b[i]);
  return sum;
}

inline double dot(const double* a, const double* b, int64_t count) {
  constexpr int kWide = sizeof(Quad) / sizeof(double);
  Quad sums = {};
  int64_t i = 0;
  for (; i + kWide <= count; i += kWide) {
    Quad x, y;
    memcpy(&x, a + i, sizeof x);
    memcpy(&y, b + i, sizeof y);
    sums += x * y;
  }
  double sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  for (; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

// The first so many of a vector's numbers, and zeros.
inline Doubles load(const double* from, int64_t count) {
  Doubles numbers = {};
  if (count >= kDoubles) {
    memcpy(&numbers, from, sizeof numbers);
  } else {
    for (int64_t i = 0; i < count; ++i) numbers[i] = from[i];
  }
  return numbers;
}

inline Doubles where(Longs mask, Doubles numbers) { return (Doubles)(mask & (Longs)numbers); }
inline Doubles size_of(Doubles numbers) { return where(Longs{} + INT64_MAX, numbers); }

// A kink on a ray.
struct Kink {
  double at, jump;  // where, and how much the slope grows there
};

inline double key_of(const Kink& kink) { return kink.at; }
inline uint64_t key_of(uint64_t key) { return key; }

constexpr int64_t kRun = 32;  // as many are sorted by counting those before each, without a branch

// Of equal keys the first comes first.
template <class T>
void sort_run(const T* items, int64_t count, T* sorted) {
  typedef decltype(key_of(items[0])) Key;
  typedef Key Keys __attribute__((vector_size(kVectorBytes)));
  Keys keys[kRun / kDoubles] = {};
  Longs ranks[kRun / kDoubles] = {}, places;
  for (int64_t i = 0; i < count; ++i) keys[i / kDoubles][i % kDoubles] = key_of(items[i]);
  for (int64_t i = 0; i < kDoubles; ++i) places[i] = i;
  for (int64_t j = 0; j < count; ++j) {
    const Keys other = key_of(items[j]) - Keys{};
    for (int64_t i = 0; i < kRun / kDoubles; ++i) {
      const Longs is_behind = i == j / kDoubles ? Longs(places > j % kDoubles) : Longs{} - (i > j / kDoubles);
      ranks[i] -= Longs(other < keys[i]) | (Longs(other == keys[i]) & is_behind);
    }
  }
  for (int64_t i = 0; i < count; ++i) sorted[ranks[i / kDoubles][i % kDoubles]] = items[i];
}

// Sorts, stably; the scratch is as long, and of both, one item more may be read.
template <class T>
void sort(T* items, T* scratch, int64_t count) {
  for (int64_t begin = 0; begin < count; begin += kRun) {
    sort_run(items + begin, smaller(kRun, count - begin), scratch + begin);
  }
  T *from = scratch, *to = items;
  for (int64_t run = kRun; run < count; run *= 2) {
    for (int64_t begin = 0; begin < count; begin += 2 * run) {
      int64_t left = begin, middle = smaller(begin + run, count), right = middle, end = smaller(middle + run, count);
      for (int64_t i = begin; i < end; ++i) {
        const bool is_before = (left < middle) & !(key_of(from[right]) < key_of(from[left]));
        const bool is_left = is_before | (right == end);
        to[i] = from[is_left ? left : right];
        left += is_left, right += !is_left;
      }
    }
    T* sorted = to;
    to = from;
    from = sorted;
  }
  if (from != items) memcpy((void*)items, from, count * sizeof(T));
}

}  // namespace attack_detail

// The workspace of crossings for networks of one width; one thread uses it at a time.
class Crossings {
 public:
  // False if there is no memory for it.
  bool allocate(int64_t neurons) {
    Array<double>* const numbers[] = {&rate_, &sizes_, &head_on_, &size_on_, &z_on_, &slope_, &steep_, &summed_,
                                      &lost_, &slope_far_, &steep_far_, &summed_far_, &kink_, &jump_};
    for (Array<double>* one : numbers) {
      if (!one->allocate(neurons)) return false;
    }
    return is_kink_.allocate(neurons) && kinks_.allocate(neurons) && kinks_scratch_.allocate(neurons);
  }

  // The first zero along a ray of coordinates (r), exactly but for rounding.
  Ray first(const Around& around, const double* direction) {
    using namespace attack_detail;
    const int64_t m = around.neurons, r = around.dimension;
    for (int64_t i = 0; i < m; ++i) {
      rate_[i] = dot(around.rates + i * r, direction, r);
      sizes_[i] = r == 1 ? size_of(rate_[i]) : dot_of_sizes(around.rates + i * r, direction, r);
    }
    // Vector by vector what neurons add to sums, which are then taken one by one, the same whatever a vector holds.
    for (int64_t i = 0; i < m; i += kDoubles) {
      const Doubles z = load(around.z + i, m - i), head = load(around.head + i, m - i);
      const Doubles rate = load(rate_ + i, m - i), sizes = load(sizes_ + i, m - i), kink = -z / rate;
      const Doubles steepness = head * rate, steep = size_of(steepness), all = size_of(head) * sizes;
      const Longs is_on = (z > 0) | ((z == 0) & (rate > 0)), has_cancelled = size_of(rate) < kUncancelled * sizes;
      const Longs bends = ((z > 0) & (rate < 0)) | ((z < 0) & (rate > 0)), is_met = kink - kink == 0;
      // Past the last kink the slope is summed anew: no rounding error then stands in for neurons all switched off.
      const Longs is_on_far = (rate > 0) & ((z >= 0) | is_met);
      head_on_.set(i, where(z > 0, head)), size_on_.set(i, where(z > 0, size_of(head))), z_on_.set(i, where(z > 0, z));
      slope_.set(i, where(is_on, steepness)), steep_.set(i, where(is_on, steep));
      summed_.set(i, where(is_on | has_cancelled, all)), lost_.set(i, where(bends & ~is_met & (rate < 0), steep));
      slope_far_.set(i, where(is_on_far, steepness)), steep_far_.set(i, where(is_on_far, steep));
      summed_far_.set(i, where(is_on_far | has_cancelled, all));
      kink_.set(i, kink), jump_.set(i, size_of(rate) * head), is_kink_.set(i, bends & is_met);
    }
    int64_t count = 0;
    double value = around.offset, terms = size_of(around.offset), slope = 0, rates = 0, slope_far = 0, rates_far = 0;
    double summed = 0;  // the sizes of all that rates are sums of, which may cancel, of neurons that are or may be on
    double summed_far = 0;
    double lost = 0;    // slopes that a neuron whose kink is too far to be a number may or may not lose on the way
    for (int64_t i = 0; i < m; ++i) {
      value += head_on_[i] * z_on_[i], terms += size_on_[i] * z_on_[i];
      slope += slope_[i], rates += steep_[i], summed += summed_[i], lost += lost_[i];
      slope_far += slope_far_[i], rates_far += steep_far_[i], summed_far += summed_far_[i];
      kinks_[count] = {kink_[i], jump_[i]};
      count -= is_kink_[i];
    }
    // The allowance for rounding grows linearly in t, so the function less or plus it is piecewise linear too. It
    // counts neurons from where they turn on.
    const double share = rounding_share(m);
    double allowance = share * terms + (m + 1) * DBL_MIN, growth = share * rates + lost + kCancelled * summed;
    double growth_far = share * rates_far + lost + kCancelled * summed_far;
    sort<Kink>(kinks_, kinks_scratch_, count);
    Ray found = {kNever, kNever};
    double begin = 0;
    int anew = 0;
    for (int64_t i = 0; i <= count; ++i) {
      bool is_last = i == count;
      double end = is_last ? kNever : kinks_[i].at, reserve = allowance + begin * growth;
      if (is_last) slope = slope_far, growth = growth_far;
      // Numbers that have overflown tell nothing.
      if (!is_finite(value) || !is_finite(slope) || !is_finite(reserve) || !is_finite(growth)) {
        found.lower = found.lower < begin ? found.lower : begin * (1 - kNearKink);
        return found;
      }
      // Near its end a piece may not have ended yet, or have ended already.
      if (found.lower == kNever) found.lower = zero_in(begin, end, value - reserve, growth - slope) * (1 - kNearKink);
      // What has turned off on the way hides a small output no longer, once that is summed anew, beyond its kink.
      const double beyond = begin * (1 + 2 * kNearKink);
      if (i && size_of(value) < kInDoubt * reserve && beyond < end && anew < kMostSummedAnew) {
        const Sums sums = sums_at(around, direction, beyond);
        value = sums.value, slope = sums.slope, allowance = sums.allowance, growth = sums.growth + lost;
        begin = beyond, reserve = allowance + begin * growth;
        ++anew;
      }
      double upper = zero_in(begin, end * (1 - kNearKink), value + reserve, -slope - growth);
      if (upper < kNever) return {found.lower < upper ? found.lower : upper, upper};
      if (is_last) break;
      value += slope * (end - begin);
      slope += kinks_[i].jump;
      const double turn = share * size_of(kinks_[i].jump);
      growth += turn, allowance += turn * end;
      begin = end;
    }
    return found;
  }

 private:
  static constexpr double kNever = __builtin_inf();
  static constexpr double kCancelled = 0x1p-46;  // ulps of terms that rates along a ray are sums of
  static constexpr double kUncancelled = 0x1p-10;  // of these terms: a rate as large is as exact as `kTie` asks
  static constexpr double kNearKink = 2 * kTie;    // relative: as near to a kink the neuron may be on or off
  // Beyond a piece's end times that, which is more than rounding, a zero is not on it, and no division needed.
  static constexpr double kBeyond = 1 + 0x1p-20;

  static constexpr double kInDoubt = 4;       // times what rounding can make of an output: less is summed anew
  static constexpr int kMostSummedAnew = 8;   // a ray

  // Of all neurons that are on behind a place, or may be: the output there and its slope, and of what rounding can make
  // of them, `allowance + place·growth`.
  struct Sums {
    double value, slope, allowance, growth;
  };

  Sums sums_at(const Around& around, const double* direction, double at) {
    using namespace attack_detail;
    const int64_t m = around.neurons, r = around.dimension;
    double value = around.offset, slope = 0, terms = size_of(around.offset), rates = 0, summed = 0;
    for (int64_t i = 0; i < m; ++i) {
      const double z = around.z[i], head = around.head[i], rate = dot(around.rates + i * r, direction, r);
      const double sizes = dot_of_sizes(around.rates + i * r, direction, r), kink = -z / rate;
      const bool was_on = (z > 0) | ((z == 0) & (rate > 0)), bends = ((z > 0) & (rate < 0)) | ((z < 0) & (rate > 0));
      const bool is_on = bends & (kink <= at) ? rate > 0 : was_on;
      const bool has_cancelled = size_of(rate) < kUncancelled * sizes;
      const bool counts = is_on | has_cancelled | (bends & (size_of(kink - at) <= kNearKink * at));
      value += is_on ? head * (z + at * rate) : 0;
      slope += is_on ? head * rate : 0;
      terms += counts ? size_of(head) * size_of(z) : 0;
      rates += counts ? size_of(head * rate) : 0;
      summed += counts ? size_of(head) * sizes : 0;
    }
    const double share = rounding_share(m);
    return {value, slope, share * terms + (m + 1) * DBL_MIN, share * rates + kCancelled * summed};
  }

  // Where a line of this level at `begin` comes to zero on a piece; inf if it does not.
  static double zero_in(double begin, double end, double level, double descent) {
    if (!(begin <= end)) return kNever;
    if (level <= 0) return begin;
    if (level > descent * (end - begin) * kBeyond || !(descent > 0)) return kNever;
    double zero = begin + level / descent;
    return zero <= end ? zero : kNever;
  }

  // Of neurons: what each adds to the sums in `first`, its kink, and whether the ray comes to it, 0 or −1.
  Array<double> rate_, sizes_, head_on_, size_on_, z_on_, slope_, steep_, summed_, lost_;
  Array<double> slope_far_, steep_far_, summed_far_, kink_, jump_;
  Array<int64_t> is_kink_;
  Array<attack_detail::Kink> kinks_, kinks_scratch_;
};

}  // namespace
}  // namespace subspace_adv
