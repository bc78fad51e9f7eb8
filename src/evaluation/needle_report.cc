#include "evaluation/needle_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "evaluation/grid.h"
#include "evaluation/run_folder.h"

namespace rwkvx {
namespace {

/// Depths are told apart to a millionth, as they are written.
bool same_depth(double a, double b) { return std::abs(a - b) < 5e-7; }

}  // namespace

bool NeedleRecord::same_sample(const NeedleSample& sample) const {
  return length == sample.length && repeat == sample.repeat && same_depth(depth, sample.depth) &&
         position == sample.insert_at && expected == sample.answers;
}

NeedleRecord needle_record(const NeedlePlan& plan, const NeedleResult& result) {
  const NeedleSample& sample = plan.samples[result.sample];
  return {sample.length,  sample.depth,     sample.repeat, sample.insert_at,
          sample.answers, result.predicted, result.score};
}

nlohmann::ordered_json to_json(const NeedleRecord& r) {
  return {{"length", r.length},     {"depth", std::round(r.depth * 1e6) / 1e6},
          {"repeat", r.repeat},     {"position", r.position},
          {"expected", r.expected}, {"predicted", r.predicted},
          {"score", r.score}};
}

NeedleRecord needle_record(const nlohmann::ordered_json& json, const std::string& where) {
  try {
    return {json.at("length").get<int64_t>(),
            json.at("depth").get<double>(),
            json.at("repeat").get<int64_t>(),
            json.at("position").get<int64_t>(),
            json.at("expected").get<std::vector<std::string>>(),
            json.at("predicted").get<std::string>(),
            json.at("score").get<double>()};
  } catch (const nlohmann::json::exception&) {
    fail("{}: a line is not a result of `needle`: {}", where, printable(json_text(json)));
  }
}

std::string needle_csv_header() { return "length,depth,repeat,position,expected,predicted,score"; }

std::string needle_csv(const NeedleRecord& r) {
  return fmt::format("{},{:.6g},{},{},{},{},{:.6g}", r.length, r.depth, r.repeat, r.position,
                     csv_field(fmt::format("{}", fmt::join(r.expected, " "))), csv_field(r.predicted),
                     r.score);
}

NeedleTable::NeedleTable(const std::vector<NeedleRecord>& records) {
  for (const NeedleRecord& r : records) {
    lengths.push_back(r.length);
    depths.push_back(r.depth);
  }
  std::sort(lengths.begin(), lengths.end());
  lengths.erase(std::unique(lengths.begin(), lengths.end()), lengths.end());
  std::sort(depths.begin(), depths.end());
  depths.erase(std::unique(depths.begin(), depths.end(), same_depth), depths.end());
  cells.resize(lengths.size() * depths.size());
  for (const NeedleRecord& r : records) {
    const auto row = std::lower_bound(lengths.begin(), lengths.end(), r.length) - lengths.begin();
    const auto column =
        std::find_if(depths.begin(), depths.end(), [&](double d) { return same_depth(d, r.depth); }) -
        depths.begin();
    Cell& cell = cells[static_cast<size_t>(row) * depths.size() + static_cast<size_t>(column)];
    for (Cell* c : {&cell, &all}) {
      c->score += r.score;
      ++c->samples;
    }
  }
}

nlohmann::ordered_json NeedleTable::json() const {
  nlohmann::ordered_json out;
  out["accuracy"] = all.samples > 0 ? nlohmann::ordered_json(all.accuracy()) : nlohmann::ordered_json();
  out["samples"] = all.samples;
  out["cells"] = nlohmann::ordered_json::array();
  for (size_t l = 0; l < lengths.size(); ++l) {
    for (size_t d = 0; d < depths.size(); ++d) {
      const Cell& c = cell(l, d);
      if (c.samples == 0) continue;
      out["cells"].push_back({{"length", lengths[l]},
                              {"depth", std::round(depths[d] * 1e6) / 1e6},
                              {"accuracy", c.accuracy()},
                              {"samples", c.samples}});
    }
  }
  return out;
}

std::string NeedleTable::text() const {
  std::string out = fmt::format("{:>8}", "depth");
  for (const int64_t length : lengths) out += fmt::format("{:>9}", length_label(length));
  out += "\n";
  for (size_t d = 0; d < depths.size(); ++d) {
    out += fmt::format("{:>8}", depth_label(depths[d]));
    for (size_t l = 0; l < lengths.size(); ++l) {
      const Cell& c = cell(l, d);
      out += c.samples == 0 ? fmt::format("{:>9}", "-") : fmt::format("{:>8.0f}%", 100 * c.accuracy());
    }
    out += "\n";
  }
  return out;
}

Heatmap NeedleTable::heatmap() const {
  Heatmap map;
  map.x_label = "context length (tokens)";
  map.y_label = "depth of the needle";
  map.value_label = "accuracy";
  for (const int64_t length : lengths) map.columns.push_back(length_label(length));
  for (const double depth : depths) map.rows.push_back(depth_label(depth));
  for (size_t d = 0; d < depths.size(); ++d) {
    for (size_t l = 0; l < lengths.size(); ++l) {
      const Cell& c = cell(l, d);
      map.values.push_back(c.samples == 0 ? std::numeric_limits<double>::quiet_NaN() : c.accuracy());
    }
  }
  return map;
}

}  // namespace rwkvx
