// Radii certified by branch and bound over boxes, in a few dimensions (F23 in docs/theory.md).
#pragma once

#include "around.h"
#include "corners.h"
#include "vectors.h"

namespace subspace_adv {
namespace {

class Boxes {
 public:
  static bool serve(int64_t dimension) { return dimension <= kMostDimensions; }

  bool allocate(int64_t neurons, int64_t dimension) {
    if (!serve(dimension)) return true;
    most_looked_ = kWork / (neurons > kFewest ? neurons : kFewest) + 1;
    const int64_t most_held = most_looked_ / 2 + 1;  // of two halves, one takes the place of the whole
    fields_ = kFields + 2 * dimension;
    boxes_ = static_cast<double*>(malloc(8 * fields_ * most_held));  // not cleared: most calls need few of them
    heap_ = static_cast<int64_t*>(malloc(8 * most_held));
    return boxes_ && heap_ && own_.allocate(2, neurons) && gradient_.allocate(dimension);
  }

  ~Boxes() {
    free(boxes_);
    free(heap_);
  }

  // The largest radius certified, up to `most`; `known` is one. `place` (r) becomes a nearer place of another prediction,
  // if one is met, or else one toward which nearer ones may be, if the bracket is left open.
  double radius(const Signed& signed_output, Norm norm, double most, double known, double gap, double* place) {
    output_ = &signed_output, norm_ = norm, limit_ = most, known_ = known, place_ = place;
    // For rounding, in all of the cube: there inputs change by at most six times as much as in the ball.
    allowance_ = 2 * rounding_allowance(size_within(*output_, limit_, kMostDimensions), output_->neurons);
    count_ = 0;
    int64_t looked = 1, used = 1;
    for (int64_t j = 0; j < output_->dimension; ++j) centre(0)[j] = 0, half(0)[j] = most;
    box(0)[kNearest] = known;
    if (look(0)) push(0);
    // Each flip within `limit_` and beyond `known` is in a box of the heap, and no nearer than its `kNearest`.
    while (count_ && key(0) * (1 + gap) < limit_ && looked + 2 <= most_looked_) {
      const int64_t lower = pop(), upper = used++;
      const int64_t j = (int64_t)box(lower)[kSplit];
      half(lower)[j] /= 2;
      memcpy(box(upper), box(lower), 8 * fields_);
      centre(lower)[j] -= half(lower)[j];
      centre(upper)[j] += half(upper)[j];
      looked += 2;
      if (look(lower)) push(lower);
      if (look(upper)) push(upper);
    }
    if (count_ && limit_ == most && key(0) * (1 + gap) < limit_) {
      memcpy(place, centre(heap_[0]), 8 * output_->dimension);
    }
    const double certified = count_ ? least(key(0), limit_) : limit_;
    return largest(known, certified * (1 - 0x1p-40));
  }

 private:
  static constexpr int64_t kMostDimensions = 6;
  static constexpr int64_t kWork = 1 << 20;  // neurons of all boxes that are looked at
  static constexpr int64_t kFewest = 32;     // that count
  static constexpr int kSteps = 8;           // of multipliers, and twice as many of radii
  static constexpr double kFaint = 0x1p-500;  // of gradients, in units of the output at the point: beyond, numbers overflow
  enum Field { kNearest, kSplit, kFields };  // the least length of a flip in the box; which coordinate to halve

  double* box(int64_t index) { return boxes_ + index * fields_; }
  double* centre(int64_t index) { return box(index) + kFields; }
  double* half(int64_t index) { return box(index) + kFields + output_->dimension; }

  // Whether a flip can be in a box, within the limit. If so, how near, and which coordinate to halve.
  bool look(int64_t index) {
    const int64_t r = output_->dimension, stride = output_->stride;
    const double *c = centre(index), *h = half(index);
    if (nearest_of(c, h) >= limit_ || farthest_of(c, h) <= known_) return false;
    double *line = own_[0], *bends = own_[1];
    Doubles level = {}, value = {};
    const Doubles reach = limit_ - Doubles{};
    for (int64_t i = 0; i < stride; i += kDoubles) {
      const Doubles z = load(output_->z + i), within = reach * load(output_->speed + i);
      const Doubles aid = load(output_->aid + i), oppose = load(output_->oppose + i);
      Doubles t = z, varies = {};
      for (int64_t j = 0; j < r; ++j) {
        const Doubles rate = load(output_->rates[j] + i);
        t += c[j] * rate;
        varies += h[j] * (rate < 0 ? -rate : rate);
      }
      // In the box, and in the ball: the latter also tells what is off in all of it.
      Doubles low = t - varies, high = t + varies;
      low = low > z - within ? low : z - within;
      high = high < z + within ? high : z + within;
      const Longs is_open = (low < 0) & (high > 0);
      const Doubles on = high > 0 ? 1 - Doubles{} : Doubles{};
      const Doubles chord = is_open ? high / (high - low) : on;
      const Doubles slope = is_open ? (high > -low ? 1 - Doubles{} : Doubles{}) : on;
      const Doubles of_line = aid * slope - oppose * chord;
      const Doubles open = is_open ? aid + oppose : Doubles{};
      level += of_line * t + (is_open ? oppose * chord * low : Doubles{});
      value += (aid - oppose) * (t > 0 ? t : Doubles{});
      memcpy(line + i, &of_line, sizeof of_line);
      memcpy(bends + i, &open, sizeof open);
    }
    double at_centre = sum(level) + output_->offset - allowance_, at_origin = at_centre, lowest = at_centre;
    double most_bent = -1, most_changed = -1;
    int64_t split = 0, split_flat = 0;
    for (int64_t j = 0; j < r; ++j) {
      const double* rates = output_->rates[j];
      Doubles along = {}, bent = {};
      for (int64_t i = 0; i < stride; i += kDoubles) {
        const Doubles rate = load(rates + i);
        along += load(line + i) * rate;
        bent += load(bends + i) * (rate < 0 ? -rate : rate);
      }
      gradient_[j] = sum(along);
      const double change = std::fabs(gradient_[j]) * h[j], bend = sum(bent) * h[j];
      at_origin -= gradient_[j] * c[j];
      lowest -= change;
      if (bend > most_bent) most_bent = bend, split = j;
      if (change > most_changed) most_changed = change, split_flat = j;
    }
    if (lowest > 0) return false;
    if (sum(value) + output_->offset < -allowance_ && farthest_of(c, nullptr) < limit_) {
      limit_ = farthest_of(c, nullptr);
      memcpy(place_, c, 8 * r);
    }
    double* fields = box(index);
    fields[kNearest] = largest(nearest_in(c, h, at_origin), fields[kNearest]);  // the latter, if the former is no number
    fields[kSplit] = most_bent > 0 ? split : split_flat;
    return !(fields[kNearest] >= limit_);
  }

  double with(double total, double part) const {
    return norm_ == Norm::kL2 ? total + part * part : norm_ == Norm::kL1 ? total + part : largest(total, part);
  }

  double length_of(double total) const { return norm_ == Norm::kL2 ? std::sqrt(total) : total; }

  double nearest_of(const double* c, const double* h) const {
    double total = 0;
    for (int64_t j = 0; j < output_->dimension; ++j) total = with(total, largest(std::fabs(c[j]) - h[j], 0));
    return length_of(total);
  }

  // Of a box, or of its centre alone.
  double farthest_of(const double* c, const double* h) const {
    double total = 0;
    for (int64_t j = 0; j < output_->dimension; ++j) total = with(total, std::fabs(c[j]) + (h ? h[j] : 0));
    return length_of(total);
  }

  // At most the least length within a box where at_origin + gradient·c ≤ 0: each multiplier or radius tried is one
  // proof.
  double nearest_in(const double* c, const double* h, double at_origin) const {
    if (norm_ == Norm::kLinf) return nearest_in_cubes(c, h, at_origin);
    double best = nearest_of(c, h), square = 0;
    const int64_t r = output_->dimension;
    for (int64_t j = 0; j < r; ++j) square += gradient_[j] * gradient_[j];
    if (!(square > kFaint * kFaint) || !(square < INFINITY)) return best;
    if (norm_ == Norm::kL1) {
      for (int64_t j = 0; j < r; ++j) {
        if (!(std::fabs(gradient_[j]) > kFaint)) continue;  // one that is tried less is no harm
        best = largest(by_multiplier(c, h, at_origin, 1 / std::fabs(gradient_[j]), nullptr), best);
      }
      return best;
    }
    double low = 0, high = INFINITY, multiplier = largest(at_origin, 0) / square;
    for (int step = 0; step < kSteps; ++step) {
      double rise;
      best = largest(std::sqrt(largest(2 * by_multiplier(c, h, at_origin, multiplier, &rise), 0)), best);
      if (rise > 0) low = multiplier;
      else high = multiplier;
      multiplier = high < INFINITY ? (low + high) / 2 : 2 * multiplier + 0x1p-60;
    }
    return best;
  }

  // The least of |c|₁, or of |c|₂²/2, plus a multiple of at_origin + gradient·c, in a box; in L2, where it is least the
  // latter is `rise`.
  double by_multiplier(const double* c, const double* h, double at_origin, double multiplier, double* rise) const {
    double total = multiplier * at_origin, there = at_origin;
    for (int64_t j = 0; j < output_->dimension; ++j) {
      const double low = c[j] - h[j], high = c[j] + h[j], g = multiplier * gradient_[j];
      if (norm_ == Norm::kL1) {
        double part = least(std::fabs(low) + g * low, std::fabs(high) + g * high);
        if (low < 0 && high > 0) part = least(part, 0);
        total += part;
      } else {
        const double at = largest(low, least(high, -g));
        total += at * at / 2 + g * at;
        there += gradient_[j] * at;
      }
    }
    if (rise) *rise = there;
    return total;
  }

  double nearest_in_cubes(const double* c, const double* h, double at_origin) const {
    double low = nearest_of(c, h), high = limit_;
    for (int step = 0; step < 2 * kSteps; ++step) {
      const double radius = step == 0 ? low : step == 1 ? high : (low + high) / 2;
      double lowest = at_origin;
      for (int64_t j = 0; j < output_->dimension; ++j) {
        const double g = gradient_[j];
        lowest += g > 0 ? g * largest(c[j] - h[j], -radius) : g * least(c[j] + h[j], radius);
      }
      if (lowest > 0) low = radius;
      else high = radius;
      if (!(low < high)) break;
    }
    return low;
  }

  // A heap: each box's `kNearest` is at most those of the two behind it.
  double key(int64_t place) { return box(heap_[place])[kNearest]; }

  void push(int64_t index) {
    int64_t at = count_++;
    heap_[at] = index;
    for (; at && key(at) < key((at - 1) / 2); at = (at - 1) / 2) swap(at, (at - 1) / 2);
  }

  int64_t pop() {
    const int64_t first = heap_[0];
    heap_[0] = heap_[--count_];
    for (int64_t at = 0, next = 1; next < count_; at = next, next = 2 * at + 1) {
      if (next + 1 < count_ && key(next + 1) < key(next)) ++next;
      if (!(key(next) < key(at))) break;
      swap(at, next);
    }
    return first;
  }

  void swap(int64_t a, int64_t b) {
    const int64_t index = heap_[a];
    heap_[a] = heap_[b], heap_[b] = index;
  }

  const Signed* output_ = nullptr;
  Norm norm_ = Norm::kL2;
  double limit_ = 0, known_ = 0, allowance_ = 0;  // a flip is known at the limit, or none is looked for beyond
  double* place_ = nullptr;
  int64_t count_ = 0, most_looked_ = 0;  // boxes in the heap, and looked at at most
  int64_t fields_ = 0;                   // of a box
  double* boxes_ = nullptr;
  int64_t* heap_ = nullptr;
  Matrix own_;
  Array<double> gradient_;
};

}  // namespace
}  // namespace subspace_adv
