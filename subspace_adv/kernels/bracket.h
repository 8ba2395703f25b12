// The points and rays whose distances to a flip a call finds, and what finds them, compiled once per instruction set.
#pragma once

#include <cstdint>

#include "around.h"

namespace subspace_adv {

// All arrays are row-major, with an axis of networks first, and then, but for the network's own, one of points.
struct BracketBatch {
  int64_t networks, points, neurons, dimension;
  int64_t rate_rows;  // of a network: 1 that serves all points, or one a point
  Norm norm;
  int64_t steps, restarts;
  double gap;
  const double *head, *offset, *z, *rates;  // (m), (), (n, m), (1 or n, m, r): of N, whose sign may be any
  const double *z_error, *rate_error;       // (n, m), (m): as in Around
  const uint32_t* keys;                     // (n, 2), of what attacks draw
  const double* goal;                       // (n, r), of a point of the other prediction; zeros where none is known
  double *lower, *distance, *place;         // (n), (n), (n, r)
  int64_t next;                             // the queue: the first point that no thread has taken yet
};

// Brackets points from the queue until it is empty. Any number of threads may do so at once. False if there is no
// memory for it.
using Bracket = bool (*)(BracketBatch&);

// Along a ray the signed output is Σ head·relu(z + rate·t) + offset, positive at 0. An axis of rays first.
struct RayBatch {
  int64_t rays, neurons;
  const double *z, *rate, *head, *offset;  // (m), (m), (m), ()
  double *lower, *upper;                   // (): of its first zero
  int64_t next;                            // the queue: the first ray that no thread has taken yet
};

constexpr int64_t kRaysTaken = 16;  // from the queue at a time

// Finds crossings of rays from the queue until it is empty; as a Bracket.
using Cross = bool (*)(RayBatch&);

// Names of what is compiled for INSTRUCTION_SET, as text and with a prefix.
#define TEXT_OF(set) #set
#define TEXT(set) TEXT_OF(set)
#define JOINED(prefix, set) prefix##set
#define NAMED(prefix, set) JOINED(prefix, set)

bool bracket_generic(BracketBatch&);
bool cross_generic(RayBatch&);
#ifdef __x86_64__
bool bracket_avx2(BracketBatch&);
bool bracket_avx512(BracketBatch&);
bool cross_avx2(RayBatch&);
bool cross_avx512(RayBatch&);
#endif

}  // namespace subspace_adv
