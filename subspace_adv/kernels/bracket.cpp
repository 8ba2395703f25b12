// Brackets of the distances to a flip: attacks from above, certificates from below, and planes exactly.
//
// CMake compiles this file once per instruction set, as block.cpp, and for the same reason nothing comes from the C++
// library. A point's bracket depends on nothing but itself.

#include "bracket.h"

#include "attack.h"
#include "certificate.h"
#include "normals.h"
#include "plane.h"

namespace subspace_adv {
namespace {

constexpr double kRounded = 1 + 0x1p-40;  // lengths of coordinates are those of perturbations, but for rounding
constexpr uint64_t kFarKey = 0;           // of the rays that are the same for all points
// Of the attack that all points get first: restarts, and of how many steps it makes one.
constexpr int64_t kFewRestarts = 8, kFewOf = 4;
// Of the whole attack, in few dimensions and in more: rounds, each with twice the steps of the one before, and upper
// over lower, beyond which it is made again. In few dimensions it is cheap, and the certificate near the truth, so it is
// made wherever a bracket is open.
struct Again {
  int64_t most_rounds;
  double uncertain;
};
constexpr int64_t kFewDimensions = 8;
constexpr Again kInFew = {4, 1}, kInMore = {2, 2};
constexpr uint64_t kNextDraws = 0x9e3779b97f4a7c15;
// Of a plane: how often it is looked at, each time as far as the flip that the time before found, and where to look for a
// flip of which rounding hid all.
constexpr int64_t kPasses = 4;
constexpr double kExactly = 0x1.8p-21;  // relative, beyond which it is looked at again
constexpr double kAround[][2] = {{1, 0}, {-1, 0}, {0, 1}, {0, -1}, {1, 1}, {-1, -1}, {1, -1}, {-1, 1}};
constexpr double kStored = 0x1p-20;  // relative: more than rounding to float32 can put both ends apart
constexpr double kNearer = 0.98;     // times the flip known: nearer ones are news to the certificate

class Brackets {
 public:
  bool allocate(const BracketBatch& batch) {
    const int64_t m = batch.neurons, r = batch.dimension;
    if (!head_.allocate(1, m) || !place_.allocate(1, r)) return false;
    if (r == 2) return plane_.allocate(m) && attack_.allocate(m, r, 1, 0);
    return attack_.allocate(m, r, batch.restarts, 1) && certificate_.allocate(m, r) &&
           directions_.allocate(1, Attack::kDirections * r) && hint_.allocate(1, r) &&
           allocate_vertices(batch.norm, r) && allocate_draws(batch.restarts, r);
  }

  ~Brackets() {
    free(drawn_);
    free(far_);
  }

  void point(BracketBatch& batch, int64_t index) {
    const int64_t m = batch.neurons, r = batch.dimension, n = batch.points, network = index / n;
    const double *head = batch.head + network * m, *z = batch.z + index * m;
    double value = batch.offset[network];
    for (int64_t i = 0; i < m; ++i) value += head[i] * (z[i] > 0 ? z[i] : 0);
    const int64_t rates = batch.rate_rows == 1 ? network : index;
    batch.lower[index] = 0, batch.distance[index] = INFINITY;
    for (int64_t j = 0; j < r; ++j) batch.place[index * r + j] = 0;
    // Nothing is known of a network that is no number somewhere.
    if (!are_finite(head, m) || !are_finite(z, m) || !are_finite(batch.rates + rates * m * r, m * r)) return;
    if (!are_finite(batch.offset + network, 1)) return;
    const double sign = value < 0 ? -1 : 1;
    for (int64_t i = 0; i < m; ++i) head_[0][i] = sign * head[i];
    const Around around{m, r, z, batch.rates + rates * m * r, head_[0], sign * batch.offset[network],
                        batch.z_error + index * m, batch.rate_error + network * m};
    if (r == 2) {
      plane(around, batch, index);
    } else {
      search(around, batch, index);
    }
  }

 private:
  // Directions that are drawn for a point: rays, and after them how a second round's runs depart from the best flip.
  static int64_t rays_drawn(int64_t restarts) { return 2 * restarts; }
  static int64_t directions_drawn(int64_t restarts) {
    return rays_drawn(restarts) + attack_detail::share_of(restarts, attack_detail::Tuning::anew);
  }

  // In few dimensions, the directions to the vertices of a ball that has few.
  bool allocate_vertices(Norm norm, int64_t r) {
    vertex_count_ = r > kFewDimensions || !Corners::are_few(norm, r) ? 0 : norm == Norm::kL1 ? 2 * r : 1 << r;
    if (!vertices_.allocate(1, vertex_count_ * r)) return false;
    for (int64_t i = 0; i < vertex_count_; ++i) {
      double* vertex = vertices_[0] + i * r;
      if (norm == Norm::kL1) vertex[i / 2] = i % 2 ? -1 : 1;
      if (norm == Norm::kLinf) {
        for (int64_t j = 0; j < r; ++j) vertex[j] = i >> j & 1 ? -1 : 1;
      }
    }
    return true;
  }

  bool allocate_draws(int64_t restarts, int64_t r) {
    drawn_ = static_cast<float*>(malloc(4 * directions_drawn(restarts) * r));
    far_ = static_cast<float*>(malloc(4 * attack_detail::Tuning::far_rays * r));
    if (drawn_ && far_) draw_normals(kFarKey, attack_detail::Tuning::far_rays * r, far_);
    return drawn_ && far_;
  }

  void plane(const Around& around, BracketBatch& batch, int64_t index) {
    double* place = batch.place + 2 * index;
    double lower = 0, distance = INFINITY;
    for (int64_t pass = 0; pass < kPasses; ++pass) {
      const PlaneDistance exact = plane_.distance(around, batch.norm, distance);
      bool is_nearer = comes_nearer(around, batch.norm, exact.directions[0], 2, distance, place);
      lower = largest(lower, exact.lower);
      // Rounding may have hidden all of the boundary.
      if (distance == INFINITY && pass == 0) {
        is_nearer = comes_nearer(around, batch.norm, kAround[0], sizeof kAround / sizeof kAround[0], distance, place);
      }
      if (distance <= lower * (1 + kExactly) || !is_nearer) break;
    }
    batch.lower[index] = lower;
    batch.distance[index] = distance * kRounded;
  }

  void search(const Around& around, BracketBatch& batch, int64_t index) {
    const int64_t r = batch.dimension;
    double* place = batch.place + index * r;
    const int64_t drawn = directions_drawn(batch.restarts) * r;
    const uint64_t key = (uint64_t)batch.keys[2 * index] << 32 | batch.keys[2 * index + 1];
    draw_normals(key, drawn, drawn_);
    const float *rays = drawn_, *noise = drawn_ + rays_drawn(batch.restarts) * r;
    const double* goal = batch.goal + index * r;
    const Again again = r <= kFewDimensions ? kInFew : kInMore;
    // Both ends are stored in float32, rounded outwards, and what is asked for has to hold then.
    const double gap = largest(0, batch.gap - (1 + batch.gap) * kStored);
    double lower = 0, distance = INFINITY;
    const int64_t few = batch.restarts < kFewRestarts ? batch.restarts : kFewRestarts;
    for (int64_t round = 0;; ++round) {
      const int64_t restarts = round ? batch.restarts : few;
      const int64_t steps = round ? batch.steps << (round - 1) : (batch.steps + kFewOf - 1) / kFewOf;
      if (round > 1) draw_normals(key + round * kNextDraws, drawn, drawn_);
      const int64_t hints = distance < INFINITY ? 1 : 0;
      const int64_t count = attack_.search(around, batch.norm, steps, restarts, rays, noise, far_, goal, hint_[0],
                                           hints, directions_[0]);
      bool is_new = comes_nearer(around, batch.norm, directions_[0], count, distance, place) || round == 0;
      // The nearest flip is often at a vertex, in a cone that a search may miss.
      if (round == 0) comes_nearer(around, batch.norm, vertices_[0], vertex_count_, distance, place);
      // The certificate may come upon a flip itself.
      while (is_new && (lower * (1 + gap) < distance || round == 0)) {
        for (int64_t j = 0; j < r; ++j) hint_[0][j] = place[j];
        lower = largest(lower, certificate_.radius(around, batch.norm, distance, gap, hint_[0]));
        is_new = comes_nearer(around, batch.norm, hint_[0], 1, distance, place);
      }
      if (lower * (1 + gap) >= distance) break;
      // What is far from certain may be a flip in a narrow cone, that a longer search comes nearer.
      if (round && (round == again.most_rounds || distance <= again.uncertain * lower)) break;
    }
    batch.lower[index] = lower;
    batch.distance[index] = distance * kRounded;
  }

  // Takes the nearest flip along some directions (count, r) if it is nearer than the one known, at `place` (r). Whether
  // it is so much nearer that the certificate should know.
  bool comes_nearer(const Around& around, Norm norm, const double* directions, int64_t count, double& distance,
                    double* place) {
    const Flip flip = attack_.shortest(around, norm, directions, count, place_[0]);
    const bool is_new = flip.distance < distance * kNearer;
    if (flip.distance < distance) {
      distance = flip.distance;
      for (int64_t j = 0; j < around.dimension; ++j) place[j] = place_[0][j];
    }
    return is_new;
  }

  float *drawn_ = nullptr, *far_ = nullptr;  // what the search begins with: of a point, and of all
  Plane plane_;
  Attack attack_;
  Certificate certificate_;
  Matrix head_, directions_, place_, hint_, vertices_;
  int64_t vertex_count_ = 0;
};

}  // namespace

bool NAMED(bracket_, INSTRUCTION_SET)(BracketBatch& batch) {
  Brackets brackets;
  if (!brackets.allocate(batch)) return false;
  const int64_t points = batch.networks * batch.points;
  while (true) {
    const int64_t index = __atomic_fetch_add(&batch.next, 1, __ATOMIC_RELAXED);
    if (index >= points) return true;
    brackets.point(batch, index);
  }
}

}  // namespace subspace_adv
