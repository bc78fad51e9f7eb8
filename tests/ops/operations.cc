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
      {"norm_shift", norm_shift_cases},
      {"norm_shift_linear", norm_shift_linear_cases},
      {"wkv7_step", wkv7_step_cases},
      {"kv_append", kv_append_cases},
      {"kv_keep", kv_keep_cases},
      {"kv_vote", kv_vote_cases},
      {"kv_distinct", kv_distinct_cases},
      {"chunk_attention", chunk_attention_cases},
      {"embed_backward", embed_backward_cases},
      {"layer_norm_backward", layer_norm_backward_cases},
      {"token_shift_backward", token_shift_backward_cases},
      {"linear_backward", linear_backward_cases},
      {"wkv7_operands_backward", wkv7_operands_backward_cases},
      {"wkv7_backward", wkv7_backward_cases},
      {"wkv7_output_backward", wkv7_output_backward_cases},
      {"chunk_attention_backward", chunk_attention_backward_cases},
      {"gate_loss", gate_loss_cases},
      {"pointing_loss", pointing_loss_cases},
      {"cross_entropy", cross_entropy_cases},
      {"adamw", adamw_cases},
  };
  return all;
}

}  // namespace rwkvx::test
