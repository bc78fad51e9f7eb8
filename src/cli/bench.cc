#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "cli/options.h"
#include "cli/terminal.h"
#include "evaluation/grid.h"
#include "evaluation/long_speed.h"
#include "evaluation/machine_speed.h"

namespace rwkvx::cli {
namespace {

constexpr int64_t kPrefill = 512;

struct BenchOptions {
  RunOptions run;
  bool long_context = false, json = false;
  std::string lengths = "1k..128k";
  int64_t decode = 128, context = 0;
  int64_t prefill = 0;  // 0: not said
  std::vector<std::string> states;
  int64_t rounds = 5, batch = 1;
};

nlohmann::ordered_json to_json(const LongSpeed& s, const ModelConfig& config, const MachineSpeed& machine) {
  const double seconds = s.decode_quantile(0.5) / 1e3;
  const auto batch = static_cast<double>(s.batch);
  const double read =
      1e-9 *
      (static_cast<double>(s.weight_bytes) + batch * static_cast<double>(s.selected_bytes + s.state_bytes)) /
      seconds;
  const double prefill = s.prefilled > 0 ? s.prefill_tokens_per_second() : 0;
  // Half a chunk of the own one on average, and the earlier ones that there are.
  const auto chunk = static_cast<double>(config.chunk_size), context = static_cast<double>(s.context);
  const double most = (static_cast<double>(config.top_k) - 0.5) * chunk;
  const double read_to = std::min(static_cast<double>(s.prefilled), context);
  const double operations = 1e-9 * prefill * operations_per_token(config, std::min(read_to / 2, most), false);
  const double decode_operations =
      1e-9 * batch / seconds * operations_per_token(config, std::min(context, most), true);
  return {{"context", s.context},
          {"prefill_tokens", s.prefilled},
          {"prefill_tokens_per_second", prefill},
          {"prefill_gigaflops_per_second", operations},
          {"prefill_fraction_of_machine", operations / machine.product_gigaflops_per_second},
          {"batch", s.batch},
          {"decode_tokens", s.decode_ms.size()},
          {"decode_tokens_per_second", batch / seconds},
          {"decode_ms_median", s.decode_quantile(0.5)},
          {"decode_ms_p99", s.decode_quantile(0.99)},
          {"decode_ms_worst", s.decode_quantile(1)},
          {"decode_gigabytes_per_second", read},
          {"decode_fraction_of_machine", read / machine.read_gigabytes_per_second},
          {"decode_gigaflops_per_second", decode_operations},
          {"weight_bytes", s.weight_bytes},
          {"state_bytes", s.state_bytes},
          {"selected_kv_bytes", s.selected_bytes},
          {"resident_bytes", s.resident_bytes},
          {"kv_bytes", s.kv_bytes},
          {"kv_file_bytes", s.file_bytes}};
}

void run(const BenchOptions& o) {
  // Reading up to a context says how fast it is read, unless something else is asked for.
  const bool reads_up = o.long_context || (o.context > 0 && o.states.empty());
  const int64_t prefill = o.prefill > 0 || reads_up ? o.prefill : kPrefill;
  const std::vector<int64_t> lengths =
      o.long_context ? parse_lengths(o.lengths) : std::vector<int64_t>{o.context > 0 ? o.context : prefill};
  const auto model = load_model(o.run.model_options());
  std::vector<Session> states;
  for (const std::string& path : o.states) states.emplace_back(model).load(path);
  const KvOptions& kv = model->kv_options();
  const MachineSpeed machine = measure_machine(model->ops());
  nlohmann::ordered_json out = {
      {"model", o.run.model},
      {"backend", model->ops().name()},
      {"hardware", model->ops().hardware()},
      {"precision", name(model->ops().precision())},
      {"threads", model->ops().threads()},
      {"machine_read_gigabytes_per_second", machine.read_gigabytes_per_second},
      {"machine_product_gigaflops_per_second", machine.product_gigaflops_per_second},
      {"chunk_size", model->config().chunk_size},
      {"chunk_top_k", model->config().top_k},
      {"kv", kv.policy_text()},
      {"kv_dtype", kv.dtype ? name(*kv.dtype) : "none"},
      {"select", kv.selection_text()}};
  watch_interrupt();
  ProgressBar bar("prefill", "tokens");
  if (!o.json) {
    const std::string stored = kv.dtype ? fmt::format(", {} keys and values", name(*kv.dtype)) : "";
    print(fmt::format("{}, --kv {} --select {}{}, {} on {} ({}), {} threads, {}\n",
                      Path(o.run.model).filename().string(), kv.policy_text(), kv.selection_text(), stored,
                      name(model->ops().precision()), model->ops().name(), model->ops().hardware(),
                      model->ops().threads(),
                      o.batch > 1 ? fmt::format("batches of {}", o.batch) : "one sequence"));
    print(fmt::format("this machine now: reads {:.1f} GB/s, multiplies matrices at {:.0f} GFLOP/s\n",
                      machine.read_gigabytes_per_second, machine.product_gigaflops_per_second));
    print(fmt::format("{:>9} {:>12} {:>8} {:>6} {:>10} {:>10} {:>8} {:>8} {:>7} {:>6} {:>10} {:>10} {:>10}\n",
                      "context", "prefill t/s", "GFLOP/s", "of max", "decode t/s", "ms", "p99", "worst",
                      "GB/s", "of max", "resident", "KV", "on disk"));
  }
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  const auto show = [&](const LongSpeed& s) {
    const nlohmann::ordered_json row = to_json(s, model->config(), machine);
    rows.push_back(row);
    bar.clear();
    if (o.json) return;
    print(fmt::format(
        "{:>9} {:>12.1f} {:>8.0f} {:>5.0f}% {:>10.1f} {:>10.3f} {:>8.3f} {:>8.3f} {:>7.1f} {:>5.0f}% {:>10} "
        "{:>10} {:>10}\n",
        length_label(s.context), row["prefill_tokens_per_second"].get<double>(),
        row["prefill_gigaflops_per_second"].get<double>(),
        100 * row["prefill_fraction_of_machine"].get<double>(), row["decode_tokens_per_second"].get<double>(),
        s.decode_quantile(0.5), s.decode_quantile(0.99), s.decode_quantile(1),
        row["decode_gigabytes_per_second"].get<double>(),
        100 * row["decode_fraction_of_machine"].get<double>(), human_bytes(s.resident_bytes),
        human_bytes(s.kv_bytes), human_bytes(s.file_bytes)));
  };
  bool stopped = false;
  try {
    if (o.states.empty()) {
      measure_long_speed(model, lengths, {o.decode, o.batch, prefill}, show, bar.callback());
    } else {
      ProgressBar turns("measure", "turns");
      const std::vector<LongSpeed> speeds =
          measure_in_turn(model, states, {prefill, o.decode, o.rounds}, turns.callback());
      turns.clear();
      for (const LongSpeed& speed : speeds) show(speed);
    }
  } catch (const Interrupted&) {
    stopped = true;  // what was measured is printed
  }
  bar.clear();
  if (o.json) {
    if (o.long_context || !o.states.empty()) {
      out["lengths"] = rows;
    } else if (!rows.empty()) {
      out.update(rows[0]);
    }
    print(out.dump(2) + "\n");
  }
  if (stopped) throw Interrupted{};
}

CLI::Option* add_count(CLI::App& command, const std::string& flag, const std::string& help, int64_t& to) {
  return command.add_option_function<std::string>(
      flag, [&to, flag](const std::string& text) { to = parse_count(text, flag); }, help);
}

}  // namespace

void add_bench(CLI::App& app) {
  auto* command = app.add_subcommand(
      "bench", "Measure speed and memory with random tokens: prefill, then decoding token by token");
  auto o = std::make_shared<BenchOptions>();
  add_model_argument(*command, o->run);
  auto* table = command->add_flag("--long", o->long_context, "A table over context lengths");
  command->add_option("--lengths", o->lengths, "Of --long: a list, or a doubling range such as 1k..1m")
      ->capture_default_str();
  add_count(*command, "--prefill",
            "Tokens to read from an empty state, for the speed of reading (512; with --context as many, and "
            "with --long as there are between the lengths)",
            o->prefill)
      ->excludes(table);
  add_count(*command, "--context", "Decode after so many tokens (default: after --prefill)", o->context)
      ->excludes(table);
  add_count(*command, "--decode", "Tokens to decode, at each length (128)", o->decode);
  auto* states = command->add_option("--states", o->states,
                                     "Go on from saved states (--state-out of generate), which take turns, "
                                     "instead of reading from the beginning");
  states->excludes(table);
  command->add_option("--rounds", o->rounds, "Turns of each of --states")
      ->check(CLI::Range(int64_t{1}, int64_t{1000}))
      ->needs(states)
      ->capture_default_str();
  command->add_option("--batch", o->batch, "Sequences decoded together, of the same context")
      ->check(CLI::Range(int64_t{1}, int64_t{4096}))
      ->excludes(states)
      ->capture_default_str();
  command->add_flag("--json", o->json, "Print one JSON object");
  add_run_options(*command, o->run, "bf16");
  command->callback([o] { run(*o); });
}

}  // namespace rwkvx::cli
