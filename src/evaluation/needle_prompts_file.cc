#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "evaluation/needle_plan.h"

namespace rwkvx {
namespace {

std::string text_of(const nlohmann::json& line, const char* key) {
  const auto found = line.find(key);
  return found != line.end() && found->is_string() ? found->get<std::string>() : "";
}

std::vector<std::string> answers_of(const nlohmann::json& line) {
  std::vector<std::string> out;
  if (const std::string answer = text_of(line, "answer"); !answer.empty()) out.push_back(answer);
  const auto found = line.find("outputs");
  if (out.empty() && found != line.end() && found->is_array()) {
    for (const nlohmann::json& value : *found) {
      if (value.is_string() && !value.get<std::string>().empty()) out.push_back(value.get<std::string>());
    }
  }
  return out;
}

}  // namespace

NeedlePlan read_needle_prompts(const Path& file, const Tokenizer& tokenizer) {
  const std::string bytes = read_file(file);
  NeedlePlan plan;
  size_t number = 0;
  for (size_t at = 0; at < bytes.size();) {
    const size_t end = std::min(bytes.find('\n', at), bytes.size());
    const std::string_view text = std::string_view(bytes).substr(at, end - at);
    at = end + 1;
    ++number;
    if (text.find_first_not_of(" \t\r") == text.npos) continue;
    const nlohmann::json line = nlohmann::json::parse(text, nullptr, false);
    if (!line.is_object()) fail("{}: line {} is not a JSON object", file.string(), number);
    std::string prompt = text_of(line, "prompt");
    if (prompt.empty()) prompt = text_of(line, "input") + text_of(line, "answer_prefix");
    NeedleSample sample;
    sample.answers = answers_of(line);
    if (prompt.empty() || sample.answers.empty()) {
      fail("{}: line {} has no text \"prompt\" and \"answer\" (or RULER's \"input\" and \"outputs\")",
           file.string(), number);
    }
    if (const auto depth = line.find("depth"); depth != line.end() && depth->is_number()) {
      sample.depth = depth->get<double>();
      if (!(sample.depth >= 0 && sample.depth <= 1)) {
        fail("{}: line {}: the depth {} is not a fraction from 0 to 1", file.string(), number, sample.depth);
      }
    }
    sample.trunk = plan.trunks.size();
    sample.repeat = static_cast<int64_t>(number);
    plan.trunks.push_back(tokenizer.encode(prompt));
    sample.length = sample.insert_at = sample.end = static_cast<int64_t>(plan.trunks.back().size());
    plan.samples.push_back(std::move(sample));
  }
  if (plan.samples.empty()) fail("{}: there are no prompts in this file", file.string());
  return plan;
}

}  // namespace rwkvx
