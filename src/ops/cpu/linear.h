#pragma once

#include <optional>
#include <span>
#include <vector>

#include "ops/cpu/linear_decode.h"
#include "ops/cpu/linear_prefill.h"
#include "ops/cpu/linear_quantised.h"
#include "ops/cpu/linear_sparse.h"
#include "ops/cpu/linear_tiles.h"
#include "ops/cpu/packed_blocks.h"
#include "ops/cpu/scratch.h"
#include "ops/ops.h"

namespace rwkvx::cpu {

/// Ops::linear(): chooses by the number of rows.
class Linear {
 public:
  /// bytes: inputs are rounded to 8 bits where weights are quantised; with tiles those of few rows.
  Linear(ThreadPool& pool, bool bytes, const TileUnit* tiles)
      : pool_(pool),
        bytes_(bytes),
        bf16_dot_(has_bf16_dot()),
        many_rows_(pool),
        blocks_(static_cast<size_t>(pool.threads())) {
    if (tiles != nullptr) tiles_.emplace(pool, *tiles);
  }
  /// Packs quantised weights where they are multiplied with bytes, and turns those of sparse inputs.
  Matrix prepare(ConstView weight, bool sparse_input);
  void run(std::span<const LinearCall> calls);
  /// Ops::norm_shift_linear() where that is one with the products' own preparation of their inputs; false:
  /// nothing was done.
  bool run_normed(const NormShift& norm, std::span<const LinearCall> calls);

 private:
  /// A product of few rows.
  struct FewRows {
    LinearCall call;
    const float* x;             ///< in the form that the kernel wants; bf16 products take it as it is
    int64_t tasks;              ///< blocks of outputs, or parts of segments
    int64_t block = kOutBlock;  ///< outputs
    const InputMajor* inputs = nullptr;  ///< only the weights of non_zero are read
    NonZero non_zero{};
    int64_t part_outs = 0;  ///< of a part
    float* sums = nullptr;  ///< of the segments [kSegments, non_zero.rows, out]
  };
  void run_few(std::span<const LinearCall> calls);
  /// Bring x into the form that its kernel wants, at `memory`, which moves on.
  void add_few(const LinearCall& call, float*& memory);
  void add_listed(const LinearCall& call, const InputMajor& w, const NonZero& listed, float*& memory);
  void add_dense(const LinearCall& call, float*& memory);
  void add_bytes(const LinearCall& call, InputBlock* x);
  static void run_part(const FewRows& product, int64_t task);
  void finish_parts(const FewRows& product);
  void run_tiles(const FewRows& product, int64_t first, int64_t outs);
  static void run_bytes(const FewRows& product, int64_t first, int64_t outs);
  void run_block(const FewRows& product, int64_t task, int thread);
  bool few(const LinearCall& call) const;
  int64_t out_block(const LinearCall& call) const;
  bool by_bf16_dot(const LinearCall& call) const;
  bool by_tiles(const LinearCall& call) const;
  int64_t input_elements(const LinearCall& call) const;

  ThreadPool& pool_;
  bool bytes_, bf16_dot_;
  ManyRows many_rows_;
  std::optional<TileRows> tiles_;
  Scratch inputs_;
  std::vector<Scratch> blocks_;  // of quantised weights as float32, one for each thread
  std::vector<const LinearCall*> many_;
  std::vector<TileRows::Call> tiled_;
  std::vector<FewRows> few_;
};

}  // namespace rwkvx::cpu
