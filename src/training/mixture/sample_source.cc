#include "training/mixture/sample_source.h"

#include <array>

#include "base/error.h"

namespace rwkvx {
namespace {

struct Kind {
  const char* name;
  std::unique_ptr<SampleSource> (*make)(Fields&, const SourceSetup&);
};
constexpr std::array<Kind, 5> kKinds{{{"tokens", make_token_source},
                                      {"copy", make_copy_source},
                                      {"needles", make_needle_source},
                                      {"pairs", make_pair_source},
                                      {"strings", make_string_source}}};

}  // namespace

std::vector<std::string> source_kinds() {
  std::vector<std::string> names;
  for (const Kind& kind : kKinds) names.emplace_back(kind.name);
  return names;
}

std::unique_ptr<SampleSource> make_source(const std::string& kind, Fields& fields, const SourceSetup& setup) {
  for (const Kind& known : kKinds) {
    if (kind == known.name) return known.make(fields, setup);
  }
  fail("{}: there is no kind \"{}\"; there are {}", fields.where(), printable(kind),
       fmt::join(source_kinds(), ", "));
}

}  // namespace rwkvx
