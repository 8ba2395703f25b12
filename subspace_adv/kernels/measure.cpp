// The XLA handlers of distances to a flip, of points and along rays: check shapes and share the work among threads.

#include "threads.h"

namespace ffi = xla::ffi;

namespace subspace_adv {
namespace {

using U32 = ffi::Buffer<ffi::U32>;
using F64 = ffi::Buffer<ffi::F64>;

ffi::Error bracket(ffi::ThreadPool pool, F64 head, F64 offset, F64 z, F64 rates, F64 z_error, F64 rate_error, U32 keys,
                   F64 goal, ffi::Result<F64> lower, ffi::Result<F64> distance, ffi::Result<F64> place, int64_t norm,
                   int64_t steps, int64_t restarts, double gap) {
  auto points = z.dimensions(), varied = rates.dimensions();
  if (points.size() < 2 || varied.size() < 3) {
    return ffi::Error::InvalidArgument("z needs two axes, and rates three");
  }
  BracketBatch batch{};
  batch.networks = rows(z, 2);
  batch.points = points[points.size() - 2];
  batch.neurons = points.back();
  batch.dimension = varied.back();
  batch.rate_rows = varied[varied.size() - 3];
  const int64_t n = batch.points, m = batch.neurons, r = batch.dimension, all = batch.networks;
  if (all == 0 || n == 0) return ffi::Error::Success();
  auto holds = [all](const auto& buffer, int64_t size) { return (int64_t)buffer.element_count() == all * size; };
  bool fits = holds(head, m) && holds(offset, 1) && (batch.rate_rows == 1 || batch.rate_rows == n) && r >= 2;
  fits = fits && holds(rates, batch.rate_rows * m * r) && holds(keys, 2 * n) && holds(goal, n * r);
  fits = fits && holds(z_error, n * m) && holds(rate_error, m);
  fits = fits && norm >= 0 && norm <= 2;
  if (!fits) return ffi::Error::InvalidArgument("shapes of networks, points and draws do not fit together");
  batch.norm = static_cast<Norm>(norm);
  batch.steps = steps;
  batch.restarts = restarts;
  batch.gap = gap;
  batch.head = head.typed_data();
  batch.offset = offset.typed_data();
  batch.z = z.typed_data();
  batch.rates = rates.typed_data();
  batch.z_error = z_error.typed_data();
  batch.rate_error = rate_error.typed_data();
  batch.keys = keys.typed_data();
  batch.goal = goal.typed_data();
  batch.lower = lower->typed_data();
  batch.distance = distance->typed_data();
  batch.place = place->typed_data();
  if (share(pool, all * n, batch, in_use->bracket)) return ffi::Error::Success();
  return ffi::Error(ffi::ErrorCode::kResourceExhausted, "no memory to measure a network");
}

ffi::Error cross(ffi::ThreadPool pool, F64 z, F64 rate, F64 head, F64 offset, ffi::Result<F64> lower,
                 ffi::Result<F64> upper) {
  auto neurons = z.dimensions();
  if (neurons.size() < 1) return ffi::Error::InvalidArgument("z needs an axis");
  RayBatch batch{};
  batch.rays = rows(z, 1);
  batch.neurons = neurons.back();
  const int64_t all = z.element_count(), rays = batch.rays;
  auto holds = [](const auto& buffer, int64_t size) { return (int64_t)buffer.element_count() == size; };
  if (!holds(rate, all) || !holds(head, all) || !holds(offset, rays) || !holds(*lower, rays) || !holds(*upper, rays)) {
    return ffi::Error::InvalidArgument("shapes of rays do not fit together");
  }
  batch.z = z.typed_data();
  batch.rate = rate.typed_data();
  batch.head = head.typed_data();
  batch.offset = offset.typed_data();
  batch.lower = lower->typed_data();
  batch.upper = upper->typed_data();
  if (share(pool, (rays + kRaysTaken - 1) / kRaysTaken, batch, in_use->cross)) return ffi::Error::Success();
  return ffi::Error(ffi::ErrorCode::kResourceExhausted, "no memory to cross rays");
}

}  // namespace
}  // namespace subspace_adv

XLA_FFI_DEFINE_HANDLER_SYMBOL(subspace_adv_cross, subspace_adv::cross,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<subspace_adv::F64>()   // z
                                  .Arg<subspace_adv::F64>()   // rate
                                  .Arg<subspace_adv::F64>()   // head
                                  .Arg<subspace_adv::F64>()   // offset
                                  .Ret<subspace_adv::F64>()   // lower
                                  .Ret<subspace_adv::F64>()); // upper

XLA_FFI_DEFINE_HANDLER_SYMBOL(subspace_adv_bracket, subspace_adv::bracket,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<subspace_adv::F64>()  // head
                                  .Arg<subspace_adv::F64>()  // offset
                                  .Arg<subspace_adv::F64>()  // z
                                  .Arg<subspace_adv::F64>()  // rates
                                  .Arg<subspace_adv::F64>()  // z_error
                                  .Arg<subspace_adv::F64>()  // rate_error
                                  .Arg<subspace_adv::U32>()  // keys
                                  .Arg<subspace_adv::F64>()  // goal
                                  .Ret<subspace_adv::F64>()  // lower
                                  .Ret<subspace_adv::F64>()  // distance
                                  .Ret<subspace_adv::F64>()  // place
                                  .Attr<int64_t>("norm")
                                  .Attr<int64_t>("steps")
                                  .Attr<int64_t>("restarts")
                                  .Attr<double>("gap"));
