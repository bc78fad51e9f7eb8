#include "evaluation/grid.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>

#include "base/error.h"

namespace rwkvx {
namespace {

constexpr int64_t kMostCount = int64_t{1} << 40;
constexpr int64_t kMostDepths = 1000;

std::vector<std::string_view> split(std::string_view text) {
  std::vector<std::string_view> out;
  while (true) {
    const size_t comma = text.find(',');
    out.push_back(text.substr(0, comma));
    if (comma == text.npos) return out;
    text.remove_prefix(comma + 1);
  }
}

std::optional<double> number(std::string_view text) {
  double value = 0;
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value, std::chars_format::fixed);
  if (error != std::errc() || stop != end || text.empty() || !std::isfinite(value)) return std::nullopt;
  return value;
}

template <typename T>
void sort_unique(std::vector<T>& values) {
  std::sort(values.begin(), values.end());
  values.erase(std::unique(values.begin(), values.end()), values.end());
}

}  // namespace

int64_t parse_count(std::string_view text, std::string_view flag) {
  std::string_view digits = text;
  double unit = 1;
  if (!digits.empty()) {
    const char last = digits.back();
    if (last == 'k' || last == 'K') unit = 1024;
    if (last == 'm' || last == 'M') unit = 1024 * 1024;
    if (unit != 1) digits.remove_suffix(1);
  }
  const std::optional<double> value = number(digits);
  const double count = value.value_or(0) * unit;
  if (!value || count < 1 || count > static_cast<double>(kMostCount) || count != std::floor(count)) {
    throw UsageError(fmt::format("{}: '{}' is not a number of tokens; write 4096, 64k or 1m, at least 1",
                                 flag, printable(text)));
  }
  return static_cast<int64_t>(count);
}

std::vector<int64_t> parse_lengths(std::string_view text) {
  std::vector<int64_t> lengths;
  for (const std::string_view item : split(text)) {
    const size_t dots = item.find("..");
    if (dots == item.npos) {
      lengths.push_back(parse_count(item, "--lengths"));
      continue;
    }
    const int64_t first = parse_count(item.substr(0, dots), "--lengths");
    const int64_t last = parse_count(item.substr(dots + 2), "--lengths");
    if (first > last) {
      throw UsageError(fmt::format("--lengths: the range '{}' runs backwards; the smaller length comes first",
                                   printable(item)));
    }
    for (int64_t length = first; length < last; length *= 2) lengths.push_back(length);
    lengths.push_back(last);
  }
  sort_unique(lengths);
  return lengths;
}

std::vector<double> parse_depths(std::string_view text) {
  const auto wrong = [&](std::string_view item) {
    throw UsageError(
        fmt::format("--depths: '{}' cannot be used; write percentages (0,25,50 or 50%) or how many evenly "
                    "spaced ones (11)",
                    printable(item)));
  };
  std::vector<double> depths;
  if (text.find_first_of(",%") == text.npos) {
    const std::optional<double> count = number(text);
    if (!count || *count != std::floor(*count) || *count < 1 || *count > kMostDepths) wrong(text);
    const auto n = static_cast<int64_t>(*count);
    if (n == 1) return {0.5};
    for (int64_t i = 0; i < n; ++i) depths.push_back(static_cast<double>(i) / static_cast<double>(n - 1));
    return depths;
  }
  for (std::string_view item : split(text)) {
    const std::string_view whole = item;
    if (item.ends_with('%')) item.remove_suffix(1);
    const std::optional<double> percent = number(item);
    if (!percent || *percent < 0 || *percent > 100) wrong(whole);
    depths.push_back(std::abs(*percent) / 100);
  }
  sort_unique(depths);
  return depths;
}

std::string length_label(int64_t length) {
  constexpr int64_t kK = 1024;
  if (length >= kK * kK && length % (kK * kK / 8) == 0) {
    return fmt::format("{:g}M", static_cast<double>(length) / (kK * kK));
  }
  if (length >= kK && length % (kK / 8) == 0) return fmt::format("{:g}K", static_cast<double>(length) / kK);
  return fmt::format("{}", length);
}

std::string depth_label(double depth) { return fmt::format("{:.4g}%", 100 * depth); }

}  // namespace rwkvx
