#include "evaluation/loss_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "evaluation/grid.h"
#include "evaluation/run_folder.h"

namespace rwkvx {
namespace {

const Estimate& measured(const LossRow& row, LossMeasure measure) {
  if (measure == LossMeasure::loss) return row.loss;
  return measure == LossMeasure::perplexity ? row.perplexity : row.bits_per_byte;
}

std::string_view label(LossMeasure measure) {
  if (measure == LossMeasure::loss) return "loss (nats per token)";
  return measure == LossMeasure::perplexity ? "perplexity" : "bits per byte";
}

nlohmann::ordered_json number(double value) {
  return std::isfinite(value) ? nlohmann::ordered_json(value) : nlohmann::ordered_json();
}

std::string csv_number(double value) { return std::isfinite(value) ? fmt::format("{:.7g}", value) : ""; }

nlohmann::ordered_json row_json(const LossRow& row) {
  return {{"begin", row.begin},
          {"end", row.end},
          {"documents", row.documents},
          {"tokens", row.tokens},
          {"bytes", row.bytes},
          {"loss", number(row.loss.mean)},
          {"loss_error", number(row.loss.error)},
          {"perplexity", number(row.perplexity.mean)},
          {"perplexity_error", number(row.perplexity.error)},
          {"bits_per_byte", number(row.bits_per_byte.mean)},
          {"bits_per_byte_error", number(row.bits_per_byte.error)}};
}

std::string shown(const Estimate& estimate) {
  if (!std::isfinite(estimate.error)) return fmt::format("{:.4f}", estimate.mean);
  return fmt::format("{:.4f} ±{:.4f}", estimate.mean, estimate.error);
}

}  // namespace

std::string loss_csv(std::span<const ModelLoss> models) {
  std::string out =
      "model,begin,end,documents,tokens,bytes,loss,loss_error,perplexity,perplexity_error,bits_per_byte,"
      "bits_per_byte_error\n";
  for (const ModelLoss& model : models) {
    const auto line = [&](const LossRow& row) {
      out += fmt::format("{},{},{},{},{},{}", csv_field(model.model), row.begin, row.end, row.documents,
                         row.tokens, row.bytes);
      for (const Estimate& e : {row.loss, row.perplexity, row.bits_per_byte}) {
        out += fmt::format(",{},{}", csv_number(e.mean), csv_number(e.error));
      }
      out += "\n";
    };
    for (const LossRow& row : model.buckets) line(row);
    line(model.all);
  }
  return out;
}

nlohmann::ordered_json loss_json(std::span<const ModelLoss> models) {
  nlohmann::ordered_json out = {{"models", nlohmann::ordered_json::array()}};
  for (const ModelLoss& model : models) {
    nlohmann::ordered_json one = {{"model", model.model}};
    one.update(row_json(model.all));
    one["buckets"] = nlohmann::ordered_json::array();
    for (const LossRow& row : model.buckets) one["buckets"].push_back(row_json(row));
    out["models"].push_back(std::move(one));
  }
  return out;
}

std::string loss_text(std::span<const ModelLoss> models, LossMeasure measure) {
  std::map<int64_t, std::vector<const LossRow*>> rows;  // by begin
  size_t width = 20;
  for (const ModelLoss& model : models) width = std::max(width, model.model.size() + 2);
  for (size_t m = 0; m < models.size(); ++m) {
    for (const LossRow& row : models[m].buckets) {
      auto& line = rows[row.begin];
      line.resize(models.size());
      line[m] = &row;
    }
  }
  std::string out = fmt::format("{:>18}", "position");
  for (const ModelLoss& model : models) out += fmt::format("{:>{}}", model.model, width);
  out += "\n";
  for (const auto& [begin, line] : rows) {
    const LossRow* const any =
        *std::find_if(line.begin(), line.end(), [](const LossRow* r) { return r != nullptr; });
    out += fmt::format("{:>18}", fmt::format("{} - {}", length_label(begin), length_label(any->end)));
    for (const LossRow* row : line) {
      out += fmt::format("{:>{}}", row == nullptr ? "-" : shown(measured(*row, measure)), width);
    }
    out += "\n";
  }
  out += fmt::format("{:>18}", "all");
  for (const ModelLoss& model : models)
    out += fmt::format("{:>{}}", shown(measured(model.all, measure)), width);
  return out + fmt::format("\n{:>18}\n", fmt::format("({})", label(measure)));
}

LineChart loss_chart(std::span<const ModelLoss> models, const Buckets& buckets, PositionUnit unit,
                     LossMeasure measure) {
  LineChart chart;
  chart.x.label =
      unit == PositionUnit::tokens ? "position in the document (tokens)" : "position in the document (bytes)";
  chart.x.scale = buckets.doubling() ? ScaleKind::log2 : ScaleKind::linear;
  chart.y.label = label(measure);
  for (const ModelLoss& model : models) {
    Series series{model.model, {}, {}, {}};
    for (const LossRow& row : model.buckets) {
      const Estimate& e = measured(row, measure);
      series.x.push_back(buckets.middle(buckets.of(row.begin)));
      series.y.push_back(e.mean);
      series.error.push_back(std::isfinite(e.error) ? e.error : 0);
    }
    chart.series.push_back(std::move(series));
  }
  return chart;
}

}  // namespace rwkvx
