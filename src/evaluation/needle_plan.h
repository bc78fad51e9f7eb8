#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/file.h"
#include "evaluation/haystack.h"
#include "retrieval/needle_task.h"
#include "tokenizer/tokenizer.h"

namespace rwkvx {

/// One prompt: trunk[0, insert_at), needle, trunk[insert_at, end), question.
struct NeedleSample {
  int64_t length = 0;  ///< tokens of the prompt, all included; as asked for, where end_step took some
  double depth = 0;    ///< as asked for; insert_at is where it came to be
  int64_t repeat = 0;
  size_t trunk = 0;  ///< of NeedlePlan::trunks
  int64_t insert_at = 0, end = 0;
  std::vector<TokenId> needle, question;
  std::vector<std::string> answers;  ///< all are expected
};

/// Prompts in a form that shows what they share: a trunk is an intro and a haystack (with the other needles
/// of the task in it), the same for many samples.
struct NeedlePlan {
  std::vector<std::vector<TokenId>> trunks;
  std::vector<NeedleSample> samples;

  std::vector<TokenId> prompt(const NeedleSample& sample) const;
};

struct NeedleGrid {
  std::vector<int64_t> lengths;
  std::vector<double> depths;  ///< fractions
  int64_t repeats = 1;
  uint64_t seed = 0;
  /// Repeat r has r x end_step tokens less of the haystack, so that each question stands behind other words.
  int64_t end_step = 0;
};

/// A sample for every length, depth and repeat. Each is drawn from (seed, task, repeat, depth) alone, so that
/// a grid that grows keeps its samples and that all lengths ask for the same value. Lengths are exact without
/// an end_step; the depth counts in tokens of the haystack, and moves back to the end of a sentence if the
/// task says so. Values and keys differ from each other and do not occur in the haystack. Errors: a length,
/// shortened, below what intro, needles and question take; those of check_needle_task.
NeedlePlan plan_needles(const NeedleTask& task, const NeedleGrid& grid, const Haystack& haystack,
                        const Tokenizer& tokenizer);

/// Prompts of a JSONL file as they are, each a trunk of its own: "prompt" (or RULER's "input", with
/// "answer_prefix" behind it), "answer" (or "outputs", a list), and "depth", a fraction, if known. Errors
/// name the line.
NeedlePlan read_needle_prompts(const Path& file, const Tokenizer& tokenizer);

/// Tokens that a model reads for these samples (indices) when what they share is read once.
int64_t needle_cost(const NeedlePlan& plan, std::span<const size_t> samples);

/// The samples in the order to evaluate them, in groups that share everything up to their needle, needle
/// included; by rising end in each group, by trunk and rising insert_at from group to group.
std::vector<std::vector<size_t>> needle_order(const NeedlePlan& plan, std::span<const size_t> samples);

}  // namespace rwkvx
