// Trains, brackets and crosses odd batches by the instruction sets named in SETS; built with sanitizers by test_fused.py.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <thread>
#include <vector>

#include "block.h"

using namespace subspace_adv;

float wave(int64_t i) { return std::sin(12.9898f * i); }

std::vector<float> waves(int64_t count, float scale) {
  std::vector<float> values(count);
  for (int64_t i = 0; i < count; ++i) values[i] = scale * wave(i);
  return values;
}

void run(const InstructionSet& set, int64_t networks, int64_t points, int64_t inputs, int64_t neurons, int64_t flags) {
  Batch batch{};
  batch.networks = networks, batch.points = points, batch.inputs = inputs, batch.neurons = neurons;
  batch.steps = 5;
  batch.loss = flags & 1 ? kExponential : kLogistic;
  batch.has_bias = flags & 2, batch.train_head = flags & 4, batch.has_momentum = flags & 8;
  batch.x_rows = batch.y_rows = flags & 16 ? networks : 1;
  auto params = waves(networks * batch.row(), 1), velocity = waves(batch.has_momentum ? params.size() : 0, 0.1f);
  std::vector<float> residue(params.size());
  auto x = waves(batch.x_rows * points * inputs, 1), y = waves(batch.y_rows * points, 1);
  std::vector<float> rate(networks, 0.1f), decay(networks, 0.01f), momentum(networks, 0.9f), stop(networks, 0.5f);
  std::vector<int32_t> step(networks), max_steps(networks);
  std::vector<int8_t> status(networks);
  for (int64_t i = 0; i < networks; ++i) {
    max_steps[i] = i % 9;
    if (i % 5 == 1) rate[i] = i % 2 ? NAN : 1e30f;
    if (i % 7 == 2) status[i] = kConverged;
  }
  batch.x = x.data(), batch.y = y.data(), batch.params = params.data(), batch.residue = residue.data(), batch.velocity = velocity.data();
  batch.learning_rate = rate.data(), batch.weight_decay = decay.data(), batch.momentum = momentum.data();
  batch.stop_margin = stop.data(), batch.max_steps = max_steps.data();
  batch.step = step.data(), batch.status = status.data();
  std::thread helper([&] { set.train(batch); });
  set.train(batch);
  helper.join();
}

void bracket(const InstructionSet& set, int64_t points, int64_t neurons, int64_t dimension, Norm norm, bool own, int64_t kind) {
  BracketBatch batch{};
  batch.networks = 2, batch.points = points, batch.neurons = neurons, batch.dimension = dimension;
  batch.rate_rows = own ? points : 1, batch.norm = norm, batch.steps = 6, batch.restarts = 9, batch.gap = 0.001;
  auto doubles = [](int64_t count, double scale) {
    std::vector<double> values(count);
    for (int64_t i = 0; i < count; ++i) values[i] = scale * wave(i + 3);
    return values;
  };
  auto head = doubles(2 * neurons, 1), offset = doubles(2, 0.1), z = doubles(2 * points * neurons, 1);
  auto rates = doubles(2 * batch.rate_rows * neurons * dimension, kind == 1 ? 0 : 1);
  auto z_error = doubles(2 * points * neurons, 1e-15), rate_error = doubles(2 * neurons, 1e-15);
  auto goal = doubles(2 * points * dimension, 1);
  if (kind == 2) head[0] = NAN, z[0] = INFINITY;
  if (kind == 3) std::fill(z.begin(), z.end(), -1.0);
  if (kind == 4) std::fill(head.begin(), head.end(), 1.0);
  std::vector<uint32_t> keys(4 * points, 7);
  std::vector<double> lower(2 * points), distance(2 * points), place(2 * points * dimension);
  batch.head = head.data(), batch.offset = offset.data(), batch.z = z.data(), batch.rates = rates.data();
  batch.z_error = z_error.data(), batch.rate_error = rate_error.data();
  batch.keys = keys.data(), batch.goal = goal.data();
  batch.lower = lower.data(), batch.distance = distance.data(), batch.place = place.data();
  std::thread helper([&] { set.bracket(batch); });
  set.bracket(batch);
  helper.join();
}

void cross(const InstructionSet& set, int64_t rays, int64_t neurons) {
  RayBatch batch{};
  batch.rays = rays, batch.neurons = neurons;
  std::vector<double> z, rate, head;
  for (int64_t i = 0; i < rays * neurons; ++i) {
    z.push_back(wave(i)), rate.push_back(i % 11 ? wave(i + 5) : i % 2 ? NAN : 0), head.push_back(wave(i + 9));
  }
  std::vector<double> offset(rays, 5), lower(rays), upper(rays);
  batch.z = z.data(), batch.rate = rate.data(), batch.head = head.data(), batch.offset = offset.data();
  batch.lower = lower.data(), batch.upper = upper.data();
  std::thread helper([&] { set.cross(batch); });
  set.cross(batch);
  helper.join();
}

int main() {
  int64_t flags = 0;
  for (const InstructionSet& set : {SETS}) {
    for (int64_t networks : {1, 37}) {
      for (int64_t points : {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 33, 65}) {
        for (int64_t inputs : {1, 2, 3, 4, 5, 6, 11}) {
          for (int64_t neurons : {1, 5}) run(set, networks, points, inputs, neurons, flags++);
        }
      }
    }
    for (int64_t dimension : {2, 3, 4, 5, 9, 70}) {
      for (int64_t neurons : {1, 2, 7, 40}) {
        for (Norm norm : {Norm::kL2, Norm::kLinf, Norm::kL1}) {
          for (int64_t kind = 0; kind < 5; ++kind) bracket(set, 3, neurons, dimension, norm, kind % 2, kind);
        }
      }
    }
    for (int64_t rays : {0, 1, 40}) {
      for (int64_t neurons : {1, 2, 15, 16, 17, 40, 100}) cross(set, rays, neurons);
    }
    std::vector<float> x = waves(45, 100), result(45);
    for (int64_t count = 0; count <= 45; ++count) set.exp(x.data(), result.data(), count);
    std::printf("%s\n", set.name);
  }
}
