#include "cli/run_settings.h"

#include "base/error.h"
#include "drawing/picture.h"

namespace rwkvx::cli {

nlohmann::ordered_json run_settings(const RunOptions& options, const Model& model,
                                    const Tokenizer& tokenizer) {
  nlohmann::ordered_json out = {{"model", Path(options.model).filename().string()},
                                {"fingerprint", fmt::format("{:016x}", model.fingerprint())},
                                {"tokenizer", tokenizer.name()},
                                {"precision", options.precision},
                                {"backend", options.backend}};
  if (model.config().sparse_blocks > 0) {
    out["chunk_size"] = model.config().chunk_size;
    out["top_k"] = model.config().top_k;
    const KvOptions& kv = model.kv_options();
    out["kv"] =
        kv.policy == KvPolicy::disk ? std::string(name(kv.policy)) : kv.policy_text();  // whatever its folder
    out["selection"] = kv.selection_text();
    out["kv_dtype"] = name(*kv.dtype);
  }
  return out;
}

std::string attention_label(const Model& model) {
  if (model.config().sparse_blocks == 0) return "no attention";
  const KvOptions& kv = model.kv_options();
  std::string out = fmt::format("chunk {}, top-k {}", model.config().chunk_size, model.config().top_k);
  if (kv.selection != Selection::mean) out += ", selection " + kv.selection_text();
  if (kv.policy == KvPolicy::bounded) out += ", " + kv.policy_text();
  if (*kv.dtype != model.ops().kv_type(model.ops().active())) {
    out += fmt::format(", {} keys and values", name(*kv.dtype));
  }
  return out;
}

void check_picture_name(const std::string& name) {
  if (name.empty()) return;
  check_picture(name);
  check_writable(name);
}

}  // namespace rwkvx::cli
