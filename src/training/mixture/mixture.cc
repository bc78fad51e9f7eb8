#include "training/mixture/mixture.h"

#include <algorithm>
#include <array>

#include "base/assert.h"
#include "base/error.h"
#include "base/hash.h"

namespace rwkvx {
namespace {

using Json = Fields::Json;

constexpr double kMostShare = 1e9, kMostWeight = 1e6;
constexpr int64_t kMostContext = 1 << 24;

/// The elements of a list, or an error.
const Json& list_of(Fields& fields, const char* name) {
  const Json* json = fields.any(name);
  if (json == nullptr || !json->is_array() || json->empty()) fields.refuse(name, "a list of objects");
  return *json;
}

/// Over `otherwise`, field by field.
RoleWeights read_weights(const Json& json, const std::string& where, const RoleWeights& otherwise) {
  Fields fields(json, where);
  const auto weight = [&](const char* name, float other) {
    return static_cast<float>(fields.number(name, static_cast<double>(other), 0, kMostWeight));
  };
  RoleWeights weights = otherwise;
  weights.text = weight("text", otherwise.text);
  weights.random = weight("random", otherwise.random);
  weights.answer = weight("answer", otherwise.answer);
  if (fields.has("start")) weights.start = weight("start", 1);
  fields.finish();
  return weights;
}

Mixture::Source read_source(const Json& json, const std::string& where, const SourceSetup& setup,
                            const RoleWeights& weights) {
  Fields fields(json, where);
  Mixture::Source source;
  source.kind = fields.text("kind", "");
  source.name = fields.text("name", source.kind);
  source.share = fields.number("share", 0, 0, kMostShare);
  source.weight = static_cast<float>(fields.number("weight", 1, 0, kMostWeight));
  source.weights = weights;
  if (const Json* own = fields.any("weights"))
    source.weights = read_weights(*own, where + ".weights", weights);
  source.split = fields.range("split", {1, 1}, 1, 1 << 16);
  if (const Json* resets = fields.any("resets")) source.resets = read_reset_rule(*resets, where + ".resets");
  source.maker = make_source(source.kind, fields, setup);
  fields.finish();
  return source;
}

MixturePhase read_phase(const Json& json, const std::string& where,
                        const std::vector<Mixture::Source>& sources) {
  Fields fields(json, where);
  MixturePhase phase;
  phase.steps = fields.integer("steps", 0, 1, int64_t{1} << 40);
  phase.context = fields.integer("context", 0, 1, kMostContext);
  phase.batch = fields.integer("batch", 0, 1, 1 << 20);
  phase.lr = fields.number("lr", 0, 1e-12, 10);
  if (const Json* resets = fields.any("resets")) phase.resets = read_reset_rule(*resets, where + ".resets");
  if (const Json* shares = fields.any("shares")) {
    Fields named(*shares, where + ".shares");
    phase.shares.emplace();
    for (const Mixture::Source& source : sources)
      (*phase.shares)[source.name] = named.number(source.name.c_str(), 0, 0, kMostShare);
    named.finish();
  }
  fields.finish();
  return phase;
}

}  // namespace

Mixture::Mixture(const std::string& text, const std::string& place, const SourceSetup& setup)
    : place_(place) {
  const Json json = Json::parse(text, nullptr, false, true);
  if (json.is_discarded()) {
    fail("{}: it is not JSON{}", place,
         text.find_first_not_of(" \t\r\n") == text.npos ? "; it is empty" : "");
  }
  Fields fields(json, place);
  RoleWeights common;
  if (const Json* weights = fields.any("weights"))
    common = read_weights(*weights, place + ": weights", common);
  const Json& sources = list_of(fields, "sources");
  for (size_t i = 0; i < sources.size(); ++i) {
    // Each draws its own numbers.
    SourceSetup own = setup;
    own.seed = setup.seed * 1000003 + i;
    Source source = read_source(sources[i], fmt::format("{}: sources[{}]", place, i), own, common);
    for (const Source& other : sources_) {
      if (other.name == source.name) {
        fail("{}: sources[{}]: there is a source \"{}\" already; give each a \"name\" of its own", place, i,
             printable(source.name));
      }
    }
    sources_.push_back(std::move(source));
  }
  if (const Json* resets = fields.any("resets")) resets_ = read_reset_rule(*resets, place + ": resets");
  if (fields.has("phases")) {
    const Json& phases = list_of(fields, "phases");
    for (size_t i = 0; i < phases.size(); ++i) {
      phases_.push_back(read_phase(phases[i], fmt::format("{}: phases[{}]", place, i), sources_));
      if (phases_.back().steps == 0 && i + 1 < phases.size())
        fail("{}: phases[{}]: \"steps\" is missing; only the last phase may go on to the end", place, i);
    }
  }
  fields.finish();
}

namespace {

double share_of(const Mixture::Source& source, const MixturePhase* phase) {
  return phase != nullptr && phase->shares ? phase->shares->at(source.name) : source.share;
}

bool has_answers(const Mixture::Source& source) { return source.kind != "tokens"; }

class MixtureData final : public TrainingData {
 public:
  MixtureData(std::shared_ptr<const Mixture> mixture, const MixtureView& view)
      : mixture_(std::move(mixture)), view_(view) {
    const MixturePhase* phase = view.phase;
    for (const Mixture::Source& source : mixture_->sources()) {
      const double share = view.asking && !has_answers(source) ? 0 : share_of(source, phase);
      shares_.push_back(share);
      total_ += share;
      if (share > 0 && source.maker->least() > static_cast<size_t>(view.context) + 1) {
        fail(
            "{}: source \"{}\" needs sequences of at least {} tokens, not {}; choose a longer context, or "
            "another source for short ones",
            mixture_->place(), printable(source.name), source.maker->least() - 1, view.context);
      }
      resets_.push_back(view.asking              ? *view.asking
                        : source.resets          ? *source.resets
                        : phase && phase->resets ? *phase->resets
                                                 : mixture_->resets());
    }
    if (!(total_ > 0)) {
      fail("{}: {}", mixture_->place(),
           view.asking ? "no source has answers"
                       : "the shares of all sources are 0; give those to train on a \"share\"");
    }
  }

  uint64_t epoch() const override { return UINT64_MAX; }

  void add(uint64_t index, TrainBatch& batch) const override {
    const std::array<uint64_t, 3> key{view_.seed, index, static_cast<uint64_t>(view_.context)};
    Random random(hash64(std::as_bytes(std::span(key))));
    size_t chosen = 0;
    double at = random.uniform() * total_;
    while (chosen + 1 < shares_.size() && at >= shares_[chosen]) at -= shares_[chosen++];
    while (shares_[chosen] == 0) --chosen;  // of the last sources, beyond rounding
    const Mixture::Source& source = mixture_->sources()[chosen];
    for (const int64_t rows : split(source, random)) add_sequence(chosen, index, rows, random, batch);
  }

 private:
  /// Rows of the sequences that a sample is split into.
  std::vector<int64_t> split(const Mixture::Source& source, Random& random) const {
    const int64_t context = view_.context, least = static_cast<int64_t>(source.maker->least()) - 1;
    const int64_t wanted = view_.asking ? 1 : draw(source.split, random);
    const int64_t parts =
        std::clamp<int64_t>(wanted, 1, std::max<int64_t>(1, context / std::max<int64_t>(1, least)));
    // Random cuts of what is left beside the least that each takes.
    std::vector<int64_t> cuts{0, context - parts * least};
    for (int64_t i = 1; i < parts; ++i) cuts.push_back(draw({0, context - parts * least}, random));
    std::sort(cuts.begin(), cuts.end());
    std::vector<int64_t> rows;
    for (size_t i = 1; i < cuts.size(); ++i) rows.push_back(least + cuts[i] - cuts[i - 1]);
    return rows;
  }

  void add_sequence(size_t chosen, uint64_t index, int64_t rows, Random& random, TrainBatch& batch) const {
    const Mixture::Source& source = mixture_->sources()[chosen];
    Sample sample;
    source.maker->make(index, static_cast<size_t>(rows) + 1, random, sample);
    RWKVX_ASSERT(sample.size() == static_cast<size_t>(rows) + 1 && sample.roles.size() == sample.size());
    for (const TokenId id : sample.tokens) check_token_id(id, view_.vocab);
    const int64_t first = batch.rows();
    const std::vector<int64_t> earlier = sample.earlier_mentions();
    const auto starts = [&](size_t i) {
      const auto said_again = [&](size_t at) {
        return sample.roles[at] == TokenRole::answer && earlier[at] >= 0;
      };
      return said_again(i) && !(i > 0 && said_again(i - 1) && earlier[i - 1] + 1 == earlier[i]);
    };
    batch.tokens.insert(batch.tokens.end(), sample.tokens.begin(), sample.tokens.end() - 1);
    for (size_t i = 1; i < sample.size(); ++i) {
      const float weight =
          source.weight * (!sample.marks.empty()               ? sample.marks[i].weight
                           : source.weights.start && starts(i) ? *source.weights.start
                                                               : source.weights.of(sample.roles[i]));
      batch.targets.push_back(weight > 0 ? sample.tokens[i] : -1);
      batch.weights.push_back(weight);
    }
    batch.resets.resize(batch.tokens.size());
    draw_resets(resets_[chosen], sample, random, std::span(batch.resets).subspan(static_cast<size_t>(first)));
    for (size_t i = 1; i < sample.size(); ++i)
      batch.earlier.push_back(earlier[i] < 0 ? -1 : first + earlier[i]);
    for (size_t i = 0; !sample.marks.empty() && i + 1 < sample.size(); ++i)
      batch.resets[static_cast<size_t>(first) + i] |= sample.marks[i].reset ? 1 : 0;
    for (const Sample::Range& r : sample.answers) {
      // Row i says token i + 1.
      if (r.begin > 0 && r.end > r.begin) {
        batch.answers.push_back({first + static_cast<int64_t>(r.begin) - 1,
                                 first + static_cast<int64_t>(r.end) - 1, static_cast<int32_t>(chosen)});
      }
    }
    batch.offsets.push_back(batch.rows());
  }

  std::shared_ptr<const Mixture> mixture_;
  MixtureView view_;
  std::vector<double> shares_;
  std::vector<ResetRule> resets_;
  double total_ = 0;
};

}  // namespace

bool asks(const Mixture& mixture, const MixturePhase& phase) {
  return std::any_of(mixture.sources().begin(), mixture.sources().end(), [&](const Mixture::Source& source) {
    return has_answers(source) && share_of(source, &phase) > 0;
  });
}

std::unique_ptr<TrainingData> make_mixture_data(std::shared_ptr<const Mixture> mixture,
                                                const MixtureView& view) {
  return std::make_unique<MixtureData>(std::move(mixture), view);
}

}  // namespace rwkvx
