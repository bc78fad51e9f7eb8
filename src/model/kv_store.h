#pragma once

#include <memory>
#include <vector>

#include "ops/ops.h"

namespace rwkvx {

/// Keys, values and key sums of one sparse block for one sequence, paged by chunk; appending costs one row
/// and copies nothing that exists. Copies share pages; a shared page is cloned before it is written to.
class KvStore {
 public:
  KvStore(int64_t heads, int64_t chunk_size, DType dtype, Ops& ops);

  int64_t length() const { return length_; }  ///< tokens
  DType dtype() const { return dtype_; }
  int64_t chunk_size() const { return chunk_size_; }
  uint64_t bytes() const;

  /// Makes room for `tokens` more and counts them as stored; kv_append writes them.
  void extend(int64_t tokens);
  /// What operations take. Valid until the next extend() or the store's end.
  KvChunks chunks() const;
  void clear();

 private:
  struct Page {
    Buffer keys_values;  // [2, H, B, N]
    Buffer key_sums;     // [H, N] real
  };
  std::shared_ptr<Page> new_page() const;
  void point_at(size_t index);

  int64_t heads_, chunk_size_;
  DType dtype_;
  Ops* ops_;
  int64_t length_ = 0;
  std::vector<std::shared_ptr<Page>> pages_;
  std::vector<void*> keys_, values_, key_sums_;
};

}  // namespace rwkvx
