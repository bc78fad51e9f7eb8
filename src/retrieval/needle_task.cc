#include "retrieval/needle_task.h"

#include <fmt/format.h>

#include <array>

#include "base/error.h"

namespace rwkvx {
namespace {

constexpr size_t kWords = 48;
static_assert(kNeedleKeys == kWords * kWords);
constexpr std::array<std::string_view, kWords> kAdjectives{
    "amber",  "ancient", "bitter", "blind",  "bold",   "brave",  "bright", "brisk",  "broken", "calm",
    "clever", "cold",    "crisp",  "curly",  "deep",   "eager",  "early",  "empty",  "faint",  "fancy",
    "fierce", "frozen",  "gentle", "golden", "happy",  "hidden", "hollow", "humble", "icy",    "jolly",
    "keen",   "late",    "lively", "lonely", "mellow", "narrow", "noble",  "odd",    "pale",   "plain",
    "proud",  "quiet",   "rapid",  "rusty",  "silent", "stormy", "tender", "wild"};
constexpr std::array<std::string_view, kWords> kNouns{
    "anchor",  "apple",  "badger",  "barrel", "basket", "beacon",  "bridge",  "button", "candle",  "canyon",
    "carpet",  "castle", "cellar",  "cherry", "clock",  "comet",   "copper",  "crow",   "dolphin", "drum",
    "engine",  "falcon", "feather", "forest", "garden", "glacier", "hammer",  "harbor", "island",  "ladder",
    "lantern", "lemon",  "marble",  "meadow", "mirror", "needle",  "orchard", "paper",  "pepper",  "piano",
    "pocket",  "river",  "saddle",  "shadow", "tunnel", "turtle",  "walnut",  "window"};

/// RULER's words for one or several values.
NeedleText ruler_text(std::string_view what, bool several) {
  if (several) {
    return {
        fmt::format(
            "Some special magic {0}s are hidden within the following text. Make sure to memorize it. I "
            "will quiz you about the {0}s afterwards.\n",
            what),
        fmt::format(" One of the special magic {}s for {{key}} is: {{value}}.", what),
        fmt::format("\nWhat are all the special magic {0}s for {{key}} mentioned in the provided text? The "
                    "special magic {0}s for {{key}} mentioned in the provided text are",
                    what)};
  }
  return {
      fmt::format(
          "A special magic {0} is hidden within the following text. Make sure to memorize it. I will quiz "
          "you about the {0} afterwards.\n",
          what),
      fmt::format(" One of the special magic {}s for {{key}} is: {{value}}.", what),
      fmt::format(
          "\nWhat is the special magic {0} for {{key}} mentioned in the provided text? The special magic "
          "{0} for {{key}} mentioned in the provided text is",
          what)};
}

std::vector<NeedleTask> all_tasks() {
  NeedleTask passkey;
  passkey.name = "passkey";
  passkey.text = {
      "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. I will "
      "quiz you "
      "about the important information there. ",
      " The pass key is {value}. Remember it. {value} is the pass key.",
      " What is the pass key? The pass key is"};

  NeedleTask bare = passkey;
  bare.name = "passkey-bare";
  bare.text = {"", " The pass key is {value}. Remember it. {value} is the pass key. ",
               " What is the pass key? The pass key is "};
  bare.between_sentences = false;

  NeedleTask single;
  single.noise_separator = "\n";
  single.value = NeedleValue::number7;
  single.text = ruler_text("number", false);
  NeedleTask first = single, second = single, third = single, keys = single, values = single;
  first.name = "niah-1";
  second.name = "niah-2";
  third.name = "niah-3";
  third.value = NeedleValue::uuid;
  third.text = ruler_text("uuid", false);
  keys.name = "multi-key";
  keys.distractors = 3;
  values.name = "multi-value";
  values.values = 4;
  values.text = ruler_text("number", true);
  return {passkey, bare, first, second, third, keys, values};
}

std::string_view pick(const std::array<std::string_view, kWords>& words, Random& random) {
  return words[random.next() % kWords];
}

}  // namespace

std::vector<std::string> needle_task_names() {
  std::vector<std::string> names;
  for (const NeedleTask& task : all_tasks()) names.push_back(task.name);
  return names;
}

NeedleTask needle_task(std::string_view name) {
  for (NeedleTask& task : all_tasks()) {
    if (task.name == name) return std::move(task);
  }
  throw UsageError(fmt::format("there is no task '{}'; there are {}", printable(name),
                               fmt::join(needle_task_names(), ", ")));
}

void check_needle_task(const NeedleTask& task) {
  const auto has = [](const std::string& text, const char* what) { return text.find(what) != text.npos; };
  if (!has(task.text.needle, "{value}")) {
    throw UsageError("--needle: the text needs {value}, where the hidden value is put");
  }
  if (has(task.text.intro, "{value}") || has(task.text.question, "{value}") ||
      has(task.text.intro, "{key}")) {
    throw UsageError(
        "--intro and --question must not contain {value}, nor --intro {key}: they would give it away");
  }
  if (task.distractors < 0 || task.distractors > kNeedleKeys / 4) {
    throw UsageError(
        fmt::format("--distractors must be from 0 to {}, not {}", kNeedleKeys / 4, task.distractors));
  }
  if (task.values < 1 || task.values > 1000) {
    throw UsageError(fmt::format("--values must be from 1 to 1000, not {}", task.values));
  }
  if (task.distractors > 0 && (!has(task.text.needle, "{key}") || !has(task.text.question, "{key}"))) {
    throw UsageError(fmt::format(
        "task {}: with distractors, needle and question need {{key}}, or nobody can know which is meant",
        task.name));
  }
}

std::string draw_value(NeedleValue kind, Random& random) {
  switch (kind) {
    case NeedleValue::digits5:
      return fmt::format("{:05}", random.next() % 100000);
    case NeedleValue::number7:
      return fmt::format("{}", 1000000 + random.next() % 9000000);
    case NeedleValue::uuid: {
      const uint64_t a = random.next(), b = random.next();
      return fmt::format("{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}", a >> 32, a >> 16 & 0xffff, a & 0xfff,
                         (b >> 48 & 0x3fff) | 0x8000, b & 0xffffffffffff);
    }
  }
  return "";
}

std::string draw_key(Random& random) {
  const std::string_view adjective = pick(kAdjectives, random);  // drawn first
  return fmt::format("{}-{}", adjective, pick(kNouns, random));
}

std::string draw_similar_key(std::string_view key, Random& random) {
  const size_t dash = key.find('-');
  if (random.next() % 2 == 0) return fmt::format("{}-{}", key.substr(0, dash), pick(kNouns, random));
  return fmt::format("{}-{}", pick(kAdjectives, random), key.substr(dash + 1));
}

std::string noise_text(std::string_view separator) {
  return "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again." +
         std::string(separator);
}

std::string fill_in(std::string_view text, std::string_view key, std::string_view value) {
  std::string out;
  while (!text.empty()) {
    if (text.starts_with("{key}")) {
      out += key;
      text.remove_prefix(5);
    } else if (text.starts_with("{value}")) {
      out += value;
      text.remove_prefix(7);
    } else {
      out += text.front();
      text.remove_prefix(1);
    }
  }
  return out;
}

}  // namespace rwkvx
