// {"kind": "pairs"}: a list of keys with values, and then its lines in another order, where values are
// answers.
#include <array>
#include <numeric>
#include <set>

#include "base/error.h"
#include "retrieval/needle_task.h"
#include "training/mixture/sample_source.h"

namespace rwkvx {
namespace {

struct Line {
  const char *before, *between, *after;
};
constexpr std::array<Line, 6> kLines{{{"", ": ", "\n"},
                                      {"", " = ", "\n"},
                                      {"", " -> ", ";\n"},
                                      {"\"", "\": \"", "\",\n"},
                                      {"", ",", "\n"},
                                      {"The value of ", " is ", ". "}}};
constexpr double kLeastList = 0.3, kMostList = 0.7;  ///< of the sample

enum class Word { pair, number, digits, uuid };

std::string draw_word(Word word, Random& random) {
  switch (word) {
    case Word::pair:
      return draw_key(random);
    case Word::number:
      return draw_value(NeedleValue::number7, random);
    case Word::digits:
      return draw_value(NeedleValue::digits5, random);
    case Word::uuid:
      return draw_value(NeedleValue::uuid, random);
  }
  return "";
}

class PairSource final : public SampleSource {
 public:
  PairSource(Fields& fields, const SourceSetup& setup)
      : tokenizer_(setup.tokenizer), similar_(fields.number("similar", 0, 0, 1)) {
    const auto lines = [&](std::string_view word) {
      return 4 * tokenizer_.encode(fmt::format("The value of {0} is {0}. ", word)).size();
    };
    least_ = lines("ancient-lantern");
    least_uuids_ = lines("01234567-89ab-4def-8123-456789abcdef");
  }

  size_t least() const override { return least_; }

  void make(uint64_t, size_t size, Random& random, Sample& sample) const override {
    const Line& line = kLines[random.next() % kLines.size()];
    const auto word = [&] {
      const uint64_t kind = random.next() % (size < least_uuids_ ? 9 : 10);
      return kind < 5 ? Word::pair : kind < 7 ? Word::number : kind < 9 ? Word::digits : Word::uuid;
    };
    const Word keys = word(), values = word();
    const auto list = static_cast<size_t>((kLeastList + (kMostList - kLeastList) * random.uniform()) *
                                          static_cast<double>(size));
    std::vector<std::pair<std::string, std::string>> pairs;
    std::set<std::string> taken;
    while (sample.size() < list && pairs.size() < kNeedleKeys / 2) {
      std::string key =
          keys == Word::pair
              ? draw_key_beside(pairs, &std::pair<std::string, std::string>::first, similar_, random)
              : draw_word(keys, random);
      if (!taken.insert(key).second) continue;
      pairs.emplace_back(std::move(key), draw_word(values, random));
      MarkedText()
          .add(line.before)
          .add(pairs.back().first, TokenRole::random)
          .add(line.between)
          .add(pairs.back().second, TokenRole::random, {static_cast<int64_t>(pairs.size()) - 1})
          .add(line.after)
          .append_to(sample, tokenizer_);
    }
    sample.append(tokenizer_.encode("\n"), TokenRole::text);
    // Each is asked for once, in another order each time around.
    std::vector<size_t> order(pairs.size());
    std::iota(order.begin(), order.end(), size_t{0});
    while (sample.size() < size) {
      for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random.next() % i]);
      for (size_t i = 0; i < order.size() && sample.size() < size; ++i) {
        const auto& [key, value] = pairs[order[i]];
        // Where the answer begins is where the model would be asked: behind the words, before the space.
        std::string question = line.before + key + line.between;
        MarkedText answer;
        if (question.ends_with(' ')) {
          question.pop_back();
          answer.add(" ", TokenRole::answer);
        }
        answer.add(value, TokenRole::answer, {static_cast<int64_t>(order[i])});
        sample.append(question_and_answer(question, answer, tokenizer_));
        sample.append(tokenizer_.encode(line.after), TokenRole::text);
      }
    }
    sample.cut(size);
  }

 private:
  const Tokenizer& tokenizer_;
  double similar_;
  size_t least_ = 0, least_uuids_ = 0;  // a list of two lines and questions, at the longest
};

}  // namespace

std::unique_ptr<SampleSource> make_pair_source(Fields& fields, const SourceSetup& setup) {
  return std::make_unique<PairSource>(fields, setup);
}

}  // namespace rwkvx
