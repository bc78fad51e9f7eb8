#include "ops/cuda/resident.h"

#include <algorithm>

#include "ops/cuda/kernels.h"
#include "ops/cuda/resident_compute.h"
#include "ops/cuda/resident_fetch.h"

namespace rwkvx::cuda::resident {
namespace {

constexpr int32_t kSharedBytes = 227 * 1024;
/// Of a block: what the memory needs to be busy, and not more. Whatever else is asked for waits behind it.
constexpr int32_t kUnderWayBytes = 64 * 1024;

struct Arguments {
  const Instruction* list;
  int32_t length;
  uint32_t first_tag;  // of this launch
  uint32_t* count;     // [2]: blocks that have come to a meeting, or to the end; zero between launches
  Layout layout;
};

__device__ __forceinline__ uint4 quad_of(const Instruction* op, int i) {
  return reinterpret_cast<const uint4*>(op)[i];
}

__device__ __forceinline__ void fetch(const Block& block, const Arguments& a, int lane) {
  auto* const here = block.part<Instruction>(block.at.fetching);
  constexpr int kQuads = (kInstructionQuads + 31) / 32;  // of a lane
  Fetcher fetcher(block, lane);
  uint4 next[kQuads];
  const auto load = [&](int i) {
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      if (lane + 32 * q < kInstructionQuads) next[q] = quad_of(a.list + i, lane + 32 * q);
    }
  };
  load(0);
  for (int i = 0; i < a.length; ++i) {
    Instruction& op = here[i & 1];
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      if (lane + 32 * q < kInstructionQuads) reinterpret_cast<uint4*>(&op)[lane + 32 * q] = next[q];
    }
    __syncwarp();
    if (i + 1 < a.length) load(i + 1);
    fetcher.run(op);
    __syncwarp();
  }
}

__device__ __forceinline__ void compute(const Block& block, const Arguments& a) {
  auto* const here = block.part<Instruction>(block.at.instructions);
  const auto thread = static_cast<int>(threadIdx.x);
  const bool copies = thread < kInstructionQuads;
  Computer computer(block, a.first_tag);
  if (copies) reinterpret_cast<uint4*>(&here[0])[thread] = quad_of(a.list, thread);
  Computer::meet();
  computer.prepare(here[0]);
  uint32_t met = 0;
  const auto meet_all = [&] {
    met += static_cast<uint32_t>(block.count);
    if (thread == 0) wait_for_count(a.count, met);
    Computer::meet();
    computer.all_have_met();
  };
  for (int i = 0; i < a.length; ++i) {
    uint4 next = kNoWords;
    if (copies && i + 1 < a.length) next = quad_of(a.list + i + 1, thread);
    computer.run(here[i & 1]);
    if (copies) reinterpret_cast<uint4*>(&here[(i + 1) & 1])[thread] = next;
    Computer::meet();
    const bool last = i + 1 == a.length, meets = last || here[(i + 1) & 1].meets != 0;
    if (meets && thread == 0) raise_count(a.count);
    if (!last) computer.prepare(here[(i + 1) & 1]);
    if (meets) meet_all();
  }
  if (thread == 0 && atomicAdd(a.count + 1, 1u) + 1 == static_cast<uint32_t>(block.count)) {
    a.count[0] = a.count[1] = 0;
  }
}

__global__ void __launch_bounds__(kThreads, 1) resident_kernel(const __grid_constant__ Arguments a) {
  const Block block{dynamic_shared<unsigned char>(), a.layout, static_cast<int>(blockIdx.x),
                    static_cast<int>(gridDim.x)};
  const auto thread = static_cast<int>(threadIdx.x);
  for (int i = thread; i < block.at.trays; i += kThreads) {
    init_barrier(block.full(i), 1);
    init_barrier(block.empty(i), kWarps);
  }
  if (thread < kHiddenTiles) init_barrier(block.part<SharedBarrier>(block.at.hidden_ready) + thread, 1);
  if (thread == 0) *block.part<uint32_t>(block.at.fetched) = 0;
  fence_barriers();
  __syncthreads();
  if (thread >= kComputing) {
    fetch(block, a, thread - kComputing);
  } else {
    compute(block, a);
  }
}

}  // namespace

bool available(const Gpu& gpu) { return gpu.capability() >= 90 && code_architecture() >= 90; }

Layout layout_for(int32_t slot_bytes, int32_t input_bytes) {
  Layout layout{};
  layout.slot_bytes = slot_bytes;
  layout.tray_bytes = kSlotsOfTray * slot_bytes;
  const auto place = [&](int32_t from) {
    int32_t at = from;
    const auto take = [&](int64_t bytes) {
      const int32_t here = at;
      at += static_cast<int32_t>((bytes + 127) / 128 * 128);
      return here;
    };
    layout.full = take(layout.trays * int64_t{sizeof(SharedBarrier)});
    layout.empty = take(layout.trays * int64_t{sizeof(SharedBarrier)});
    layout.hidden_ready = take(kHiddenTiles * sizeof(SharedBarrier));
    layout.fetched = take(sizeof(uint32_t));
    layout.inputs = take(input_bytes);
    layout.instructions = take(2 * sizeof(Instruction));
    layout.fetching = take(2 * sizeof(Instruction));
    layout.hidden = take(kHiddenTiles * sizeof(Hidden));
    layout.lora = take(4 * kHead * sizeof(float));
    layout.operands = take(4 * kHead * sizeof(float));
    layout.halves = take(2 * kTeams * kTile * sizeof(float));
    layout.step = take(sizeof(StepShared));
    layout.scratch = take(kWarps * 32 * sizeof(float));
    layout.bytes = at;
  };
  place(0);
  const int32_t each = layout.tray_bytes + 2 * static_cast<int32_t>(sizeof(SharedBarrier));
  layout.trays = std::clamp((kSharedBytes - layout.bytes - 3 * 128) / each, 0, 32);
  place((layout.trays * layout.tray_bytes + 127) / 128 * 128);
  layout.under_way = std::clamp(kUnderWayBytes / layout.tray_bytes, 1, std::max(layout.trays, 1));
  return layout;
}

void run(Gpu& gpu, Program& program) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(gpu.multiprocessors()));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = static_cast<size_t>(program.layout.bytes);
  config.stream = gpu.stream();
  config.attrs = &attribute;
  config.numAttrs = 1;
  check(cudaFuncSetAttribute(resident_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             program.layout.bytes),
        "asking for shared memory");
  const Arguments arguments{static_cast<const Instruction*>(program.instructions.view().data()),
                            program.length,
                            program.launches++ * static_cast<uint32_t>(program.length),
                            static_cast<uint32_t*>(program.count.view().data()),
                            program.layout};
  check(cudaLaunchKernelEx(&config, resident_kernel, arguments), "starting a kernel");
}

}  // namespace rwkvx::cuda::resident
