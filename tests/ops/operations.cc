#include "cases.h"

namespace rwkvx::test {

const std::vector<std::pair<std::string, std::function<Cases(Precision)>>>& operations() {
  static const std::vector<std::pair<std::string, std::function<Cases(Precision)>>> all{
      {"embed", embed_cases},
      {"layer_norm", layer_norm_cases},
      {"token_shift", token_shift_cases},
      {"gather_rows", gather_rows_cases},
      {"linear", linear_cases},
      {"wkv7_operands", wkv7_operands_cases},
      {"wkv7", wkv7_cases},
      {"wkv7_output", wkv7_output_cases},
      {"kv_append", kv_append_cases},
      {"kv_keep", kv_keep_cases},
      {"kv_vote", kv_vote_cases},
      {"chunk_attention", chunk_attention_cases},
  };
  return all;
}

}  // namespace rwkvx::test
