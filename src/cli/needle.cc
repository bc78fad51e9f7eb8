#include <chrono>
#include <optional>

#include "base/error.h"
#include "base/hash.h"
#include "cli/options.h"
#include "cli/run_settings.h"
#include "cli/terminal.h"
#include "drawing/picture.h"
#include "evaluation/grid.h"
#include "evaluation/needle_report.h"
#include "evaluation/run_folder.h"

namespace rwkvx::cli {
namespace {

struct NeedleOptions {
  RunOptions run;
  std::string task = "passkey", lengths = "1k..16k", depths = "5";
  std::optional<std::string> intro, needle, question;
  std::optional<int64_t> distractors, values;
  NeedleGrid grid{.lengths = {}, .depths = {}, .repeats = 4, .seed = 0};
  std::vector<std::string> haystack;
  std::string prompts, write_prompts, out, picture;
  bool json = false;
};

NeedleTask task_of(const NeedleOptions& o) {
  NeedleTask task = needle_task(o.task);
  if (o.intro) task.text.intro = *o.intro;
  if (o.needle) task.text.needle = *o.needle;
  if (o.question) task.text.question = *o.question;
  if (o.distractors) task.distractors = *o.distractors;
  if (o.values) task.values = *o.values;
  check_needle_task(task);
  return task;
}

std::string hash_of(std::string_view text) {
  return fmt::format("{:016x}", hash64(std::as_bytes(std::span(text))));
}

/// Prompts, and of what they were made.
struct Prompts {
  NeedlePlan plan;
  nlohmann::ordered_json settings;
  std::string name;  ///< for the picture
};

Prompts make_prompts(const NeedleOptions& o, const NeedleTask& task, const NeedleGrid& grid,
                     const Tokenizer& tokenizer) {
  if (!o.prompts.empty()) {
    return {
        read_needle_prompts(o.prompts, tokenizer),
        {{"prompts", Path(o.prompts).filename().string()}, {"prompts_hash", hash_of(read_file(o.prompts))}},
        Path(o.prompts).filename().string()};
  }
  std::string name = "noise", text = noise_text(task.noise_separator);
  if (!o.haystack.empty()) {
    const std::vector<Path> paths(o.haystack.begin(), o.haystack.end());
    text = read_texts(paths);
    name = paths.front().filename().string() + (paths.size() > 1 ? ", ..." : "");
    if (name.empty()) name = paths.front().string();
  }
  const Haystack haystack(name, std::move(text), grid.lengths.back(), tokenizer);
  nlohmann::ordered_json settings = {{"task", task.name},
                                     {"intro", task.text.intro},
                                     {"needle", task.text.needle},
                                     {"question", task.text.question},
                                     {"distractors", task.distractors},
                                     {"values", task.values},
                                     {"haystack", haystack.name},
                                     {"haystack_hash", hash_of(haystack.text)},
                                     {"seed", grid.seed}};
  // Left out where it is not used: folders of results without it can be gone on with.
  if (grid.end_step != 0) settings["end_step"] = grid.end_step;
  return {plan_needles(task, grid, haystack, tokenizer), std::move(settings),
          fmt::format("{} in {}", task.name, haystack.name)};
}

void write_prompts(const std::string& file, const NeedlePlan& plan, const Tokenizer& tokenizer) {
  AtomicFile out(file);
  for (const NeedleSample& s : plan.samples) {
    nlohmann::ordered_json line = {{"length", s.length}, {"depth", s.depth}, {"position", s.insert_at}};
    line["prompt"] = tokenizer.decode(plan.prompt(s));
    if (s.answers.size() == 1) {
      line["answer"] = s.answers[0];
    } else {
      line["outputs"] = s.answers;
    }
    out.write(json_text(line) + "\n");
  }
  out.commit();
}

/// Keeps the results, on disk too where there is a folder.
class Results {
 public:
  Results(const std::string& folder, const nlohmann::ordered_json& settings, const NeedlePlan& plan)
      : plan_(plan) {
    if (!folder.empty()) folder_.emplace(folder, settings);
    for (const auto& json : folder_ ? folder_->results() : std::vector<nlohmann::ordered_json>()) {
      before_.push_back(needle_record(json, (folder_->path() / "results.jsonl").string()));
    }
    for (size_t i = 0; i < plan.samples.size(); ++i) {
      const auto found = std::find_if(before_.begin(), before_.end(),
                                      [&](const NeedleRecord& r) { return r.same_sample(plan.samples[i]); });
      if (found == before_.end()) {
        missing_.push_back(i);
      } else {
        records_.push_back(*found);
      }
    }
    if (!folder_) return;
    const Path csv = folder_->path() / "results.csv";
    AtomicFile file(csv);
    file.write(needle_csv_header() + "\n");
    for (const NeedleRecord& r : before_) file.write(needle_csv(r) + "\n");
    file.commit();
    csv_.emplace(csv);
  }

  const std::vector<size_t>& missing() const { return missing_; }
  const std::vector<NeedleRecord>& records() const { return records_; }
  size_t found() const { return plan_.samples.size() - missing_.size(); }

  void add(const NeedleResult& result) {
    records_.push_back(needle_record(plan_, result));
    if (folder_) folder_->add(to_json(records_.back()));
    if (csv_) csv_->add(needle_csv(records_.back()));
  }

 private:
  const NeedlePlan& plan_;
  std::optional<RunFolder> folder_;
  std::optional<LineFile> csv_;
  std::vector<NeedleRecord> before_, records_;
  std::vector<size_t> missing_;
};

void draw_pictures(const NeedleOptions& o, const NeedleTable& table, const std::string& name,
                   const Model& model) {
  Heatmap map = table.heatmap();
  map.title = fmt::format("{}, {}", Path(o.run.model).filename().string(), name);
  map.subtitle = fmt::format("{} prompts, {:.1f}% right; {}", table.all.samples, 100 * table.all.accuracy(),
                             attention_label(model));
  const std::string svg = draw(map);
  if (!o.picture.empty()) write_picture(o.picture, svg);
  if (o.out.empty()) return;
  write_picture(Path(o.out) / "heatmap.svg", svg);
  if (png_available()) write_picture(Path(o.out) / "heatmap.png", svg);
}

void run(const NeedleOptions& o) {
  const NeedleTask task = task_of(o);
  NeedleGrid grid = o.grid;
  grid.lengths = parse_lengths(o.lengths);
  grid.depths = parse_depths(o.depths);
  check_picture_name(o.picture);
  if (!o.write_prompts.empty()) check_writable(o.write_prompts);

  const auto model = load_model(o.run.model_options());
  const auto tokenizer = load_tokenizer(model->checkpoint(), o.run.vocabulary_path());
  const Prompts prompts = make_prompts(o, task, grid, *tokenizer);
  if (!o.write_prompts.empty()) write_prompts(o.write_prompts, prompts.plan, *tokenizer);

  nlohmann::ordered_json settings = run_settings(o.run, *model, *tokenizer);
  settings.update(prompts.settings);
  Results results(o.out, settings, prompts.plan);
  const int64_t tokens = needle_cost(prompts.plan, results.missing());
  if (results.found() > 0) {
    fmt::print(stderr, "rwkvx: {} of {} prompts are answered already in {}\n", results.found(),
               prompts.plan.samples.size(), o.out);
  }

  watch_interrupt();
  ProgressBar bar("needle", "tokens");
  const auto start = std::chrono::steady_clock::now();
  try {
    run_needles(
        model, *tokenizer, prompts.plan, results.missing(),
        [&](const NeedleResult& result) { results.add(result); }, bar.callback());
  } catch (const Interrupted&) {
    bar.clear();
    if (!o.out.empty()) {
      fmt::print(stderr, "rwkvx: {} of {} prompts are answered; the same command goes on from there\n",
                 results.records().size(), prompts.plan.samples.size());
    }
    throw;
  }
  bar.clear();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();

  const NeedleTable table(results.records());
  draw_pictures(o, table, prompts.name, *model);
  if (o.json) {
    nlohmann::ordered_json out = table.json();
    out["settings"] = settings;
    out["tokens_read"] = tokens;
    out["seconds"] = seconds;
    out["peak_memory_bytes"] = peak_resident_bytes();
    print(json_text(out, 2) + "\n");
  } else {
    print(fmt::format("{}{}: {:.1f}% of {} prompts\n", table.text(), prompts.name, 100 * table.all.accuracy(),
                      table.all.samples));
    fmt::print(stderr, "rwkvx: read {} tokens in {:.1f} s, {:.0f} tokens/s; memory {} at most\n", tokens,
               seconds, seconds > 0 ? static_cast<double>(tokens) / seconds : 0,
               human_bytes(peak_resident_bytes()));
  }
}

}  // namespace

void add_needle(CLI::App& app) {
  auto* command = app.add_subcommand("needle", "Measure what a model finds again in long contexts");
  auto o = std::make_shared<NeedleOptions>();
  add_model_argument(*command, o->run);
  command->add_option("--task", o->task, "What is hidden and asked for")
      ->check(CLI::IsMember(needle_task_names()))
      ->capture_default_str();
  command
      ->add_option("--lengths", o->lengths,
                   "Context lengths in tokens: a list, with ranges that double (1k..1m)")
      ->capture_default_str();
  command
      ->add_option("--depths", o->depths,
                   "Depths of the needle: percentages (0,25,50 or 50%), or how many evenly spaced ones (11)")
      ->capture_default_str();
  command->add_option("--repeats", o->grid.repeats, "Prompts for each length and depth")
      ->check(CLI::Range(int64_t{1}, int64_t{1000000}))
      ->capture_default_str();
  command->add_option("--seed", o->grid.seed, "Draws keys and values; the same seed gives the same prompts")
      ->capture_default_str();
  command
      ->add_option(
          "--end-step", o->grid.end_step,
          "Tokens that each repeat's text ends earlier than the one before, so that its question stands "
          "behind other words")
      ->check(CLI::Range(int64_t{0}, int64_t{1000000}))
      ->capture_default_str();
  command->add_option("--haystack", o->haystack, "Text files or folders to hide in (default: repeated noise)")
      ->allow_extra_args(false);
  command->add_option("--intro", o->intro, "Words before the haystack, instead of the task's");
  command->add_option("--needle", o->needle, "What is hidden, with {value} and perhaps {key}");
  command->add_option("--question", o->question, "What is asked at the end, perhaps with {key}");
  command->add_option("--distractors", o->distractors, "Other keys with values in the text (multi-key: 3)");
  command->add_option("--values", o->values, "Values of the key that is asked for (multi-value: 4)");
  auto* prompts =
      command->add_option("--prompts", o->prompts, "A JSONL file of prompts and answers instead of a task");
  for (const char* other : {"--task", "--lengths", "--depths", "--repeats", "--seed", "--end-step",
                            "--haystack", "--intro", "--needle", "--question", "--distractors", "--values"}) {
    prompts->excludes(other);
  }
  command->add_option("--write-prompts", o->write_prompts, "Write the prompts to a JSONL file as well");
  command->add_option("--out", o->out,
                      "Folder for results.csv, results.jsonl and heatmap.svg; a run that stopped goes on");
  command->add_option("--picture", o->picture, "Heat map to write, .svg or .png");
  command->add_flag("--json", o->json, "Print one JSON object with the accuracy and the cells");
  add_run_options(*command, o->run, "bf16");
  add_vocabulary_option(*command, o->run);
  command->callback([o] { run(*o); });
}

}  // namespace rwkvx::cli
