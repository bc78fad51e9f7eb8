#include <algorithm>
#include <vector>

#include "ops/cuda/attention_near.h"
#include "ops/cuda/kv_pages.h"

namespace rwkvx::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kAhead = 8;  // quads of 16 bytes that a thread has under way

/// All lanes get the result.
__device__ __forceinline__ int32_t warp_least(int32_t x) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) x = min(x, __shfl_xor_sync(kAllLanes, x, lanes));
  return x;
}

/// Part `part` of `parts` of `bytes`, a multiple of 16.
__device__ __forceinline__ void copy_part(const std::byte* from, std::byte* to, int64_t bytes, int part,
                                          int parts) {
  const auto* source = reinterpret_cast<const uint4*>(from);
  auto* target = reinterpret_cast<uint4*>(to);
  const int64_t quads = bytes / 16, step = int64_t{kThreads} * parts;
  for (int64_t at = int64_t{kThreads} * part + threadIdx.x; at < quads; at += kAhead * step) {
    uint4 values[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (at + i * step < quads) values[i] = source[at + i * step];
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (at + i * step < quads) target[at + i * step] = values[i];
    }
  }
}

/// Room for `heads` heads of a chunk at `at`: keys of all, values, scales of keys, scales of values.
__host__ __device__ __forceinline__ KvPage room_at(std::byte* at, int64_t heads, int64_t chunk_size,
                                                   int64_t bytes) {
  auto* const scales = reinterpret_cast<float*>(at + 2 * heads * bytes);
  return {at, at + heads * bytes, nullptr, scales, scales + heads * chunk_size, nullptr};
}

/// Head `head` of a page to head `to_head` of a room.
__device__ __forceinline__ void copy_head(const KvPage& page, int64_t head, const KvPage& to, int64_t to_head,
                                          int64_t chunk_size, int64_t bytes, int part, int parts) {
  const auto copy = [&](const void* from, void* room) {
    copy_part(static_cast<const std::byte*>(from) + head * bytes,
              static_cast<std::byte*>(room) + to_head * bytes, bytes, part, parts);
  };
  copy(page.keys, to.keys);
  copy(page.values, to.values);
  if (page.key_scales == nullptr || part != 0) return;
  for (int64_t i = threadIdx.x; i < chunk_size; i += kThreads) {
    to.key_scales[to_head * chunk_size + i] = page.key_scales[head * chunk_size + i];
    to.value_scales[to_head * chunk_size + i] = page.value_scales[head * chunk_size + i];
  }
}

/// A warp for each head of one row: finds or makes room for the chunks that were chosen. `missing` [H, top]:
/// slots that are to be filled, or −1.
__global__ void __launch_bounds__(32)
    assign_kernel(NearChunks::Slots slots, Attend a, int64_t row, int32_t far, int64_t chunk_size,
                  int64_t bytes, HeadRows* near, int32_t* missing) {
  __shared__ int32_t wanted[NearChunks::kMostChoices], found[NearChunks::kMostChoices];
  allow_next_kernel();
  wait_for_previous_kernel();
  const int head = static_cast<int>(blockIdx.x), lane = static_cast<int>(threadIdx.x);
  const int64_t at = (row * a.heads + head) * a.stride;
  int32_t* const chunks = slots.chunks + static_cast<int64_t>(head) * slots.count;
  int32_t* const used = slots.used + static_cast<int64_t>(head) * slots.count;
  for (int32_t i = lane; i < a.top; i += 32) {
    const int32_t chunk = a.chosen[at + i];
    wanted[i] = chunk >= 0 && chunk < far ? chunk + 1 : -1;
    found[i] = -1;
  }
  __syncwarp();
  // Those that are there first, so that none of them makes room. No chunk is in two slots.
  for (int32_t s = lane; s < slots.count; s += 32) {
    const int32_t chunk = chunks[s];
    for (int32_t i = 0; i < a.top; ++i) {
      if (chunk == wanted[i]) found[i] = s, used[s] = slots.now;
    }
  }
  __syncwarp();
  for (int32_t i = 0; i < a.top; ++i) {
    int32_t slot = found[i];
    const bool to_fill = slot < 0 && wanted[i] > 0;
    if (to_fill) {
      int32_t oldest = INT32_MAX;
      for (int32_t s = lane; s < slots.count; s += 32) {
        if (used[s] < oldest) oldest = used[s], slot = s;
      }
      const int32_t least = warp_least(oldest);
      slot = warp_least(oldest == least ? slot : INT32_MAX);
      if (lane == 0) used[slot] = slots.now, chunks[slot] = wanted[i];
    }
    if (lane == 0) {
      missing[head * a.top + i] = to_fill ? slot : -1;
      if (slot >= 0) {
        const int64_t place = (static_cast<int64_t>(head) * slots.count + slot) * slots.slot_bytes;
        const KvPage room = room_at(slots.rows + place, 1, chunk_size, bytes);
        near[at + i] = {room.keys, room.values, room.key_scales, room.value_scales};
      }
    }
    __syncwarp();
  }
}

/// Block (head · top + i, part).
__global__ void __launch_bounds__(kThreads)
    fill_kernel(NearChunks::Slots slots, Attend a, const KvPage* pages, int64_t chunk_size, int64_t bytes,
                const int32_t* missing) {
  allow_next_kernel();
  wait_for_previous_kernel();
  const int32_t slot = missing[blockIdx.x];
  if (slot < 0) return;
  const int64_t head = blockIdx.x / a.top;
  const int64_t at = head * slots.count + slot;
  const KvPage page = pages[slots.chunks[at] - 1];
  copy_head(page, head, room_at(slots.rows + at * slots.slot_bytes, 1, chunk_size, bytes), 0, chunk_size,
            bytes, static_cast<int>(blockIdx.y), static_cast<int>(gridDim.y));
}

/// Block (chunk, head of those that are brought, part): writes the table too, in which far pages lie so that
/// the first head that was brought is where it is looked for.
__global__ void __launch_bounds__(kThreads)
    stage_kernel(const KvPage* pages, int32_t far, int32_t first_head, int64_t chunk_size, int64_t bytes,
                 std::byte* rows, KvPage* table) {
  allow_next_kernel();
  wait_for_previous_kernel();
  const auto chunk = static_cast<int32_t>(blockIdx.x);
  KvPage page = pages[chunk];
  const int64_t heads = gridDim.y, scale_bytes = chunk_size * static_cast<int64_t>(sizeof(float));
  if (chunk < far) {
    const int64_t of_head = (2 * bytes + (page.key_scales != nullptr ? 2 * scale_bytes : 0) + 15) / 16 * 16;
    const KvPage room = room_at(rows + chunk * heads * of_head, heads, chunk_size, bytes);
    copy_head(page, first_head + blockIdx.y, room, blockIdx.y, chunk_size, bytes,
              static_cast<int>(blockIdx.z), static_cast<int>(gridDim.z));
    page.keys = static_cast<std::byte*>(room.keys) - first_head * bytes;
    page.values = static_cast<std::byte*>(room.values) - first_head * bytes;
    if (page.key_scales != nullptr) {
      page.key_scales = room.key_scales - first_head * chunk_size;
      page.value_scales = room.value_scales - first_head * chunk_size;
    }
  }
  if (threadIdx.x == 0 && blockIdx.y == 0 && blockIdx.z == 0) table[chunk] = page;
}

/// Blocks that share a copy of `bytes`.
unsigned parts_of(int64_t bytes) { return std::clamp(blocks_for(bytes, 16 * kThreads * kAhead), 1u, 16u); }

/// Heads first … first + heads − 1 of a chunk that only the host reads, to a room.
void bring_from_host(Gpu& gpu, const KvChunks& store, int64_t chunk, int64_t first, int64_t heads,
                     const KvPage& room, int64_t bytes) {
  const auto c = static_cast<size_t>(chunk);
  const auto bring = [&](const void* from, void* to, int64_t of_head) {
    const auto* const at = static_cast<const std::byte*>(from) + first * of_head;
    const auto all = static_cast<size_t>(heads * of_head);
    // All of it is read at once, as by many.
    if (store.observer != nullptr) store.observer->read(at, all, 2);
    gpu.upload(at, to, all);
  };
  bring(store.keys[c], room.keys, bytes);
  bring(store.values[c], room.values, bytes);
  if (store.dtype != DType::i8) return;
  const int64_t scale_bytes = store.chunk_size * static_cast<int64_t>(sizeof(float));
  bring(store.key_scales[c], room.key_scales, scale_bytes);
  bring(store.value_scales[c], room.value_scales, scale_bytes);
}

/// As fill_kernel, of chunks that only the host reads. `row` of the launch.
void fill_from_host(Gpu& gpu, const NearChunks::Slots& slots, const Attend& a, int64_t row,
                    const KvChunks& store, int64_t bytes, const int32_t* missing) {
  const auto heads = static_cast<size_t>(a.heads), top = static_cast<size_t>(a.top),
             stride = static_cast<size_t>(a.stride);
  std::vector<int32_t> chosen(heads * stride), empty(heads * top);
  gpu.download(a.chosen + row * a.heads * a.stride, chosen.data(), chosen.size() * sizeof(int32_t));
  gpu.download(missing, empty.data(), empty.size() * sizeof(int32_t));
  for (size_t h = 0; h < heads; ++h) {
    for (size_t i = 0; i < top; ++i) {
      const int32_t slot = empty[h * top + i];
      if (slot < 0) continue;
      const int64_t place = (static_cast<int64_t>(h) * slots.count + slot) * slots.slot_bytes;
      bring_from_host(gpu, store, chosen[h * stride + i], static_cast<int64_t>(h), 1,
                      room_at(slots.rows + place, 1, store.chunk_size, bytes), bytes);
    }
  }
}

}  // namespace

void bring_near(Gpu& gpu, const Pieces& pieces, Attend& a, std::span<const NearChunks::Slots> slots,
                DType kv) {
  const auto any = std::any_of(slots.begin(), slots.end(), [](const auto& one) { return one.count > 0; });
  if (!any) return;
  const int64_t entries = pieces.rows() * a.heads * a.stride;
  auto* const near = static_cast<HeadRows*>(
      gpu.scratch().take(DType::u8, {entries * static_cast<int64_t>(sizeof(HeadRows))}).data());
  gpu.zero(near, static_cast<size_t>(entries) * sizeof(HeadRows));
  auto* const missing = gpu.scratch().take(DType::i32, {a.heads * a.top}).as<int32_t>();
  for (int p = 0; p < pieces.count; ++p) {
    const NearChunks::Slots& own = slots[static_cast<size_t>(p)];
    if (own.count == 0) continue;
    const Piece& piece = pieces.of[p];
    const int64_t bytes = row_bytes_of_head(piece.kv.chunk_size, kv);
    for (int64_t row = 0; row < piece.rows; ++row) {
      const int64_t of_launch = piece.row - pieces.first_row() + row;
      launch(gpu, {static_cast<unsigned>(a.heads), 32}, assign_kernel, own, a, of_launch,
             static_cast<int32_t>(piece.kv.far), piece.kv.chunk_size, bytes, near, missing);
      if (piece.mapped != nullptr) {
        fill_from_host(gpu, own, a, of_launch, *piece.mapped, bytes, missing);
        continue;
      }
      launch(gpu, {dim3(static_cast<unsigned>(a.heads * a.top), parts_of(bytes)), kThreads}, fill_kernel, own,
             a, piece.kv.pages, piece.kv.chunk_size, bytes, missing);
    }
  }
  a.near = near;
}

Staging::Staging(Gpu& gpu, const Pieces& pieces, int64_t heads, DType kv)
    : gpu_(gpu), pieces_(pieces), kv_(kv), heads_(heads) {
  int64_t pages = 0, per_head = 0;
  for (int p = 0; p < pieces.count; ++p) {
    const Piece& piece = pieces.of[p];
    pages += piece.chunks();
    far_ += piece.kv.far;
    per_head += piece.kv.far * chunk_bytes_of_head(piece.kv.chunk_size, kv);
  }
  if (far_ == 0) return;
  // A 16th of the memory: 1M tokens of some heads.
  heads_ = std::clamp<int64_t>(gpu.memory_bytes() / 16 / per_head, 1, heads);
  rows_ = static_cast<std::byte*>(gpu.staging(heads_ * per_head, gpu.memory_bytes() / 16));
  tables_ = static_cast<KvPage*>(
      gpu.scratch().take(DType::u8, {pages * static_cast<int64_t>(sizeof(KvPage))}).data());
}

void Staging::bring_by_kernel(const Piece& piece, int32_t first, int32_t count, std::byte* rows,
                              KvPage* table) {
  const int64_t bytes = row_bytes_of_head(piece.kv.chunk_size, kv_);
  const dim3 blocks(static_cast<unsigned>(piece.chunks()), static_cast<unsigned>(count), parts_of(bytes));
  launch(gpu_, {blocks, kThreads}, stage_kernel, piece.kv.pages, static_cast<int32_t>(piece.kv.far), first,
         piece.kv.chunk_size, bytes, rows, table);
}

void Staging::bring_by_host(const Piece& piece, int32_t first, int32_t count, std::byte* rows,
                            KvPage* table) {
  const int64_t chunk_size = piece.kv.chunk_size, bytes = row_bytes_of_head(chunk_size, kv_),
                all = count * chunk_bytes_of_head(chunk_size, kv_);
  std::vector<KvPage> pages = pages_of(*piece.mapped);
  pages.resize(static_cast<size_t>(piece.chunks()));
  for (int64_t c = 0; c < piece.kv.far; ++c) {
    const KvPage room = room_at(rows + c * all, count, chunk_size, bytes);
    bring_from_host(gpu_, *piece.mapped, c, first, count, room, bytes);
    KvPage& page = pages[static_cast<size_t>(c)];
    page.keys = static_cast<std::byte*>(room.keys) - first * bytes;
    page.values = static_cast<std::byte*>(room.values) - first * bytes;
    if (page.key_scales == nullptr) continue;
    page.key_scales = room.key_scales - first * chunk_size;
    page.value_scales = room.value_scales - first * chunk_size;
  }
  gpu_.upload(pages.data(), table, pages.size() * sizeof(KvPage));
}

Pieces Staging::bring(int32_t first, int32_t count) {
  Pieces near = pieces_;
  if (far_ == 0) return near;
  std::byte* rows = rows_;
  KvPage* table = tables_;
  for (int p = 0; p < near.count; ++p) {
    Piece& piece = near.of[p];
    if (piece.kv.far == 0) continue;
    if (piece.mapped != nullptr) {
      bring_by_host(piece, first, count, rows, table);
    } else {
      bring_by_kernel(piece, first, count, rows, table);
    }
    piece.kv.pages = table;
    table += piece.chunks();
    rows += piece.kv.far * count * chunk_bytes_of_head(piece.kv.chunk_size, kv_);
  }
  return near;
}

}  // namespace rwkvx::cuda
