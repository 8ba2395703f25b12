// The distance of a point to a flip within a plane, exactly (F21 in docs/theory.md), for one point at a time.
//
// What `subspace_adv/models/planes.py` computes, with the point as the plane's origin. That lets most of the plane be
// left out: a flip that is known for certain bounds the distance, and only what lies about as near can be nearer. A
// neuron whose kink is farther away is linear there, so all those are summed up once, and lines are looked at from the
// nearest on, each between the two places where it leaves the ball that is left.
//
// As in block.cpp everything is in an anonymous namespace and nothing comes from the C++ library, so the linker can
// never take code of one instruction set for another's.
#pragma once

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "around.h"
#include "lanes.h"

namespace subspace_adv {
namespace {

struct PlaneDistance {
  double lower;  // no flip is nearer, whatever the rounding; inf where there is none, 0 where the point may be on one
  // Coordinates: the nearest flip along them is nearest of all, rounding apart; zeros lead nowhere. Toward the nearest
  // foot of a perpendicular (in L1 and L∞, which have those on lines only, the nearest place of a line where the
  // output falls below 0), and toward the nearest crossing of a line where the other sign is certain.
  double directions[2][2];
};

typedef double Pair __attribute__((vector_size(16)));

constexpr double kInfinity = __builtin_inf();
constexpr double kUlp = 0x1p-52;
// As in planes.py, in ulps:
constexpr double kParallel = 0x1p8;  // the sine of an angle, and a relative distance, of lines that count as one
constexpr double kOrder = 0x1p3;     // times the number of lines: relative distance of kinks that may be out of order
constexpr double kFar = 0x1p60;      // where no line is looked for, in units of the network's own length
constexpr double kSure = 16;         // allowances beyond which the sign of an output is certain wherever it matters
constexpr double kConstant = 2;      // times the allowance's growth: a gradient as small is rounding
// Not in planes.py:
constexpr double kSteep = 0x1p-3;        // sine of an angle, from which on the sides of a kink are certain within an edge
constexpr double kDoubt = 4;             // allowances within which outputs on computed lines are where true ones are 0
constexpr double kReserve = 0x1p12;      // ulps by which a lower bound is lessened in the end
constexpr double kEuclideanReach = 1.1;  // times the distance of a flip: how far to look for what is nearer in L2
constexpr double kReach = 1 + 0x1p-20;   // likewise in the other norms
constexpr double kWorthARay = 1.01;      // times its distance: a known flip farther away lets a foot's ray be crossed
constexpr double kLeast = 0x1p-960;      // sizes of outputs below which products may lose digits
constexpr double kMost = 0x1p960;        // or overflow
constexpr double kLeastKink = 0x1p-900;  // where kinks nearer to a line's origin are sorted in

inline double smaller(double a, double b) { return b < a ? b : a; }
inline double larger(double a, double b) { return b > a ? b : a; }
inline double size_of(double a) { return __builtin_fabs(a); }
inline double sign_of(double a) { return (a > 0) - (a < 0); }
inline Doubles everywhere(double x) { return x - Doubles{}; }
inline Doubles sizes_of(Doubles x) { return (Doubles)((Longs)x & INT64_MAX); }
inline Doubles at(const double* a) { return *(const Doubles*)a; }

inline double total(Doubles x) {
  double sum = 0;
  for (int lane = 0; lane < kDoubles; ++lane) sum += x[lane];
  return sum;
}

// The largest power of two that is not above a positive number.
inline double power_of_two_below(double size) {
  int64_t bits;
  memcpy(&bits, &size, sizeof bits);
  bits &= INT64_C(0x7ff) << 52;
  memcpy(&size, &bits, sizeof bits);
  return size;
}

// Sorts numbers that carry their index in their last bits.
class Sorter {
 public:
  bool allocate(int64_t count) { return keys_.allocate(count) && merged_.allocate(count); }

  void begin(int64_t most) {
    mask_ = 1;
    while (mask_ < most) mask_ *= 2;
    mask_ -= 1;
    count_ = 0;
  }

  // Takes a number that is not within rounding of 0.
  void add(double value, int64_t index) {
    int64_t bits;
    memcpy(&bits, &value, sizeof bits);
    bits = (bits & ~mask_) | index;
    memcpy(keys_ + count_++, &bits, sizeof bits);
  }

  int64_t count() const { return count_; }

  // The index of the i-th smallest, once sorted.
  int64_t index(int64_t i) const {
    int64_t bits;
    memcpy(&bits, keys_ + i, sizeof bits);
    return bits & mask_;
  }

  void sort() {
    if (count_ <= kFew) return insert();
    int64_t rows = (count_ + kDoubles - 1) / kDoubles;
    for (int64_t i = count_; i < rows * kDoubles; ++i) keys_[i] = kInfinity;
    sort_columns(rows);
    int64_t run = rows, stride = kDoubles;
    for (int columns = kDoubles; columns > 1; columns /= 2) {
      // The first time runs are columns, later on they lie one behind the other.
      int64_t step = stride == kDoubles ? 1 : run;
      for (int pair = 0; pair < columns / 2; ++pair) {
        merge(keys_ + 2 * pair * step, keys_ + (2 * pair + 1) * step, stride, run, merged_ + 2 * pair * run);
      }
      keys_.swap(merged_);
      run *= 2;
      stride = 1;
    }
  }

 private:
  static constexpr int kFew = 12;  // numbers, that insertion sorts faster

  void insert() {
    for (int64_t i = 1; i < count_; ++i) {
      double key = keys_[i];
      int64_t to = i;
      for (; to > 0 && keys_[to - 1] > key; --to) keys_[to] = keys_[to - 1];
      keys_[to] = key;
    }
  }

  // Each column of a matrix whose rows are vectors, by Batcher's network (Knuth's Algorithm 5.2.2M).
  void sort_columns(int64_t rows) {
    Doubles* row = (Doubles*)(double*)keys_;
    for (int64_t p = 1; p < rows; p *= 2) {
      for (int64_t k = p; k >= 1; k /= 2) {
        for (int64_t j = k % p; j + k < rows; j += 2 * k) {
          int64_t end = j + k < rows - k ? j + k : rows - k;
          for (int64_t i = j; i < end; ++i) {
            if ((i ^ (i + k)) >= 2 * p) continue;  // of different blocks
            Doubles a = row[i], b = row[i + k];
            row[i] = a < b ? a : b;
            row[i + k] = a < b ? b : a;
          }
        }
      }
    }
  }

  // Two sorted runs of as many numbers, from both ends: neither can run out.
  static void merge(const double* a, const double* b, int64_t stride, int64_t run, double* to) {
    const double *a_end = a + (run - 1) * stride, *b_end = b + (run - 1) * stride;
    double* end = to + 2 * run - 1;
    for (int64_t i = 0; i < run; ++i) {
      bool from_b = *b < *a, from_a_end = *b_end < *a_end;
      *to++ = from_b ? *b : *a;
      *end-- = from_a_end ? *a_end : *b_end;
      b += from_b ? stride : 0;
      a += from_b ? 0 : stride;
      a_end -= from_a_end ? stride : 0;
      b_end -= from_a_end ? 0 : stride;
    }
  }

  Array<double> keys_, merged_;
  int64_t mask_ = 0, count_ = 0;
};

// One workspace for any number of points, one after the other.
class Plane {
 public:
  // False where there is no memory. Points may have up to so many neurons.
  bool allocate(int64_t neurons) {
    Array<double>* arrays[] = {&x_, &y_, &bias_, &head_, &reach_, &kink_, &turn_, &lift_, &spare_};
    for (Array<double>* array : arrays) {
      if (!array->allocate(neurons)) return false;
    }
    return bin_.allocate(neurons) && sorter_.allocate(neurons);
  }

  // `known` is how far away a flip is known to be, inf if none is: the nearer, the less rounding may hide.
  PlaneDistance distance(const Around& around, Norm norm, double known) {
    norm_ = norm;
    lower_ = foot_ = horizon_ = kInfinity;
    flip_ = known;
    toward_flip_[0] = toward_flip_[1] = toward_foot_[0] = toward_foot_[1] = 0;
    if (!load(around, known)) return {0, {}};
    flip_ /= unit_;
    bool is_sure = value_at_point() > level_;  // it may be negative otherwise, by rounding
    search();
    double lower = is_sure ? smaller(smaller(lower_, horizon_) * (1 - kReserve * kUlp) * unit_, known) : 0;
    PlaneDistance found = {lower, {}};
    for (int k = 0; k < 2; ++k) {
      found.directions[0][k] = toward_foot_[k] * unit_;
      found.directions[1][k] = toward_flip_[k] * unit_;
    }
    return found;
  }

 private:
  struct Line {
    double x, y;    // normal, of length 1; the line's direction is (−y, x)
    double offset;  // of the line along it: offset·normal is the line's origin, nearest to the point
  };
  static constexpr int kFewKinks = 12;     // which are sorted without more ado
  static constexpr int kLeastBins = 8, kMostBins = 128, kKinksInBin = 8;
  static constexpr double kWidth = 8;      // how far bins go, in units of the network's own length, if lines do
  enum class Purpose { kBoundary, kFlip };  // all of the boundary on a line, or a flip on its half from the origin on
  struct Edge {
    double begin, end, slope, constant;  // along a line the output is slope·t + constant between two places
  };
  struct Bins {
    double begin, end;  // on a line
    int64_t count;
  };

  // What rounding can change of an output as far from the point.
  double allowance(double distance) const { return level_ + growth_ * distance; }
  // The size beyond which the sign of an output as far from the point is certain.
  double sure(double distance) const { return sure_level_ + sure_growth_ * distance; }

  double length(double x, double y) const {
    x = size_of(x), y = size_of(y);
    if (norm_ == Norm::kL2) return __builtin_sqrt(x * x + y * y);
    return norm_ == Norm::kLinf ? larger(x, y) : x + y;
  }

  // Where a line is nearest to the point, in the norm.
  double nearest_place(const Line& line) const {
    double x = size_of(line.x), y = size_of(line.y);
    if (norm_ == Norm::kL2) return 0;
    if (norm_ == Norm::kLinf) return line.offset / (x + y) * (sign_of(line.y) * line.x - sign_of(line.x) * line.y);
    return x >= y ? -line.offset / line.x * line.y : line.offset / line.y * line.x;
  }

  // How near a line comes to the point, in the norm.
  double reach_of(const Line& line) const {
    double x = size_of(line.x), y = size_of(line.y), offset = size_of(line.offset);
    if (norm_ == Norm::kL2) return offset;
    return norm_ == Norm::kLinf ? offset / (x + y) : offset / larger(x, y);
  }

  // Radius of the ball, in the norm, in which all that may be nearest lies.
  double radius() const { return flip_ * (norm_ == Norm::kL2 ? kEuclideanReach : kReach); }
  bool is_bounded() const { return radius() < kFar; }

  // Takes neurons as relus of distances to their kinks, in units in which the output's terms and slopes are about 1.
  // Those that are linear within reach go into a linear part. False where numbers are too large or small.
  bool load(const Around& around, double known) {
    double size = size_of(around.offset), steepness = 0, error = 0, error_growth = 0;
    const double most = known * (norm_ == Norm::kL2 ? kEuclideanReach : kReach) * (1 + kTie);
    bool varies = false;
    count_ = 0;
    base_ = around.offset;
    for (int64_t i = 0; i < around.neurons; ++i) {
      double x = around.rates[2 * i], y = around.rates[2 * i + 1], z = around.z[i], head = around.head[i];
      double largest = larger(size_of(x), size_of(y));
      if (head == 0) continue;
      if (x == 0 && y == 0) {
        base_ += z > 0 ? head * z : 0;
        if (z > -around.z_error[i]) size += size_of(head * z), error += size_of(head * around.z_error[i]);
        continue;
      }
      x /= largest, y /= largest;
      double ratio = __builtin_sqrt(x * x + y * y), speed = largest * ratio;
      x_[count_] = x / ratio;
      y_[count_] = y / ratio;
      bias_[count_] = z / speed;
      // It is off as far as anything can be nearer, and adds exactly nothing.
      const double nearest = z + around.z_error[i], slack = kTie + 2 * around.rate_error[i] / speed;
      if (nearest < 0 && reach_of({x_[count_], y_[count_], nearest / speed}) > most * (1 + slack)) continue;
      varies = true;
      error += size_of(head * around.z_error[i]);
      error_growth += size_of(head * around.rate_error[i]);
      size += size_of(head * z);
      head_[count_] = head * speed;
      lift_[count_] = head * z;
      steepness += size_of(head * speed);
      ++count_;
    }
    bool is_usable = size >= kLeast && size <= kMost && (!varies || (steepness >= kLeast && steepness <= kMost));
    if (!is_usable) return false;
    double term = power_of_two_below(size), slope = varies ? power_of_two_below(steepness) : 1;
    unit_ = varies ? term / slope : 1;
    double inverse_unit = varies ? slope / term : 1;
    if (!(unit_ >= kLeast && unit_ <= kMost)) return false;
    base_ /= term, size /= term, steepness /= slope;
    error /= term, error_growth /= slope;
    base_x_ = base_y_ = 0;
    int64_t kept = 0;
    for (int64_t i = 0; i < count_; ++i) {
      double x = x_[i], y = y_[i], bias = bias_[i] * inverse_unit, head = head_[i] / slope;
      if (size_of(bias) < kFar) {
        x_[kept] = x, y_[kept] = y, bias_[kept] = bias, head_[kept] = head;
        ++kept;
        continue;
      }
      horizon_ = kFar / 2;
      if (bias > 0) base_ += lift_[i] / term, base_x_ += head * x, base_y_ += head * y;
    }
    count_ = kept;
    pad(around.neurons);
    set_allowances(size, steepness, around.neurons, error, error_growth);
    return true;
  }

  // Neurons that are off and stay so, up to the end of the last vector.
  void pad(int64_t neurons) {
    int64_t end = neurons + kDoubles;
    for (int64_t i = count_; i < end; ++i) remove(i);
  }

  void remove(int64_t i) {
    x_[i] = y_[i] = head_[i] = 0;
    bias_[i] = -1;
  }

  void set_allowances(double size, double steepness, double neurons, double error, double error_growth) {
    double root = __builtin_sqrt(neurons);
    double share = (kParallel + kOrder * (neurons + 3) + 4 * root) * kUlp;
    double rounding = rounding_share(neurons);
    steepness_ = steepness;
    level_ = share * size + error;
    growth_ = share * steepness + error_growth;
    sure_level_ = kSure * level_ + 2 * rounding * size;
    sure_growth_ = kSure * growth_ + 2 * rounding * steepness;
    bool has_cells = norm_ == Norm::kL2;
    doubt_level_ = has_cells ? sure_level_ : kDoubt * level_;
    doubt_growth_ = has_cells ? sure_growth_ : kDoubt * growth_;
  }

  double value_at_point() const {
    double value = base_;
    for (int64_t i = 0; i < count_; ++i) value += bias_[i] > 0 ? head_[i] * bias_[i] : 0;
    return value;
  }

  void search() {
    constexpr double kDiagonal = 0.70710678118654752;
    // Through the corners of balls, where what is nearest of a straight line is. In L2, which has none, any straight
    // line meets one of the four near its foot.
    constexpr Line kAxes[] = {{1, 0, 0}, {0, 1, 0}};
    constexpr Line kDiagonals[] = {{kDiagonal, kDiagonal, 0}, {kDiagonal, -kDiagonal, 0}};
    if (norm_ == Norm::kL2) {
      double x = base_x_, y = base_y_;
      for (int64_t i = 0; i < count_; ++i) {
        if (bias_[i] > 0) x += head_[i] * x_[i], y += head_[i] * y_[i];
      }
      cross_ray(-x, -y);
    }
    if (norm_ != Norm::kLinf) {
      for (const Line& line : kAxes) cross(line);
    }
    if (norm_ != Norm::kL1) {
      for (const Line& line : kDiagonals) cross(line);
    }
    order();
    for (int64_t i = 0; i < count_; ++i) {
      cross({x_[i], y_[i], -bias_[i]});
      leave_out();
    }
  }

  // Puts neurons whose kinks are near first, and leaves out those that are too far away.
  void order() {
    sorter_.begin(count_);
    double most = radius();
    for (int64_t i = 0; i < count_; ++i) {
      reach_[i] = reach_of({x_[i], y_[i], bias_[i]});
      if (reach_[i] <= most) {
        sorter_.add(larger(reach_[i], kLeastKink), i);
      } else {
        make_linear(i);
      }
    }
    sorter_.sort();
    int64_t before = count_;
    count_ = sorter_.count();
    Array<double>* arrays[] = {&x_, &y_, &bias_, &head_, &reach_};
    for (Array<double>* array : arrays) {
      for (int64_t i = 0; i < count_; ++i) spare_[i] = (*array)[sorter_.index(i)];
      array->swap(spare_);
    }
    for (int64_t i = count_; i < before + kDoubles; ++i) remove(i);
  }

  // Leaves out neurons as flips come nearer.
  void leave_out() {
    double most = radius();
    while (count_ > 0 && reach_[count_ - 1] > most) {
      --count_;
      make_linear(count_);
      remove(count_);
    }
  }

  // Adds a neuron as it is at the point to the linear part.
  void make_linear(int64_t i) {
    if (!(bias_[i] > 0)) return;
    base_ += head_[i] * bias_[i];
    base_x_ += head_[i] * x_[i];
    base_y_ += head_[i] * y_[i];
  }

  // Finds what a line holds of the boundary, and a flip on the way to a foot if that is nearer than those known.
  void cross(const Line& line) {
    cross(line, Purpose::kBoundary);
    if (is_new_foot_ && foot_ * kWorthARay < flip_) cross_ray(toward_foot_[0], toward_foot_[1]);
    is_new_foot_ = false;
  }

  // Finds a flip toward a place, if there is one nearer than those known.
  void cross_ray(double x, double y) {
    double size = __builtin_sqrt(x * x + y * y);
    if (size > 0) cross({y / size, -x / size, 0}, Purpose::kFlip);
  }

  void cross(const Line& line, Purpose purpose) {
    double begin = -kFar, end = kFar;
    bool is_open = !is_bounded();
    if (!is_open) within_ball(line, begin, end);
    if (purpose == Purpose::kFlip) begin = 0;
    if (!(begin <= end)) return;
    // Bins where most kinks are; those farther out go to the first and the last one.
    double most = kWidth + 2 * size_of(line.offset);
    Bins bins = {larger(begin, -most), smaller(end, most), kLeastBins};
    if (bins.begin >= bins.end) bins.begin = begin, bins.end = end;
    while (bins.count < kMostBins && bins.count * kKinksInBin < count_) bins.count *= 2;
    Edge edge = first_edge(line, begin, end, bins);
    if (is_open) {
      note_what_is_beyond(line);
      end = kInfinity;
      if (begin < 0) begin = -kInfinity;
    }
    if (count_ <= kFewKinks) {
      walk_between(line, purpose, edge, 0, bins.count, begin, end);
    } else {
      walk_where_needed(line, purpose, edge, bins, begin, end);
    }
  }

  // Cuts off what of a line is not in the ball.
  void within_ball(const Line& line, double& begin, double& end) const {
    double most = radius(), x = line.offset * line.x, y = line.offset * line.y;
    if (norm_ == Norm::kL2) {
      end = __builtin_sqrt(larger(most * most - line.offset * line.offset, 0));
      begin = -end;
    } else if (norm_ == Norm::kLinf) {
      cut(x, -line.y, most, begin, end);
      cut(y, line.x, most, begin, end);
    } else {
      cut(x + y, line.x - line.y, most, begin, end);
      cut(x - y, -line.x - line.y, most, begin, end);
    }
  }

  // Cuts off where a coordinate that changes along a line is larger than `most`.
  static void cut(double start, double rate, double most, double& begin, double& end) {
    if (rate == 0) return;
    double one = (-most - start) / rate, other = (most - start) / rate;
    begin = larger(begin, smaller(one, other));
    end = smaller(end, larger(one, other));
  }

  // The output of a line where it begins. Of the neurons, where they turn from there to its end, how, and in which bin.
  Edge first_edge(const Line& line, double begin, double end, const Bins& bins) {
    double centre = (begin + end) / 2, half = (end - begin) / 2 * (1 + 0x1p-40);
    double from_x = line.offset * line.x, from_y = line.offset * line.y, along_x = -line.y, along_y = line.x;
    double per_length = bins.end > bins.begin ? smaller(bins.count / (bins.end - bins.begin), kMost) : 0;
    Doubles slope = {}, constant = {}, zero = {}, last = everywhere(bins.count - 1);
    Longs none = {};
    for (int lane = 0; lane < kDoubles; ++lane) none[lane] = 2 * bins.count + lane;
    for (int64_t i = 0; i < count_; i += kDoubles) {
      Doubles x = at(x_ + i), y = at(y_ + i), head = at(head_ + i);
      Doubles start = x * from_x + y * from_y + at(bias_ + i), rate = x * along_x + y * along_y;
      Doubles middle = start + rate * centre, speed = sizes_of(rate);
      Longs is_kink = sizes_of(middle) < speed * half, falls = rate < 0;
      Longs is_on = (is_kink & falls) | (~is_kink & (middle > 0));
      Doubles lift = head * start, turn = head * rate;
      slope += is_on ? turn : zero;
      constant += is_on ? lift : zero;
      Doubles place = -start / (is_kink ? rate : everywhere(1)), bin = (place - bins.begin) * per_length - 0.5;
      bin = bin < zero ? zero : bin;
      bin = bin > last ? last : bin;
      Longs index = ((Longs)(bin + 0x1p52) & 0xffff) * 2 - (head < 0);
      *(Longs*)(bin_ + i) = is_kink ? index : none;
      *(Doubles*)(kink_ + i) = is_kink ? place : everywhere(kInfinity);
      *(Doubles*)(turn_ + i) = falls ? -turn : turn;
      *(Doubles*)(lift_ + i) = falls ? -lift : lift;
    }
    double towards = base_x_ * along_x + base_y_ * along_y, from = base_x_ * from_x + base_y_ * from_y;
    return {begin, end, total(slope) + towards, total(constant) + from + base_};
  }

  // Walks along a line where bounds on the output leave it open whether it is zero. Sorting all kinks would take much
  // longer than summing them up in bins.
  void walk_where_needed(const Line& line, Purpose purpose, Edge edge, const Bins& bins, double begin, double end) {
    memset(sums_, 0, sizeof sums_[0] * (2 * bins.count + kDoubles));
    for (int64_t i = 0; i < count_; ++i) sums_[bin_[i]] += Pair{turn_[i], lift_[i]};
    double width = (bins.end - bins.begin) / bins.count, farthest = larger(size_of(bins.begin), size_of(bins.end));
    double least = sure(size_of(line.offset) + farthest), value = edge.slope * bins.begin + edge.constant;
    int64_t first = -1;  // of the bins at hand that are to be walked through
    Edge at_first = edge;
    for (int64_t bin = 0; bin < bins.count; ++bin) {
      Pair rising = sums_[2 * bin], falling = sums_[2 * bin + 1];
      double lowest = edge.slope + falling[0], highest = edge.slope + rising[0];
      Edge next = edge;
      next.slope += rising[0] + falling[0], next.constant += rising[1] + falling[1];
      double next_value = next.slope * (bins.begin + (bin + 1) * width) + next.constant;
      bool is_certain;
      if (bin == 0 && begin < bins.begin) {
        is_certain = (next_value > least && -highest > sure_growth_) || (-next_value > least && lowest > sure_growth_);
      } else if (bin == bins.count - 1 && end > bins.end) {
        is_certain = (value > least && lowest > sure_growth_) || (-value > least && -highest > sure_growth_);
      } else {
        is_certain = is_above(least, value, next_value, lowest, highest, width) ||
                     is_above(least, -value, -next_value, -highest, -lowest, width);
      }
      if (!is_certain && first < 0) first = bin, at_first = edge;
      if (is_certain && first >= 0) {
        walk_between(line, purpose, at_first, first, bin, begin, end);
        first = -1;
      }
      edge = next, value = next_value;
    }
    if (first >= 0) walk_between(line, purpose, at_first, first, bins.count, begin, end);
  }

  // Whether a function is larger than a number between two places `width` apart, where it has some values, if its slope
  // is never below `lowest` nor above `highest`.
  static bool is_above(double least, double value, double next_value, double lowest, double highest, double width) {
    if (!(value > least && next_value > least)) return false;
    if (lowest >= 0 || highest <= 0) return true;
    // Where the lines through both ends that fall fastest meet.
    return (value - least) * (highest - lowest) > -lowest * (value - next_value + highest * width);
  }

  // Walks from the last kink before some bins, or the line's begin, to the first one after them, or its end.
  void walk_between(
      const Line& line, Purpose purpose, const Edge& edge, int64_t bin, int64_t bin_end, double begin, double end) {
    Doubles last = everywhere(begin), first = everywhere(end);
    for (int64_t i = 0; i < count_; i += kDoubles) {
      Doubles kink = at(kink_ + i);
      Longs index = *(const Longs*)(bin_ + i);
      last = (index < 2 * bin) & (kink > last) ? kink : last;
      first = (index >= 2 * bin_end) & (kink < first) ? kink : first;
    }
    for (int lane = 0; lane < kDoubles; ++lane) begin = larger(begin, last[lane]), end = smaller(end, first[lane]);
    sorter_.begin(count_);
    for (int64_t i = 0; i < count_; ++i) {
      bool is_within = (uint64_t)(bin_[i] - 2 * bin) < (uint64_t)(2 * (bin_end - bin));
      if (is_within) sorter_.add(size_of(kink_[i]) < kLeastKink ? kLeastKink : kink_[i], i);
    }
    sorter_.sort();
    walk(line, purpose, edge, begin, end);
  }

  // Of a line that is looked at as far as numbers go: whether kinks are still farther away.
  void note_what_is_beyond(const Line& line) {
    for (int64_t i = 0; i < count_; ++i) {
      double rate = size_of(line.x * y_[i] - line.y * x_[i]);
      if (rate > kParallel * kUlp && !(kink_[i] < kInfinity)) horizon_ = kFar / 2;
    }
  }

  // Edge by edge along a line, to those where the output may be zero.
  void walk(const Line& line, Purpose purpose, Edge edge, double begin, double end) {
    double away = size_of(line.offset), best = nearest_place(line), sure_away = sure(away);
    int64_t kinks = sorter_.count();
    edge.begin = begin;
    bool was_positive = false, was_negative = false;
    if (begin > -kInfinity) {
      double value = edge.slope * begin + edge.constant, least = sure_away + sure_growth_ * size_of(begin);
      was_positive = value > least, was_negative = value < -least;
    }
    for (int64_t k = 0; k <= kinks; ++k) {
      int64_t neuron = k < kinks ? sorter_.index(k) : 0;
      edge.end = k < kinks ? kink_[neuron] : end;
      double value = edge.slope * edge.end + edge.constant, least = sure_away + sure_growth_ * size_of(edge.end);
      bool is_positive = value > least, is_negative = value < -least;  // neither at infinity
      // An output less what is sure is concave on an edge, so what holds at both ends does in between.
      if (!((was_positive & is_positive) | (was_negative & is_negative)) || edge.end == kInfinity) {
        look(line, purpose, edge, away, best);
      }
      was_positive = is_positive, was_negative = is_negative;
      edge.slope += turn_[neuron], edge.constant += lift_[neuron];
      edge.begin = edge.end;
    }
  }

  // Looks at the places of an edge where the sign of the output is not certain.
  void look(const Line& line, Purpose purpose, const Edge& edge, double away, double best) {
    if (edge.begin < 0 && edge.end > 0) {  // what is sure has a kink at 0
      look_at_part(line, purpose, edge, edge.begin, 0, away, best);
      look_at_part(line, purpose, edge, 0, edge.end, away, best);
    } else {
      look_at_part(line, purpose, edge, edge.begin, edge.end, away, best);
    }
  }

  void look_at_part(
      const Line& line, Purpose purpose, const Edge& edge, double begin, double end, double away, double best) {
    double outward = begin >= 0 ? 1 : -1, sure_growth = outward * sure_growth_, growth = outward * doubt_growth_;
    double negative = sure_sign_changes(edge, -sure_growth, -sure(away), begin, end);
    if (size_of(negative) < kInfinity) {
      double x = line.offset * line.x - negative * line.y, y = line.offset * line.y + negative * line.x;
      double distance = length(x, y);
      if (distance < flip_) flip_ = distance, toward_flip_[0] = x, toward_flip_[1] = y;
    }
    if (purpose == Purpose::kFlip) return;
    if (norm_ != Norm::kL2) note_zero(line, edge, begin, end);
    double level = doubt_level_ + doubt_growth_ * away, low = begin, high = end;
    keep_at_most_zero(-edge.slope - growth, -edge.constant - level, low, high);
    keep_at_most_zero(edge.slope - growth, edge.constant - level, low, high);
    if (!(low <= high && low < kInfinity && high > -kInfinity)) return;
    double place = larger(low, smaller(high, best));
    double nearest = length(line.offset * line.x - place * line.y, line.offset * line.y + place * line.x);
    double thickness = norm_ == Norm::kL2 ? sure(nearest) * find_feet(line, edge, away) : 0;
    lower_ = smaller(lower_, larger(nearest - thickness, 0));
  }

  // Takes a place where the output falls below zero, beyond rounding, for a foot: in these norms feet lie on lines.
  void note_zero(const Line& line, const Edge& edge, double begin, double end) {
    double place = -edge.constant / (edge.slope != 0 ? edge.slope : 1), last = edge.slope < 0 ? end : begin;
    double doubt = doubt_level_ + doubt_growth_ * (size_of(line.offset) + size_of(last));
    bool falls = size_of(last) == kInfinity || edge.slope * last + edge.constant < -doubt;
    if (!(falls && edge.slope != 0 && place >= begin && place <= end)) return;
    double x = line.offset * line.x - place * line.y, y = line.offset * line.y + place * line.x;
    double distance = length(x, y);
    if (distance < foot_) foot_ = distance, toward_foot_[0] = x, toward_foot_[1] = y;
  }

  // Where between two places of an edge the output is growth·t + level; inf if nowhere.
  static double sure_sign_changes(const Edge& edge, double growth, double level, double begin, double end) {
    double slope = edge.slope - growth, place = (level - edge.constant) / (slope != 0 ? slope : 1);
    return slope != 0 && place >= begin && place <= end ? place : kInfinity;
  }

  // Lessens an interval to where slope·t + constant is not positive.
  static void keep_at_most_zero(double slope, double constant, double& low, double& high) {
    double zero = -constant / (slope != 0 ? slope : 1);
    if (slope < 0) low = larger(low, zero);
    if (slope > 0) high = smaller(high, zero);
    if (slope == 0 && constant > 0) low = kInfinity;
  }

  // Finds the feet of perpendiculars in the two cells beside an edge, in L2. Returns by how much the boundary there
  // moves at most if the output changes by 1.
  double find_feet(const Line& line, const Edge& edge, double away) {
    double least = smaller(size_of(edge.begin), size_of(edge.end));
    // What an edge is too short for, its neighbours tell.
    if (!((edge.end - edge.begin) * steepness_ > allowance(away + least))) return 0;
    double inside = place_inside(edge);
    double at_x = line.offset * line.x - inside * line.y, at_y = line.offset * line.y + inside * line.x;
    double distance = __builtin_sqrt(at_x * at_x + at_y * at_y);
    Doubles zero = {}, x_sum = {}, y_sum = {}, constant = {};
    Doubles x_before = {}, y_before = {}, constant_before = {}, x_behind = {}, y_behind = {}, constant_behind = {};
    for (int64_t i = 0; i < count_; i += kDoubles) {
      Doubles x = at(x_ + i), y = at(y_ + i), bias = at(bias_ + i), head = at(head_ + i);
      Doubles input = x * at_x + y * at_y + bias, rate = y * line.x - x * line.y, facing = x * line.x + y * line.y;
      Longs beside = is_beside(input, rate, bias, distance), is_on = ~beside & (input > 0);
      Longs before = beside & (facing > 0), behind = beside & (facing < 0);
      Doubles head_x = head * x, head_y = head * y, lift = head * bias;
      x_sum += is_on ? head_x : zero, y_sum += is_on ? head_y : zero, constant += is_on ? lift : zero;
      x_before += before ? head_x : zero, y_before += before ? head_y : zero, constant_before += before ? lift : zero;
      x_behind += behind ? head_x : zero, y_behind += behind ? head_y : zero, constant_behind += behind ? lift : zero;
    }
    double x = total(x_sum) + base_x_, y = total(y_sum) + base_y_, h = total(constant) + base_;
    double one = find_foot(
        line, 1, at_x, at_y, distance, x + total(x_before), y + total(y_before), h + total(constant_before));
    double other = find_foot(
        line, -1, at_x, at_y, distance, x + total(x_behind), y + total(y_behind), h + total(constant_behind));
    return larger(one, other);
  }

  // Neurons whose kinks count as the line itself around a place on it: they are on in front of it or behind.
  static Longs is_beside(Doubles input, Doubles rate, Doubles bias, double distance) {
    return (sizes_of(input) <= (sizes_of(bias) + distance) * (kParallel * kUlp)) & (sizes_of(rate) <= kSteep);
  }

  // A place well within an edge.
  static double place_inside(const Edge& edge) {
    bool has_begin = edge.begin > -kInfinity, has_end = edge.end < kInfinity;
    if (has_begin && has_end) return (edge.begin + edge.end) / 2;
    if (has_begin) return edge.begin + 1 + size_of(edge.begin);
    return has_end ? edge.end - 1 - size_of(edge.end) : 0;
  }

  // Looks whether the foot of the perpendicular on the zero line of a cell lies in it. The cell is beside a place on a
  // line, on one side; its output is a linear function.
  double find_foot(
      const Line& line, int side, double at_x, double at_y, double at_distance, double x, double y, double constant) {
    double slope = __builtin_sqrt(x * x + y * y), height = size_of(constant);
    if (!(slope > kConstant * growth_)) {  // all that is known is how fast it can fall
      if (height > 4 * level_) lower_ = smaller(lower_, (height - level_) / (slope + 2 * growth_));
      return 0;
    }
    double inverse = 1 / slope, distance = height * inverse;
    double lower = larger(height - allowance(distance), 0) * inverse;
    if (lower < lower_ || distance < foot_) {
      double step = -constant * inverse * inverse;
      double foot_x = step * x, foot_y = step * y;
      if (is_in_cell(line, side, at_x, at_y, at_distance, foot_x, foot_y, distance)) {
        lower_ = smaller(lower_, lower);
        if (distance < foot_) foot_ = distance, toward_foot_[0] = foot_x, toward_foot_[1] = foot_y, is_new_foot_ = true;
      }
    }
    return inverse;
  }

  // Whether every neuron has the state at a foot that it has in the cell, or is within rounding of it.
  bool is_in_cell(
      const Line& line,
      int side,
      double at_x,
      double at_y,
      double at_distance,
      double x,
      double y,
      double distance) const {
    double front_x = side * line.x, front_y = side * line.y;
    Longs is_outside = {};
    for (int64_t i = 0; i < count_; i += kDoubles) {
      Doubles normal_x = at(x_ + i), normal_y = at(y_ + i), bias = at(bias_ + i);
      Doubles input = normal_x * at_x + normal_y * at_y + bias, rate = normal_y * line.x - normal_x * line.y;
      Doubles facing = normal_x * front_x + normal_y * front_y, there = normal_x * x + normal_y * y + bias;
      Longs beside = is_beside(input, rate, bias, at_distance);
      Longs is_on = (beside & (facing > 0)) | (~beside & (input > 0));
      is_outside |= (is_on ^ (there > 0)) & (sizes_of(there) > (sizes_of(bias) + distance) * (kParallel * kUlp));
    }
    int64_t found = 0;
    for (int lane = 0; lane < kDoubles; ++lane) found |= is_outside[lane];
    return !found;
  }

  // Neurons (count): head·relu((x, y)·p + bias) with (x, y) of length 1; how near their kinks come to the point.
  Array<double> x_, y_, bias_, head_, reach_;
  int64_t count_ = 0;
  double base_ = 0, base_x_ = 0, base_y_ = 0;  // what is linear within reach
  double unit_ = 1;                            // of lengths
  Array<double> kink_, turn_, lift_;  // (count): where neurons turn along a line, and what that adds to the output
  Array<double> spare_;
  Array<int64_t> bin_;  // (count): twice the bin of the place, and 1 if it lowers the output; from 2·bins on if none
  Pair sums_[2 * kMostBins + kDoubles];  // of turns and lifts, of neurons as `bin_` tells them apart
  Sorter sorter_;

  double level_ = 0, growth_ = 0, sure_level_ = 0, sure_growth_ = 0;  // allowances for rounding
  double doubt_level_ = 0, doubt_growth_ = 0;                         // where an output may be zero, it is no larger
  double steepness_ = 0;                                              // no output varies faster

  Norm norm_ = Norm::kL2;
  double lower_ = 0, foot_ = 0, flip_ = 0, horizon_ = 0;  // distances; nothing nearer than the horizon was left out
  double toward_foot_[2] = {}, toward_flip_[2] = {};
  bool is_new_foot_ = false;
};

}  // namespace
}  // namespace subspace_adv
