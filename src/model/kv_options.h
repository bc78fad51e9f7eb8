#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/file.h"
#include "ops/ops.h"

namespace rwkvx {

/// What a KV store keeps of a long sequence, and where.
enum class KvPolicy {
  full,     ///< everything, in memory
  disk,     ///< everything, in a temporary file: memory stays constant
  bounded,  ///< what recent queries looked at: memory and time stay constant
};
std::string_view name(KvPolicy policy);

struct KvOptions {
  KvPolicy policy = KvPolicy::full;
  /// f32, bf16 or i8; nothing: what the backend computes in.
  std::optional<DType> dtype;
  Path folder;  ///< of `disk`'s file; empty: temporary_folder()

  // `bounded`: when `max` tokens are stored, `min` stay: the last `window`, and of those before the ones that
  // the window's queries gave most weight (SnapKV, arXiv 2404.14469). The defaults are RWKV-X's.
  int64_t max = 20000, window = 2000, min = 16000;

  /// Errors: bounds that leave no room. `flag` names what said so.
  void check(std::string_view flag) const;
  /// "full", "disk:/tmp", "bounded:20000,2000,16000".
  std::string text() const;
};

/// full | disk[:FOLDER] | bounded[:MAX,WINDOW,MIN]. Errors: anything else.
KvOptions parse_kv_options(std::string_view text);

}  // namespace rwkvx
