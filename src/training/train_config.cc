#include "training/train_config.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "model/config.h"

namespace rwkvx {
namespace {

using Json = nlohmann::ordered_json;

template <typename... Args>
[[noreturn]] void refuse(fmt::format_string<Args...> format, Args&&... args) {
  throw UsageError(fmt::format(format, std::forward<Args>(args)...));
}

void check_range(const char* flag, double value, double low, double high) {
  if (!(value >= low && value <= high))
    refuse("--{} must be from {:g} to {:g}, not {:g}", flag, low, high, value);
}

void check_choice(const char* flag, const std::string& value, std::initializer_list<const char*> choices) {
  std::string list;
  for (const char* choice : choices) {
    if (value == choice) return;
    list += std::string(list.empty() ? "" : ", ") + choice;
  }
  refuse("--{} must be one of {}, not '{}'", flag, list, printable(value));
}

void check_places(const TrainConfig& c) {
  ModelConfig model;
  model.layers = c.layers;
  model.sparse_blocks = c.sparse_blocks;
  try {
    place_sparse_blocks(model, c.sparse_after);
  } catch (const Error& error) {
    throw UsageError(error.what());
  }
}

void check(const TrainConfig& c) {
  constexpr double kMost = 9007199254740992.0;  // 2^53
  const auto at_least = [](const char* flag, int64_t value, int64_t low) {
    check_range(flag, static_cast<double>(value), static_cast<double>(low), kMost);
  };
  check_choice("stage", c.stage, {"full", "align", "long"});
  check_choice("order", c.order, {"shuffled", "magic", "sequential"});
  check_choice("schedule", c.schedule, {"cosine", "linear", "constant"});
  check_choice("gate-by", c.gate_by, {"rows", "weights"});
  check_choice("precision", c.precision, {"f32", "bf16"});
  if (!is_backend(c.device)) refuse("--device must be {}, not '{}'", kDeviceHelp, printable(c.device));
  check_choice("recompute", c.recompute, {"on", "off", "auto"});
  check_range("activation-gb", c.activation_gb, 0, 1e6);
  if (c.data.empty() && c.chat.empty() && c.mixture.empty())
    refuse("pass --data, --chat or --mixture to train on");
  if (!c.chat.empty() && (!c.data.empty() || !c.mixture.empty()))
    refuse("--chat goes without --data and --mixture");
  if (!c.chat.empty() && !c.curriculum.empty()) refuse("--curriculum is for --data and --mixture");
  if (!c.mixture.empty() && c.document_resets)
    refuse("--document-resets is for --data alone; a mixture has \"resets\"");
  if (c.pointing_loss > 0 && c.mixture.empty())
    refuse("--pointing-loss is for --mixture: only its samples know where their answers were said before");
  if (c.load.empty()) {
    if (c.stage != "full") refuse("--stage {} needs a model to go on with: pass --load", c.stage);
    check_range("layers", static_cast<double>(c.layers), 1, 4096);
    check_range("channels", static_cast<double>(c.channels), 64, 65536);
    if (c.channels % 64 != 0) refuse("--channels must be a multiple of 64, not {}", c.channels);
    check_range("sparse-blocks", static_cast<double>(c.sparse_blocks), 0, static_cast<double>(c.layers));
    check_places(c);
    check_range("vocab-size", static_cast<double>(c.vocab_size), 2, 1 << 24);
    check_range("embedding-init", c.embedding_init, 1e-9, 100);
    check_range("ffn", static_cast<double>(c.ffn), 0, 1 << 24);
  }
  check_range("chunk-size", static_cast<double>(c.chunk_size), 0, 1 << 24);
  check_range("chunk-top-k", static_cast<double>(c.chunk_top_k), 0, 1 << 24);
  check_range("context", static_cast<double>(c.context), 1, 1 << 24);
  check_range("batch", static_cast<double>(c.batch), 1, 1 << 20);
  if (c.batch > (int64_t{1} << 31) / c.context)
    refuse("--batch {} of --context {} is more than a step can hold", c.batch, c.context);
  check_range("accumulate", static_cast<double>(c.accumulate), 1, 1 << 20);
  at_least("steps", c.steps, 1);
  at_least("seed", c.seed, 0);
  at_least("warmup", c.warmup, 0);
  check_range("lr", c.lr, 1e-12, 10);
  check_range("lr-final", c.lr_final, 0, c.lr);
  check_range("beta1", c.beta1, 0, 0.999999);
  check_range("beta2", c.beta2, 0, 0.99999999);
  check_range("eps", c.eps, 0, 1);
  check_range("weight-decay", c.weight_decay, 0, 10);
  check_range("clip", c.clip, 0, 1e9);
  check_range("l2wrap", c.l2wrap, 0, 1);
  check_range("gate-loss", c.gate_loss, 0, 1e3);
  check_range("pointing-loss", c.pointing_loss, 0, 1e3);
  at_least("gate-rows", c.gate_rows, 1);
  check_range("threads", static_cast<double>(c.threads), 0, 4096);
  at_least("log-every", c.log_every, 1);
  at_least("eval-every", c.eval_every, 1);
  at_least("eval-windows", c.eval_windows, 1);
  at_least("save-every", c.save_every, 1);
  at_least("keep", c.keep, 1);
  parse_longce(c.longce);
}

}  // namespace

std::optional<LongCe> parse_longce(const std::string& text) {
  if (text == "off") return std::nullopt;
  if (text == "paper") return kPaperLongCe;
  if (text == "rwkvx") return kRwkvxLongCe;
  long long window = 0, stride = 0;
  double gamma = 0;
  int used = 0;
  if (std::sscanf(text.c_str(), "%9lld/%9lld/%lf%n", &window, &stride, &gamma, &used) != 3 ||
      static_cast<size_t>(used) != text.size() || window < 1 || stride < 1 || !(gamma > 0) ||
      std::isinf(gamma)) {
    refuse("--longce must be off, paper, rwkvx or WINDOW/STRIDE/GAMMA such as 4096/1024/5, not '{}'",
           printable(text));
  }
  return LongCe{window, stride, static_cast<float>(gamma)};
}

TrainConfig resolved(TrainConfig c) {
  const bool align = c.stage == "align", is_long = c.stage == "long";
  if (c.context == 0) c.context = is_long ? 65536 : 1024;
  if (c.lr == 0) c.lr = align ? 1e-4 : is_long ? 1e-5 : 6e-4;
  if (c.lr_final < 0) c.lr_final = c.lr / 10;
  if (c.longce.empty()) c.longce = is_long && c.chat.empty() ? "paper" : "off";
  check(c);
  return c;
}

Schedule schedule_of(const TrainConfig& c) {
  return {*decay_named(c.schedule), c.lr, c.lr_final, c.warmup, c.steps};
}

TrainConfig overridden(TrainConfig base, const TrainConfig& over,
                       const std::function<bool(const char* name)>& chosen) {
  // Through JSON, where settings have names.
  Json json = Json::object();
  TrainConfig::for_each_setting(over, [&](const char* name, const auto& value, const char*, const char*) {
    if (chosen(name)) json[name] = value;
  });
  read_json(json.dump(), "the command line", base);
  return base;
}

std::string to_json(const TrainConfig& config) {
  Json json = Json::object();
  TrainConfig::for_each_setting(
      config, [&](const char* name, const auto& value, const char*, const char*) { json[name] = value; });
  return json.dump(2) + "\n";
}

void read_json(const std::string& text, const Path& file, TrainConfig& config) {
  Json json = Json::parse(text, nullptr, false);
  if (!json.is_object()) fail("{}: a JSON object of settings is needed", file.string());
  // As it was called before GPUs.
  if (const auto old = json.find("backend"); old != json.end() && !json.contains("device")) {
    json["device"] = *old;
    json.erase("backend");
  }
  TrainConfig::for_each_setting(config, [&](const char* name, auto& value, const char*, const char*) {
    using Value = std::decay_t<decltype(value)>;
    const auto found = json.find(name);
    if (found == json.end()) return;
    bool fits = found->is_string();
    if constexpr (std::is_same_v<Value, bool>) fits = found->is_boolean();
    if constexpr (std::is_same_v<Value, int64_t>) fits = found->is_number_integer();
    if constexpr (std::is_same_v<Value, double>) fits = found->is_number();
    if (!fits)
      fail("{}: \"{}\" has a value of the wrong kind, {}", file.string(), name, printable(found->dump()));
    value = found->template get<Value>();
    json.erase(found);
  });
  if (!json.empty())
    fail("{}: there is no setting \"{}\"; rwkvx train --help lists them", file.string(),
         printable(json.begin().key()));
}

}  // namespace rwkvx
