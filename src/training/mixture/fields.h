#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/random.h"

namespace rwkvx {

/// Whole numbers low .. high, both included.
struct IntRange {
  int64_t low = 0, high = 0;
};
/// All as likely; `log`: all sizes as likely.
int64_t draw(const IntRange& range, Random& random);
int64_t draw_log(const IntRange& range, Random& random);

/// Shares of a whole, low .. high.
struct ShareRange {
  double low = 0, high = 1;
};

/// Reads a JSON object field by field. Errors say where, which field, and what it may be; finish() finds
/// fields that nobody asked for.
class Fields {
 public:
  using Json = nlohmann::ordered_json;
  /// `where`: file and place, for messages.
  Fields(const Json& json, std::string where);
  const std::string& where() const { return where_; }

  bool has(const char* name) const { return json_.contains(name); }
  double number(const char* name, double otherwise, double low, double high);
  int64_t integer(const char* name, int64_t otherwise, int64_t low, int64_t high);
  /// [LOW, HIGH], or one number for both.
  IntRange range(const char* name, IntRange otherwise, int64_t low, int64_t high);
  /// [LOW, HIGH] or one number for both, from 0 to 1.
  ShareRange shares(const char* name, ShareRange otherwise);
  std::string text(const char* name, const std::string& otherwise);
  std::vector<std::string> texts(const char* name, const std::vector<std::string>& otherwise);
  /// The field as it is; null when it is not there.
  const Json* any(const char* name);
  void finish() const;

  /// Fails: the field `name` must be `what`.
  [[noreturn]] void refuse(const char* name, const std::string& what) const;

 private:
  const Json& json_;
  std::string where_;
  std::set<std::string> known_;
};

}  // namespace rwkvx
