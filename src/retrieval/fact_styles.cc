#include "retrieval/fact_styles.h"

#include <array>

namespace rwkvx {
namespace {

constexpr std::array<std::string_view, 24> kThings{
    kPassKey,       "door code",      "secret code",   "access code",    "password",       "locker number",
    "room number",  "flight number",  "phone number",  "ticket number",  "serial number",  "license number",
    "badge number", "account number", "case number",   "safe code",      "gate code",      "order number",
    "seat number",  "magic number",   "member number", "invoice number", "lottery number", "train number"};
constexpr std::array<std::string_view, 48> kPeople{
    "Alice",  "Amir",   "Anna",  "Arthur", "Bella", "Boris",  "Carla",  "Carlos", "Chen",   "Clara",
    "Daniel", "Diana",  "Edgar", "Elena",  "Emma",  "Felix",  "Fiona",  "Frank",  "George", "Grace",
    "Hannah", "Henry",  "Igor",  "Ines",   "Jack",  "Jonas",  "Julia",  "Karim",  "Laura",  "Leo",
    "Lucy",   "Marco",  "Maria", "Martin", "Nadia", "Nora",   "Oliver", "Omar",   "Paula",  "Peter",
    "Rosa",   "Samuel", "Sofia", "Thomas", "Vera",  "Victor", "Wendy",  "Yuki"};

struct Words {
  FactKeys keys;
  std::string_view statement, question;
};
// {thing} is the same in a whole text.
constexpr std::array<Words, 12> kWords{{
    {FactKeys::pairs, " The {thing} of {key} is {value}.",
     "\nWhat is the {thing} of {key}? The {thing} of {key} is"},
    {FactKeys::pairs, " Remember that {key} has the {thing} {value}.",
     "\nWhich {thing} does {key} have? It is"},
    {FactKeys::pairs, " Note: {key} = {value}.", "\nNote: {key} ="},
    {FactKeys::pairs, " ({key}: {value})", "\n{key}:"},
    {FactKeys::pairs, " The number {value} belongs to {key}.",
     "\nQuestion: Which number belongs to {key}?\nAnswer:"},
    {FactKeys::people, " The {thing} of {key} is {value}. Remember it. {value} is the {thing} of {key}.",
     " What is the {thing} of {key}? The {thing} of {key} is"},
    {FactKeys::people, " {key}'s {thing} is {value}.", "\n{key}'s {thing} is"},
    {FactKeys::people, " \"My {thing} is {value},\" said {key}.",
     "\nUser: What {thing} did {key} say?\n\nAssistant:"},
    {FactKeys::people, " Call {key} at {value}.", "\nAt which number can one call {key}? At"},
    {FactKeys::things, " The {key} is {value}.", "\nWhat is the {key}? The {key} is"},
    {FactKeys::things, " The {key} is {value}. Remember it. {value} is the {key}.",
     " What is the {key}? The {key} is"},
    {FactKeys::things, " Do not forget the {key}: {value}.", "\nUser: What is the {key}?\n\nAssistant:"},
}};

std::string replaced(std::string_view text, std::string_view what, std::string_view with) {
  std::string out;
  for (size_t at = 0;;) {
    const size_t found = text.find(what, at);
    out += text.substr(at, found - at);
    if (found == text.npos) return out;
    out += with;
    at = found + what.size();
  }
}

template <size_t N>
std::string_view pick(const std::array<std::string_view, N>& words, Random& random) {
  return words[random.next() % N];
}

}  // namespace

std::string draw_fact_key(FactKeys keys, Random& random) {
  if (keys == FactKeys::pairs) return draw_key(random);
  return std::string(keys == FactKeys::people ? pick(kPeople, random) : pick(kThings, random));
}

int64_t fact_key_count(FactKeys keys) {
  if (keys == FactKeys::pairs) return kNeedleKeys;
  return static_cast<int64_t>(keys == FactKeys::people ? kPeople.size() : kThings.size());
}

FactStyle draw_fact_style(Random& random) {
  const Words& words = kWords[random.next() % kWords.size()];
  const std::string_view thing = pick(kThings, random);
  return {{"", replaced(words.statement, "{thing}", thing), replaced(words.question, "{thing}", thing)},
          words.keys};
}

FactStyle passkey_style(const NeedleText& text) {
  return {{text.intro, replaced(text.needle, kPassKey, "{key}"), replaced(text.question, kPassKey, "{key}")},
          FactKeys::things};
}

}  // namespace rwkvx
