#include "training/mixture/sample.h"

#include <algorithm>
#include <map>

namespace rwkvx {

void Sample::append(std::span<const TokenId> more, TokenRole role) {
  tokens.insert(tokens.end(), more.begin(), more.end());
  roles.resize(tokens.size(), role);
}

void Sample::append(std::span<const TokenId> more, TokenRole role, ThingPart from) {
  for (size_t i = 0; i < more.size(); ++i) mentions.push_back({size() + i, from.behind(i)});
  append(more, role);
}

void Sample::append(const Sample& more) {
  const size_t before = size();
  tokens.insert(tokens.end(), more.tokens.begin(), more.tokens.end());
  roles.insert(roles.end(), more.roles.begin(), more.roles.end());
  for (const Range& r : more.answers) answers.push_back({before + r.begin, before + r.end});
  for (const size_t at : more.questions) questions.push_back(before + at);
  for (const Mention& m : more.mentions) mentions.push_back({before + m.token, m.part});
}

void Sample::cut(size_t size) {
  if (size >= tokens.size()) return;
  tokens.resize(size);
  roles.resize(size);
  std::erase_if(answers, [&](const Range& r) { return r.end > size; });
  std::erase_if(questions, [&](size_t at) { return at >= size; });
  std::erase_if(mentions, [&](const Mention& m) { return m.token >= size; });
}

std::vector<int64_t> Sample::earlier_mentions() const {
  std::vector<int64_t> earlier(size(), -1);
  std::map<std::pair<int64_t, int64_t>, size_t> last;
  std::vector<Mention> rising = mentions;
  std::stable_sort(rising.begin(), rising.end(),
                   [](const Mention& a, const Mention& b) { return a.token < b.token; });
  for (const Mention& m : rising) {
    const auto [found, first] = last.try_emplace({m.part.thing, m.part.place}, m.token);
    if (first) continue;
    // Where texts are tokenized differently, tokens at one place may differ.
    if (tokens[found->second] == tokens[m.token]) earlier[m.token] = static_cast<int64_t>(found->second);
    found->second = m.token;
  }
  return earlier;
}

MarkedText& MarkedText::add(std::string_view text, TokenRole role, ThingPart from) {
  text_ += text;
  roles_.resize(text_.size(), role);
  for (size_t i = 0; i < text.size(); ++i) parts_.push_back(from.behind(i));
  return *this;
}

MarkedText& MarkedText::add_statement(std::string_view form, std::string_view key, std::string_view value,
                                      int64_t thing) {
  bool said = false;
  while (!form.empty()) {
    if (form.starts_with("{key}")) {
      add(key, TokenRole::random);
      form.remove_prefix(5);
    } else if (form.starts_with("{value}")) {
      add(value, said ? TokenRole::text : TokenRole::random, {thing});
      said = true;
      form.remove_prefix(7);
    } else {
      add(form.substr(0, 1));
      form.remove_prefix(1);
    }
  }
  return *this;
}

void MarkedText::append_to(Sample& sample, const Tokenizer& tokenizer) const {
  const size_t first = sample.size();
  tokenizer.encode(text_, sample.tokens);
  size_t at = 0;
  for (size_t i = first; i < sample.tokens.size(); ++i) {
    const size_t end = std::min(at + tokenizer.token_bytes(sample.tokens[i]).size(), roles_.size());
    if (at < end && parts_[at].thing >= 0) sample.mentions.push_back({i, parts_[at]});
    TokenRole role = TokenRole::text;
    for (; at < end; ++at) role = std::max(role, roles_[at]);
    sample.roles.push_back(role);
  }
}

Sample question_and_answer(std::string_view question, const MarkedText& answer, const Tokenizer& tokenizer) {
  Sample out;
  out.questions.push_back(0);
  out.append(tokenizer.encode(question), TokenRole::text);
  const size_t begin = out.size();
  answer.append_to(out, tokenizer);
  out.answers.push_back({begin, out.size()});
  return out;
}

}  // namespace rwkvx
