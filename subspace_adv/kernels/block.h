// The batch of networks a call trains, and the loop that trains it, compiled once per instruction set.
#pragma once

#include <cstdint>

#include "bracket.h"

namespace subspace_adv {

constexpr int32_t kPending = 0, kConverged = 1, kStepLimit = 2, kDiverged = 3;
constexpr int64_t kLogistic = 0, kExponential = 1;

// All arrays are row-major and hold one row per network; one row of x or y may serve several successive networks.
struct Batch {
  int64_t networks, points, inputs, neurons;
  int64_t steps;  // the most gradient steps each network takes
  int64_t loss;
  int64_t x_rows, y_rows;  // divide the number of networks
  bool has_bias, train_head, has_momentum;
  const float *x, *y;  // rows of points × inputs and of points; y is 0 where there is no point
  const float *learning_rate, *weight_decay, *momentum, *stop_margin;
  const int32_t* max_steps;
  float* params;    // rows: weight rows (inputs × neurons), bias, head, head bias
  float* residue;   // rows: what rounding has kept from the parameters
  float* velocity;  // rows; only with momentum
  int32_t* step;
  int8_t* status;
  int64_t next;  // the queue: the first network that no thread has taken yet

  int64_t row() const { return neurons * (inputs + 2) + 1; }
};

// Trains networks from the queue until it is empty, as many at a time as a vector has lanes. Any number of threads
// may do so at once. False if there is no memory for it.
using Train = bool (*)(Batch&);

struct InstructionSet {
  const char* name;
  Train train;
  void (*exp)(const float* x, float* result, int64_t count);  // as the losses compute it, for tests
  int64_t lanes;
  Bracket bracket;
  Cross cross;
};

extern const InstructionSet generic;
#ifdef __x86_64__
extern const InstructionSet avx2, avx512;
#endif

}  // namespace subspace_adv
