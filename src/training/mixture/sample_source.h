#pragma once

#include <functional>
#include <memory>

#include "base/random.h"
#include "training/mixture/fields.h"
#include "training/mixture/sample.h"
#include "training/token_file.h"

namespace rwkvx {

/// Makes samples of one kind.
class SampleSource {
 public:
  virtual ~SampleSource() = default;
  /// Tokens of the shortest sample it can make.
  virtual size_t least() const = 0;
  /// Appends exactly `size` tokens, size >= least(), to an empty sample. Everything random comes from
  /// `random`; `index` is the number of the sample in the run.
  virtual void make(uint64_t index, size_t size, Random& random, Sample& sample) const = 0;
};

/// What sources are made with.
struct SourceSetup {
  const Tokenizer& tokenizer;
  int64_t vocab = 0;
  uint64_t seed = 0;
  /// Opens the token file that the field "data" names, or the run's own when it is "".
  std::function<TokenFile(const std::string& name)> open;
};

/// The source of {"kind": …}. Fields that all kinds share are read by the caller. Errors: an unknown kind or
/// field, values out of range, data that cannot be read; they name the place.
std::unique_ptr<SampleSource> make_source(const std::string& kind, Fields& fields, const SourceSetup& setup);
std::vector<std::string> source_kinds();

// One file for each kind.
std::unique_ptr<SampleSource> make_token_source(Fields& fields, const SourceSetup& setup);
std::unique_ptr<SampleSource> make_copy_source(Fields& fields, const SourceSetup& setup);
std::unique_ptr<SampleSource> make_needle_source(Fields& fields, const SourceSetup& setup);
std::unique_ptr<SampleSource> make_pair_source(Fields& fields, const SourceSetup& setup);
std::unique_ptr<SampleSource> make_string_source(Fields& fields, const SourceSetup& setup);

}  // namespace rwkvx
