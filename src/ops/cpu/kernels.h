#pragma once

#include "ops/cpu/scratch.h"
#include "ops/cpu/tiles.h"
#include "ops/ops.h"

/// The vector kernels of the cpu backend. Each does a part (rows, heads, …) of an operation of ops.h,
/// serially; cpu_ops.cc splits the work over threads. The instruction set is chosen when they are called.
namespace rwkvx::cpu {

// rows.cc: rows begin .. end.
void embed_rows(std::span<const int32_t> tokens, ConstView table, View y, int64_t begin, int64_t end);
void layer_norm_rows(ConstView x, ConstView gain, ConstView bias, float eps, View y, int64_t begin,
                     int64_t end);
/// The rows of one sequence or a part of them. `before` [C] is the row before the first.
void token_shift_rows(ConstView x, ConstView mix, const float* before, std::span<const View> y, int64_t begin,
                      int64_t end);
/// norm_shift() of rows begin .. end ≤ begin + 32 as TileStrip::a, the rest of its 32 rows zeros: y[m] to
/// to[m]. `rows` [2, C] is working memory. call.last is only read; keep_last_rows() writes it when all rows
/// are done.
void norm_shift_tiles(const NormShift& call, int64_t begin, int64_t end, float* rows,
                      std::span<BFloat16* const> to);
void keep_last_rows(const NormShift& call);
/// Types converted: f32, bf16, f16 and whole blocks of quantised types (from) to f32 and bf16.
void convert(const void* from, DType from_type, void* to, DType to_type, int64_t count);

// time_mix.cc: rows begin .. end.
void wkv7_operands_rows(const Wkv7Operands& call, int64_t begin, int64_t end);
void wkv7_output_rows(const Wkv7Output& call, int64_t begin, int64_t end);

// wkv7.cc: one head of rows begin .. end, which are one sequence.
void wkv7_head(const Wkv7Call& call, int64_t head, int64_t begin, int64_t end, float* state);
/// The same with what comes before and after it, of which nothing but its result is written. From
/// kWkv7TileRows rows on, `tiles` computes groups of tokens, with operands rounded to bfloat16; null:
/// vectors.
inline constexpr int64_t kWkv7TileRows = 12;
void wkv7_step_head(const Wkv7Step& call, int64_t head, int64_t begin, int64_t end, const TileUnit* tiles,
                    float* state);

// kv.cc: one head of rows begin .. end, which are the last tokens of kv.
void kv_append_head(ConstView k, ConstView v, int64_t begin, int64_t end, const KvChunks& kv, int64_t head);
/// One head of kv_keep.
void kv_keep_head(const KvChunks& kv, ConstView kept, int64_t head);
/// One head of kv_distinct.
void kv_distinct_head(const KvDistinct& call, int64_t head);

// kv_vote.cc: one head. `scratch` is one thread's.
void kv_vote_head(const KvVote& call, int64_t head, Scratch& scratch);

}  // namespace rwkvx::cpu
