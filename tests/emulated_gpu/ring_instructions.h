#pragma once

#include "instructions.h"

/// native/ring_instructions.h on the host; see there.
namespace rwkvx::cuda {

struct SharedBarrier {
  uint8_t parity, count, missing;  // arrivals
  int32_t bytes;                   // expected
};
inline void init_barrier(SharedBarrier* barrier, uint32_t count) {
  const auto arrivals = static_cast<uint8_t>(count);
  *barrier = {0, arrivals, arrivals, 0};
}
inline void fence_barriers() {}

namespace emulated_ring {

inline void end_phase(SharedBarrier* barrier) {
  if (barrier->missing != 0 || barrier->bytes != 0) return;
  barrier->parity ^= 1;
  barrier->missing = barrier->count;
}

}  // namespace emulated_ring

inline void arrive(SharedBarrier* barrier, uint32_t count = 1) {
  if (count > barrier->missing) emulated::stop("more arrivals than a barrier waits for");
  barrier->missing = static_cast<uint8_t>(barrier->missing - count);
  emulated_ring::end_phase(barrier);
}
inline void arrive_expecting(SharedBarrier* barrier, uint32_t bytes) {
  barrier->bytes += static_cast<int32_t>(bytes);
  arrive(barrier);
}
inline void wait(SharedBarrier* barrier, uint32_t parity) {
  while (barrier->parity == parity) emulated::wait_a_turn();
}
/// Arrives a turn later: who does not wait finds what was there before.
inline void copy_bulk(void* shared, const void* global, uint32_t bytes, SharedBarrier* barrier) {
  const auto odd = (reinterpret_cast<uintptr_t>(shared) | reinterpret_cast<uintptr_t>(global) | bytes) % 16;
  if (odd != 0 || bytes == 0) emulated::stop("a bulk copy that is not of whole multiples of 16 bytes");
  emulated::later([=] {
    memcpy(shared, global, bytes);
    barrier->bytes -= static_cast<int32_t>(bytes);
    if (barrier->bytes < 0) emulated::stop("copies of more bytes than a barrier expects");
    emulated_ring::end_phase(barrier);
  });
}

inline void store_tagged(uint64_t* to, uint32_t value, uint32_t tag) {
  *to = static_cast<uint64_t>(tag) << 32 | value;
}
inline uint32_t load_tagged(const uint64_t* from, uint32_t tag) {
  while (static_cast<uint32_t>(*from >> 32) != tag) emulated::wait_a_turn();
  return static_cast<uint32_t>(*from);
}
inline bool try_load_tagged(uint4& values, const uint64_t* from, uint32_t tag) {
  bool all = true;
  for (int i = 0; i < 4; ++i) all = all && static_cast<uint32_t>(from[i] >> 32) == tag;
  values = make_uint4(static_cast<uint32_t>(from[0]), static_cast<uint32_t>(from[1]),
                      static_cast<uint32_t>(from[2]), static_cast<uint32_t>(from[3]));
  return all;
}
inline void wait_briefly(uint32_t&) { emulated::wait_a_turn(); }

using SharedAddress = const unsigned char*;
inline SharedAddress address_of(const void* p) { return static_cast<const unsigned char*>(p); }
template <typename T>
void load_shared(T& v, SharedAddress at) {
  memcpy(&v, at, sizeof v);
}

inline void set_count(uint32_t* count, uint32_t to) { *count = to; }
inline void wait_for_shared_count(const uint32_t* count, uint32_t at_least) {
  while (*count < at_least) emulated::wait_a_turn();
}

template <int id, int threads>
void sync_some() {
  emulated::barrier_of(id, threads);
}

template <int threads>
void sync_at(int id) {
  emulated::barrier_of(id, threads);
}

inline void raise_count(uint32_t* count) { ++*count; }
inline void wait_for_count(const uint32_t* count, uint32_t at_least) {
  while (*count < at_least) emulated::wait_a_turn();
}

}  // namespace rwkvx::cuda
