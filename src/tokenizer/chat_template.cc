#include "tokenizer/chat_template.h"

#include <algorithm>

namespace rwkvx {
namespace {

constexpr std::string_view kWhiteSpace = " \t\n\v\f\r";
constexpr std::string_view kTurnEnd = "\n\n";
constexpr std::string_view kSystem = "System:", kUser = "User:", kAssistant = "Assistant:";

/// "User: hello"; nothing to say leaves no space at the end.
std::string speak(std::string_view role, std::string_view message) {
  const std::string cleaned = clean_message(message);
  return cleaned.empty() ? std::string(role) : std::string(role) + " " + cleaned;
}

/// A user's turn and the beginning of the answer.
std::string exchange(std::string_view message, Thinking thinking) {
  return speak(kUser, message).append(kTurnEnd).append(kAssistant).append(answer_opening(thinking));
}

}  // namespace

std::string_view answer_opening(Thinking thinking) {
  switch (thinking) {
    case Thinking::think:
      return " <think";
    case Thinking::pretend:
      return " <think>\n</think";
    case Thinking::none:
      break;
  }
  return "";
}

std::string clean_message(std::string_view message) {
  std::string cleaned;
  while (!message.empty()) {
    const size_t end = message.find_first_of("\r\n");
    const std::string_view line = message.substr(0, end);
    message.remove_prefix(end == message.npos ? message.size() : end + 1);
    if (line.find_first_not_of(kWhiteSpace) == line.npos) continue;
    if (!cleaned.empty()) cleaned += '\n';
    cleaned += line;
  }
  // Only non-blank lines are left, so there is a first and a last visible character, or nothing.
  if (cleaned.empty()) return cleaned;
  cleaned.erase(cleaned.find_last_not_of(kWhiteSpace) + 1);
  cleaned.erase(0, cleaned.find_first_not_of(kWhiteSpace));
  return cleaned;
}

std::string ChatTemplate::first_turn(std::string_view message) const {
  std::string text;
  if (!clean_message(system).empty()) text.append(speak(kSystem, system)).append(kTurnEnd);
  return text + exchange(message, thinking);
}

std::string ChatTemplate::next_turn(std::string_view message, std::string_view answered) const {
  const std::string separator = std::string(kTurnEnd) + std::string(kUser);
  size_t known = std::min(separator.size(), answered.size());
  while (!answered.ends_with(std::string_view(separator).substr(0, known))) --known;
  return std::string(kTurnEnd).append(exchange(message, thinking)).substr(known);
}

std::vector<std::string> ChatTemplate::stop_strings() {
  return {std::string(kTurnEnd).append(kUser), std::string(kTurnEnd).append(kAssistant)};
}

}  // namespace rwkvx
