#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ops/cuda/matrix.h"

/// Weights that later kernels will read, which a kernel asks into the cache that all multiprocessors share
/// once its own are under way: so the memory works while small kernels, ends and beginnings leave it idle.
/// Which they are is known where the same products come in the same order again, as for each token.
namespace rwkvx::cuda {

inline constexpr int kAheadRanges = 16;

struct Ahead {
  struct Range {
    const uint8_t* at;  // aligned to 16
    uint32_t bytes;     // a multiple of 16
  };
  int count = 0;
  Range of[kAheadRanges];
};

/// Rows of a matrix [in, out] that the next product reads: of the inputs that are not zero, which are this
/// one's results.
struct RowsAhead {
  const uint8_t* body = nullptr;
  uint32_t row_bytes = 0;
};

/// The matrices of products of few rows, in the order in which a recording's kernels read them.
class ReadingOrder {
 public:
  /// That are asked for ahead.
  static constexpr int64_t kBytes = int64_t{20} << 20;

  struct Matrix {
    const uint8_t* body;
    const uint8_t* scales;
    int64_t bytes, scale_bytes;
    const void* x;  // of few_rows_sparse() of one row, which reads some rows of row_bytes; else null
    uint32_t row_bytes;
  };
  using Launches = std::vector<std::vector<Matrix>>;

  /// From here on launches are noted; learned() ends that.
  void learn();
  Launches learned();
  /// From here on launches are expected to be those of `launches`, until forget().
  void follow(const Launches& launches);
  void forget();

  /// Called for each launch: what it should fetch for others. Nothing where launches are not as learned.
  Ahead next(std::span<const FewRowsCall> calls);
  /// Of a product of the launch that next() was last called for.
  RowsAhead rows_behind(const FewRowsCall& call) const;

 private:
  enum class Mode { none, learning, following };
  /// All matrices but those that are read by rows, as one text: `begin` is where one begins in it.
  struct Stretch {
    const uint8_t* at;
    int64_t begin, bytes;
  };

  Mode mode_ = Mode::none;
  Launches launches_;
  std::vector<Stretch> stretches_;
  std::vector<int64_t> begins_;  // of launches, in that text
  size_t done_ = 0;              // launches so far
  int64_t fetched_ = 0;          // bytes of that text that are read or asked for
};

}  // namespace rwkvx::cuda
