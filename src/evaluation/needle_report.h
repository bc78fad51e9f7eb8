#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "drawing/heatmap.h"
#include "evaluation/needle_run.h"

namespace rwkvx {

/// A finished sample, by itself.
struct NeedleRecord {
  int64_t length = 0;
  double depth = 0;
  int64_t repeat = 0;
  int64_t position = 0;  ///< tokens before the needle
  std::vector<std::string> expected;
  std::string predicted;
  double score = 0;

  /// What a sample is found again by, whatever else is in its grid.
  bool same_sample(const NeedleSample& sample) const;
};

NeedleRecord needle_record(const NeedlePlan& plan, const NeedleResult& result);
nlohmann::ordered_json to_json(const NeedleRecord& record);
/// Errors: not what to_json() makes (`where` says where it came from).
NeedleRecord needle_record(const nlohmann::ordered_json& json, const std::string& where);

std::string needle_csv_header();
std::string needle_csv(const NeedleRecord& record);

/// Mean scores by length and depth.
struct NeedleTable {
  std::vector<int64_t> lengths;
  std::vector<double> depths;
  struct Cell {
    double score = 0;  ///< sum
    int64_t samples = 0;
    double accuracy() const { return score / static_cast<double>(samples); }
  };
  std::vector<Cell> cells;  ///< [lengths, depths]
  Cell all;

  explicit NeedleTable(const std::vector<NeedleRecord>& records);
  const Cell& cell(size_t length, size_t depth) const { return cells[length * depths.size() + depth]; }

  /// {"accuracy", "samples", "cells": [{"length", "depth", "accuracy", "samples"}]}; cells without samples
  /// are left out.
  nlohmann::ordered_json json() const;
  /// Lines of text: depths down, lengths across, in percent.
  std::string text() const;
  Heatmap heatmap() const;
};

}  // namespace rwkvx
