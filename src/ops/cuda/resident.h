#pragma once

#include <cstdint>

#include "ops/cuda/gpu.h"
#include "ops/cuda/head_step.h"
#include "tensor/buffer.h"

/// What decoding one token does between two attentions, as a list of instructions for one kernel that stays on
/// all multiprocessors. Its blocks share each instruction's rows of weights and meet between instructions; one
/// warp of a block fetches the block's weights in their order, as far ahead as shared memory has room, so that
/// the memory stays busy while the others wait for each other or do what takes no weights. resident.cu is
/// the kernel, resident_program.h makes lists.
namespace rwkvx::cuda::resident {

inline constexpr int kWarps = 8;  // of a block, that compute; one more fetches
inline constexpr int kComputing = 32 * kWarps;
inline constexpr int kThreads = kComputing + 32;
inline constexpr int kTile = 8;  // rows of weights that two warps have at a time, each every other step of k
inline constexpr int kTeams = kWarps / 2;
inline constexpr int kMostJobs = 7;
inline constexpr int kMostGroups = 4;
inline constexpr int kMostInputs = 6;
inline constexpr int kMostKept = 2;  // norms between two meetings that leave something for the next token
inline constexpr int kMostQuads = 4;                            // of the channels, of a thread
inline constexpr int kMostWidth = 4 * kMostQuads * kComputing;  // channels
inline constexpr int kMostSums = 4;                             // 4 outputs each, of a thread
inline constexpr int kMostSparseOut = 4 * kMostSums * kComputing;

/// How a number of things is shared among the blocks, in order: `extra` of them have one more than `each`.
struct Share {
  int32_t each, extra;
};

/// y = activation(x · wᵀ), or y += x · wᵀ; x is one of the instruction's inputs, of bfloat16.
struct Job {
  const uint8_t* body;
  const uint16_t* scales;
  void* y;           // [out] float32 or bfloat16
  uint64_t* tagged;  // [out], or null: the same for who does not wait for a meeting
  int32_t out;
  int16_t input;
  uint8_t activation;  // an Activation
  bool add, y_bf16;
};

/// Jobs whose matrices have one type and width. Their rows come through the ring in slots: several rows of one
/// job each, or pieces of a row that is longer than a slot.
struct Group {
  int32_t first_job, jobs;
  int32_t rows;  // of all jobs
  Share share;   // of the rows
  int32_t in;
  int32_t type;                         // a DType
  int32_t row_stride, scales_stride;    // bytes between rows
  int32_t row_bytes, scales_bytes;      // of a row, or of a piece of one
  int32_t last_bytes, last_scales;      // of a row's last piece
  int32_t log_rows_of_slot, pieces, piece_elements;
};

/// What an instruction computes.
enum class Kind : int32_t {
  products,     // of all groups
  channel_mix,  // hidden = activation of the group's only job; parts[block] = hidden's own rows · value
  time_mix,     // the low-rank products of each group, then the step of the head
  total         // y += Σ parts
};
/// Where its inputs come from.
enum class Source : int32_t {
  rows,       // inputs[i], bfloat16
  norm,       // one: layer_norm(x)
  norm_shift  // layer_norm(x), mixed with the last one by mix[i]
};

struct alignas(16) Instruction {
  Kind kind;
  Source source;
  int32_t meets;    // 0: what it reads of other blocks is tagged, and the grid need not have met
  uint32_t reads;   // the tag of what it reads, of what it writes; the launch's number is added to them
  uint32_t writes;
  int32_t group_count, input_count;
  Group groups[kMostGroups];
  Job jobs[kMostJobs];

  int32_t input_pitch;  // bytes between inputs in shared memory
  // rows: of each input's elements
  int32_t input_elements[kMostInputs];
  const void* inputs[kMostInputs];
  const uint64_t* tagged_inputs[kMostInputs];  // in their place, a bfloat16 each, where it does not meet

  // norm, norm_shift: all [width], mix [inputs, width]
  const float *x, *gain, *bias, *mix;
  const uint64_t* tagged_x;  // as tagged_inputs, float32
  float* last;
  float eps;
  int32_t width;
  Share quads;                         // of the channels, by four
  int32_t vector_piece, vector_slots;  // bytes, and slots, in which one of these comes

  // channel_mix: value [in, out] bfloat16, a row in slots of value_piece bytes; parts [blocks, out]
  const uint8_t* value;
  float* parts;
  float* y;
  int32_t out, value_piece, value_pieces;
  Share outputs;

  // time_mix: groups are decay, rate, gate and value gate
  int32_t heads;
  int32_t state_piece, state_slots;  // as vector_piece
  int32_t lora_trays[kMostGroups];   // the first of each group's, of those of a head
  int32_t head_trays;                // of a head
  HeadStep first_head;
  const uint64_t* tagged_operands[3];  // r, k, v
  void* step_y;                        // [heads, 64] bfloat16
  uint64_t* tagged_step;               // as Job::tagged
};
static_assert(sizeof(Instruction) % 16 == 0);

/// Slots come and go four at a time: waiting for a barrier takes long enough not to have one for each.
inline constexpr int kSlotsOfTray = 4;

/// Shared memory of a block, in bytes from its beginning.
struct Layout {
  int32_t trays, slot_bytes, tray_bytes;
  int32_t under_way;                  // trays that are fetched at a time
  int32_t full, empty, hidden_ready;  // SharedBarriers, of each tray, and of kHiddenTiles
  int32_t fetched;  // trays, in all
  int32_t inputs;
  int32_t instructions, fetching;  // two each
  int32_t hidden, lora, operands, halves, step, scratch;
  int32_t bytes;
};

/// A list in the GPU's memory, ready to run.
struct Program {
  Buffer instructions, parts, count, tagged;
  int32_t length = 0;
  uint32_t launches = 0;
  Layout layout{};
};

/// Whether the GPU, and the code that this program has for it, can.
bool available(const Gpu& gpu);
/// As many trays as fit beside so many bytes of inputs.
Layout layout_for(int32_t slot_bytes, int32_t input_bytes);
void run(Gpu& gpu, Program& program);

}  // namespace rwkvx::cuda::resident
