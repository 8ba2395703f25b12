// Attacks on one point: searches for directions in which flips are near, whose crossings are exact.
//
// The same searches as attacks/fmn.py and attacks/fab.py, which serve as its oracle, and F5 of docs/theory.md. Searches
// run in float32, many runs at once, a run in each lane of a vector; what decides about flips runs in float64. Two
// things are not as there: of runs that have met the same flip only one goes on to the second round, and the best
// flips are moved to the least ones nearby.
//
// This header is compiled once per instruction set. Everything is in an anonymous namespace and nothing comes from the
// C++ library, so the linker can never take code of one instruction set for another's. The same input gives the same
// bytes, whatever the workspace was used for before.
#pragma once

#include <float.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif

#include "crossings.h"

namespace subspace_adv {
namespace {

// The shortest flip along some rays.
struct Flip {
  double lower;     // a rounding error below the least crossing of them all
  double distance;  // its norm; inf where there is none
};

namespace attack_detail {

constexpr int kTile = kLanes == 16 ? 2 : 4;  // vectors of runs that pass over the neurons together, at most
constexpr int kSums = 8;                     // sums at a time: as many as hide the latency of one, and fit registers
constexpr int kCoordinates = 4;              // the dimension is padded to a multiple of them
constexpr int kBlock = 16;                   // neurons whose states one pass keeps in cache for their gradients

constexpr float kInfinity = __builtin_inff();
constexpr float kTiny = FLT_MIN;

// What falls from the first step of a round to its last, along a cosine.
struct Fall {
  float first, last;
};

// What the search was tuned to; as in attacks/fmn.py, with the same reasons.
struct Tuning {
  // Where the first round begins: on rays, about where each crosses zero.
  static constexpr int radii = 6;                // at which a ray is evaluated to see where that is
  static constexpr float least_radius = 1e-6f;   // of them, relative to the largest
  static constexpr int halvings = 3;             // of the interval between two of them
  static constexpr float farthest_start = 2;     // times the nearest crossing of all rays
  static constexpr int as_drawn = 4;             // one run in so many begins on a ray as drawn, wherever that crosses
  static constexpr float above = 0x1p-16f;  // of its terms: where a search sees an output of 0
  // The search for directions in which the output falls beyond all kinks.
  static constexpr int far_rays = 64;
  static constexpr int far_kept = 4;
  static constexpr int far_steps = 8;
  static constexpr Fall far_step = {0.5f, 0.05f};  // but geometrically
  static constexpr float far = 8;  // times what comes to every kink, where a run begins on a ray without a crossing
  // Gradient steps of the two rounds, relative to the length of the start, and the most, relative to the smallest
  // flip, that the radius on which a run goes on differs from that.
  static constexpr int first_share = 2, first_of = 5;  // of all steps, rounded up
  static constexpr Fall first_step = {1.0f, 0.2f};
  static constexpr Fall first_step_in_a_cube = {0.7f, 0.2f};
  static constexpr Fall first_rate = {0.1f, 0.02f};
  static constexpr Fall second_step = {0.4f, 0.01f};
  static constexpr Fall second_rate = {0.1f, 0.001f};
  static constexpr float blur = 0.2f;     // of a step: the radius over which gradients are blurred in L∞
  // Of what a preactivation can change by within that radius: as near to its kink, a ReLU is partly on.
  static constexpr float blurred = 0.2f;
  // Runs of the second round.
  static constexpr int going_on = 6;   // one in so many of the first, rounded up
  static constexpr int anew = 12;      // likewise, begun around the best flip
  static constexpr float nearer = 4;   // as near to it each is as the one before, and as fine are its steps
  static constexpr int finalists = 2;  // the shortest flips met, which are polished and their rays crossed exactly
  // Runs whose flips differ by less, relative to their largest coordinates, have met the same one.
  static constexpr float same_run = 0.15f;  // after the first round
  static constexpr float same_flip = 0.02f;  // after the second
  // Of the fast adaptive boundary attack, as its paper names them: η, β and α_max.
  static constexpr float overshoot = 1.05f, backward = 0.9f, most_bias = 0.1f;
  static constexpr int threshold_steps = 4;  // of Newton's iteration for the threshold of L1's projection
};

// From 1 down to 0 in some steps.
class Cosine {
 public:
  explicit Cosine(int64_t steps) {
    double angle = 3.14159265358979323846 / (steps > 1 ? steps - 1 : 1);
    turn_[0] = __builtin_cos(angle);
    turn_[1] = __builtin_sin(angle);
  }

  float next() {
    double x = at_[0], y = at_[1];
    at_[0] = x * turn_[0] - y * turn_[1];
    at_[1] = x * turn_[1] + y * turn_[0];
    return 0.5 * (1 + x);
  }

 private:
  double at_[2] = {1, 0}, turn_[2];
};

inline int64_t share_of(int64_t count, int64_t parts) { return (count + parts - 1) / parts; }
inline int64_t padded(int64_t count, int64_t to) { return share_of(count, to) * to; }
inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }  // b if either is NaN
inline Floats smaller(Floats a, Floats b) { return a < b ? a : b; }
inline Floats size_of(Floats x) { return (Floats)((Ints)x & 0x7fffffff); }
inline Floats sign_of(Floats x) { return x > 0 ? all(1) : x < 0 ? all(-1) : Floats{}; }
inline Floats within(Floats x, Floats low, Floats high) { return smaller(larger(x, low), high); }

inline Floats root(Floats x) {
#if defined(__AVX512F__)
  return (Floats)_mm512_maskz_sqrt_ps(0xffff, (__m512)x);
#elif defined(__AVX2__)
  return (Floats)_mm256_sqrt_ps((__m256)x);
#elif defined(__SSE2__)
  return (Floats)_mm_sqrt_ps((__m128)x);
#else
  for (int lane = 0; lane < kLanes; ++lane) x[lane] = __builtin_sqrtf(x[lane]);
  return x;
#endif
}

inline float sum_of(Floats x) {
  float sum = 0;
  for (int lane = 0; lane < kLanes; ++lane) sum += x[lane];
  return sum;
}

inline float largest_of(Floats x) {
  float largest = x[0];
  for (int lane = 1; lane < kLanes; ++lane) largest = x[lane] > largest ? x[lane] : largest;
  return largest;
}

// The largest power of two that is not above a positive number; 1 for what is none.
inline double power_of_two(double size) {
  uint64_t bits;
  memcpy(&bits, &size, 8);
  bits &= 0x7ff0000000000000;
  if (!(size >= DBL_MIN) || !is_finite(size)) return 1;
  memcpy(&size, &bits, 8);
  return size;
}

// Vectors of runs, a run in a lane: tile by tile, of up to `kTile` vectors, and in a tile coordinate by coordinate.
class Lanes {
 public:
  bool allocate(int64_t runs, int64_t rows) {
    rows_ = rows;
    return data_.allocate(share_of(runs, kLanes) * rows);
  }

  // Zeros of so many runs.
  void begin(int64_t runs) {
    vectors_ = share_of(runs, kLanes);
    memset((void*)(Floats*)data_, 0, vectors_ * rows_ * sizeof(Floats));
  }

  int64_t vectors() const { return vectors_; }
  int64_t width(int64_t tile) const { return smaller(kTile, vectors_ - tile * kTile); }
  int64_t tiles() const { return share_of(vectors_, kTile); }
  Floats* tile(int64_t tile) const { return data_ + tile * kTile * rows_; }

  float& at(int64_t run, int64_t row) const {
    int64_t vector = run / kLanes, in_tile = vector % kTile;
    Floats* there = tile(vector / kTile) + row * width(vector / kTile) + in_tile;
    return ((float*)there)[run % kLanes];
  }

 private:
  Array<Floats> data_;
  int64_t vectors_ = 0, rows_ = 0;
};

inline float root(float x) { return __builtin_sqrtf(x); }
inline double root(double x) { return __builtin_sqrt(x); }

// Norm of the coordinates (r) of one place.
template <Norm norm, class T>
T row_length(const T* row, int64_t r) {
  T size = 0;
  for (int64_t k = 0; k < r; ++k) {
    T part = row[k] < 0 ? -row[k] : row[k];
    if (norm == Norm::kL2) size += part * part;
    if (norm == Norm::kL1) size += part;
    if (norm == Norm::kLinf) size = part > size ? part : size;
  }
  return norm == Norm::kL2 ? root(size) : size;
}

// Norms of vectors (rows, V), lane by lane.
template <int V>
void euclidean(const Floats* v, int64_t rows, Floats* size) {
  Floats sums[V] = {};
  for (int64_t k = 0; k < rows; ++k) {
    for (int j = 0; j < V; ++j) sums[j] += v[k * V + j] * v[k * V + j];
  }
  for (int j = 0; j < V; ++j) size[j] = root(sums[j]);
}

template <int V>
void taxicab(const Floats* v, int64_t rows, Floats* size) {
  Floats sums[V] = {};
  for (int64_t k = 0; k < rows; ++k) {
    for (int j = 0; j < V; ++j) sums[j] += size_of(v[k * V + j]);
  }
  for (int j = 0; j < V; ++j) size[j] = sums[j];
}

template <int V>
void largest(const Floats* v, int64_t rows, Floats* size) {
  Floats most[V] = {};
  for (int64_t k = 0; k < rows; ++k) {
    for (int j = 0; j < V; ++j) most[j] = larger(size_of(v[k * V + j]), most[j]);
  }
  for (int j = 0; j < V; ++j) size[j] = most[j];
}

template <Norm norm, int V>
void length(const Floats* v, int64_t rows, Floats* size) {
  if constexpr (norm == Norm::kL2) euclidean<V>(v, rows, size);
  if constexpr (norm == Norm::kLinf) largest<V>(v, rows, size);
  if constexpr (norm == Norm::kL1) taxicab<V>(v, rows, size);
}

constexpr Norm dual_of(Norm norm) {
  return norm == Norm::kLinf ? Norm::kL1 : norm == Norm::kL1 ? Norm::kLinf : Norm::kL2;
}

// Vectors over their sizes; zeros where that is zero or not finite.
template <int V>
void scale(Floats* v, int64_t rows, const Floats* size) {
  Floats factor[V];
  for (int j = 0; j < V; ++j) {
    Ints usable = (size[j] > 0) & (size[j] < kInfinity);
    factor[j] = usable ? 1 / (usable ? size[j] : all(1)) : Floats{};
  }
  for (int64_t k = 0; k < rows; ++k) {
    for (int j = 0; j < V; ++j) {
      Floats scaled = v[k * V + j] * factor[j];
      v[k * V + j] = scaled == scaled ? scaled : Floats{};
    }
  }
}

template <Norm norm, int V>
void to_unit(Floats* v, int64_t rows) {
  Floats size[V];
  length<norm, V>(v, rows, size);
  scale<V>(v, rows, size);
}

// Points of the balls of some radii near v.
template <Norm norm, int V>
void project(Floats* v, int64_t rows, int64_t dimension, const Floats* radius) {
  Floats size[V];
  if constexpr (norm == Norm::kLinf) {
    for (int64_t k = 0; k < rows; ++k) {
      for (int j = 0; j < V; ++j) v[k * V + j] = within(v[k * V + j], -radius[j], radius[j]);
    }
    return;
  }
  if constexpr (norm == Norm::kL1) {
    Floats threshold[V] = {};
    for (int64_t step = 0; step < smaller(Tuning::threshold_steps, dimension); ++step) {
      Floats sums[V] = {}, counts[V] = {};
      for (int64_t k = 0; k < rows; ++k) {
        for (int j = 0; j < V; ++j) {
          Floats coordinate = size_of(v[k * V + j]);
          Ints above = coordinate > threshold[j];
          sums[j] += above ? coordinate : Floats{};
          counts[j] += above ? all(1) : Floats{};
        }
      }
      for (int j = 0; j < V; ++j) {
        threshold[j] = larger((sums[j] - radius[j]) / larger(counts[j], all(1)), threshold[j]);
      }
    }
    for (int64_t k = 0; k < rows; ++k) {
      for (int j = 0; j < V; ++j) {
        Floats coordinate = v[k * V + j], left = larger(size_of(coordinate) - threshold[j], Floats{});
        v[k * V + j] = coordinate < 0 ? -left : left;
      }
    }
  }
  length<norm, V>(v, rows, size);
  for (int j = 0; j < V; ++j) size[j] = smaller(radius[j] / (size[j] > 0 ? size[j] : all(1)), all(1));
  for (int64_t k = 0; k < rows; ++k) {
    for (int j = 0; j < V; ++j) v[k * V + j] *= size[j];
  }
}

}  // namespace attack_detail

// The workspace of attacks on points of networks of one shape; one thread uses it at a time.
class Attack {
 public:
  // Most directions that `search` writes.
  static constexpr int64_t kDirections = attack_detail::Tuning::finalists + 2;

  // For so many runs and, besides, so many hints at most; false if there is no memory for it.
  bool allocate(int64_t neurons, int64_t dimension, int64_t restarts, int64_t most_hints) {
    using namespace attack_detail;
    neurons_ = neurons;
    dimension_ = dimension;
    rows_ = padded(neurons, kSums > kLanes ? kSums : kLanes);
    columns_ = padded(dimension, kCoordinates);
    most_hints_ = most_hints;
    int64_t rays = kInformed + most_hints + 5 * restarts + Tuning::far_rays;
    int64_t keys = rays > 2 * dimension ? rays : 2 * dimension;
    return crossings_.allocate(neurons) && coordinates_.allocate(dimension) && z_.allocate(rows_) &&
           head_.allocate(rows_) && nothing_.allocate(rows_) && weights_.allocate(rows_ * columns_) && columns_of_.allocate(rows_ * columns_) &&
           sharpness_.allocate(rows_) && gradient_.allocate(columns_) &&
           gradient_all_on_.allocate(columns_) && sum_.allocate(columns_) && axes_.allocate(4 * restarts) &&
           axis_slopes_.allocate(2 * dimension) &&
           keys_.allocate(keys) && keys_scratch_.allocate(keys) && rays_.allocate(rays, columns_) &&
           reached_.allocate(rays + kLanes) && sizes_.allocate(rays + kLanes) && chosen_.allocate(keys) &&
           along_.allocate(rows_ * kTile) && starts_.allocate(restarts, columns_) &&
           first_.allocate(restarts, columns_) && best_.allocate(restarts, columns_) &&
           second_.allocate(restarts + 1, columns_) &&
           second_best_.allocate(restarts + 1, columns_) && best_size_.allocate(restarts + kLanes) &&
           second_size_.allocate(restarts + 1 + kLanes) && scales_.allocate(restarts + 1 + kLanes) &&
           far_.allocate(Tuning::far_kept, columns_) && slopes_.allocate(kTile * columns_) &&
           places_.allocate(kTile * columns_) && state_.allocate(rows_) && fab_.allocate(4 * columns_) &&
           allocate_polish();
  }

  // The least perturbation that flips along any of some rays (count, r) of any length; zeros and what is not finite
  // lead nowhere. Its coordinates (r) are zeros where there is none.
  Flip shortest(const Around& around, Norm norm, const double* directions, int64_t count, double* place) {
    using namespace attack_detail;
    int64_t r = around.dimension;
    Flip best = {kNever, kNever};
    memset(place, 0, r * sizeof(double));
    for (int64_t ray = 0; ray < count; ++ray) {
      if (!to_unit_length(norm, directions + ray * r, r)) continue;
      Ray found = crossings_.first(around, coordinates_);
      best.lower = found.lower < best.lower ? found.lower : best.lower;
      double distance = found.upper < kLeast ? kLeast : found.upper;
      if (!(distance < best.distance)) continue;
      best.distance = distance;
      for (int64_t k = 0; k < r; ++k) place[k] = distance * coordinates_[k];
    }
    return best;
  }

  // Directions (found, r) in which flips are near, at most `kDirections`; returns how many.
  //
  // Fast minimum-norm attacks with restarts and the fast adaptive boundary attack. Steps are those of a run through
  // both rounds; drawn: normals (2·restarts, r), of which L1 takes the first half; noise: normals (restarts / 12
  // rounded up, r); far: normals (64, r), the same for all points; goal: a place (r) of the other prediction, or null;
  // hints: more places (hint_count, r) in whose directions runs may begin.
  int64_t search(const Around& around, Norm norm, int64_t steps, int64_t restarts, const float* drawn,
                 const float* noise, const float* far, const double* goal, const double* hints, int64_t hint_count,
                 double* directions) {
    FlushSubnormals flush;
    Search of = {steps, restarts, drawn, noise, far, goal, hints, smaller_count(hint_count), directions};
    switch (norm) {
      case Norm::kL2: return search<Norm::kL2>(around, of);
      case Norm::kLinf: return search<Norm::kLinf>(around, of);
      case Norm::kL1: return search<Norm::kL1>(around, of);
    }
    return 0;
  }

 private:
  using Tuning = attack_detail::Tuning;
  using Lanes = attack_detail::Lanes;

  static constexpr double kNever = __builtin_inf();
  static constexpr double kLeast = 0x1p-100;  // a distance that counts as 0 but is none, and whose square is a number
  static constexpr int64_t kInformed = 5;    // rays that are not drawn

  struct Search {
    int64_t steps, restarts;
    const float *drawn, *noise, *far;
    const double *goal, *hints;
    int64_t hint_count;
    double* directions;
  };

  bool allocate_polish() {
    int64_t r = dimension_ > kMostPolished ? 1 : dimension_, q = r + 1;
    return at_.allocate(q) && step_.allocate(q) && input_.allocate(neurons_) && change_.allocate(neurons_) &&
           slope_.allocate(q) && normals_.allocate(q * q) && gram_.allocate(q * q) && target_.allocate(q) &&
           multiplier_.allocate(q) && objective_.allocate(q) && side_.allocate(neurons_) &&
           constraint_.allocate(q) && held_.allocate(q) && sign_.allocate(q) &&
           polished_.allocate(Tuning::finalists * dimension_);
  }

  int64_t smaller_count(int64_t hints) const { return hints < most_hints_ ? hints : most_hints_; }

  // Fills `coordinates_` with a direction of norm 1; false if it leads nowhere.
  bool to_unit_length(Norm norm, const double* direction, int64_t r) {
    using attack_detail::size_of;
    double most = 0, size = 0;
    for (int64_t k = 0; k < r; ++k) {
      if (!attack_detail::is_finite(direction[k])) return false;
      most = size_of(direction[k]) > most ? size_of(direction[k]) : most;
    }
    if (!(most >= DBL_MIN)) return false;
    for (int64_t k = 0; k < r; ++k) {
      double part = direction[k] / most;
      coordinates_[k] = part;
      size += norm == Norm::kL2 ? part * part : norm == Norm::kL1 ? size_of(part) : 0;
    }
    size = norm == Norm::kL2 ? __builtin_sqrt(size) : norm == Norm::kL1 ? size : 1;
    for (int64_t k = 0; k < r; ++k) coordinates_[k] /= size;
    return true;
  }

  template <Norm norm>
  int64_t search(const Around& around, const Search& of) {
    prepare<norm>(around);
    begin_runs<norm>(of);
    int64_t first_steps = attack_detail::share_of(Tuning::first_share * of.steps, Tuning::first_of);
    first_round<norm>(of, first_steps);
    second_round<norm>(of, of.steps - first_steps);
    int64_t count = finalists<norm>(around, of);
    fab<norm>(attack_detail::share_of(of.steps, 2), of.directions + count * dimension_);
    return count + 1;
  }

  // Takes over a point in float32, in units in which the output's terms, every neuron's input and the least distance
  // are about 1: all are powers of two, so that float32 can hold what it is given and rounds as in any other units.
  template <Norm norm>
  void prepare(const Around& around) {
    using namespace attack_detail;
    int64_t m = neurons_, r = dimension_;
    double terms = size_of(around.offset), value = around.offset, nearest = kNever;
    memset((void*)(double*)sum_, 0, columns_ * sizeof(double));
    for (int64_t i = 0; i < m; ++i) {
      const double* rates = around.rates + i * r;
      double z = around.z[i], head = around.head[i], speed = 0;
      terms += size_of(head * z);
      for (int64_t k = 0; k < r; ++k) speed = size_of(rates[k]) > speed ? size_of(rates[k]) : speed;
      if (size_of(z) / speed < nearest) nearest = size_of(z) > 0 ? size_of(z) / speed : nearest;
      if (!(z > 0)) continue;
      value += head * z;
      for (int64_t k = 0; k < r; ++k) sum_[k] += head * rates[k];
    }
    double slope = __builtin_sqrt(dot(sum_, sum_, r));
    unit_ = power_of_two(slope > 0 && value > 0 && is_finite(value / slope) ? value / slope : nearest);
    double factor = power_of_two(terms);
    offset_ = around.offset / factor;
    // An output of 0 is no flip, but to a search one of 0 or less is.
    if (!(value > 0)) offset_ += Tuning::above;
    for (int64_t i = 0; i < m; ++i) {
      const double* rates = around.rates + i * r;
      double most = size_of(around.z[i]);
      for (int64_t k = 0; k < r; ++k) most = size_of(rates[k]) * unit_ > most ? size_of(rates[k]) * unit_ : most;
      double size = power_of_two(most);
      z_[i] = around.z[i] / size;
      head_[i] = around.head[i] / factor * size;
      for (int64_t k = 0; k < r; ++k) weights_[i * columns_ + k] = rates[k] / size * unit_;
    }
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t k = 0; k < r; ++k) columns_of_[k * rows_ + i] = weights_[i * columns_ + k];
    }
    speeds<norm>();
  }

  // What each neuron's input can change by within the radius 1, and radii that follow from that.
  template <Norm norm>
  void speeds() {
    using namespace attack_detail;
    Floats reach = {}, unbent = all(kInfinity);
    for (int64_t i = 0; i < rows_; i += kLanes) {
      Floats speed = {};
      for (int64_t k = 0; k < dimension_; ++k) {
        Floats rate = *(Floats*)(columns_of_ + k * rows_ + i);
        if constexpr (norm == Norm::kL2) speed += rate * rate;
        if constexpr (norm == Norm::kLinf) speed += size_of(rate);
        if constexpr (norm == Norm::kL1) speed = larger(size_of(rate), speed);
      }
      if constexpr (norm == Norm::kL2) speed = root(speed);
      Floats z = *(Floats*)(z_ + i), head = *(Floats*)(head_ + i);
      Floats kink = size_of(z) / (speed > 0 ? speed : all(1));
      reach = larger(speed > 0 ? kink : Floats{}, reach);
      Ints bends = (head < 0) & (z <= 0) & (speed > 0);
      unbent = smaller(bends ? kink : all(kInfinity), unbent);
      *(Floats*)(sharpness_ + i) = 1 / larger(2 * Tuning::blurred * speed, all(kTiny));
    }
    reach_ = largest_of(reach);
    unbent_ = -largest_of(-unbent);
  }

  // Preactivations of R neurons for V vectors of runs.
  template <int V, int R>
  void preactivations(int64_t neuron, const float* z, const Floats* c, Floats (&t)[R][V]) const {
    const float* weights = weights_ + neuron * columns_;
    for (int i = 0; i < R; ++i) {
      for (int j = 0; j < V; ++j) t[i][j] = all(z[neuron + i]);
    }
    for (int64_t k = 0; k < columns_; ++k) {
      for (int i = 0; i < R; ++i) {
        for (int j = 0; j < V; ++j) t[i][j] += weights[i * columns_ + k] * c[k * V + j];
      }
    }
  }

  // Outputs (V) at c (columns, V), and their gradients (columns, V). A ReLU at its kink counts as off; where gradients
  // are blurred over radii (V), it turns on along a straight line.
  template <int V, bool is_blurred>
  void evaluate(const float* z, float offset, const Floats* c, const Floats* radius, Floats* value,
                Floats* gradient) const {
    using namespace attack_detail;
    constexpr int R = kSums / V;
    Floats sharper[V], sums[V];
    for (int j = 0; j < V; ++j) sums[j] = all(offset);
    if constexpr (is_blurred) {
      for (int j = 0; j < V; ++j) sharper[j] = 1 / larger(radius[j], all(kTiny));
    }
    memset((void*)gradient, 0, columns_ * V * sizeof(Floats));
    for (int64_t begin = 0; begin < rows_; begin += kBlock) {
      int64_t end = smaller(begin + kBlock, rows_);
      Floats active[kBlock][V];
      for (int64_t neuron = begin; neuron < end; neuron += R) {
        Floats t[R][V];
        preactivations<V, R>(neuron, z, c, t);
        for (int i = 0; i < R; ++i) {
          float head = head_[neuron + i], sharpness = sharpness_[neuron + i];
          for (int j = 0; j < V; ++j) {
            Floats on = t[i][j] > 0 ? all(head) : Floats{};
            sums[j] += on * t[i][j];
            if constexpr (is_blurred) {
              on = head * within(0.5f + t[i][j] * (sharpness * sharper[j]), Floats{}, all(1));
            }
            active[neuron - begin + i][j] = on;
          }
        }
      }
      add_gradients<V>(begin, end, active, gradient);
    }
    for (int j = 0; j < V; ++j) value[j] = sums[j];
  }

  // Adds what a block of neurons gives to the gradients.
  template <int V>
  void add_gradients(int64_t begin, int64_t end, const Floats (*active)[V], Floats* gradient) const {
    constexpr int K = V > 2 ? 2 : attack_detail::kCoordinates;  // divides the columns
    for (int64_t k = 0; k < columns_; k += K) {
      Floats sums[K][V];
      for (int i = 0; i < K; ++i) {
        for (int j = 0; j < V; ++j) sums[i][j] = gradient[(k + i) * V + j];
      }
      const float* weights = weights_ + begin * columns_ + k;
      for (int64_t neuron = begin; neuron < end; ++neuron, weights += columns_) {
        for (int i = 0; i < K; ++i) {
          for (int j = 0; j < V; ++j) sums[i][j] += weights[i] * active[neuron - begin][j];
        }
      }
      for (int i = 0; i < K; ++i) {
        for (int j = 0; j < V; ++j) gradient[(k + i) * V + j] = sums[i][j];
      }
    }
  }

  // Rates (rows, V) of the neurons along V vectors of rays.
  template <int V>
  void rates_along(const Floats* rays) {
    constexpr int R = attack_detail::kSums / V;
    for (int64_t neuron = 0; neuron < rows_; neuron += R) {
      Floats t[R][V];
      preactivations<V, R>(neuron, nothing_, rays, t);
      for (int i = 0; i < R; ++i) {
        for (int j = 0; j < V; ++j) along_[(neuron + i) * V + j] = t[i][j];
      }
    }
  }

  // Calls f with an integral constant V for every tile of some runs.
  template <int V>
  struct Width {
    static constexpr int value = V;
  };
  template <class F>
  static void for_tiles(const Lanes& lanes, F f) {
    for (int64_t tile = 0; tile < lanes.tiles(); ++tile) {
      switch (lanes.width(tile)) {
        case 1: f(Width<1>(), tile); break;
        case 2: f(Width<2>(), tile); break;
        case 3: if constexpr (attack_detail::kTile > 2) f(Width<3>(), tile); break;
        case 4: if constexpr (attack_detail::kTile > 2) f(Width<4>(), tile); break;
      }
    }
  }

  // Fills `chosen_` with the indices of the least of some values, ascending; of equal ones, the first. NaN comes last.
  void choose_least(const float* values, int64_t of, int64_t count) {
    for (int64_t i = 0; i < of; ++i) {
      int32_t bits;
      float value = values[i] == values[i] ? values[i] + 0.0f : attack_detail::kInfinity;
      memcpy(&bits, &value, 4);
      uint32_t ordered = bits < 0 ? ~(uint32_t)bits : (uint32_t)bits | 0x80000000u;
      keys_[i] = (uint64_t)ordered << 32 | (uint64_t)i;
    }
    attack_detail::sort<uint64_t>(keys_, keys_scratch_, of);
    for (int64_t i = 0; i < count; ++i) chosen_[i] = keys_[i] & 0xffffffffu;
  }

  // Fills `starts_`: where rays cross zero, but not much farther than the nearest does.
  template <Norm norm>
  void begin_runs(const Search& of) {
    using namespace attack_detail;
    gradients_at_x();
    far_descents(of.far);
    int64_t certain = 0, rays = draw_rays<norm>(of, certain);
    for_tiles(rays_, [&](auto width, int64_t tile) {
      to_unit<norm, width.value>(rays_.tile(tile), columns_);
    });
    float speed = 0, first_order = reach_;
    for (int64_t k = 0; k < dimension_; ++k) {
      float slope = __builtin_fabsf(gradient_[k]);
      if (norm == Norm::kL2) speed += slope * slope;
      if (norm == Norm::kLinf) speed += slope;
      if (norm == Norm::kL1) speed = slope > speed ? slope : speed;
    }
    if (norm == Norm::kL2) speed = __builtin_sqrtf(speed);
    if (speed > 0) first_order = margin_ / speed;
    cross_rays(first_order < unbent_ ? first_order : unbent_, reach_);  // no flip is nearer than both
    float nearest = kInfinity;
    for (int64_t i = 0; i < rays; ++i) {
      nearest = reached_[i] < nearest ? reached_[i] : nearest;
      // The least flip need not be near the nearest crossing.
      sizes_[i] = i < certain + of.restarts / Tuning::as_drawn ? 0 : reached_[i];
    }
    choose_least(sizes_, rays, of.restarts);
    starts_.begin(of.restarts);
    nearest_start_ = 0;
    float least_start = kInfinity;
    for (int64_t i = 0; i < of.restarts; ++i) {
      float most = Tuning::farthest_start * nearest, known = reached_[chosen_[i]];
      float radius = known < most ? known : most;
      if (!(nearest < kInfinity)) radius = i % 2 == 0 ? first_order : Tuning::far * reach_;
      for (int64_t k = 0; k < dimension_; ++k) starts_.at(i, k) = radius * rays_.at(chosen_[i], k);
      if (radius < least_start) least_start = radius, nearest_start_ = i;
    }
  }

  // The output at x, its gradient there, and that where every ReLU is on.
  void gradients_at_x() {
    margin_ = offset_;
    for (int64_t k = 0; k < columns_; ++k) gradient_[k] = gradient_all_on_[k] = 0;
    for (int64_t i = 0; i < neurons_; ++i) {
      float head = head_[i], active = z_[i] > 0 ? head : 0;
      margin_ += active * z_[i];
      const float* weights = weights_ + i * columns_;
      for (int64_t k = 0; k < columns_; ++k) {
        gradient_[k] += active * weights[k];
        gradient_all_on_[k] += head * weights[k];
      }
    }
  }

  // Fills `far_`: directions down which the output falls beyond all kinks, by descent on the sphere, and `far_order_`,
  // the steepest first.
  //
  // There it is positively homogeneous up to a constant. Where only a narrow cone of rays flips, and far away, no ray
  // drawn at random may lie in it.
  void far_descents(const float* far) {
    using namespace attack_detail;
    rays_.begin(Tuning::far_rays);
    for (int64_t i = 0; i < Tuning::far_rays; ++i) {
      for (int64_t k = 0; k < dimension_; ++k) rays_.at(i, k) = far[i * dimension_ + k];
    }
    for_tiles(rays_, [&](auto width, int64_t tile) {
      constexpr int V = width.value;
      Floats* c = rays_.tile(tile);
      to_unit<Norm::kL2, V>(c, columns_);
      rates_along<V>(c);
      Floats slope[V] = {};
      for (int64_t i = 0; i < rows_; ++i) {
        for (int j = 0; j < V; ++j) slope[j] += head_[i] * larger(along_[i * V + j], Floats{});
      }
      memcpy(sizes_ + tile * kTile * kLanes, slope, sizeof slope);
    });
    choose_least(sizes_, Tuning::far_rays, Tuning::far_kept);
    far_.begin(Tuning::far_kept);
    for (int64_t i = 0; i < Tuning::far_kept; ++i) {
      for (int64_t k = 0; k < dimension_; ++k) far_.at(i, k) = rays_.at(chosen_[i], k);
    }
    // All of them lie in one vector.
    static_assert(Tuning::far_kept <= kLanes);
    Floats *c = places_, *best = far_.tile(0), *gradient = slopes_, least = all(kInfinity), slope;
    memcpy((void*)c, best, columns_ * sizeof(Floats));
    for (int step = 0; step < Tuning::far_steps; ++step) {
      evaluate<1, false>(nothing_, 0, c, nullptr, &slope, gradient);
      Ints better = slope < least;
      least = better ? slope : least;
      for (int64_t k = 0; k < columns_; ++k) best[k] = better ? c[k] : best[k];
      to_unit<Norm::kL2, 1>(gradient, columns_);
      for (int64_t k = 0; k < columns_; ++k) c[k] -= kFarStep[step] * gradient[k];
      to_unit<Norm::kL2, 1>(c, columns_);
    }
    memcpy(sizes_, &least, sizeof least);
    choose_least(sizes_, Tuning::far_kept, Tuning::far_kept);
    for (int64_t i = 0; i < Tuning::far_kept; ++i) far_order_[i] = chosen_[i];
  }

  // Fills `rays_` with directions that runs may begin on; returns how many, and sets how many are not drawn.
  template <Norm norm>
  int64_t draw_rays(const Search& of, int64_t& certain) {
    using namespace attack_detail;
    int64_t r = dimension_, count = 0, half = 0;
    int64_t drawn = norm == Norm::kL1 ? of.restarts : 2 * of.restarts, axes = 0;
    if (norm == Norm::kL1) {
      half = 2 * of.restarts;
      axes = 2 * r <= 4 * of.restarts ? 2 * r : 2 * half;
      if (2 * r > 4 * of.restarts) steepest_axes(half);
    }
    certain = kInformed - (of.goal == nullptr) + of.hint_count;
    rays_.begin(certain + drawn + axes + Tuning::far_kept - 1);
    int64_t steepest = 0;
    for (int64_t k = 1; k < r; ++k) {
      if (__builtin_fabsf(gradient_[k]) > __builtin_fabsf(gradient_[steepest])) steepest = k;
    }
    for (int64_t k = 0; k < r; ++k) {
      float slope = gradient_[k], sign = (slope > 0) - (slope < 0);
      if (norm == Norm::kL1) sign = k == steepest ? sign : 0;
      rays_.at(0, k) = norm == Norm::kL2 ? -slope : -sign;
      rays_.at(1, k) = -slope;
      rays_.at(2, k) = -gradient_all_on_[k];
      rays_.at(3, k) = far_.at(far_order_[0], k);
    }
    count = 4;
    if (of.goal) fill_ray(count++, of.goal);
    for (int64_t i = 0; i < of.hint_count; ++i) fill_ray(count++, of.hints + i * r);
    for (int64_t i = 0; i < drawn; ++i, ++count) {
      bool is_corner = norm == Norm::kLinf && i % 2 == 0;
      for (int64_t k = 0; k < r; ++k) {
        float x = of.drawn[i * r + k];
        rays_.at(count, k) = is_corner ? (x > 0) - (x < 0) : x;
      }
    }
    for (int64_t i = 0; i < axes; ++i, ++count) {
      int64_t axis = 2 * r <= 4 * of.restarts ? i : axes_[i];
      rays_.at(count, axis % r) = axis < r ? 1 : -1;
    }
    for (int64_t i = 1; i < Tuning::far_kept; ++i, ++count) {
      for (int64_t k = 0; k < r; ++k) rays_.at(count, k) = far_.at(far_order_[i], k);
    }
    return count;
  }

  void fill_ray(int64_t ray, const double* place) {
    double most = 0;
    for (int64_t k = 0; k < dimension_; ++k) {
      double size = __builtin_fabs(place[k]);
      most = size > most ? size : most;
    }
    bool usable = most >= DBL_MIN && attack_detail::is_finite(most);
    for (int64_t k = 0; k < dimension_; ++k) rays_.at(ray, k) = usable ? place[k] / most : 0;
  }

  // Fills `axes_` with coordinate axes, those of negative sign after the others: `half` of them steep downhill at x,
  // as many beyond all kinks.
  void steepest_axes(int64_t half) {
    int64_t r = dimension_;
    float* slope = axis_slopes_;
    for (int64_t k = 0; k < r; ++k) slope[k] = gradient_[k], slope[r + k] = -gradient_[k];
    choose_least(slope, 2 * r, half);
    for (int64_t i = 0; i < half; ++i) axes_[i] = chosen_[i];
    for (int64_t k = 0; k < r; ++k) {
      slope[k] = slope[r + k] = 0;
      for (int64_t i = 0; i < neurons_; ++i) {
        float rate = columns_of_[k * rows_ + i] * head_[i];
        (columns_of_[k * rows_ + i] > 0 ? slope[k] : slope[r + k]) += columns_of_[k * rows_ + i] > 0 ? rate : -rate;
      }
    }
    choose_least(slope, 2 * r, half);
    for (int64_t i = 0; i < half; ++i) axes_[half + i] = chosen_[i];
  }

  // Fills `reached_`: about where each ray first crosses zero; inf if it seems not to.
  //
  // Each is evaluated at radii from `low` to `high`, which comes to every kink, then between the two that enclose a
  // crossing, and then taken for a line.
  void cross_rays(float low, float high) {
    using namespace attack_detail;
    constexpr int Q = Tuning::radii;
    float radii[Q], ratio = low / (high > 0 ? high : 1);
    ratio = ratio > Tuning::least_radius ? ratio < 1 ? ratio : 1 : Tuning::least_radius;
    float finer = __builtin_powf(ratio, 1.0f / (Q - 1));
    radii[Q - 1] = high;
    for (int q = Q - 1; q > 0; --q) radii[q - 1] = radii[q] * finer;
    for_tiles(rays_, [&](auto width, int64_t tile) {
      constexpr int V = width.value;
      rates_along<V>(rays_.tile(tile));
      for (int j = 0; j < V; ++j) {
        Floats reached = cross_rays<V>(along_ + j, radii);
        memcpy(reached_ + (tile * kTile + j) * kLanes, &reached, sizeof reached);
      }
    });
  }

  // The same of one vector of rays, whose neurons' rates are V vectors apart.
  template <int V>
  Floats cross_rays(const Floats* rates, const float* radii) const {
    using namespace attack_detail;
    constexpr int Q = Tuning::radii;
    Floats values[Q], slope = {}, constant = all(offset_);
    for (int q = 0; q < Q; ++q) values[q] = all(offset_);
    for (int64_t i = 0; i < rows_; ++i) {
      Floats rate = rates[i * V];
      for (int q = 0; q < Q; ++q) values[q] += head_[i] * larger(z_[i] + radii[q] * rate, Floats{});
      slope += head_[i] * larger(rate, Floats{});
      constant += head_[i] * (rate > 0 ? all(z_[i]) : Floats{});
    }
    Floats before = Floats{}, before_value = all(margin_), after = all(radii[0]), after_value = values[0];
    Ints flipped = values[0] <= 0;
    for (int q = 1; q < Q; ++q) {
      before = flipped ? before : all(radii[q - 1]);
      before_value = flipped ? before_value : values[q - 1];
      after = flipped ? after : all(radii[q]);
      after_value = flipped ? after_value : values[q];
      flipped |= values[q] <= 0;
    }
    for (int halving = 0; halving < Tuning::halvings; ++halving) {
      Floats radius = (before + after) / 2, value = all(offset_);
      for (int64_t i = 0; i < rows_; ++i) value += head_[i] * larger(z_[i] + radius * rates[i * V], Floats{});
      Ints is_before = value > 0;
      before = is_before ? radius : before;
      before_value = is_before ? value : before_value;
      after = is_before ? after : radius;
      after_value = is_before ? after_value : value;
    }
    Floats fall = before_value - after_value, share = before_value / (fall > 0 ? fall : all(1));
    Floats inside = before + within(share, Floats{}, all(1)) * (after - before);
    Floats outside = larger(constant / (slope < 0 ? -slope : all(1)), all(radii[Q - 1]));
    outside = slope < 0 ? outside : all(kInfinity);
    return flipped ? inside : outside;
  }

  template <Norm norm>
  void first_round(const Search& of, int64_t steps) {
    using namespace attack_detail;
    first_.begin(of.restarts);
    best_.begin(of.restarts);
    for (int64_t i = 0; i < best_.vectors() * kLanes; ++i) best_size_[i] = kInfinity, scales_[i] = 1;
    constexpr Fall step = norm == Norm::kLinf ? Tuning::first_step_in_a_cube : Tuning::first_step;
    for (int64_t tile = 0; tile < starts_.tiles(); ++tile) {
      int64_t vectors = starts_.width(tile) * columns_;
      memcpy((void*)first_.tile(tile), starts_.tile(tile), vectors * sizeof(Floats));
    }
    run_all<norm>(first_, best_, best_size_, steps, step, Tuning::first_rate);
  }

  // The best runs go on with finer steps, beside some anew around the best flip, or from starts where there is none.
  template <Norm norm>
  void second_round(const Search& of, int64_t steps) {
    using namespace attack_detail;
    int64_t going_on = share_of(of.restarts, Tuning::going_on), anew = share_of(of.restarts, Tuning::anew);
    int64_t r = dimension_;
    choose_least(best_size_, of.restarts, of.restarts);
    choose_apart(of.restarts, going_on);
    second_.begin(going_on + anew);
    second_best_.begin(going_on + anew);
    for (int64_t i = 0; i < second_.vectors() * kLanes; ++i) second_size_[i] = kInfinity, scales_[i] = 1;
    for (int64_t i = 0; i < going_on; ++i) {
      int64_t run = chosen_[i];
      bool flips = best_size_[run] < kInfinity;
      second_size_[i] = best_size_[run];
      for (int64_t k = 0; k < r; ++k) {
        second_.at(i, k) = flips ? best_.at(run, k) : starts_.at(run, k);
        second_best_.at(i, k) = best_.at(run, k);
      }
    }
    float scale = 1, least = second_size_[0], *noise = fab_;
    for (int64_t i = 0; i < anew; ++i, scale /= Tuning::nearer) {
      scales_[going_on + i] = scale;
      float size = row_length<norm>(of.noise + i * r, r), factor = size > 0 && size < kInfinity ? scale / size : 0;
      for (int64_t k = 0; k < r; ++k) noise[k] = second_best_.at(0, k) / least + factor * of.noise[i * r + k];
      size = row_length<norm>(noise, r);
      factor = size > 0 && size < kInfinity ? least / size : 0;
      for (int64_t k = 0; k < r; ++k) {
        second_.at(going_on + i, k) = least < kInfinity ? factor * noise[k] : starts_.at(i, k);
      }
    }
    run_all<norm>(second_, second_best_, second_size_, steps, Tuning::second_step, Tuning::second_rate);
  }

  // Moves runs that have met flips at places of their own to the front of `chosen_`, until there are `count`.
  void choose_apart(int64_t of, int64_t count) {
    int64_t r = dimension_, apart = 0;
    for (int64_t i = 0; i < of && apart < count; ++i) {
      int64_t run = chosen_[i];
      bool is_known = false;
      for (int64_t j = 0; j < apart && !is_known; ++j) {
        float most = 0, difference = 0;
        for (int64_t k = 0; k < r; ++k) {
          float here = best_.at(run, k), there = best_.at(chosen_[j], k);
          most = __builtin_fabsf(here) > most ? __builtin_fabsf(here) : most;
          difference = __builtin_fabsf(here - there) > difference ? __builtin_fabsf(here - there) : difference;
        }
        is_known = difference < Tuning::same_run * most;
      }
      if (is_known) continue;
      for (int64_t j = i; j > apart; --j) chosen_[j] = chosen_[j - 1];
      chosen_[apart++] = run;
    }
  }

  template <Norm norm>
  void run_all(const Lanes& runs, const Lanes& best, float* best_size, int64_t steps, attack_detail::Fall step,
               attack_detail::Fall rate) {
    using namespace attack_detail;
    for_tiles(runs, [&](auto width, int64_t tile) {
      int64_t first = tile * kTile * kLanes;
      run<norm, width.value>(runs.tile(tile), best.tile(tile), (Floats*)(best_size + first),
                             (const Floats*)(scales_ + first), steps, step, rate);
    });
  }

  // Moves a tile of runs, c (columns, V), and keeps the smallest flips that they meet.
  //
  // The radius on which a run goes on is where the output would be zero if it were linear, but within a few per cent,
  // the rate, of the smallest flip that the run has met. In L∞ least flips lie where many kinks meet, across which
  // gradients jump back and forth: there they are blurred over a part of a step.
  template <Norm norm, int V>
  void run(Floats* c, Floats* best, Floats* best_size, const Floats* scales, int64_t steps,
           attack_detail::Fall step, attack_detail::Fall rate) {
    using namespace attack_detail;
    constexpr bool is_cubic = norm == Norm::kLinf;
    Floats unit_step[V], radius[V], *gradient = slopes_;
    length<is_cubic ? Norm::kLinf : Norm::kL2, V>(c, columns_, unit_step);
    for (int j = 0; j < V; ++j) unit_step[j] *= scales[j], radius[j] = best_size[j];
    Cosine cosine(steps);
    for (int64_t now = 0; now < steps; ++now) {
      float descent = cosine.next();
      float share = step.last + (step.first - step.last) * descent;
      float nearness = rate.last + (rate.first - rate.last) * descent;
      Floats value[V], size[V], slope[V], over[V], steepness[V];
      for (int j = 0; j < V; ++j) over[j] = Tuning::blur * share * unit_step[j];
      evaluate<V, is_cubic>(z_, offset_, c, over, value, gradient);
      length<norm, V>(c, columns_, size);
      length<dual_of(norm), V>(gradient, columns_, slope);
      if constexpr (norm == Norm::kL1) {
        euclidean<V>(gradient, columns_, steepness);
      } else {
        for (int j = 0; j < V; ++j) steepness[j] = is_cubic ? slope[j] / (float)dimension_ : slope[j];
      }
      for (int j = 0; j < V; ++j) {
        Ints better = (value[j] <= 0) & (size[j] < best_size[j]);
        if (any(better)) {
          best_size[j] = better ? size[j] : best_size[j];
          for (int64_t k = 0; k < columns_; ++k) best[k * V + j] = better ? c[k * V + j] : best[k * V + j];
        }
        Floats linear = size[j] + (slope[j] > 0 ? value[j] / (slope[j] > 0 ? slope[j] : all(1)) : all(kInfinity));
        Floats near = within(linear, smaller(radius[j], best_size[j]) * (1 - nearness), best_size[j] * (1 + nearness));
        radius[j] = best_size[j] < kInfinity ? near : linear;
        Floats length = share * unit_step[j], inverse = 1 / (steepness[j] > 0 ? steepness[j] : all(1));
        for (int64_t k = 0; k < columns_; ++k) {
          Floats downhill = gradient[k * V + j] * inverse;
          if constexpr (is_cubic) downhill = within(downhill, all(-1), all(1));
          c[k * V + j] -= length * downhill;
        }
      }
      project<norm, V>(c, columns_, dimension_, radius);
    }
  }

  bool are_near(const double* a, const double* b) const {
    double most = 0, apart = 0;
    for (int64_t k = 0; k < dimension_; ++k) {
      double size = __builtin_fabs(a[k]), difference = __builtin_fabs(a[k] - b[k]);
      most = size > most ? size : most;
      apart = difference > apart ? difference : apart;
    }
    return apart < Tuning::same_flip * most;
  }

  // Writes the best flips met in both rounds, and the nearest start; returns how many.
  template <Norm norm>
  int64_t finalists(const Around& around, const Search& of) {
    int64_t second = attack_detail::share_of(of.restarts, Tuning::going_on) +
                     attack_detail::share_of(of.restarts, Tuning::anew);
    int64_t count = of.restarts + second, r = dimension_;
    for (int64_t i = 0; i < count; ++i) sizes_[i] = i < of.restarts ? best_size_[i] : second_size_[i - of.restarts];
    choose_least(sizes_, count, count);
    int64_t written = 0;
    for (int64_t i = 0; i < count && written < Tuning::finalists; ++i) {
      int64_t run = chosen_[i];
      if (!(sizes_[run] < attack_detail::kInfinity)) break;
      double* place = polished_ + written * r;
      for (int64_t k = 0; k < r; ++k) {
        place[k] = run < of.restarts ? best_.at(run, k) : second_best_.at(run - of.restarts, k);
      }
      bool is_known = false;
      for (int64_t other = 0; other < written; ++other) is_known |= are_near(place, polished_ + other * r);
      if (is_known) continue;
      polish<norm>(around, place, of.directions + written * r);
      ++written;
    }
    for (int64_t k = 0; k < r; ++k) of.directions[written * r + k] = starts_.at(nearest_start_, k);
    return written + 1;
  }

  // Steps onto the boundary of the linearized output again and again, biased towards x; before its first flip, from x,
  // that is DeepFool. Writes the smallest flip that it meets, or where it ends without.
  template <Norm norm>
  void fab(int64_t steps, double* direction) {
    using namespace attack_detail;
    int64_t r = dimension_;
    float *c = fab_, *best = c + columns_, *gradient = best + columns_, *downhill = gradient + columns_;
    float best_size = kInfinity;
    for (int64_t k = 0; k < r; ++k) c[k] = best[k] = 0;
    float value = margin_;
    for (int64_t k = 0; k < r; ++k) gradient[k] = gradient_[k];
    for (int64_t step = 0; step < steps; ++step) {
      if (step > 0) value = value_and_gradient(c, gradient);
      float slope = 0, from_x = value;
      int64_t steepest = 0;
      for (int64_t k = 0; k < r; ++k) {
        float size = __builtin_fabsf(gradient[k]);
        if (norm == Norm::kL2) slope += size * size;
        if (norm == Norm::kLinf) slope += size;
        if (norm == Norm::kL1 && size > slope) slope = size, steepest = k;
        from_x -= gradient[k] * c[k];
      }
      if (norm == Norm::kL2) slope = __builtin_sqrtf(slope);
      float inverse = slope > 0 ? 1 / slope : 0;
      for (int64_t k = 0; k < r; ++k) {
        float sign = (gradient[k] > 0) - (gradient[k] < 0);
        if (norm == Norm::kL1) sign = k == steepest ? sign : 0;
        downhill[k] = norm == Norm::kL2 ? -gradient[k] * inverse * inverse : -sign * inverse;
      }
      float here = __builtin_fabsf(value), weight = here / (here + __builtin_fabsf(from_x) + kTiny);
      weight = weight < Tuning::most_bias ? weight : Tuning::most_bias;
      float along = Tuning::overshoot * ((1 - weight) * value + weight * from_x);
      for (int64_t k = 0; k < r; ++k) c[k] = (1 - weight) * c[k] + along * downhill[k];
      if (value_at(c) > 0) continue;
      float size = row_length<norm>(c, dimension_);
      if (size < best_size) {
        best_size = size;
        for (int64_t k = 0; k < r; ++k) best[k] = c[k];
      }
      for (int64_t k = 0; k < r; ++k) c[k] *= Tuning::backward;
    }
    for (int64_t k = 0; k < r; ++k) direction[k] = best_size < kInfinity ? best[k] : c[k];
  }

  // The output at one place, a neuron in each lane.
  float value_at(const float* c) {
    using namespace attack_detail;
    Floats sum = {};
    for (int64_t i = 0; i < rows_; i += kLanes) {
      Floats t = *(Floats*)(z_ + i), head = *(Floats*)(head_ + i);
      for (int64_t k = 0; k < dimension_; ++k) t += c[k] * *(Floats*)(columns_of_ + k * rows_ + i);
      *(Floats*)(state_ + i) = t > 0 ? head : Floats{};
      sum += head * larger(t, Floats{});
    }
    return offset_ + sum_of(sum);
  }

  float value_and_gradient(const float* c, float* gradient) {
    using namespace attack_detail;
    float value = value_at(c);
    for (int64_t k = 0; k < dimension_; ++k) {
      Floats sum = {};
      const float* rates = columns_of_ + k * rows_;
      for (int64_t i = 0; i < rows_; i += kLanes) sum += *(Floats*)(state_ + i) * *(const Floats*)(rates + i);
      gradient[k] = sum_of(sum);
    }
    return value;
  }

  // Moves a flip to a least one nearby, exactly but for rounding, by an active-set method.
  //
  // With the states of the neurons of negative head frozen, the output is convex and nowhere below the true one, so
  // what it flips is convex, and a part of all flips. Its least element lies where some ReLUs of positive head are at
  // their kinks, and in L∞ and L1 on faces of the ball. From a place on the boundary, the active set's steps go
  // along these until another constraint is in the way, or until none can move; then one whose multiplier has the
  // wrong sign is given up. At the least element the frozen states are read off again.
  template <Norm norm>
  void polish(const Around& around, const double* direction, double* place) {
    int64_t r = dimension_;
    double best = kNever;
    for (int64_t k = 0; k < r; ++k) place[k] = direction[k];
    if (r > kMostPolished) return;
    for (int64_t k = 0; k < r; ++k) step_[k] = direction[k];
    for (int round = 0; round < kMostThaws; ++round) {
      if (!begin_polish<norm>(around, step_)) return;
      double size = attack_detail::row_length<norm>((const double*)at_, r);
      if (!(size < best)) return;
      bool is_better = size < best * (1 - 1e-7);
      best = size;
      for (int64_t k = 0; k < r; ++k) place[k] = at_[k];
      if (!is_better) return;
      descend<norm>(around);
      for (int64_t k = 0; k < r; ++k) step_[k] = at_[k];
    }
  }

  // The active-set method, with states frozen.
  template <Norm norm>
  void descend(const Around& around) {
    int64_t r = dimension_;
    for (int64_t left = 3 * r + kExtraSteps; left > 0; --left) {
      int64_t count = normals<norm>(around);
      if (!solve_normals<norm>(around, count)) return;
      double size = 0, of = norm == Norm::kL1 ? r : 1;
      if (norm == Norm::kL2) of = attack_detail::dot(at_, at_, r);
      for (int64_t k = 0; k <= r; ++k) size += step_[k] * step_[k];
      if (size > 1e-20 * of) {
        if (!advance<norm>(around)) return;
      } else if (!(multiplier_[0] > 0) || !release<norm>(around)) {
        return;
      }
    }
  }

  // Where neurons and coordinates stand: a ReLU off, on, or held at its kink; a coordinate free or held.
  enum Side : int8_t { kOff, kOn, kHeld };

  template <Norm norm>
  bool begin_polish(const Around& around, const double* direction) {
    using namespace attack_detail;
    int64_t m = neurons_, r = dimension_;
    constexpr double kSnap = 2e-3;
    double most = 0;
    for (int64_t k = 0; k < r; ++k) most = size_of(direction[k]) > most ? size_of(direction[k]) : most;
    if (!(most > 0) || !is_finite(most)) return false;
    for (int64_t k = 0; k < r; ++k) {
      double share = direction[k] / most;
      held_[k] = 0;
      if (norm == Norm::kLinf && size_of(share) > 1 - kSnap) held_[k] = share > 0 ? 1 : -1;
      if (norm == Norm::kL1 && size_of(share) < kSnap) held_[k] = 1;
      sign_[k] = share > 0 ? 1 : -1;
      if (norm == Norm::kLinf && held_[k]) share = held_[k];
      if (norm == Norm::kL1 && held_[k]) share = 0;
      at_[k] = share;
    }
    double radius = crossings_.first(around, at_).upper;
    if (!is_finite(radius)) return false;
    for (int64_t k = 0; k < r; ++k) at_[k] *= radius;
    at_[r] = norm == Norm::kLinf ? radius : 0;
    level_ = around.offset;
    memset((void*)(double*)slope_, 0, (r + 1) * sizeof(double));
    for (int64_t i = 0; i < m; ++i) {
      input_[i] = around.z[i] + dot(around.rates + i * r, at_, r);
      side_[i] = kOff;
      if (input_[i] > 0) switch_neuron(around, i, kOn);
    }
    return true;
  }

  // Changes a neuron's side in the linear output slope·c + level.
  void switch_neuron(const Around& around, int64_t i, Side side) {
    double change = ((side == kOn) - (side_[i] == kOn)) * around.head[i];
    side_[i] = side;
    if (change == 0) return;
    const double* rates = around.rates + i * dimension_;
    level_ += change * around.z[i];
    for (int64_t k = 0; k < dimension_; ++k) slope_[k] += change * rates[k];
  }

  // Rows of the active constraints' normals, in coordinates and, in L∞, the radius; returns how many.
  template <Norm norm>
  int64_t normals(const Around& around) {
    int64_t r = dimension_, q = r + 1, count = 1;
    memcpy(normals_, slope_, q * sizeof(double));
    normals_[r] = 0;
    target_[0] = level_;
    for (int64_t i = 0; i < neurons_ && count <= r; ++i) {
      if (side_[i] != kHeld) continue;
      memcpy(normals_ + count * q, around.rates + i * r, r * sizeof(double));
      normals_[count * q + r] = 0;
      target_[count] = around.z[i];
      constraint_[count++] = i;
    }
    if (norm == Norm::kL2) return count;
    for (int64_t k = 0; k < r && count <= r; ++k) {
      if (!held_[k]) continue;
      memset((void*)(normals_ + count * q), 0, q * sizeof(double));
      normals_[count * q + k] = norm == Norm::kLinf ? held_[k] : 1;
      normals_[count * q + r] = norm == Norm::kLinf ? -1 : 0;
      constraint_[count++] = neurons_ + k;
    }
    return count;
  }

  // The multipliers, and the step to where the norm is least on the active constraints, in L∞ and L1 only its
  // direction. False if these are not independent.
  template <Norm norm>
  bool solve_normals(const Around&, int64_t count) {
    using attack_detail::dot;
    int64_t r = dimension_, q = r + 1;
    double *factor = gram_, *y = multiplier_;
    for (int64_t k = 0; k < q; ++k) {
      objective_[k] = norm == Norm::kLinf ? k == r : norm == Norm::kL1 && k < r && !held_[k] ? sign_[k] : 0;
    }
    count_ = count;
    for (int64_t i = 0; i < count; ++i) {
      y[i] = norm == Norm::kL2 ? target_[i] : -dot(normals_ + i * q, objective_, q);
      double diagonal = dot(normals_ + i * q, normals_ + i * q, q);
      for (int64_t j = 0; j <= i; ++j) {
        double sum = j == i ? diagonal : dot(normals_ + i * q, normals_ + j * q, q);
        sum -= dot(factor + i * q, factor + j * q, j);
        if (j < i) {
          factor[i * q + j] = sum / factor[j * q + j];
        } else {
          if (!(sum > 1e-13 * diagonal)) return false;
          factor[i * q + i] = __builtin_sqrt(sum);
        }
      }
      y[i] = (y[i] - dot(factor + i * q, y, i)) / factor[i * q + i];
    }
    for (int64_t i = count - 1; i >= 0; --i) {
      double sum = y[i];
      for (int64_t j = i + 1; j < count; ++j) sum -= factor[j * q + i] * y[j];
      y[i] = sum / factor[i * q + i];
    }
    for (int64_t k = 0; k < q; ++k) step_[k] = norm == Norm::kL2 ? -at_[k] : -objective_[k];
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t k = 0; k < q; ++k) step_[k] -= y[i] * normals_[i * q + k];
    }
    return true;
  }

  // Goes along the step until a constraint is in the way, which becomes active; false if nothing ends the step.
  template <Norm norm>
  bool advance(const Around& around) {
    using namespace attack_detail;
    int64_t m = neurons_, r = dimension_, blocking = -1;
    double share = norm == Norm::kL2 ? 1 : kNever;
    for (int64_t i = 0; i < m; ++i) {
      double change = side_[i] == kHeld ? 0 : dot(around.rates + i * r, step_, r);
      change_[i] = change;
      if (around.head[i] <= 0 || side_[i] == kHeld) continue;
      bool nears = side_[i] == kOn ? change < 0 : change > 0;
      double distance = size_of(input_[i]);
      if (nears && (side_[i] == kOn) != (input_[i] > 0)) distance = 0;
      if (nears && distance < share * size_of(change)) share = distance / size_of(change), blocking = i;
    }
    for (int64_t k = 0; k < r && norm != Norm::kL2; ++k) {
      if (held_[k]) continue;
      for (int side = -1; side <= 1; side += 2) {
        double distance = norm == Norm::kLinf ? at_[r] - side * at_[k] : size_of(at_[k]);
        double change = norm == Norm::kLinf ? side * step_[k] - step_[r] : -sign_[k] * step_[k];
        if (change > 0 && distance < share * change) {
          share = distance > 0 ? distance / change : 0;
          blocking = m + k;
          facing_ = side;
        }
      }
    }
    if (blocking < 0 && norm != Norm::kL2) return false;
    for (int64_t i = 0; i < m; ++i) input_[i] += share * change_[i];
    for (int64_t k = 0; k <= r; ++k) at_[k] += share * step_[k];
    if (blocking >= m) {
      held_[blocking - m] = norm == Norm::kLinf ? facing_ : 1;
      if (norm == Norm::kL1) at_[blocking - m] = 0;
    } else if (blocking >= 0) {
      switch_neuron(around, blocking, kHeld);
      input_[blocking] = 0;
    }
    return true;
  }

  // Gives up the active constraint whose multiplier is farthest on the wrong side; false if there is none.
  template <Norm norm>
  bool release(const Around& around) {
    double worst = 1e-9;
    int64_t which = -1;
    bool is_up = false;
    for (int64_t i = 1; i < count_; ++i) {
      double low, high;
      if (constraint_[i] < neurons_) {
        double share = multiplier_[i] / (multiplier_[0] * around.head[constraint_[i]]);
        low = -share, high = share - 1;
      } else if (norm == Norm::kLinf) {
        low = -multiplier_[i], high = -1;
      } else {
        low = -multiplier_[i] - 1, high = multiplier_[i] - 1;
      }
      if (low > worst || high > worst) worst = low > high ? low : high, which = constraint_[i], is_up = high > low;
    }
    if (which < 0) return false;
    if (which < neurons_) {
      switch_neuron(around, which, is_up ? kOn : kOff);
    } else {
      held_[which - neurons_] = 0;
      sign_[which - neurons_] = is_up ? 1 : -1;
    }
    return true;
  }

  // Of the far descents, from the first to the last, geometrically.
  static constexpr float kFarStep[Tuning::far_steps] = {0.5f,        0.35984284f, 0.25897374f, 0.18637967f,
                                                        0.13413478f, 0.09653489f, 0.06947477f, 0.05f};
  static_assert(Tuning::far_steps == 8 && Tuning::far_step.first == 0.5f && Tuning::far_step.last == 0.05f);

  int64_t neurons_ = 0, dimension_ = 0;
  int64_t rows_ = 0, columns_ = 0;  // the same, padded with zeros
  int64_t most_hints_ = 0;

  // Of crossings, in float64.
  Crossings crossings_;
  Array<double> coordinates_, sum_;

  // The point in float32.
  float offset_ = 0, margin_ = 0, reach_ = 0, unbent_ = 0;  // margin: the output at x
  double unit_ = 1;                                         // the distance that counts as 1
  Array<float> z_, head_, nothing_;                         // (rows); zeros
  Array<float> weights_, columns_of_;                       // (rows, columns), and transposed
  Array<float> sharpness_;  // (rows), how fast a blurred ReLU turns on, times the radius
  Array<float> gradient_, gradient_all_on_;                 // (columns)

  // Selection.
  Array<uint64_t> keys_, keys_scratch_;
  Array<int64_t> chosen_, axes_;
  Array<float> sizes_;

  // Rays and runs.
  Lanes rays_, far_, starts_, first_, best_, second_, second_best_;
  Array<float> reached_, best_size_, second_size_, scales_;
  Array<float> axis_slopes_;          // (2 r)
  Array<Floats> along_;               // (rows, V): rates of the neurons along a tile of rays
  Array<Floats> slopes_, places_;     // (columns, V): gradients, and places, of a tile of runs
  Array<float> state_, fab_;          // (rows), (4, columns)

  // Of polishing, in float64: the place and its radius, the step, inputs of the neurons and their change; the linear
  // output; active constraints, their normals and multipliers.
  static constexpr int64_t kMostPolished = 64;  // dimensions, beyond which its cubes cost too much
  static constexpr int64_t kExtraSteps = 20;
  static constexpr int kMostThaws = 8;
  Array<double> at_, step_, input_, change_, slope_, normals_, gram_, target_, multiplier_, objective_, polished_;
  double level_ = 0;
  Array<int8_t> side_;
  Array<int64_t> constraint_;
  Array<double> held_, sign_;
  double facing_ = 0;
  int64_t count_ = 0;

  int64_t far_order_[Tuning::far_kept] = {}, nearest_start_ = 0;
};

}  // namespace
}  // namespace subspace_adv
