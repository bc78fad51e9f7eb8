// {"kind": "copy"}: strings of random symbols, each said several times. Nothing teaches looking back as fast.
#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "training/mixture/sample_source.h"

namespace rwkvx {
namespace {

constexpr int64_t kMost = int64_t{1} << 24;
constexpr size_t kAnswer = 16;  ///< tokens of a copy that an answer is judged by

class CopySource final : public SampleSource {
 public:
  CopySource(Fields& fields, const SourceSetup& setup)
      : lengths_(fields.range("lengths", {8, 256}, 2, kMost)),
        times_(fields.range("times", {2, 8}, 2, kMost)) {
    const auto* symbols = fields.any("symbols");
    if (symbols != nullptr && symbols->is_string()) {
      setup.tokenizer.encode(symbols->get<std::string>(), symbols_);
      if (symbols_.size() < 2) fields.refuse("symbols", "a text of two characters or more");
      return;
    }
    // Token 0 ends documents where there are such ends.
    const TokenId first = setup.tokenizer.end_of_document() == 0 ? 1 : 0;
    const int64_t most = std::min(setup.vocab, setup.tokenizer.vocab_size()) - first;
    const int64_t count = fields.integer("symbols", std::min<int64_t>(256, most), 2, most);
    for (TokenId id = 0; id < count; ++id) symbols_.push_back(first + id);
  }

  size_t least() const override { return 2 * static_cast<size_t>(lengths_.low) + 1; }

  void make(uint64_t, size_t size, Random& random, Sample& sample) const override {
    const IntRange lengths{lengths_.low, std::min(lengths_.high, static_cast<int64_t>(size / 2))};
    for (int64_t number = 0; sample.size() < size; ++number) {
      std::vector<TokenId> string(static_cast<size_t>(draw_log(lengths, random)));
      for (TokenId& token : string) token = symbols_[random.next() % symbols_.size()];
      // So many symbols tell where in the string one is; before them, no one can know that a copy begins.
      const double tell = std::ceil(std::log(static_cast<double>(string.size())) /
                                    std::log(static_cast<double>(symbols_.size())));
      const auto unknown = std::min(static_cast<size_t>(std::max(1.0, tell)), string.size() - 1);
      const int64_t times = draw(times_, random);
      sample.append(string, TokenRole::random, {number});
      for (int64_t i = 1; i < times && sample.size() < size; ++i) {
        const size_t begin = sample.size(), known = i == 1 ? unknown : 0;
        sample.questions.push_back(begin);
        sample.append(std::span(string).first(known), TokenRole::random, {number});
        sample.append(std::span(string).subspan(known), TokenRole::answer, ThingPart{number}.behind(known));
        sample.answers.push_back({begin + known, std::min(begin + known + kAnswer, sample.size())});
      }
    }
    sample.cut(size);
  }

 private:
  IntRange lengths_, times_;
  std::vector<TokenId> symbols_;
};

}  // namespace

std::unique_ptr<SampleSource> make_copy_source(Fields& fields, const SourceSetup& setup) {
  return std::make_unique<CopySource>(fields, setup);
}

}  // namespace rwkvx
