// rwkvx train: a run in a folder, from flags and a configuration file.
#include <unistd.h>

#include <cmath>
#include <csignal>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "cli/options.h"
#include "cli/terminal.h"
#include "drawing/line_chart.h"
#include "training/trainer.h"

namespace rwkvx::cli {
namespace {

struct TrainFlags {
  TrainConfig config;
  std::string folder, file;
  bool resume = false;
  std::function<bool(const char* name)> given;  ///< whether the command line says a setting
};

std::string human_count(int64_t n) {
  const auto value = static_cast<double>(n);
  if (n >= 1'000'000'000) return fmt::format("{:.2f} B", value / 1e9);
  if (n >= 1'000'000) return fmt::format("{:.2f} M", value / 1e6);
  return std::to_string(n);
}

/// One line that is rewritten at a terminal; lines now and then elsewhere.
class StepLine {
 public:
  explicit StepLine(bool contexts) : contexts_(contexts) {}
  void show(const StepReport& r) {
    const Clock::time_point now = Clock::now();
    const bool terminal = ::isatty(STDERR_FILENO) != 0, last = r.progress.step == r.steps;
    const auto interval = terminal ? std::chrono::milliseconds(200) : std::chrono::milliseconds(10000);
    if (now - shown_ < interval && !last && !r.evaluated()) return;
    shown_ = now;
    std::string line = fmt::format(
        "step {}/{}  {}loss {:.4f}  smoothed {:.4f}  {:.0f} tokens/s  gradient {:.3f}  lr {:.2e}  {} left  "
        "{}",
        r.progress.step, r.steps, contexts_ ? fmt::format("context {}  ", r.context) : "", r.loss,
        r.smoothed_loss, r.tokens_per_second, r.gradient_norm, r.rate, human_time(r.seconds_left),
        human_bytes(r.peak_bytes));
    const auto percent = [&](const char* what, const std::optional<double>& share) {
      if (share) fmt::format_to(std::back_inserter(line), "  {} {:.0f}%", what, 100 * *share);
    };
    percent("gate hits", r.gate_hits);
    percent("pointing hits", r.pointing_hits);
    percent("answers", r.answers);
    if (r.held_out) fmt::format_to(std::back_inserter(line), "  held out {:.4f}", *r.held_out);
    percent("held-out answers", r.held_out_answers);
    percent("after resets", r.answers_after_reset);
    // Held-out losses stay to be read; at a terminal the rest is overwritten.
    const bool stays = !terminal || r.evaluated() || last;
    fmt::print(stderr, "{}{}{}", terminal ? "\r\033[K" : "", line, stays ? "\n" : "");
    std::fflush(stderr);
  }

 private:
  using Clock = std::chrono::steady_clock;
  bool contexts_;  // they change
  Clock::time_point shown_{};
};

/// The losses of metrics.jsonl as a picture in the run's folder.
void draw_losses(const RunFolder& folder) {
  Series loss{.name = "loss", .x = {}, .y = {}, .error = {}};
  Series smoothed = loss, held_out = loss;
  smoothed.name = "smoothed";
  held_out.name = "held out";
  const std::string text = read_file(folder.metrics_file());
  for (size_t at = 0, end = 0; (end = text.find('\n', at)) != text.npos; at = end + 1) {
    const auto json = nlohmann::json::parse(text.begin() + static_cast<std::ptrdiff_t>(at),
                                            text.begin() + static_cast<std::ptrdiff_t>(end), nullptr, false);
    const auto add = [&](Series& series, const char* key) {
      if (!json.is_object() || !json.contains(key) || !json[key].is_number()) return;
      series.x.push_back(json.value("step", 0.0));
      series.y.push_back(json[key].get<double>());
    };
    add(loss, "loss");
    add(smoothed, "smoothed_loss");
    add(held_out, "held_out_loss");
  }
  if (loss.x.empty()) return;
  LineChart chart;
  chart.title = "Loss";
  chart.subtitle = folder.path().filename().string();
  chart.x.label = "step";
  chart.y.label = "nats per token";
  chart.series = {loss, smoothed};
  if (!held_out.x.empty()) chart.series.push_back(held_out);
  AtomicFile file(folder.path() / "loss.svg");
  file.write(draw(chart));
  file.commit();
}

void run(const TrainFlags& flags) {
  const RunFolder folder(flags.folder);
  TrainConfig config = flags.resume ? folder.config() : TrainConfig();
  if (!flags.file.empty()) read_json(read_file(flags.file, 1 << 20), flags.file, config);
  config = overridden(config, flags.config, flags.given);
  watch_interrupt();
  watch_termination();
  const auto trainer =
      flags.resume ? Trainer::resume(flags.folder, config) : Trainer::start(flags.folder, config);
  const ModelConfig& model = trainer->model();
  const TrainConfig& settled = trainer->config();
  const int64_t all = trainer->parameters(), trained = trainer->trained_parameters();
  fmt::print(stderr, "rwkvx: {} + {} blocks × {} channels, {} parameters{}; {} × {} × {} tokens a step{}\n",
             model.layers, model.sparse_blocks, model.channels, human_count(all),
             trained == all ? "" : fmt::format(", {} of them train", human_count(trained)),
             settled.accumulate, settled.batch, settled.context,
             flags.resume ? fmt::format("; going on behind step {}", trainer->progress().step) : "");
  StepLine line(trainer->phases().size() > 1);
  const Trainer::End end =
      trainer->run([&](const StepReport& r) { line.show(r); }, [] { return interrupted().load(); });
  draw_losses(folder);
  fmt::print(stderr, "{}rwkvx: {}; the model is {}\n", ::isatty(STDERR_FILENO) != 0 ? "\r\033[K" : "",
             end == Trainer::End::finished
                 ? "done"
                 : fmt::format("stopped behind step {}; go on with rwkvx train --resume --out {}",
                               trainer->progress().step, flags.folder),
             (folder.checkpoint(trainer->progress().step) / "model.safetensors").string());
  if (end == Trainer::End::stopped) throw Interrupted();
}

}  // namespace

void add_train(CLI::App& app) {
  auto* command = app.add_subcommand("train", "Train a model: new, or one that exists");
  auto flags = std::make_shared<TrainFlags>();
  command->add_option("--out", flags->folder, "Folder of the run: checkpoints, metrics, configuration")
      ->required();
  command->add_flag("--resume", flags->resume, "Go on from the newest checkpoint in --out");
  command
      ->add_option("--config", flags->file,
                   "JSON file of settings, named as the flags below; flags win over it")
      ->check(CLI::ExistingFile);
  TrainConfig::for_each_setting(
      flags->config, [&](const char* name, auto& member, const char* group, const char* help) {
        const std::string flag = std::string("--") + name;
        CLI::Option* option = nullptr;
        if constexpr (std::is_same_v<std::decay_t<decltype(member)>, bool>) {
          option = command->add_flag(flag, member, help);
        } else {
          option = command->add_option(flag, member, help)->capture_default_str()->take_last();
        }
        option->group(group);
      });
  command->callback([flags, command] {
    flags->given = [&](const char* name) { return command->count(std::string("--") + name) > 0; };
    run(*flags);
  });
}

}  // namespace rwkvx::cli
