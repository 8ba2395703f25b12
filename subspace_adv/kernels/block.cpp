// Gradient descent on a block of networks, one in each lane of a vector: all parameters of the block stay in cache.
//
// CMake compiles this file once per instruction set, with INSTRUCTION_SET naming the table it fills. Everything but
// that table is in an anonymous namespace and nothing comes from the C++ library, so the linker can never take code
// of one instruction set for another's. All arithmetic is lane by lane: what a network becomes does not depend on
// its lane or its neighbours.

#include "block.h"

#include "lanes.h"

namespace subspace_adv {
namespace {

constexpr int kTile = 8;     // points of one forward pass over the neurons, at most
constexpr int kWord = 32;    // points whose activity one integer per lane records
constexpr int kGroup = 4;    // neurons of one backward pass over the points
constexpr int kInputs = 5;   // inputs of one backward pass over the points, at most
constexpr int kPanelBytes = 16384;  // parameters of the neurons that pass over all points before the next ones do

constexpr uint32_t kBits[kWord] = {
    1u << 0,  1u << 1,  1u << 2,  1u << 3,  1u << 4,  1u << 5,  1u << 6,  1u << 7,  1u << 8,  1u << 9,  1u << 10,
    1u << 11, 1u << 12, 1u << 13, 1u << 14, 1u << 15, 1u << 16, 1u << 17, 1u << 18, 1u << 19, 1u << 20, 1u << 21,
    1u << 22, 1u << 23, 1u << 24, 1u << 25, 1u << 26, 1u << 27, 1u << 28, 1u << 29, 1u << 30, 1u << 31};

inline Ints bits_of(Floats x) { return (Ints)x; }

// e^x to about 1 ulp; inf where it overflows, 0 where it is subnormal, NaN of NaN.
inline Floats exp(Floats x) {
  constexpr float kRound = 12582912;  // 1.5·2^23: adding it leaves the nearest integer in the low bits
  x = x > 100.0f ? all(100.0f) : x;   // far past the ends, where twice the half scale is inf or 0
  x = x < -110.0f ? all(-110.0f) : x;
  Floats shifted = x * 1.44269504088896341f + kRound;
  Floats n = shifted - kRound;
  Floats r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  Floats p = all(1.9841270e-4f);
  p = p * r + 1.3888889e-3f;
  p = p * r + 8.3333333e-3f;
  p = p * r + 4.1666667e-2f;
  p = p * r + 1.6666667e-1f;
  p = p * r + 0.5f;
  p = p * (r * r) + r;
  p = p + 1.0f;
  Ints power = bits_of(shifted) - bits_of(all(kRound));
  Ints half = power >> 1;
  Floats low = (Floats)((half + 127) << 23), high = (Floats)((power - half + 127) << 23);
  return p * low * high;
}

// The k-th of `parts` nearly equal pieces of a range begins here.
inline int64_t begin_of(int64_t k, int64_t count, int64_t parts) { return k * count / parts; }

// X is float where all networks share the points, Floats where each has its own.
template <class X>
class Block {
 public:
  explicit Block(Batch& batch) : batch_(batch), inputs_(batch.inputs), points_(labelled(batch)) {
    neurons_ = (batch.neurons + kGroup - 1) / kGroup * kGroup;  // those past the real ones are zero, and stay so
    record_ = inputs_ + 2;
    words_ = (points_ + kWord - 1) / kWord;
    panel_ = kPanelBytes / (record_ * sizeof(Floats)) / 2 * 2;
    if (panel_ < 2) panel_ = 2;
  }

  bool allocate() {
    int64_t parameters = neurons_ * record_, coordinates = points_ * inputs_;
    return params_.allocate(parameters) && residue_.allocate(parameters) &&
           velocity_.allocate(batch_.has_momentum ? parameters : 0) &&
           active_.allocate(neurons_ * words_) && y_.allocate(points_) && output_.allocate(points_) &&
           slope_.allocate(points_) && sums_.allocate(kGroup * inputs_) && x_.allocate(coordinates) &&
           x_tiled_.allocate(coordinates);
  }

  void train() {
    if constexpr (sizeof(X) == sizeof(float)) load_points(batch_.x, 0);
    for (int lane = 0; lane < kLanes; ++lane) take_next(lane);
    while (occupied_ > 0) {
      forward();
      Ints status = check();
      Ints leaves = (Ints)((status != kPending) | (left_ <= 0)) & taken_;
      if (any(leaves)) {
        for (int lane = 0; lane < kLanes; ++lane) {
          if (leaves[lane]) finish(lane, status[lane]);
        }
        continue;  // the networks that came in need outputs; those of the others come out the same again
      }
      loss_slopes();
      for (int64_t neuron = 0; neuron < neurons_; neuron += kGroup) backward(neuron);
      if (batch_.has_bias && batch_.train_head) {
        Floats sum = {};
        for (int64_t i = 0; i < points_; ++i) sum += slope_[i];
        move(head_bias_, head_bias_residue_, head_bias_velocity_, sum);
      }
      step_ += 1;
      left_ -= 1;
    }
  }

 private:
  // Points of any network's up to its last one with a label: those after only fill up the arrays.
  static int64_t labelled(const Batch& batch) {
    int64_t most = 0;
    for (int64_t row = 0; row < batch.y_rows; ++row) {
      int64_t count = batch.points;
      while (count > most && batch.y[row * batch.points + count - 1] == 0) --count;
      most = count > most ? count : most;
    }
    return most;
  }

  // Fills a lane with the next network that is pending, or with zeros.
  void take_next(int lane) {
    int64_t network;
    do {
      network = __atomic_fetch_add(&batch_.next, 1, __ATOMIC_RELAXED);
    } while (network < batch_.networks && batch_.status[network] != kPending);
    bool found = network < batch_.networks;
    occupied_ += found;
    taken_[lane] = found ? -1 : 0;
    network_[lane] = network;
    int64_t row = batch_.row();
    copy_in(found ? batch_.params + network * row : nullptr, params_, head_bias_, lane);
    copy_in(found ? batch_.residue + network * row : nullptr, residue_, head_bias_residue_, lane);
    if (batch_.has_momentum) {
      copy_in(found ? batch_.velocity + network * row : nullptr, velocity_, head_bias_velocity_, lane);
    }
    if (!found) return;
    if constexpr (sizeof(X) != sizeof(float)) {
      load_points(batch_.x + network * batch_.x_rows / batch_.networks * batch_.points * inputs_, lane);
    }
    const float* y = batch_.y + network * batch_.y_rows / batch_.networks * batch_.points;
    float count = 0;
    for (int64_t i = 0; i < points_; ++i) {
      y_[i][lane] = y[i];
      count += y[i] != 0;
    }
    share_[lane] = 1 / count;
    rate_[lane] = batch_.learning_rate[network];
    decay_[lane] = batch_.weight_decay[network];
    momentum_[lane] = batch_.momentum[network];
    stop_margin_[lane] = batch_.stop_margin[network];
    max_steps_[lane] = batch_.max_steps[network];
    step_[lane] = batch_.step[network];
    left_[lane] = batch_.steps;
  }

  void finish(int lane, int32_t status) {
    int64_t network = network_[lane], row = batch_.row();
    copy_out(params_, head_bias_, batch_.params + network * row, lane);
    copy_out(residue_, head_bias_residue_, batch_.residue + network * row, lane);
    if (batch_.has_momentum) copy_out(velocity_, head_bias_velocity_, batch_.velocity + network * row, lane);
    batch_.step[network] = step_[lane];
    batch_.status[network] = status;
    --occupied_;
    take_next(lane);
  }

  // Zeros the neurons past the real ones too: a network that diverged in this lane may have left NaN there.
  void copy_in(const float* row, Floats* records, Floats& head_bias, int lane) {
    for (int64_t field = 0; field < record_; ++field) {
      for (int64_t j = 0; j < neurons_; ++j) {
        records[j * record_ + field][lane] = row && j < batch_.neurons ? row[field * batch_.neurons + j] : 0;
      }
    }
    head_bias[lane] = row ? row[batch_.row() - 1] : 0;
  }

  void copy_out(const Floats* records, const Floats& head_bias, float* row, int lane) {
    for (int64_t field = 0; field < record_; ++field) {
      for (int64_t j = 0; j < batch_.neurons; ++j) *row++ = records[j * record_ + field][lane];
    }
    *row = head_bias[lane];
  }

  static float& at(float& x, int) { return x; }
  static float& at(Floats& x, int lane) { return ((float*)&x)[lane]; }

  // The backward pass reads points one by one, the forward pass reads the same input of all points of a tile.
  void load_points(const float* x, int lane) {
    for (int64_t i = 0; i < points_ * inputs_; ++i) at(x_[i], lane) = x[i];
    for_tiles([&](int64_t, int64_t begin, int64_t end, const uint32_t*) {
      for (int64_t i = begin; i < end; ++i) {
        for (int64_t k = 0; k < inputs_; ++k) {
          at(x_tiled_[begin * inputs_ + k * (end - begin) + i - begin], lane) = x[i * inputs_ + k];
        }
      }
    });
  }

  // Calls f(word, first point, end, bit of the first point) for all tiles of all words of points.
  template <class F>
  void for_tiles(F f) {
    for (int64_t word = 0; word < words_; ++word) {
      int64_t begin = begin_of(word, points_, words_), count = begin_of(word + 1, points_, words_) - begin;
      int64_t tiles = (count + kTile - 1) / kTile;
      for (int64_t tile = 0; tile < tiles; ++tile) {
        int64_t from = begin_of(tile, count, tiles), to = begin_of(tile + 1, count, tiles);
        f(word, begin + from, begin + to, kBits + from);
      }
    }
  }

  void forward() {
    for (int64_t i = 0; i < points_; ++i) output_[i] = head_bias_;
    for (int64_t neuron = 0; neuron < neurons_; neuron += panel_) {
      int64_t end = neuron + panel_ < neurons_ ? neuron + panel_ : neurons_;
      for_tiles([&](int64_t word, int64_t from, int64_t to, const uint32_t* bits) {
        switch (to - from) {
          case 1: return forward<1>(neuron, end, word, from, bits);
          case 2: return forward<2>(neuron, end, word, from, bits);
          case 3: return forward<3>(neuron, end, word, from, bits);
          case 4: return forward<4>(neuron, end, word, from, bits);
          case 5: return forward<5>(neuron, end, word, from, bits);
          case 6: return forward<6>(neuron, end, word, from, bits);
          case 7: return forward<7>(neuron, end, word, from, bits);
          case 8: return forward<8>(neuron, end, word, from, bits);
        }
      });
    }
  }

  // Adds the neurons' part to the outputs at a tile of points and records where they are active.
  template <int tile>
  void forward(int64_t neuron, int64_t end, int64_t word, int64_t point, const uint32_t* bits) {
    const X* x_tile = x_tiled_ + point * inputs_;
    Floats output[tile];
    for (int t = 0; t < tile; ++t) output[t] = output_[point + t];
    for (; neuron < end; neuron += 2) {
      const Floats *one = params_ + neuron * record_, *two = one + record_;
      Floats z_one[tile], z_two[tile];
      for (int t = 0; t < tile; ++t) z_one[t] = one[inputs_], z_two[t] = two[inputs_];
      const X* x = x_tile;
      for (int64_t k = 0; k < inputs_; ++k, x += tile) {
        for (int t = 0; t < tile; ++t) {
          z_one[t] += one[k] * x[t];
          z_two[t] += two[k] * x[t];
        }
      }
      Ints *active_one = active_ + neuron * words_ + word, *active_two = active_one + words_;
      Ints none = {}, seen_one = bits == kBits ? none : *active_one, seen_two = bits == kBits ? none : *active_two;
      Floats head_one = one[inputs_ + 1], head_two = two[inputs_ + 1];
      for (int t = 0; t < tile; ++t) {  // NaN counts as active, and so reaches the output
        output[t] = z_one[t] <= 0.0f ? output[t] : output[t] + z_one[t] * head_one;
        seen_one = z_one[t] <= 0.0f ? seen_one : seen_one | (int32_t)bits[t];
        output[t] = z_two[t] <= 0.0f ? output[t] : output[t] + z_two[t] * head_two;
        seen_two = z_two[t] <= 0.0f ? seen_two : seen_two | (int32_t)bits[t];
      }
      *active_one = seen_one;
      *active_two = seen_two;
    }
    for (int t = 0; t < tile; ++t) output_[point + t] = output[t];
  }

  // Turns outputs into signed outputs and says which networks stop.
  Ints check() {
    Floats least = all(__builtin_inff());
    Ints diverged = {};
    for (int64_t i = 0; i < points_; ++i) {
      // Where there is no point, of label 0, the loss has no slope, and no margin is less.
      Floats margin = y_[i] == 0.0f ? all(__builtin_inff()) : output_[i] * y_[i];
      output_[i] = margin;
      least = margin < least ? margin : least;
      diverged |= (Ints)((bits_of(margin) & 0x7fffffff) >= 0x7f800000) & (Ints)(y_[i] != 0.0f);
    }
    Ints limit = step_ >= max_steps_, converged = (step_ > 0) & (Ints)(least > stop_margin_);
    Ints status = limit & kStepLimit;
    status = converged ? Ints{} + kConverged : status;
    return diverged ? Ints{} + kDiverged : status;
  }

  // Derivative of the mean loss in the output at each point.
  void loss_slopes() {
    for (int64_t i = 0; i < points_; ++i) {
      Floats margin = output_[i], weight = y_[i] * -share_;
      slope_[i] = batch_.loss == kLogistic ? weight / (exp(margin) + 1.0f) : weight * exp(-margin);
    }
  }

  // Gradient of a group of neurons, and their step.
  void backward(int64_t neuron) {
    int64_t parts = (inputs_ + kInputs - 1) / kInputs;
    Floats bias_sums[kGroup] = {};
    for (int64_t part = 0; part < parts; ++part) {
      int64_t from = begin_of(part, inputs_, parts), to = begin_of(part + 1, inputs_, parts);
      bool with_bias = part == 0 && batch_.has_bias;
      switch (to - from) {
        case 1: with_bias ? sum<1, true>(neuron, from, bias_sums) : sum<1, false>(neuron, from, bias_sums); break;
        case 2: with_bias ? sum<2, true>(neuron, from, bias_sums) : sum<2, false>(neuron, from, bias_sums); break;
        case 3: with_bias ? sum<3, true>(neuron, from, bias_sums) : sum<3, false>(neuron, from, bias_sums); break;
        case 4: with_bias ? sum<4, true>(neuron, from, bias_sums) : sum<4, false>(neuron, from, bias_sums); break;
        case 5: with_bias ? sum<5, true>(neuron, from, bias_sums) : sum<5, false>(neuron, from, bias_sums); break;
      }
    }
    for (int g = 0; g < kGroup; ++g) update(neuron + g, sums_ + g * inputs_, bias_sums[g]);
  }

  // Sums of slope·x and of the slope over the points where the neurons are active, for `count` inputs.
  template <int count, bool with_bias>
  void sum(int64_t neuron, int64_t input, Floats* bias_sums) {
    Floats sums[kGroup][count] = {}, totals[kGroup] = {};
    for (int64_t word = 0; word < words_; ++word) {
      int64_t begin = begin_of(word, points_, words_), end = begin_of(word + 1, points_, words_);
      Ints active[kGroup];
      for (int g = 0; g < kGroup; ++g) active[g] = active_[(neuron + g) * words_ + word];
      const X* x = x_ + begin * inputs_ + input;
      for (int64_t i = begin; i < end; ++i, x += inputs_) {
        Floats slope[kGroup];
        for (int g = 0; g < kGroup; ++g) {
          slope[g] = (active[g] & (int32_t)kBits[i - begin]) != 0 ? slope_[i] : Floats{};
          if (with_bias) totals[g] += slope[g];
        }
        for (int c = 0; c < count; ++c) {
          for (int g = 0; g < kGroup; ++g) sums[g][c] += slope[g] * x[c];
        }
      }
    }
    for (int g = 0; g < kGroup; ++g) {
      if (with_bias) bias_sums[g] = totals[g];
      for (int c = 0; c < count; ++c) sums_[g * inputs_ + input + c] = sums[g][c];
    }
  }

  void update(int64_t neuron, const Floats* sums, Floats bias_sum) {
    Floats *param = params_ + neuron * record_, *residue = residue_ + neuron * record_;
    Floats* velocity = velocity_ + neuron * record_;
    Floats &bias = param[inputs_], &head = param[inputs_ + 1], old_head = head;
    Floats head_gradient = bias_sum * bias;
    for (int64_t k = 0; k < inputs_; ++k) {
      head_gradient += sums[k] * param[k];
      move(param[k], residue[k], velocity[k], old_head * sums[k]);
    }
    if (batch_.has_bias) move(bias, residue[inputs_], velocity[inputs_], old_head * bias_sum);
    if (batch_.train_head) move(head, residue[inputs_ + 1], velocity[inputs_ + 1], head_gradient);
  }

  // One step of one parameter, summed with compensation.
  void move(Floats& param, Floats& residue, Floats& velocity, Floats gradient) {
    gradient += decay_ * param;
    if (batch_.has_momentum) velocity = gradient = momentum_ * velocity + gradient;
    Floats change = residue - rate_ * gradient, moved = param + change;
    residue = change - (moved - param);
    param = moved;
  }

  Batch& batch_;
  int64_t inputs_, points_, neurons_, record_, words_, panel_;  // neurons of the block, vectors of a neuron
  Array<Floats> params_, residue_, velocity_;  // (neurons, record): weights, bias and head of a neuron
  Array<Ints> active_;                         // (neurons, words): a bit for every point
  Array<Floats> y_, output_, slope_, sums_;
  Array<X> x_, x_tiled_;
  int64_t network_[kLanes];
  int occupied_ = 0;
  Ints taken_ = {}, step_ = {}, max_steps_ = {}, left_ = {};
  Floats head_bias_ = {}, head_bias_residue_ = {}, head_bias_velocity_ = {}, rate_ = {}, decay_ = {}, momentum_ = {}, stop_margin_ = {};
  Floats share_ = {};  // of each point in the mean loss
};

template <class X>
bool train_as(Batch& batch) {
  Block<X> block(batch);
  if (!block.allocate()) return false;
  block.train();
  return true;
}

bool train(Batch& batch) {
  FlushSubnormals flush;
  return batch.x_rows > 1 ? train_as<Floats>(batch) : train_as<float>(batch);
}

void exp(const float* x, float* result, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) {
    Floats lanes = {};
    int64_t bytes = 4 * (count - i < kLanes ? count - i : kLanes);
    memcpy(&lanes, x + i, bytes);
    lanes = exp(lanes);
    memcpy(result + i, &lanes, bytes);
  }
}

}  // namespace

const InstructionSet INSTRUCTION_SET = {
    TEXT(INSTRUCTION_SET), train, exp, kLanes, NAMED(bracket_, INSTRUCTION_SET), NAMED(cross_, INSTRUCTION_SET)};

}  // namespace subspace_adv
