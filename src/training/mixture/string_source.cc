// {"kind": "strings"}: passages of a text, and random strings hidden in it, to be said again at the end from
// how they begin.
#include <algorithm>

#include "base/error.h"
#include "training/mixture/hay.h"

namespace rwkvx {
namespace {

constexpr std::string_view kLetters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
constexpr size_t kTextCue = 16;   ///< tokens of a passage that are given
constexpr size_t kStringCue = 3;  ///< of a random string, in letters
constexpr size_t kAround = 8;     ///< what stands around a repetition

class StringSource final : public SampleSource {
 public:
  StringSource(Fields& fields, const SourceSetup& setup)
      : tokenizer_(setup.tokenizer),
        hay_(fields, setup, "text"),
        lengths_(fields.range("lengths", {16, 64}, 8, 1 << 20)),
        count_(fields.range("count", {1, 8}, 1, 1 << 20)),
        random_(fields.number("random", 0.5, 0, 1)) {}

  // Of a passage and of a random string, each where it is and again.
  size_t least() const override { return 2 * (static_cast<size_t>(lengths_.low) + kTextCue + kAround); }

  void make(uint64_t, size_t size, Random& random, Sample& sample) const override {
    const auto most = static_cast<int64_t>(size / 2 - kTextCue - kAround);
    const IntRange lengths{lengths_.low, std::clamp(most, lengths_.low, lengths_.high)};
    const int64_t wanted = draw(count_, random);
    // Random strings: where they are and their repetitions. Passages are chosen once the haystack is known.
    std::vector<Sample> hidden, repeated;
    std::vector<size_t> passages;  // their sizes
    size_t own = 0;
    for (int64_t i = 0; i < wanted; ++i) {
      const auto length = static_cast<size_t>(draw(lengths, random));
      if (!hay_.is_noise() && random.uniform() >= random_) {
        const size_t takes = kTextCue + length + kAround;
        if (own + takes + kTextCue + length > size) break;
        passages.push_back(length);
        own += takes;
        continue;
      }
      std::string string;
      while (string.size() < length) string += kLetters[random.next() % kLetters.size()];
      Sample where, again;
      const auto thing = static_cast<int64_t>(hidden.size());
      MarkedText().add(" [").add(string, TokenRole::random, {thing}).add("]").append_to(where, tokenizer_);
      MarkedText answer;
      answer.add(string.substr(kStringCue), TokenRole::answer, {thing, kStringCue});
      answer.add("]", TokenRole::answer);
      again = question_and_answer("\n[" + string.substr(0, kStringCue), answer, tokenizer_);
      if (own + where.size() + again.size() > size) break;
      own += where.size() + again.size();
      hidden.push_back(std::move(where));
      repeated.push_back(std::move(again));
    }
    std::vector<TokenId> hay = hay_.draw(size - own, " ", random);
    std::vector<Sample::Range> said;  // the passages
    for (const size_t length : passages) {
      const size_t whole = std::min(kTextCue + length, hay.size());
      if (whole <= kTextCue) continue;
      const auto begin = static_cast<size_t>(draw({0, static_cast<int64_t>(hay.size() - whole)}, random));
      const auto passage = std::span(hay).subspan(begin, whole);
      Sample again;
      again.questions.push_back(0);
      again.append(tokenizer_.encode("\n> "), TokenRole::text);
      const auto thing = static_cast<int64_t>(hidden.size() + said.size());
      again.append(passage.first(kTextCue), TokenRole::text, {thing, 0});
      again.answers.push_back({again.size(), again.size() + whole - kTextCue});
      again.append(passage.subspan(kTextCue), TokenRole::answer, {thing, kTextCue});
      repeated.push_back(std::move(again));
      said.push_back({begin, begin + whole});
    }
    std::vector<size_t> places;
    // No string breaks a passage: where none of some places is free, it stands before all.
    for (size_t i = 0; i < hidden.size(); ++i) {
      size_t place = 0;
      for (int tries = 0; tries < 20; ++tries) {
        const auto drawn = static_cast<size_t>(draw({0, static_cast<int64_t>(hay.size())}, random));
        if (std::none_of(said.begin(), said.end(),
                         [&](const Sample::Range& r) { return r.begin < drawn && drawn < r.end; })) {
          place = drawn;
          break;
        }
      }
      places.push_back(place);
    }
    std::sort(places.begin(), places.end());
    for (size_t i = 0; i < said.size(); ++i) {
      size_t begin = said[i].begin;
      for (size_t j = 0; j < hidden.size() && places[j] <= said[i].begin; ++j) begin += hidden[j].size();
      const auto thing = static_cast<int64_t>(hidden.size() + i);
      for (size_t k = 0; k < said[i].end - said[i].begin; ++k)
        sample.mentions.push_back({begin + k, {thing, static_cast<int64_t>(k)}});
    }
    size_t at = 0;
    for (size_t i = 0; i < hidden.size(); ++i) {
      sample.append(std::span(hay).subspan(at, places[i] - at), TokenRole::text);
      sample.append(hidden[i]);
      at = places[i];
    }
    sample.append(std::span(hay).subspan(at), TokenRole::text);
    for (size_t i = repeated.size(); i > 1; --i) std::swap(repeated[i - 1], repeated[random.next() % i]);
    for (const Sample& again : repeated) sample.append(again);
    // Less was said again than room was kept for: the text goes on.
    const size_t before = sample.size();
    if (before < size) sample.append(hay_.draw(size - before, " ", random), TokenRole::text);
    sample.cut(size);
  }

 private:
  const Tokenizer& tokenizer_;
  Hay hay_;
  IntRange lengths_, count_;
  double random_;
};

}  // namespace

std::unique_ptr<SampleSource> make_string_source(Fields& fields, const SourceSetup& setup) {
  return std::make_unique<StringSource>(fields, setup);
}

}  // namespace rwkvx
