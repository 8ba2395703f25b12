// Vectors of the instruction set that a file is compiled for, arrays that hold them, and the mode that they compute in.
//
// As in all that is compiled once per instruction set, everything is in an anonymous namespace.
#pragma once

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __x86_64__
#include <xmmintrin.h>
#endif

namespace subspace_adv {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
constexpr int kLanes = kVectorBytes / 4;    // of single precision
constexpr int kDoubles = kVectorBytes / 8;  // of double precision

typedef float Floats __attribute__((vector_size(kVectorBytes)));
typedef int32_t Ints __attribute__((vector_size(kVectorBytes)));
typedef double Doubles __attribute__((vector_size(kVectorBytes)));
typedef int64_t Longs __attribute__((vector_size(kVectorBytes)));

inline Floats all(float x) { return x - Floats{}; }

inline bool any(Ints mask) {
  uint64_t words[sizeof(Ints) / 8], found = 0;
  memcpy(words, &mask, sizeof mask);
  for (uint64_t word : words) found |= word;
  return found != 0;
}

// Zeros, aligned for vectors, with a vector more than asked for.
template <class T>
class Array {
 public:
  Array() = default;
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  ~Array() { free(data_); }
  operator T*() const { return data_; }

  // Stores a vector, from a multiple of what it holds on.
  template <class V>
  void set(int64_t begin, V vector) {
    memcpy(data_ + begin, &vector, sizeof vector);
  }

  bool allocate(int64_t count) {
    free(data_);
    size_t bytes = (count * sizeof(T) / kVectorBytes + 2) * kVectorBytes;
    data_ = (T*)aligned_alloc(kVectorBytes, bytes);
    if (data_) memset((void*)data_, 0, bytes);
    return data_;
  }

  void swap(Array& other) {
    T* data = data_;
    data_ = other.data_;
    other.data_ = data;
  }

 private:
  T* data_ = nullptr;
};

// Flushes subnormals to zero while it lives: they are slow, and results must not depend on the mode of the thread.
class FlushSubnormals {
#if defined(__x86_64__)
  static unsigned read() { return _mm_getcsr(); }
  static void write(unsigned mode) { _mm_setcsr(mode); }
  static constexpr unsigned kFlush = 0x8040;
  unsigned mode_ = read();
#elif defined(__aarch64__)
  static uint64_t read() {
    uint64_t mode;
    asm volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
  }
  static void write(uint64_t mode) { asm volatile("msr fpcr, %0" : : "r"(mode)); }
  static constexpr uint64_t kFlush = 1 << 24;
  uint64_t mode_ = read();
#else
  static void write(int) {}
  static constexpr int kFlush = 0;
  int mode_ = 0;
#endif

 public:
  FlushSubnormals() { write(mode_ | kFlush); }
  ~FlushSubnormals() { write(mode_); }
};

}  // namespace
}  // namespace subspace_adv
