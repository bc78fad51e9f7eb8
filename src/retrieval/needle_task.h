#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/random.h"

namespace rwkvx {

/// What is put around and into the haystack; {key} and {value} are replaced. A prompt is intro, haystack with
/// needles in it, question.
struct NeedleText {
  std::string intro, needle, question;
};

enum class NeedleValue {
  digits5,  ///< of pass keys: 00000 to 99999
  number7,  ///< 1000000 to 9999999
  uuid,     ///< version 4
};

/// A retrieval task.
struct NeedleTask {
  std::string name;
  NeedleText text;
  NeedleValue value = NeedleValue::digits5;
  std::string noise_separator = " ";  ///< of the built-in haystack
  bool between_sentences = true;      ///< needles move back to the end of a sentence
  int64_t distractors = 0;            ///< other keys, each with a value
  int64_t values = 1;                 ///< of the key that is asked for; all are expected
};

/// "passkey": the pass key task of Landmark Attention, LongLoRA and RWKV-X (arXiv 2305.16300, 2309.12307).
/// "passkey-bare": its two sentences alone, at the very token that the depth says.
/// "niah-1", "niah-2", "niah-3": RULER's single needles (arXiv 2404.06654): numbers, numbers and UUIDs; RULER
/// takes noise for the first and essays for the others. "multi-key": RULER's first of that name, three other
/// keys. "multi-value": four values of one key.
/// Errors: UsageError for another name, listing these.
NeedleTask needle_task(std::string_view name);
std::vector<std::string> needle_task_names();

/// Errors: UsageError for a needle text without {value}; without {key} in needle and question where several
/// keys are in the text; values or distractors out of range.
void check_needle_task(const NeedleTask& task);

std::string draw_value(NeedleValue kind, Random& random);
/// "adjective-noun", one of kNeedleKeys.
std::string draw_key(Random& random);
inline constexpr int64_t kNeedleKeys = 48 * 48;
/// One of the two words of `key`, which draw_key gave, with another draw beside it: what half a reading takes
/// for `key`.
std::string draw_similar_key(std::string_view key, Random& random);
/// A key beside `others`, whose keys are `key_of` them: with probability `similar` like one of these.
template <typename Others, typename KeyOf>
std::string draw_key_beside(const Others& others, KeyOf key_of, double similar, Random& random) {
  if (others.empty() || similar == 0 || random.uniform() >= similar) return draw_key(random);
  return draw_similar_key(std::invoke(key_of, others[random.next() % others.size()]), random);
}

/// The repeated noise of the pass key task (Mohtashami and Jaggi 2023, "Landmark Attention"): once, with
/// `separator` behind it. RULER puts each repetition on a line of its own.
std::string noise_text(std::string_view separator);

/// Replaces {key} and {value}.
std::string fill_in(std::string_view text, std::string_view key, std::string_view value);

}  // namespace rwkvx
