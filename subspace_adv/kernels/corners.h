// Radii certified at the corners of a ball that has few of them (F22's (a) and (b) in docs/theory.md), and where one
// concave bound is not enough, at those of its parts.
#pragma once

#include "around.h"
#include "vectors.h"

namespace subspace_adv {
namespace {

// A signed output in units in which it is 1 at the point, as Certificate::rescale makes it.
struct Signed {
  int64_t neurons, dimension, stride;
  const double *z, *aid, *oppose, *speed;  // preactivations, weights above and below 0, the most they change per length
  const Matrix& rates;
  double offset;
};

// The sum of its terms' sizes, where inputs change by at most `stretch` times as much as within a ball; without those of
// neurons that are off in all of the ball.
inline double size_within(const Signed& output, double radius, double stretch) {
  double size = std::fabs(output.offset);
  for (int64_t i = 0; i < output.neurons; ++i) {
    const double reach = radius * output.speed[i], z = std::fabs(output.z[i]);
    const bool is_off = output.z[i] + reach < -kTie * (z + reach);
    size += is_off ? 0 : (output.aid[i] + output.oppose[i]) * (z + stretch * reach);
  }
  return size;
}

// From 0 to 1 around 0.
inline double stepped(double at, double width) {
  return 0.5 + 0.5 * at / (std::sqrt(at * at + 4 * width * width) + 0x1p-100);
}

class Corners {
 public:
  static bool are_few(Norm norm, int64_t dimension) {
    return norm == Norm::kL1 || (norm == Norm::kLinf && dimension <= kMostHalved);
  }

  bool allocate(int64_t neurons, int64_t dimension) {
    const int64_t count = most_corners(dimension);
    has_parts_ = count * neurons <= kMostBranched;
    const int depths = has_parts_ ? kDepth : 1;
    bool is_done = terms_.allocate(count, neurons) && columns_.allocate(neurons) && slopes_.allocate(depths, neurons) &&
                   values_.allocate(depths, count) && cuts_.allocate(depths, count) &&
                   own_.allocate(kRows, neurons) && shares_.allocate(2, count);
    for (int depth = 0; depth < depths; ++depth) is_done = is_done && points_[depth].allocate(count, neurons);
    return is_done;
  }

  // The largest radius certified, up to `most`; `known` is one. `place` (r) is where the bounds are weakest, or the last
  // place of another prediction that a trial came upon.
  double radius(const Signed& signed_output, Norm norm, double most, double known, double gap, double* place) {
    output_ = &signed_output, norm_ = norm;
    count_ = norm == Norm::kL1 ? 2 * output_->dimension : int64_t{1} << output_->dimension;
    for (int64_t i = 0; i < output_->stride; ++i) slopes_[0][i] = output_->z[i] > 0 ? 1 : 0;
    double certified = known, failed = INFINITY;
    double radius = most < INFINITY ? most * (1 - kExact) : 2 * known;
    parts_ = 0;
    for (int trial = 0; trial < kTrials && certified * (1 + gap) < failed; ++trial) {
      set_out(radius);
      if (holds(0)) {
        certified = radius * (1 - 0x1p-40);
        if (certified * (1 + gap) >= most) break;
      } else {
        certified = largest(certified, along_chords(radius));
        if (flipped_depth_ < 0) find_weakest(place);
        for (int64_t j = 0; j < output_->dimension && flipped_depth_ >= 0; ++j) {
          place[j] = radius * position(flipped_depth_, flipped_corner_, j);
        }
        failed = radius;
      }
      const double enough = most / (1 + gap) * (1 + 0x1p-30), between = certified + kNextTrial * (failed - certified);
      radius = failed == INFINITY ? 2 * radius : failed > enough ? enough : between;
    }
    return certified;
  }

 private:
  static constexpr int64_t kMostHalved = 6;          // dimensions of cubes
  static constexpr int kDepth = 4;                   // of parts within parts
  static constexpr int64_t kMostBranched = 1 << 16;  // preactivations at corners, up to which there are parts
  static constexpr int kMostParts = 200;             // of all trials
  static constexpr int kTrials = 7;                  // radii
  static constexpr int kSteps = 48;                  // of the game
  static constexpr int kTouches = 4;                 // of an edge
  static constexpr double kBeyond = 1.02;    // times the root of a tangent, where an edge is looked at
  static constexpr double kExact = 0x1p-21;  // relative, of the first trial
  static constexpr double kNextTrial = 0.5;  // of the way from what is certified to what failed
  static constexpr double kFirstSpread = 0.3, kLastSpread = 0.02, kFirstAverage = 0.3, kLastAverage = 0.1;
  enum Row { kLow, kHigh, kFixed, kMean, kSquare, kTrial, kRows };

  // A cube has as many corners as a ball of L1, or more.
  static int64_t most_corners(int64_t r) { return r <= kMostHalved ? int64_t{1} << r : 2 * r; }

  double coordinate(int64_t corner, int64_t j) const {
    if (norm_ == Norm::kL1) return corner / 2 != j ? 0 : corner % 2 ? -1 : 1;
    return corner >> j & 1 ? -1 : 1;
  }

  // Begins with the corners of a ball.
  void set_out(double radius) {
    allowance_ = rounding_allowance(size_within(*output_, radius, 1), output_->neurons);
    flipped_depth_ = -1;
    for (int64_t k = 0; k < count_; ++k) {
      memcpy(points_[0][k], output_->z, 8 * output_->stride);
      for (int64_t j = 0; j < output_->dimension; ++j) {
        const double factor = radius * coordinate(k, j);
        if (factor != 0) add(points_[0][k], factor, output_->rates[j], output_->stride);
      }
    }
  }

  // Whether the output is positive in all of the part whose corners are points_[depth].
  //
  // Where the concave bound is negative at a corner, it is cut off: nothing but its own part, between it and points
  // of all edges from it where the bound is not negative, is left to look at.
  bool holds(int depth) {
    if (++parts_ > kMostParts) return false;
    equalize(depth);
    const double* values = values_[depth];
    int64_t bad = 0;
    for (int64_t k = 0; k < count_; ++k) bad += values[k] < allowance_;
    if (!bad) return true;
    if (depth + 1 == kDepth || !has_parts_ || parts_ + bad > kMostParts) return false;
    for (int64_t k = 0; k < count_; ++k) {
      if (values[k] >= allowance_) continue;
      if (!(output(points_[depth][k]) > allowance_)) {
        flipped_depth_ = depth, flipped_corner_ = k;
        return false;
      }
      if (!cut_off(depth, k) || !holds(depth + 1)) return false;
    }
    return true;
  }

  // A coordinate of a corner of a part, in radii.
  double position(int depth, int64_t corner, int64_t j) const {
    if (!depth) return coordinate(corner, j);
    const double apex = position(depth - 1, apexes_[depth - 1], j), end = position(depth - 1, corner, j);
    return apex + cuts_[depth - 1][corner] * (end - apex);
  }

  double output(const double* point) const {
    double value = output_->offset;
    for (int64_t i = 0; i < output_->neurons; ++i) {
      value += (output_->aid[i] - output_->oppose[i]) * (point[i] > 0 ? point[i] : 0);
    }
    return value;
  }

  // The part around a corner: false if the bound stays negative along an edge.
  bool cut_off(int depth, int64_t corner) {
    Matrix &whole = points_[depth], &part = points_[depth + 1];
    apexes_[depth] = corner;
    const double *apex = whole[corner], *slopes = slopes_[depth], *values = values_[depth];
    for (int64_t k = 0; k < count_; ++k) {
      const double at = k == corner ? 0 : edge(apex, whole[k], slopes, values[k] >= allowance_);
      if (at < 0) return false;
      cuts_[depth][k] = at;
      double *point = part[k], *end = whole[k];
      for (int64_t i = 0; i < output_->stride; ++i) point[i] = apex[i] + at * (end[i] - apex[i]);
    }
    memcpy(slopes_[depth + 1], slopes, 8 * output_->stride);
    return true;
  }

  // The share of the way from an apex, where the bound is negative, at which it is so no longer; −1 if none is found.
  // Beyond the apex the concave bound lies below its tangents.
  double edge(const double* apex, const double* end, const double* slopes, bool is_good) const {
    double at = 0;
    for (int touch = 0; touch <= kTouches; ++touch) {
      double slope;
      const double value = along(apex, end, at, slopes, &slope) - allowance_;
      if (value >= 0) return at;
      if (!(slope > 0)) break;
      at -= kBeyond * value / slope;
      if (!(at < 1)) break;
    }
    return is_good ? 1 : -1;
  }

  // The bound between two points, and its derivative.
  double along(const double* apex, const double* end, double at, const double* slopes, double* slope) const {
    Doubles total = {}, change = {};
    for (int64_t i = 0; i < output_->stride; i += kDoubles) {
      const Doubles begin = load(apex + i), way = load(end + i) - begin, t = begin + at * way;
      const Doubles line = load(output_->aid + i) * load(slopes + i), opposing = load(output_->oppose + i);
      const Doubles factor = line - (t > 0 ? opposing : Doubles{});
      total += factor * t;
      change += factor * way;
    }
    *slope = sum(change);
    return sum(total) + output_->offset;
  }

  // Slopes whose concave bound is as large as can be where it is least, and its values at the corners.
  void equalize(int depth) {
    const int64_t open = gather(depth), width = whole_vectors(open);
    double *slopes = slopes_[depth], *values = values_[depth], *base = shares_[1], *share = shares_[0];
    double *mean = own_[kMean], *square = own_[kSquare], *trial = own_[kTrial];
    for (int64_t c = 0; c < open; ++c) trial[c] = slopes[columns_[c]];
    for (int64_t c = open; c < width; ++c) trial[c] = 0;
    double best = -INFINITY, spread = kFirstSpread, average = kFirstAverage;
    for (int step = 0; step < kSteps; ++step) {
      double lowest = INFINITY;
      for (int64_t k = 0; k < count_; ++k) {
        share[k] = base[k] + dot(terms_[k], trial, width);
        lowest = least(lowest, share[k]);
      }
      if (lowest > best) {
        best = lowest;
        memcpy(values, share, 8 * count_);
        for (int64_t c = 0; c < open; ++c) slopes[columns_[c]] = trial[c];
      }
      if (best >= allowance_ || !open) break;
      double total = 0;
      for (int64_t k = 0; k < count_; ++k) total += share[k] = std::exp((lowest - share[k]) / spread);
      for (int64_t c = 0; c < width; ++c) mean[c] = square[c] = 0;
      for (int64_t k = 0; k < count_; ++k) {
        const double part = share[k] / total;
        if (part < 1e-6) continue;
        const double* terms = terms_[k];
        for (int64_t c = 0; c < width; ++c) mean[c] += part * terms[c], square[c] += part * terms[c] * terms[c];
      }
      for (int64_t c = 0; c < width; ++c) {
        const double deviation = std::sqrt(largest(square[c] - mean[c] * mean[c], 0));
        trial[c] += average * (stepped(mean[c], spread * deviation) - trial[c]);
      }
      spread *= kSpreadRatio, average *= kAverageRatio;
    }
    for (int64_t c = 0; c < open; ++c) {
      double& slope = slopes[columns_[c]];
      slope = slope < 0 ? 0 : slope > 1 ? 1 : slope;
    }
  }

  // The neurons whose slope is to choose, which aid and are neither on at all corners nor off: their number, columns_
  // and, at each corner, terms_; in shares_[1] what all others add to the bound there. Slopes that are certain are set.
  int64_t gather(int depth) {
    Matrix& points = points_[depth];
    double *slopes = slopes_[depth], *low = own_[kLow], *high = own_[kHigh], *fixed = own_[kFixed];
    for (int64_t i = 0; i < output_->stride; ++i) low[i] = high[i] = points[0][i];
    for (int64_t k = 1; k < count_; ++k) {
      const double* point = points[k];
      for (int64_t i = 0; i < output_->stride; ++i) {
        low[i] = point[i] < low[i] ? point[i] : low[i];
        high[i] = point[i] > high[i] ? point[i] : high[i];
      }
    }
    int64_t open = 0;
    for (int64_t i = 0; i < output_->stride; ++i) {
      if (low[i] >= 0) slopes[i] = 1;
      if (high[i] <= 0) slopes[i] = 0;
      fixed[i] = output_->aid[i] * slopes[i];
      if (output_->aid[i] > 0 && low[i] < 0 && high[i] > 0) columns_[open++] = i, fixed[i] = 0;
    }
    for (int64_t k = 0; k < count_; ++k) {
      const double* point = points[k];
      double* terms = terms_[k];
      Doubles total = {};
      for (int64_t i = 0; i < output_->stride; i += kDoubles) {
        const Doubles t = load(point + i);
        total += (load(fixed + i) - (t > 0 ? load(output_->oppose + i) : Doubles{})) * t;
      }
      shares_[1][k] = sum(total) + output_->offset;
      for (int64_t c = 0; c < open; ++c) terms[c] = output_->aid[columns_[c]] * point[columns_[c]];
      for (int64_t c = open; c < whole_vectors(open); ++c) terms[c] = 0;
    }
    return open;
  }

  // By the chords from the origin to the corners of the ball of a radius, along which the bound is concave.
  double along_chords(double radius) const {
    double begin = output_->offset - allowance_, share = 1;
    for (int64_t i = 0; i < output_->neurons; ++i) {
      begin += (output_->aid[i] * slopes_[0][i] - (output_->z[i] > 0 ? output_->oppose[i] : 0)) * output_->z[i];
    }
    if (!(begin > 0)) return 0;
    for (int64_t k = 0; k < count_; ++k) {
      const double end = values_[0][k] - allowance_;
      share = least(share, end >= 0 ? 1 : begin / (begin - end));
    }
    return radius * share * (1 - 0x1p-40);
  }

  // The average of the ball's corners by how low the bound is at them.
  void find_weakest(double* place) {
    double lowest = INFINITY, total = 0;
    for (int64_t k = 0; k < count_; ++k) lowest = least(lowest, values_[0][k]);
    for (int64_t j = 0; j < output_->dimension; ++j) place[j] = 0;
    for (int64_t k = 0; k < count_; ++k) {
      const double share = std::exp((lowest - values_[0][k]) / kLastSpread);
      total += share;
      for (int64_t j = 0; j < output_->dimension; ++j) place[j] += share * coordinate(k, j);
    }
    for (int64_t j = 0; j < output_->dimension; ++j) place[j] /= total;
  }

  const double kSpreadRatio = std::pow(kLastSpread / kFirstSpread, 1.0 / (kSteps - 1));
  const double kAverageRatio = std::pow(kLastAverage / kFirstAverage, 1.0 / (kSteps - 1));

  const Signed* output_ = nullptr;
  Norm norm_ = Norm::kL1;
  int64_t count_ = 0;  // of corners
  int64_t parts_ = 0;  // that have been looked at
  double allowance_ = 0;
  bool has_parts_ = false;
  int flipped_depth_ = -1;  // of a part, that has a corner of another prediction; −1 if none was met
  int64_t flipped_corner_ = 0;
  int64_t apexes_[kDepth] = {};  // of the parts that are being looked at
  Matrix terms_, slopes_, values_, own_, shares_, cuts_;  // cuts: how far from an apex to its part's other corners
  Matrix points_[kDepth];  // preactivations at corners: of the ball, of a part of it, of a part of that
  Array<int64_t> columns_;
};

}  // namespace
}  // namespace subspace_adv
