#pragma once

#include "harness.h"

/// Each operation's cases, for operations().
namespace rwkvx::test {

Cases embed_cases(Precision precision);
Cases layer_norm_cases(Precision precision);
Cases token_shift_cases(Precision precision);
Cases gather_rows_cases(Precision precision);
Cases linear_cases(Precision precision);
Cases norm_shift_linear_cases(Precision precision);
Cases wkv7_operands_cases(Precision precision);
Cases wkv7_cases(Precision precision);
Cases wkv7_output_cases(Precision precision);
Cases norm_shift_cases(Precision precision);
Cases wkv7_step_cases(Precision precision);
Cases kv_append_cases(Precision precision);
Cases kv_keep_cases(Precision precision);
Cases kv_vote_cases(Precision precision);
Cases kv_distinct_cases(Precision precision);
Cases chunk_attention_cases(Precision precision);

Cases embed_backward_cases(Precision precision);
Cases layer_norm_backward_cases(Precision precision);
Cases token_shift_backward_cases(Precision precision);
Cases linear_backward_cases(Precision precision);
Cases wkv7_operands_backward_cases(Precision precision);
Cases wkv7_backward_cases(Precision precision);
Cases wkv7_output_backward_cases(Precision precision);
Cases chunk_attention_backward_cases(Precision precision);
Cases gate_loss_cases(Precision precision);
Cases pointing_loss_cases(Precision precision);
Cases cross_entropy_cases(Precision precision);
Cases adamw_cases(Precision precision);

}  // namespace rwkvx::test
