// {"kind": "tokens"}: windows of a token file, in RWKV-LM's sense.
#include "base/error.h"
#include "training/mixture/sample_source.h"
#include "training/training_data.h"

namespace rwkvx {
namespace {

class TokenSource final : public SampleSource {
 public:
  TokenSource(Fields& fields, const SourceSetup& setup)
      : file_(setup.open(fields.text("data", ""))), vocab_(setup.vocab), seed_(setup.seed) {
    if (file_.tokens() < 2) fail("{}: there is no text in it", file_.path().string());
  }

  size_t least() const override { return 2; }

  void make(uint64_t index, size_t size, Random&, Sample& sample) const override {
    if (file_.tokens() < size) {
      fail("{}: its {} tokens do not fill a sequence of {}; use shorter ones", file_.path().string(),
           file_.tokens(), size);
    }
    // As TokenWindows has them: the last token of a window is the first of the next. No window comes twice
    // before all numbers have gone by once.
    const uint64_t windows = (file_.tokens() - 1) / (size - 1), round = index / windows;
    const uint64_t key = seed_ * 0x9e3779b97f4a7c15 + round;
    const uint64_t begin = shuffled_index(index % windows, windows, key) * (size - 1);
    std::vector<TokenId> tokens(size);
    file_.read(begin, tokens, vocab_);
    sample.append(tokens, TokenRole::text);
    if (!file_.marked()) return;
    sample.marks.resize(size);
    file_.read_marks(begin, sample.marks);
  }

 private:
  TokenFile file_;
  int64_t vocab_;
  uint64_t seed_;
};

}  // namespace

std::unique_ptr<SampleSource> make_token_source(Fields& fields, const SourceSetup& setup) {
  return std::make_unique<TokenSource>(fields, setup);
}

}  // namespace rwkvx
