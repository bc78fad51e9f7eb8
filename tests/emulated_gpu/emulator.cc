#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <vector>

#include "cuda_runtime.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

#if defined(__x86_64__)
// Stores the registers that a function must keep on the stack, and the stack pointer at *save; takes up what
// `load` was stored as. swapcontext would also ask the kernel for signal masks, each time.
extern "C" void rwkvx_emulator_switch(void** save, void* load);
asm(R"(
  .text
  .p2align 4
  .type rwkvx_emulator_switch, @function
rwkvx_emulator_switch:
  endbr64
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size rwkvx_emulator_switch, . - rwkvx_emulator_switch
)");

namespace {

struct Context {
  void* stack_pointer = nullptr;
  void start(std::byte* stack, size_t bytes, void (*entry)()) {
    auto* top = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(stack + bytes) / 16 * 16);
    *--top = nullptr;  // where entry would return to
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    stack_pointer = top;
  }
  void switch_to(Context& other) { rwkvx_emulator_switch(&stack_pointer, other.stack_pointer); }
};

}  // namespace
#else
#include <ucontext.h>

namespace {

struct Context {
  ucontext_t of;
  void start(std::byte* stack, size_t bytes, void (*entry)()) {
    getcontext(&of);
    of.uc_stack.ss_sp = stack;
    of.uc_stack.ss_size = bytes;
    of.uc_link = nullptr;
    makecontext(&of, entry, 0);
  }
  void switch_to(Context& other) { swapcontext(&of, &other.of); }
};

}  // namespace
#endif

namespace rwkvx::emulated {

unsigned lane = 0;

namespace {

constexpr size_t kStackBytes = size_t{256} << 10;
// Stacks end at places that differ in these bits of their addresses: equal ones would all fall into the same
// few places of the processor's caches.
constexpr size_t kStackSpread = size_t{64} << 10, kStackStep = 13 * 64;

[[noreturn]] void stop(const char* why) {
  std::fprintf(stderr, "emulated kernel, block (%u, %u, %u), thread (%u, %u, %u): %s\n", blockIdx.x,
               blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z, why);
  std::abort();
}

enum class State : std::uint8_t { ready, at_block_barrier, at_warp_barrier, returned };

struct Fiber {
  Context context;
  std::unique_ptr<std::byte[]> stack{new std::byte[kStackBytes + kStackSpread]};
  uint3 thread{};
  unsigned exchanges = 0;  // so far
};

struct Warp {
  unsigned waiting = 0, alive = 0;
  alignas(16) std::byte slots[2][32 * kExchangeBytes];
};

struct Machine {
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<State> states;  // of the fibers
  std::vector<Warp> warps;
  std::vector<std::byte> shared;
  Context scheduler;
  const std::function<void()>* thread = nullptr;
  size_t count = 0, current = 0, at_barrier = 0, alive = 0;
  size_t turn = 0;  // places of find_ready() that had theirs
  bool backwards = false;

  Fiber& fiber() { return *fibers[current]; }
  Warp& warp() { return warps[current / 32]; }

  /// Goes on with the next thread that can, or with run_block() when all have had their turn.
  void yield() {
    Context& mine = fiber().context;
    Context& next = find_ready() ? fiber().context : scheduler;
    if (&next != &mine) mine.switch_to(next);
  }
  /// Makes the next ready thread of this turn the current one. Whole warps, in an order that changes: what
  /// one warp must not yet read of another is sometimes there and sometimes not.
  bool find_ready() {
    for (const size_t places = warps.size() * 32; turn < places; ++turn) {
      const size_t w = turn / 32, at = (backwards ? warps.size() - 1 - w : w) * 32 + turn % 32;
      if (at >= count || states[at] != State::ready) continue;
      current = at;
      lane = static_cast<unsigned>(at % 32);
      threadIdx = fibers[at]->thread;
      ++turn;
      return true;
    }
    return false;
  }

  void release_block() {
    if (at_barrier < alive) return;
    at_barrier = 0;
    for (size_t i = 0; i < count; ++i) {
      if (states[i] == State::at_block_barrier) states[i] = State::ready;
    }
    backwards = !backwards;
  }
  void release_warp(size_t w) {
    if (warps[w].waiting < warps[w].alive) return;
    warps[w].waiting = 0;
    for (size_t i = w * 32; i < std::min(count, w * 32 + 32); ++i) {
      if (states[i] == State::at_warp_barrier) states[i] = State::ready;
    }
  }
};
Machine machine;

void body() {
  (*machine.thread)();
  machine.states[machine.current] = State::returned;
  --machine.alive;
  --machine.warp().alive;
  if (machine.alive > 0) machine.release_block();
  if (machine.warp().alive > 0) machine.release_warp(machine.current / 32);
  machine.yield();
}

void run_block(dim3 block) {
  Machine& m = machine;
  m.count = m.alive = static_cast<size_t>(block.x) * block.y * block.z;
  m.at_barrier = 0;
  m.warps.resize((m.count + 31) / 32);
  m.states.assign(m.count, State::ready);
  while (m.fibers.size() < m.count) m.fibers.push_back(std::make_unique<Fiber>());
  for (size_t w = 0; w < m.warps.size(); ++w) {
    m.warps[w].waiting = 0;
    m.warps[w].alive = static_cast<unsigned>(std::min<size_t>(32, m.count - w * 32));
  }
  for (size_t i = 0; i < m.count; ++i) {
    Fiber& fiber = *m.fibers[i];
    fiber.exchanges = 0;
    const auto n = static_cast<unsigned>(i);
    fiber.thread = {n % block.x, n / block.x % block.y, n / (block.x * block.y)};
    fiber.context.start(fiber.stack.get(), kStackBytes + i * kStackStep % kStackSpread, body);
  }
  while (m.alive > 0) {
    m.turn = 0;
    if (!m.find_ready()) stop("some threads wait at a barrier that the others never reach");
    m.scheduler.switch_to(m.fiber().context);
  }
}

}  // namespace

void block_barrier() {
  machine.states[machine.current] = State::at_block_barrier;
  ++machine.at_barrier;
  machine.release_block();
  machine.yield();
}

std::byte* begin_exchange() { return machine.warp().slots[machine.fiber().exchanges++ % 2]; }

void warp_barrier() {
  machine.states[machine.current] = State::at_warp_barrier;
  ++machine.warp().waiting;
  machine.release_warp(machine.current / 32);
  machine.yield();
}

unsigned active_lanes() {
  unsigned lanes = 0;
  const size_t first = machine.current / 32 * 32;
  for (size_t i = 0; i < 32 && first + i < machine.count; ++i) {
    if (machine.states[first + i] != State::returned) lanes |= 1u << i;
  }
  return lanes;
}

void require_full_mask(unsigned mask) {
  if (mask != 0xffffffffu) stop("an exchange within part of a warp, which is not emulated");
}

std::byte* dynamic_shared_memory() {
  return reinterpret_cast<std::byte*>((reinterpret_cast<uintptr_t>(machine.shared.data()) + 127) / 128 * 128);
}

std::function<void(bool)> around_kernels;

void run_grid(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& thread) {
  if (around_kernels) around_kernels(true);
  const size_t threads = static_cast<size_t>(block.x) * block.y * block.z;
  if (threads == 0 || threads > 1024) stop("a block has 1 to 1024 threads");
  if (shared_bytes > 227 * 1024) stop("a block has at most 227 KiB of shared memory");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535)
    stop("a grid of wrong size");
  machine.thread = &thread;
  gridDim = grid;
  blockDim = block;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = {x, y, z};
        machine.shared.assign(shared_bytes + 127, std::byte{0xff});  // NaN
        run_block(block);
      }
    }
  }
  if (around_kernels) around_kernels(false);
}

}  // namespace rwkvx::emulated

namespace {

std::map<std::uintptr_t, size_t>& blocks() {
  static std::map<std::uintptr_t, size_t> all;
  return all;
}

}  // namespace

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "out of memory";
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {};
  std::snprintf(properties->name, sizeof properties->name, "emulated");
  // So little that what is cut to fit into memory is cut here too.
  properties->totalGlobalMem = size_t{1} << 22;
  properties->multiProcessorCount = 4;
  properties->major = 9;
  properties->sharedMemPerBlockOptin = 227 * 1024;
  properties->l2CacheSize = 1 << 25;
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** block, size_t bytes) {
  if (posix_memalign(block, 256, std::max<size_t>(bytes, 1)) != 0) return cudaErrorMemoryAllocation;
  memset(*block, 0xff, bytes);
  blocks()[reinterpret_cast<std::uintptr_t>(*block)] = bytes;
  return cudaSuccess;
}

cudaError_t cudaFree(void* block) {
  blocks().erase(reinterpret_cast<std::uintptr_t>(block));
  std::free(block);
  return cudaSuccess;
}

cudaError_t cudaMallocHost(void** block, size_t bytes) {
  if (posix_memalign(block, 256, std::max<size_t>(bytes, 1)) != 0) return cudaErrorMemoryAllocation;
  memset(*block, 0xff, bytes);
  return cudaSuccess;
}

cudaError_t cudaFreeHost(void* block) {
  std::free(block);
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *free = *total = size_t{1} << 34;
  return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  const auto at = reinterpret_cast<std::uintptr_t>(pointer);
  auto found = blocks().upper_bound(at);
  bool ours = found != blocks().begin();
  if (ours) {
    --found;
    ours = at < found->first + found->second;
  }
  *attributes = {ours ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered, 0};
  return cudaSuccess;
}
