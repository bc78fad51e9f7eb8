#pragma once

#include <nlohmann/json.hpp>
#include <span>
#include <string>

#include "drawing/line_chart.h"
#include "evaluation/position_loss.h"

namespace rwkvx {

enum class LossMeasure { perplexity, bits_per_byte, loss };

/// A line for each model and bucket, and one for each model's whole; a header first.
std::string loss_csv(std::span<const ModelLoss> models);
/// {"models": [{"model", "perplexity", …, "buckets": [{"begin", "end", …}]}]}; unknown errors are null.
nlohmann::ordered_json loss_json(std::span<const ModelLoss> models);
/// For people: buckets down, models across.
std::string loss_text(std::span<const ModelLoss> models, LossMeasure measure);
/// All models in one picture, with error bars.
LineChart loss_chart(std::span<const ModelLoss> models, const Buckets& buckets, PositionUnit unit,
                     LossMeasure measure);

}  // namespace rwkvx
