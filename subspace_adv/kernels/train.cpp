// The XLA handler of the fused trainer: checks shapes, shares the batch among threads, picks the instruction set.

#include <cstring>

#include "threads.h"

namespace ffi = xla::ffi;

namespace subspace_adv {
namespace {

const InstructionSet* best() {
#ifdef __x86_64__
  // What CMakeLists.txt lets the compiler use, no less.
  bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512vl");
  if (has_avx2 && has_avx512) return &avx512;
  if (has_avx2) return &avx2;
#endif
  return &generic;
}

}  // namespace

const InstructionSet* in_use = best();

namespace {

using F32 = ffi::Buffer<ffi::F32>;
using S32 = ffi::Buffer<ffi::S32>;
using S8 = ffi::Buffer<ffi::S8>;

template <class In, class Out>
void copy_through(In& in, Out& out) {
  if (in.untyped_data() != out->untyped_data()) memcpy(out->untyped_data(), in.untyped_data(), in.size_bytes());
}

ffi::Error advance(ffi::ThreadPool pool, F32 params, F32 residue, F32 velocity, S32 step, S8 status, F32 x, F32 y,
                   F32 learning_rate, F32 weight_decay, F32 momentum, F32 stop_margin, S32 max_steps,
                   ffi::Result<F32> new_params, ffi::Result<F32> new_residue, ffi::Result<F32> new_velocity,
                   ffi::Result<S32> new_step, ffi::Result<S8> new_status, int64_t steps, int64_t loss, bool has_bias, bool train_head) {
  auto shape = x.dimensions();
  if (params.dimensions().size() < 1 || velocity.dimensions().size() < 1 || shape.size() < 2 || shape.back() < 1 ||
      y.dimensions().size() < 1) {
    return ffi::Error::InvalidArgument("params, velocity and y need an axis, x points and one input or more");
  }
  Batch batch{};
  batch.networks = step.element_count();
  batch.points = shape[shape.size() - 2];
  batch.inputs = shape.back();
  batch.x_rows = rows(x, 2);
  batch.y_rows = rows(y, 1);
  int64_t row = params.dimensions().back(), velocity_row = velocity.dimensions().back();
  batch.neurons = (row - 1) / (batch.inputs + 2);
  if (batch.networks == 0) return ffi::Error::Success();
  bool fits = batch.row() == row && (velocity_row == 0 || velocity_row == row) && rows(velocity, 1) == batch.networks;
  fits = fits && residue.element_count() == params.element_count();
  fits = fits && rows(params, 1) == batch.networks && y.dimensions().back() == batch.points;
  fits = fits && batch.x_rows > 0 && batch.networks % batch.x_rows == 0;
  fits = fits && batch.y_rows > 0 && batch.networks % batch.y_rows == 0;
  fits = fits && rows(status, 0) == batch.networks && rows(max_steps, 0) == batch.networks;
  for (const F32* setting : {&learning_rate, &weight_decay, &momentum, &stop_margin}) {
    fits = fits && rows(*setting, 0) == batch.networks;
  }
  if (!fits) return ffi::Error::InvalidArgument("shapes of parameters, points and settings do not fit together");
  copy_through(params, new_params);
  copy_through(residue, new_residue);
  copy_through(velocity, new_velocity);
  copy_through(step, new_step);
  copy_through(status, new_status);
  batch.steps = steps;
  batch.loss = loss;
  batch.has_bias = has_bias;
  batch.train_head = train_head;
  batch.has_momentum = velocity_row > 0;
  batch.x = x.typed_data();
  batch.y = y.typed_data();
  batch.learning_rate = learning_rate.typed_data();
  batch.weight_decay = weight_decay.typed_data();
  batch.momentum = momentum.typed_data();
  batch.stop_margin = stop_margin.typed_data();
  batch.max_steps = max_steps.typed_data();
  batch.params = new_params->typed_data();
  batch.residue = new_residue->typed_data();
  batch.velocity = new_velocity->typed_data();
  batch.step = new_step->typed_data();
  batch.status = new_status->typed_data();
  int64_t blocks = (batch.networks + in_use->lanes - 1) / in_use->lanes;
  if (share(pool, blocks, batch, in_use->train)) return ffi::Error::Success();
  return ffi::Error(ffi::ErrorCode::kResourceExhausted, "no memory for a block of networks");
}

}  // namespace
}  // namespace subspace_adv

XLA_FFI_DEFINE_HANDLER_SYMBOL(subspace_adv_advance, subspace_adv::advance,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<subspace_adv::F32>()  // params
                                  .Arg<subspace_adv::F32>()  // residue
                                  .Arg<subspace_adv::F32>()  // velocity
                                  .Arg<subspace_adv::S32>()  // step
                                  .Arg<subspace_adv::S8>()   // status
                                  .Arg<subspace_adv::F32>()  // x
                                  .Arg<subspace_adv::F32>()  // y
                                  .Arg<subspace_adv::F32>()  // learning_rate
                                  .Arg<subspace_adv::F32>()  // weight_decay
                                  .Arg<subspace_adv::F32>()  // momentum
                                  .Arg<subspace_adv::F32>()  // stop_margin
                                  .Arg<subspace_adv::S32>()  // max_steps
                                  .Ret<subspace_adv::F32>()
                                  .Ret<subspace_adv::F32>()
                                  .Ret<subspace_adv::F32>()
                                  .Ret<subspace_adv::S32>()
                                  .Ret<subspace_adv::S8>()
                                  .Attr<int64_t>("steps")
                                  .Attr<int64_t>("loss")
                                  .Attr<bool>("has_bias")
                                  .Attr<bool>("train_head"));

// The instruction set in use.
extern "C" const char* subspace_adv_instruction_set() { return subspace_adv::in_use->name; }

// For tests: uses the best instruction set this machine has, at most `limit` (0 generic, 1 avx2, 2 avx512).
extern "C" void subspace_adv_limit_instruction_set(int limit) {
  using namespace subspace_adv;
  in_use = best();
#ifdef __x86_64__
  if (limit < 2 && in_use == &avx512) in_use = &avx2;
  if (limit < 1) in_use = &generic;
#endif
}

// For tests: e^x of `count` numbers.
extern "C" void subspace_adv_exp(const float* x, float* result, int64_t count) {
  subspace_adv::in_use->exp(x, result, count);
}
