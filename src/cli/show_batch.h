#pragma once

#include "tokenizer/tokenizer.h"
#include "training/train_batch.h"

namespace rwkvx::cli {

/// The sequences of a batch as text, with what the loss weights and where the states are reset. `colours`: as
/// a terminal shows them (heavy tokens bold, light ones dim); else each stretch begins with its weight, as
/// in ⟦0.1⟧.
std::string shown(const TrainBatch& batch, const Tokenizer& tokenizer, bool colours);

}  // namespace rwkvx::cli
