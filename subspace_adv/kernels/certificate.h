// Radii certified by concave bounds, which all neurons meet at one and the same perturbation (F7 and F22 in
// docs/theory.md): models/certificates.py and models/concave.py, point by point.
#pragma once

#include "around.h"
#include "boxes.h"
#include "corners.h"
#include "forms.h"

namespace subspace_adv {
namespace {

// What certificates were tuned to, with the tightness of sweeps/claims.toml.
namespace tuning {

constexpr int steps = 24;                                  // of the game
constexpr double first_average = 0.5, last_average = 0.1;  // share of the adversary's last answer in that of all
constexpr double first_spread = 0.5, last_spread = 0.02;   // of the answers
constexpr double first_reserve = 1, last_reserve = 0.03;   // by which the radius of bounds exceeds what is certified
constexpr double far = 16;            // times the kink bound: flips farther away do not tell where to begin
constexpr double begin_spread = 0.05;  // of the adversary's moments around a flip, where it begins
constexpr double weight_power = 0.25;  // of the excess in a coordinate of a cube, by which its weight grows
constexpr double worth_turning = 0.8;   // share of the dimensions, that parabolas curve in
constexpr int multiplier_steps = 8;
constexpr int newton_steps = 16;
// Where linear bounds are asked too: neurons, upper over lower.
constexpr int64_t few = 64;
constexpr double near = 1.15;
constexpr int crown_steps = 24;
constexpr double least_progress = 0.1;  // of the way to the radius on trial, by each step
constexpr double next_trial = 0.65;     // of the way from what is certified to what was given up

}  // namespace tuning

// What changes from step to step of the game, geometrically.
struct Schedule {
  double spread = tuning::first_spread, reserve = tuning::first_reserve, average = tuning::first_average;
  int step = 0;

  bool is_last() const { return step + 1 == tuning::steps; }

  void forward() { ++step, spread *= spread_ratio_, reserve *= reserve_ratio_, average *= average_ratio_; }
  void back() { --step, spread /= spread_ratio_, reserve /= reserve_ratio_, average /= average_ratio_; }

 private:
  static double ratio(double first, double last) { return std::pow(last / first, 1.0 / (tuning::steps - 1)); }

  double spread_ratio_ = ratio(tuning::first_spread, tuning::last_spread);
  double reserve_ratio_ = ratio(tuning::first_reserve, tuning::last_reserve);
  double average_ratio_ = ratio(tuning::first_average, tuning::last_average);
};

class Certificate {
 public:
  bool allocate(int64_t neurons, int64_t dimension) {
    return rates_.allocate(largest(dimension, 1), neurons) && scaled_.allocate(dimension, neurons) &&
           own_.allocate(kRows, neurons) && coordinates_.allocate(kCoordinates, dimension) &&
           curvature_.allocate(dimension, dimension) && lower_.allocate(dimension, dimension) &&
           inverse_.allocate(dimension, dimension) && turns_.allocate(dimension, dimension) &&
           tridiagonal_.allocate(dimension) && corners_.allocate(neurons, dimension) &&
           boxes_.allocate(neurons, dimension);
  }

  // The largest radius certified; at most `upper`, a distance at which there is a flip, inf if none is known.
  // `place` (r) are coordinates of that flip, and then of where the certificate is weakest or of another prediction.
  double radius(const Around& around, Norm norm, double upper, double gap, double* place) {
    take(around, norm);
    offset_ -= lost_in_sums(around, upper);
    double kink = this->kink();
    if (!(kink > 0) || kink >= upper || kink == INFINITY) return least(kink, upper);
    if (kink * (1 + gap) >= upper) return kink;
    const bool is_near = upper < tuning::far * kink;
    rescale(is_near ? upper : kink);
    const double most = upper / length_;
    double found;
    const Signed output{m_, r_, stride_, own(kZ), own(kAid), own(kOppose), own(kSpeed), rates_, offset_};
    if (Corners::are_few(norm, r_)) {
      found = corners_.radius(output, norm, most, kink / length_, gap, place);
    } else {
      for (int64_t j = 0; j < r_; ++j) coordinates_[kPlace][j] = place[j] / length_;
      turn(most);
      found = play(norm, most, kink / length_, gap, is_near);
      turn_back(coordinates_[kMean]);
      for (int64_t j = 0; j < r_; ++j) place[j] = coordinates_[kMean][j];
    }
    found = largest(kink / length_, found);
    // The bounds of F8 can be better where few neurons matter.
    const bool is_open = found * (1 + gap) < most;
    if (is_open && (m_ <= tuning::few || most <= tuning::near * found)) {
      found = largest(found, crown(norm, most < INFINITY ? most : 2 * reach() + 1));
    }
    if (Boxes::serve(r_) && found * (1 + gap) < most) {
      found = boxes_.radius(output, norm, most < INFINITY ? most : kUnknown * found, found, gap, place);
    }
    return least(found * length_, upper);
  }

 private:
  enum Row { kZ, kHead, kAid, kOppose, kSpeed, kShift, kMoment, kSlopes, kCurve, kTilt, kLine, kBend, kFall, kUnder,
             kAbove, kBestSlopes, kBestCurve, kBestTilt, kInputs, kFlat, kRows };

  double* own(Row row) { return own_[row]; }

  // Copies a signed output, padded with neurons that do nothing, and what neurons can vary by.
  void take(const Around& around, Norm norm) {
    m_ = around.neurons, r_ = around.dimension, stride_ = own_.stride();
    double *z = own(kZ), *head = own(kHead), *speed = own(kSpeed);
    for (int64_t i = 0; i < stride_; ++i) z[i] = -1, head[i] = 0, speed[i] = 0;
    for (int64_t i = 0; i < m_; ++i) z[i] = around.z[i], head[i] = around.head[i];
    for (int64_t j = 0; j < r_; ++j) {
      double* row = rates_[j];
      for (int64_t i = 0; i < m_; ++i) row[i] = around.rates[i * r_ + j];
      for (int64_t i = m_; i < stride_; ++i) row[i] = 0;
      for (int64_t i = 0; i < stride_; ++i) {
        const double size = std::fabs(row[i]);
        if (norm == Norm::kL2) speed[i] += size * size;
        if (norm == Norm::kLinf) speed[i] += size;
        if (norm == Norm::kL1) speed[i] = largest(speed[i], size);
      }
    }
    if (norm == Norm::kL2) {
      for (int64_t i = 0; i < stride_; ++i) speed[i] = std::sqrt(speed[i]);
    }
    offset_ = around.offset, norm_ = norm;
  }

  // The most that the output can be less, within a radius, because z and rates are sums that were rounded: where these
  // cancelled, that is more than what is relative to them.
  double lost_in_sums(const Around& around, double radius) const {
    const double *z = own_[kZ], *head = own_[kHead], *speed = own_[kSpeed];
    const double length = radius < INFINITY ? radius * (norm_ == Norm::kLinf ? std::sqrt((double)r_) : 1) : 0;  // in L2
    double total = 0;
    for (int64_t i = 0; i < m_; ++i) {
      const double error = around.z_error[i] + length * around.rate_error[i];
      const bool is_off = radius < INFINITY && z[i] + radius * speed[i] * (1 + kTie) < -error - kTie * std::fabs(z[i]);
      total += is_off ? 0 : std::fabs(head[i]) * error;
    }
    return total * (1 + kTie);
  }

  double dual(const double* v) const {
    double total = 0;
    for (int64_t j = 0; j < r_; ++j) {
      if (norm_ == Norm::kL2) total += v[j] * v[j];
      if (norm_ == Norm::kLinf) total += std::fabs(v[j]);
      if (norm_ == Norm::kL1) total = largest(total, std::fabs(v[j]));
    }
    return norm_ == Norm::kL2 ? std::sqrt(total) : total;
  }

  // The radius of F7. ReLUs that vary beyond what their lines tell are taken a little too near to their kinks and too
  // steep, so that what rounding can change counts for those alone that do.
  double kink() {
    const double *z = own(kZ), *head = own(kHead), *speed = own(kSpeed);
    double value = offset_, size = std::fabs(offset_), vary = 0, lost = 0, falling = 0;
    double* on = own(kLine);
    for (int64_t i = 0; i < m_; ++i) {
      const double weight = std::fabs(head[i]), opposing = head[i] < 0 ? weight : 0;
      on[i] = z[i] > 0 ? head[i] : 0;
      value += on[i] * z[i];
      size += std::fabs(on[i] * z[i]);
      vary += std::fabs(on[i]) * speed[i];
      lost += opposing * std::fabs(z[i]);
      falling += opposing * speed[i];
    }
    const double nearer = 1 - 2 * rounding_share(m_), steeper = 1 + 2 * rounding_share(m_);
    lost *= nearer, falling *= steeper;
    for (int64_t i = m_; i < stride_; ++i) on[i] = 0;
    for (int64_t j = 0; j < r_; ++j) coordinates_[0][j] = dot(on, rates_[j], stride_);
    const double margin = value - rounding_allowance(size, m_), gradient = dual(coordinates_[0]);
    output_ = value;
    if (!(margin > 0)) return 0;
    const double slack = gradient + rounding_allowance(vary, m_);
    const double start = least(margin / slack, (margin + lost) / (slack + falling));
    if (!(start < INFINITY)) return start == start ? INFINITY : 0;
    double r = start, bound = 0;
    for (int step = 0; step <= tuning::newton_steps; ++step) {
      double beyond = 0, descent = slack;
      for (int64_t i = 0; i < m_; ++i) {
        const double opposing = head[i] < 0 ? -head[i] : 0, fall = speed[i] * steeper;
        const double over = r * fall - std::fabs(z[i]) * nearer;
        beyond += over > 0 ? opposing * over : 0;
        descent += over > 0 ? opposing * fall : 0;
      }
      bound = margin - r * slack - beyond;
      if (bound >= 0 || step == tuning::newton_steps) break;
      r += bound / descent;
    }
    return r * (bound < 0 ? margin / (margin - bound) : 1);
  }

  // To units in which a length, the output at the point, and what each neuron can vary by within it are 1.
  void rescale(double length) {
    length_ = length;
    double *z = own(kZ), *head = own(kHead), *speed = own(kSpeed), *inputs = own(kInputs);
    for (int64_t i = 0; i < stride_; ++i) {
      inputs[i] = speed[i] > 0 ? length * speed[i] : 1;
      z[i] /= inputs[i];
      head[i] *= inputs[i] / output_;
      speed[i] *= length / inputs[i];
      own(kAid)[i] = head[i] > 0 ? head[i] : 0;
      own(kOppose)[i] = head[i] < 0 ? -head[i] : 0;
    }
    for (int64_t j = 0; j < r_; ++j) {
      for (int64_t i = 0; i < stride_; ++i) rates_[j][i] *= length / inputs[i];
    }
    offset_ /= output_;
  }

  // The least radius within which every ReLU that varies can change its state.
  double reach() {
    double most = 0;
    for (int64_t i = 0; i < stride_; ++i) {
      if (own(kSpeed)[i] > 0) most = largest(most, std::fabs(own(kZ)[i]) / own(kSpeed)[i]);
    }
    return most;
  }

  // The radius of F8, by linear bounds that are tightened where flips can be; the first one tried is `start`.
  double crown(Norm norm, double start) {
    double *low = own(kUnder), *high = own(kAbove), *line = own(kLine), *slopes = own(kSlopes), *fall = own(kFall);
    double *least_in = own(kShift), *most_in = own(kMoment), *kept_least = own(kCurve), *kept_most = own(kTilt);
    const double *z = own(kZ), *speed = own(kSpeed), *aid = own(kAid), *oppose = own(kOppose);
    double *gradient = coordinates_[kGradient], *steepest = coordinates_[kMean];
    for (int64_t i = 0; i < stride_; ++i) {
      slopes[i] = z[i] > 0 ? 1 : 0;
      least_in[i] = kept_least[i] = -INFINITY, most_in[i] = kept_most[i] = INFINITY;
    }
    double certified = 0, upper = start, r = start, before = -INFINITY;
    int64_t trial = 0;
    for (int step = 0; step < tuning::crown_steps; ++step) {
      double level = offset_, size = std::fabs(offset_);
      for (int64_t i = 0; i < stride_; ++i) {
        low[i] = largest(z[i] - r * speed[i], least_in[i]);
        high[i] = least(z[i] + r * speed[i], most_in[i]);
        // Wider by what rounding can change of them, so that it counts for ReLUs that are on somewhere alone.
        const double farthest = std::fabs(z[i]) + r * speed[i], wider = high[i] + kTie * farthest;
        const double above = wider > 0 ? wider : 0, below = low[i] < 0 ? low[i] : 0;
        const double chord = above / (above > below ? above - below : 1);
        line[i] = aid[i] * slopes[i] - oppose[i] * chord;
        level += line[i] * z[i] + oppose[i] * chord * below;
        size += std::fabs(line[i]) * farthest;
      }
      level -= rounding_allowance(size, m_);
      for (int64_t j = 0; j < r_; ++j) gradient[j] = dot(line, rates_[j], stride_);
      const double steepness = dual(gradient), divisor = steepness > 0 ? steepness : 1, height = level / divisor;
      const bool is_sound = level >= r * steepness;
      const bool is_given_up = !is_sound && height - before < tuning::least_progress * (r - height);
      certified = largest(certified, is_sound ? r : least(height, r));
      steepest_of(norm, gradient, steepest);
      for (int64_t i = 0; i < stride_; ++i) fall[i] = 0;
      for (int64_t j = 0; j < r_; ++j) add(fall, steepest[j], rates_[j], stride_);
      if (!is_sound) within_cap(norm, gradient, divisor, r, largest(-r, least(height, r)));
      const double share = 2.0 / (trial + 3);
      for (int64_t i = 0; i < stride_; ++i) slopes[i] += share * ((z[i] > r * fall[i] ? 1 : 0) - slopes[i]);
      if (is_sound || is_given_up) {
        if (is_given_up) {
          upper = r;
          memcpy(kept_least, least_in, 8 * stride_), memcpy(kept_most, most_in, 8 * stride_);
        }
        if (is_sound && r >= start) break;
        memcpy(least_in, kept_least, 8 * stride_), memcpy(most_in, kept_most, 8 * stride_);
        r = least(certified + tuning::next_trial * (upper - certified), 2 * certified);
        before = -INFINITY, trial = 0;
        if (!(r > 0)) break;
      } else {
        before = height, ++trial;
      }
    }
    return certified;
  }

  void steepest_of(Norm norm, const double* v, double* direction) const {
    double size = norm == Norm::kL2 ? dual(v) : 1;
    int64_t most = 0;
    for (int64_t j = 0; j < r_; ++j) {
      if (std::fabs(v[j]) > std::fabs(v[most])) most = j;
      direction[j] = norm == Norm::kL2 ? v[j] / (size > 0 ? size : 1) : norm == Norm::kLinf ? (v[j] > 0) - (v[j] < 0) : 0;
    }
    if (norm == Norm::kL1) direction[most] = (v[most] > 0) - (v[most] < 0);
  }

  // Narrows the ranges of preactivations to those on the part of a ball where flips can be, as _within_cap of
  // models/certificates.py: `fall` is what they change by along the steepest direction.
  void within_cap(Norm norm, const double* gradient, double divisor, double r, double height) {
    const double *z = own(kZ), *speed = own(kSpeed), *low = own(kUnder), *high = own(kAbove), *fall = own(kFall);
    double *least_in = own(kShift), *most_in = own(kMoment);
    if (norm == Norm::kL2) {
      const double rim = std::sqrt(largest((r - height) * (r + height), 0));
      for (int64_t i = 0; i < stride_; ++i) {
        const double square = speed[i] * speed[i], left = square + rounding_allowance(square, m_) - fall[i] * fall[i];
        const double beside = rim * std::sqrt(left > 0 ? left : 0);
        const double down = r * fall[i] >= height * speed[i] ? r * speed[i] : beside + height * fall[i];
        const double up = -r * fall[i] >= height * speed[i] ? r * speed[i] : beside - height * fall[i];
        least_in[i] = largest(low[i], z[i] - down);
        most_in[i] = least(high[i], z[i] + up);
      }
      return;
    }
    double* toward = coordinates_[kVariances];
    for (int64_t j = 0; j < r_; ++j) toward[j] = gradient[j] / divisor;
    for (int64_t i = 0; i < m_; ++i) {
      double bounds[2], along = 0;
      int64_t most = 0;
      for (int64_t j = 0; j < r_; ++j) {
        if (norm == Norm::kLinf) along += rates_[j][i] > 0 ? toward[j] : rates_[j][i] < 0 ? -toward[j] : 0;
        if (std::fabs(rates_[j][i]) > std::fabs(rates_[most][i])) most = j;
      }
      if (norm == Norm::kL1) along = rates_[most][i] > 0 ? toward[most] : rates_[most][i] < 0 ? -toward[most] : 0;
      for (int side = 0; side < 2; ++side) {
        const double s = side ? 1 : -1;
        const double p = largest(speed[i] + s * fall[i], 0), q = largest(1 + s * along, 0x1p-20);
        double length = 0;
        for (int64_t j = 0; j < r_; ++j) {
          const double part = std::fabs(q * rates_[j][i] - s * p * toward[j]);
          length = norm == Norm::kLinf ? length + part : largest(length, part);
        }
        const double bound = r * length - p * height + rounding_allowance(r * p, m_);
        bounds[side] = least(bound / q, r * speed[i]);
      }
      least_in[i] = largest(low[i], z[i] - bounds[0]);
      most_in[i] = least(high[i], z[i] + bounds[1]);
    }
  }

  struct Form {
    double level, size;
  };

  // What bounds the output on a ball: `coordinates_[kGradient]`, `curvature_` (lower triangle) and the level.
  Form form(double radius, const double* slopes, const double* curves, const double* tilts) {
    const double *z = own(kZ), *aid = own(kAid), *oppose = own(kOppose), *speed = own(kSpeed);
    double *line = own(kLine), *bend = own(kBend), *part = own(kUnder), *magnitude = own(kAbove);
    for (int64_t i = 0; i < stride_; ++i) {
      const double reach = radius * speed[i], low = z[i] - reach;
      const double high = z[i] + reach + kTie * (std::fabs(z[i]) + reach);  // beyond rounding: what is off adds nothing
      const double s = low >= 0 ? 1.0 : high <= 0 ? 0.0 : slopes[i];
      const double curve = curves[i], tilt = tilts[i];
      // The most that relu(t) − curve·t² − tilt·t is, on either side of 0.
      const double twice = 1 / (curve > 0 ? 2 * curve : 1);
      const double end_off = high < 0 ? high : 0, begin_on = low > 0 ? low : 0;
      double peak_off = curve > 0 ? -tilt * twice : (tilt < 0 ? end_off : low);
      double peak_on = curve > 0 ? (1 - tilt) * twice : (tilt < 1 ? high : begin_on);
      peak_off = peak_off < low ? low : peak_off > end_off ? end_off : peak_off;
      peak_on = peak_on < begin_on ? begin_on : peak_on > high ? high : peak_on;
      const double off = low < 0 ? (-tilt - curve * peak_off) * peak_off : -INFINITY;
      const double on = high >= 0 ? (1 - tilt - curve * peak_on) * peak_on : -INFINITY;
      const double lift = off > on ? off : on;
      line[i] = aid[i] * s - oppose[i] * (2 * curve * z[i] + tilt);
      bend[i] = 2 * oppose[i] * curve;
      part[i] = aid[i] * s * z[i] - oppose[i] * ((curve * z[i] + tilt) * z[i] + lift);
      const double farthest = std::fabs(z[i]) + reach;
      const double steepest = aid[i] * s + oppose[i] * (curve * farthest + std::fabs(tilt));
      magnitude[i] = steepest * farthest + oppose[i] * std::fabs(lift);
    }
    for (int64_t j = 0; j < r_; ++j) coordinates_[kGradient][j] = dot(line, rates_[j], stride_);
    for (int64_t j = 0; j < curved_; ++j) {
      double* bent = scaled_[j];
      const double* row = rates_[j];
      for (int64_t i = 0; i < stride_; ++i) bent[i] = bend[i] * row[i];
    }
    for (int64_t j = 0; j < curved_; ++j) {
      for (int64_t k = 0; k <= j; ++k) curvature_[j][k] = dot(scaled_[j], rates_[k], stride_);
    }
    return {sum(part, stride_) + offset_, sum(magnitude, stride_) + std::fabs(offset_)};
  }

  // The parabolas whose averages are least, of preactivations with the means z + shift and some second moments.
  void choose_parabolas(double radius) {
    const double *z = own(kZ), *shift = own(kShift), *moment = own(kMoment), *speed = own(kSpeed);
    double *curves = own(kCurve), *tilts = own(kTilt);
    for (int64_t i = 0; i < stride_; ++i) {
      const double reach = radius * speed[i], low = z[i] - reach, high = z[i] + reach;
      const double mean = z[i] + shift[i], raw = z[i] * z[i] + 2 * z[i] * shift[i] + moment[i];
      const double second = raw > 0 ? raw : 0;
      const double apart = second - mean * mean, variance = apart > 0 ? apart : 0;
      const double smallest = (high - low) * 0x1p-12, root = std::sqrt(second);
      double size = root > smallest ? root : smallest;
      size = size > kTiny ? size : kTiny;
      const double tiny = size * 0x1p-12;
      const double from_low = mean - low > tiny ? mean - low : tiny;
      const double from_high = high - mean > tiny ? high - mean : tiny;
      // Distances of the other point from the end that is one.
      const double across = from_low + variance / from_low, back = from_high + variance / from_high;
      const bool at_low = size > -low && -low <= high, at_high = size > high && !at_low;
      const bool is_chord = (at_low && low + across >= high) || (at_high && high - back <= low);
      const bool is_stable = low >= 0 || high <= 0;
      const double touched = at_low ? across : at_high ? back : 1;
      const double inverse = 1 / touched;
      const double end_curve = (at_low ? -low : high) * inverse * inverse;
      double curve = at_low || at_high ? end_curve : 1 / (4 * size);
      curve = curve > 0 ? curve : 0;
      double tilt = at_low ? 1 + 2 * low * (inverse - curve) : at_high ? 2 * high * (inverse - curve) : 0.5;
      const double slope = high / (high > low ? high - low : 1);
      tilt = is_chord ? slope : tilt;
      tilt = low >= 0 ? 1 : high <= 0 ? 0 : tilt;
      curves[i] = is_stable || is_chord ? 0 : curve;
      tilts[i] = tilt;
    }
  }

  // In L2, turns the coordinates, and `kPlace` with them, so that in all but the first `curved_` of them no parabola
  // within a radius curves: there are no more of these than neurons that oppose and bend. By Householder's reflections,
  // whose rounding errors are a small part of what is allowed for.
  void turn(double most) {
    const double *z = own(kZ), *oppose = own(kOppose), *speed = own(kSpeed);
    auto bends = [&](int64_t i) { return oppose[i] > 0 && std::fabs(z[i]) <= most * speed[i] * (1 + kTie); };
    int64_t count = 0;
    for (int64_t i = 0; i < m_; ++i) count += bends(i);
    const bool is_worth_it = norm_ == Norm::kL2 && !Boxes::serve(r_) && count < tuning::worth_turning * r_;
    curved_ = is_worth_it ? count : r_;
    if (!is_worth_it) return;
    double *flat = own(kFlat), *along = own(kUnder), *place = coordinates_[kPlace];
    int64_t k = 0;
    for (int64_t i = 0; i < m_; ++i) {
      if (!bends(i)) continue;
      double *v = turns_[k], square = 0;
      for (int64_t j = 0; j < r_; ++j) v[j] = j < k ? 0 : rates_[j][i];
      for (int64_t j = k + 1; j < r_; ++j) square += v[j] * v[j];
      const double first = v[k], size = std::sqrt(first * first + square);
      v[k] += first > 0 ? size : -size;
      const double length = std::sqrt(square + v[k] * v[k]);
      for (int64_t j = k; j < r_; ++j) v[j] = length > 0 ? v[j] / length : 0;
      for (int64_t l = 0; l < stride_; ++l) along[l] = 0;
      for (int64_t j = k; j < r_; ++j) add(along, v[j], rates_[j], stride_);
      for (int64_t j = k; j < r_; ++j) add(rates_[j], -2 * v[j], along, stride_);
      for (int64_t j = k + 1; j < r_; ++j) rates_[j][i] = 0;
      reflect(v, place);
      ++k;
    }
    for (int64_t i = 0; i < stride_; ++i) flat[i] = 0;
    for (int64_t j = curved_; j < r_; ++j) {
      for (int64_t i = 0; i < stride_; ++i) flat[i] += rates_[j][i] * rates_[j][i];
    }
  }

  // Of coordinates (r) that were turned.
  void turn_back(double* coordinates) const {
    if (curved_ == r_) return;
    for (int64_t k = curved_ - 1; k >= 0; --k) reflect(turns_[k], coordinates);
  }

  void reflect(const double* v, double* coordinates) const {
    double along = 0;
    for (int64_t j = 0; j < r_; ++j) along += v[j] * coordinates[j];
    for (int64_t j = 0; j < r_; ++j) coordinates[j] -= 2 * along * v[j];
  }

  // Dimensions that the game is played in: where nothing curves, the gradient's direction alone matters.
  int64_t played() const { return curved_ < r_ ? curved_ + 1 : r_; }

  // The gradient there, and the size of its part in which nothing curves.
  double* played_gradient() {
    double *gradient = coordinates_[kGradient], *in_game = coordinates_[kInGame], square = 0;
    for (int64_t j = 0; j < r_; ++j) {
      if (j < curved_) in_game[j] = gradient[j];
      else square += gradient[j] * gradient[j];
    }
    if (curved_ < r_) {
      in_game[curved_] = std::sqrt(square);
      for (int64_t k = 0; k <= curved_; ++k) curvature_[curved_][k] = 0;
    }
    return in_game;
  }

  // The game on balls and cubes; whether `kPlace` is near, where the adversary then begins. Returns the radius certified.
  double play(Norm norm, double most, double known, double gap, bool is_near) {
    const double* place = is_near ? coordinates_[kPlace] : nullptr;
    const bool is_cubic = norm == Norm::kLinf;
    double *weights = coordinates_[kWeights], *variances = coordinates_[kVariances];
    double *root = coordinates_[kRoot], *gradient = coordinates_[kGradient];
    double *shift = own(kShift), *moment = own(kMoment), *slopes = own(kSlopes);
    const double* z = own(kZ);
    const double even = is_cubic ? 1.0 : 1.0 / r_;
    const double reach = place ? most : known;
    for (int64_t j = 0; j < r_; ++j) weights[j] = 1, coordinates_[kMean][j] = 0;
    for (int64_t i = 0; i < stride_; ++i) shift[i] = moment[i] = 0;
    for (int64_t j = 0; j < r_; ++j) {
      const double square = even * reach * reach * (place ? tuning::begin_spread : 1);
      const double at = place ? place[j] : 0;
      for (int64_t i = 0; i < stride_; ++i) {
        shift[i] += at * rates_[j][i];
        moment[i] += square * rates_[j][i] * rates_[j][i];
      }
      variances[j] = square + at * at;
    }
    for (int64_t i = 0; i < stride_; ++i) {
      slopes[i] = z[i] + shift[i] > 0 ? 1 : 0;
      moment[i] += shift[i] * shift[i];
    }
    double certified = known, best_multiplier = 0, best_radius = 0, warm = 0;
    double *best_weights = coordinates_[kBestWeights];
    int extra = 0;
    for (Schedule now;; now.forward()) {
      const double radius = least(most, certified * (1 + now.reserve));
      choose_parabolas(radius);
      const Form f = form(radius, slopes, own(kCurve), own(kTilt));
      double total = 0;
      for (int64_t j = 0; j < r_; ++j) root[j] = std::sqrt(weights[j]), total += weights[j];
      if (!is_cubic) total = 1;
      if (is_cubic) {
        for (int64_t j = 0; j < r_; ++j) {
          gradient[j] /= root[j];
          for (int64_t k = 0; k <= j; ++k) curvature_[j][k] /= root[j] * root[k];
        }
      }
      tridiagonal_.reduce(curvature_, played_gradient(), played());
      const double budget = total * certified * certified;
      const double answer = affordable(budget, now.spread, warm);
      warm = answer;
      const Multiplier proof = proves(f.level, total, answer);
      const double held = least(std::sqrt(largest(proof.square, 0)), radius);
      // As long as all of the range is certified, the next one is as much larger.
      if (held == radius && radius < most && extra < tuning::steps) ++extra, now.back();
      if (held > certified) {
        certified = held, best_radius = radius, best_multiplier = proof.value;
        memcpy(own(kBestSlopes), slopes, 8 * stride_);
        memcpy(own(kBestCurve), own(kCurve), 8 * stride_);
        memcpy(own(kBestTilt), own(kTilt), 8 * stride_);
        memcpy(best_weights, weights, 8 * r_);
        if (certified * (1 + gap) >= most) break;
      }
      if (now.is_last()) break;
      reply(answer, budget, now, is_cubic, certified);
    }
    return best_radius > 0 ? confirmed(best_radius, best_multiplier, is_cubic) : 0;
  }

  struct Multiplier {
    double value, square;
  };

  // About the least multiplier whose answer, spread out, is within the budget: `spent` falls as multipliers grow.
  double affordable(double budget, double spread, double warm) {
    double low = tridiagonal_.top();
    double high = tridiagonal_.most() + tridiagonal_.slope() / std::sqrt(budget) / (1 - spread) + kTiny;
    // There the spread takes `spread` of the budget times λ/(λ − most).
    high += tridiagonal_.most() * spread / (1 - spread);
    auto spent = [&](double multiplier) {
      const auto values = tridiagonal_.at(multiplier);
      const double trace = values.trace + (r_ - played()) / multiplier;
      return values.definite ? values.square + spread * budget / r_ * multiplier * trace : INFINITY;
    };
    double at = warm > low && warm < high ? warm : high;
    double best = high;
    double last_at = 0, last_value = 0;  // of 1/√spent, which is nearly linear
    for (int step = 0; step < tuning::multiplier_steps; ++step) {
      const double value = spent(at), inverse = 1 / std::sqrt(value), goal = 1 / std::sqrt(budget);
      if (value <= budget) high = at, best = at;
      else low = at;
      if (value <= budget && value > 0.97 * budget) break;
      double next = (low + high) / 2;
      if (step && inverse != last_value && inverse > 0 && last_value > 0) {
        const double secant = at + (goal * 1.005 - inverse) * (at - last_at) / (inverse - last_value);
        if (secant > low + 0.02 * (high - low) && secant < high) next = secant;
      } else if (inverse == 0) {
        next = low + 0.25 * (high - low);
      }
      last_at = at, last_value = inverse, at = next;
    }
    return best;
  }

  // The multiplier that certifies most: (2·level − g·(λ − a)⁻¹g)/(λ·total) is greatest where |(λ − a)⁻¹g|² is as
  // large.
  Multiplier proves(double level, double total, double begin) {
    double low = tridiagonal_.top(), high = 2 * begin + kTiny, at = begin;
    Multiplier best = {begin, 0};
    for (int step = 0; step < tuning::multiplier_steps; ++step) {
      const auto values = tridiagonal_.at(at);
      const double square = values.definite ? (2 * level - values.form) / at : 0;
      if (values.definite && square / total > best.square) best = {at, square / total};
      if (values.definite && values.square <= square) high = at;
      else low = at;
      if (values.definite && std::fabs(values.square - square) < 1e-3 * square) break;
      at = at == high && low < high && step == 0 ? low + 0.9 * (high - low) : (low + high) / 2;
    }
    return best;
  }

  // The adversary's answer enters the averages.
  void reply(double multiplier, double budget, const Schedule& now, bool is_cubic, double certified) {
    const double spread = now.spread, average = now.average;
    double *gradient = coordinates_[kGradient], *root = coordinates_[kRoot], *mean = coordinates_[kMean];
    double *weights = coordinates_[kWeights], *variances = coordinates_[kVariances], *half = coordinates_[0];
    for (int64_t j = 0; j < curved_; ++j) {
      for (int64_t k = 0; k <= j; ++k) curvature_[j][k] = (j == k ? multiplier : 0) - curvature_[j][k];
    }
    if (!factorize(curvature_, lower_, curved_)) return;
    invert(lower_, inverse_, curved_);
    for (int64_t k = 0; k < curved_; ++k) {
      double total = 0;
      for (int64_t j = 0; j <= k; ++j) total += inverse_[k][j] * gradient[j];
      half[k] = total;
    }
    const double scale = spread * budget / r_ * multiplier;
    for (int64_t j = curved_; j < r_; ++j) mean[j] = -gradient[j] / multiplier;
    for (int64_t j = 0; j < curved_; ++j) {
      double total = 0, square = 0;
      for (int64_t k = j; k < curved_; ++k) {
        total -= inverse_[k][j] * half[k];
        square += inverse_[k][j] * inverse_[k][j];
      }
      mean[j] = total / (is_cubic ? root[j] : 1);
      const double variance = scale * square / (is_cubic ? weights[j] : 1);
      variances[j] += average * (mean[j] * mean[j] + variance - variances[j]);
    }
    if (is_cubic) {
      for (int64_t k = 0; k < r_; ++k) {
        for (int64_t j = 0; j <= k; ++j) inverse_[k][j] /= root[j];
      }
    }
    const double *z = own(kZ), *flat = own(kFlat);
    double *shift = own(kShift), *moment = own(kMoment), *slopes = own(kSlopes);
    for (int64_t i = 0; i < stride_; i += kDoubles) {
      Doubles along = {}, variance = {};
      if (curved_ < r_) variance = load(flat + i) / multiplier;
      for (int64_t k = curved_; k < r_; ++k) along += mean[k] * load(rates_[k] + i);
      for (int64_t k = 0; k < curved_; ++k) {
        const double* row = inverse_[k];
        Doubles even = row[k] * load(rates_[k] + i), odd = {};
        int64_t j = 0;
        for (; j + 1 < k; j += 2) {
          even += row[j] * load(rates_[j] + i);
          odd += row[j + 1] * load(rates_[j + 1] + i);
        }
        if (j < k) even += row[j] * load(rates_[j] + i);
        even += odd;
        variance += even * even;
        along += mean[k] * load(rates_[k] + i);
      }
      memcpy(own(kUnder) + i, &along, sizeof along);
      memcpy(own(kAbove) + i, &variance, sizeof variance);
    }
    const double *along = own(kUnder), *variance = own(kAbove);
    for (int64_t i = 0; i < stride_; ++i) {
      const double deviation = std::sqrt(largest(moment[i] - shift[i] * shift[i], 0));
      const double step = stepped(z[i] + along[i], spread * deviation);
      slopes[i] += average * (step - slopes[i]);
      shift[i] += average * (along[i] - shift[i]);
      moment[i] += average * (along[i] * along[i] + scale * variance[i] - moment[i]);
    }
    if (is_cubic) {
      double total = 0;
      for (int64_t j = 0; j < r_; ++j) {
        weights[j] *= std::pow(variances[j] / (certified * certified), tuning::weight_power);
        total += weights[j];
      }
      for (int64_t j = 0; j < r_; ++j) weights[j] *= r_ / total;
    }
  }

  // The radius that the best bound certifies, whatever the rounding.
  double confirmed(double radius, double multiplier, bool is_cubic) {
    double *curve = own(kBestCurve), *slopes = own(kBestSlopes);
    double *weights = coordinates_[kBestWeights], *gradient = coordinates_[kGradient];
    for (int64_t i = 0; i < stride_; ++i) {
      curve[i] = curve[i] > 0 ? curve[i] : 0;
      slopes[i] = slopes[i] < 0 ? 0 : slopes[i] > 1 ? 1 : slopes[i];
    }
    const Form f = form(radius, slopes, curve, own(kBestTilt));
    // Gershgorin's bound of all eigenvalues, to which errors of the curvature are relative.
    double most = 0, total = 0;
    double* sizes = own(kUnder);
    for (int64_t i = 0; i < stride_; ++i) sizes[i] = 0;
    for (int64_t j = 0; j < curved_; ++j) {
      for (int64_t i = 0; i < stride_; ++i) sizes[i] += std::fabs(rates_[j][i]);
    }
    for (int64_t j = 0; j < curved_; ++j) {
      double row = 0;
      for (int64_t i = 0; i < stride_; ++i) row += std::fabs(scaled_[j][i]) * sizes[i];
      most = largest(most, row);
    }
    const auto raised = [&](int64_t j) { return multiplier * (is_cubic ? weights[j] : 1) * (1 + kMargin) + kMargin * most; };
    double spent = is_cubic ? 0 : raised(0);
    for (int64_t j = 0; j < curved_; ++j) {
      const double d = raised(j);
      for (int64_t k = 0; k <= j; ++k) curvature_[j][k] = (j == k ? d : 0) - curvature_[j][k];
      total += d;
      if (is_cubic) spent = total;
    }
    if (!factorize(curvature_, lower_, curved_)) return 0;
    double share = 0;
    double* half = coordinates_[0];
    for (int64_t j = curved_; j < r_; ++j) share += gradient[j] * gradient[j] / raised(j);
    for (int64_t k = 0; k < curved_; ++k) {
      double value = gradient[k];
      for (int64_t j = 0; j < k; ++j) value -= lower_[k][j] * half[j];
      half[k] = value / lower_[k][k];
      share += half[k] * half[k];
    }
    const double level = f.level - rounding_allowance(f.size, m_) - share * (1 + kMargin) / 2;
    const double square = 2 * level / spent * (1 - kMargin);
    if (!(level > 0) || !(spent > 0) || !(square < INFINITY)) return 0;
    return least(std::sqrt(square), radius);
  }

  static constexpr double kTiny = 0x1p-100;
  static constexpr double kUnknown = 4;       // times what is certified, how far boxes reach where no flip is known
  static constexpr double kMargin = 0x1p-20;  // by which multipliers are raised and radii lowered: beyond all rounding
  enum Coordinates { kGradient = 1, kWeights, kMean, kVariances, kRoot, kBestWeights, kPlace, kInGame, kCoordinates };

  int64_t m_ = 0, r_ = 0, stride_ = 0;
  int64_t curved_ = 0;  // coordinates, the first ones, in which parabolas may curve
  Norm norm_ = Norm::kL2;
  double offset_ = 0, output_ = 0, length_ = 1;
  Matrix rates_, scaled_, own_, coordinates_, curvature_, lower_, inverse_, turns_;
  Corners corners_;
  Boxes boxes_;
  Tridiagonal tridiagonal_;
};

}  // namespace
}  // namespace subspace_adv
