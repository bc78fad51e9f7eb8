#include "training/token_marks.h"

#include <nlohmann/json.hpp>

#include "base/error.h"

namespace rwkvx {

std::optional<std::vector<TextSegment>> text_segments(std::string_view line) {
  // Most lines have none, and need not be built as a whole.
  if (line.find("\"segments\"") == line.npos) return std::nullopt;
  const auto json = nlohmann::json::parse(line.begin(), line.end(), nullptr, false);
  if (!json.is_object() || !json.contains("segments")) return std::nullopt;
  const auto& list = json["segments"];
  if (!list.is_array()) fail("\"segments\" is no list");
  std::vector<TextSegment> segments;
  for (const auto& part : list) {
    const size_t number = segments.size() + 1;
    TextSegment& segment = segments.emplace_back();
    if (!part.is_object() || !part.contains("text") || !part["text"].is_string())
      fail("segment {} is no object with a \"text\"", number);
    for (const auto& [name, value] : part.items()) {
      if (name == "text") {
        segment.text = value.get<std::string>();
      } else if (name == "weight") {
        const double weight = value.is_number() ? value.get<double>() : -1;
        if (!(weight >= 0 && weight <= static_cast<double>(kMostTokenWeight)))
          fail("segment {}: \"weight\" must be a number from 0 to {:g}", number, kMostTokenWeight);
        segment.mark.weight = static_cast<float>(weight);
      } else if (name == "reset") {
        if (!value.is_boolean()) fail("segment {}: \"reset\" must be true or false", number);
        segment.mark.reset = value.get<bool>();
      } else {
        fail("segment {}: there is no field \"{}\"; there are text, weight, reset", number, printable(name));
      }
    }
  }
  return segments;
}

}  // namespace rwkvx
