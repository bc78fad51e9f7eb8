#include "model/kv_options.h"

#include <algorithm>
#include <array>
#include <charconv>

#include "base/error.h"
#include "tensor/file_allocator.h"

namespace rwkvx {
namespace {

constexpr std::string_view kForms =
    "full, host[:GB], disk[:FOLDER] or bounded[:MAX,WINDOW,MIN[,RULE]], RULE one of both, votes and keys";
constexpr std::array kRules{KvRule::both, KvRule::votes, KvRule::keys};
/// Token numbers inside a bounded store fit float32 and int32.
constexpr int64_t kMostTokens = int64_t{1} << 24;

/// Gigabytes of a GPU.
constexpr double kMostNear = 10'000;

bool parse_whole(std::string_view text, int64_t& number) {
  const char* const last = text.data() + text.size();
  const auto [end, error] = std::from_chars(text.data(), last, number);
  return error == std::errc() && end == last;
}

/// A number of no more than kMostNear, which may be 0.
bool parse_gigabytes(std::string_view text, double& number) {
  const char* const last = text.data() + text.size();
  const auto [end, error] = std::from_chars(text.data(), last, number);
  return error == std::errc() && end == last && number >= 0 && number <= kMostNear;
}

}  // namespace

std::string_view name(KvPolicy policy) {
  switch (policy) {
    case KvPolicy::full:
      return "full";
    case KvPolicy::host:
      return "host";
    case KvPolicy::disk:
      return "disk";
    case KvPolicy::bounded:
      return "bounded";
  }
  return "?";
}

std::string_view name(KvRule rule) {
  switch (rule) {
    case KvRule::both:
      return "both";
    case KvRule::votes:
      return "votes";
    case KvRule::keys:
      return "keys";
  }
  return "?";
}

void KvOptions::check(int64_t chunk_size) const {
  if (part_of(chunk_size) > 0 && chunk_size % part != 0) {
    fail("--select max:{}: the chunk size, {}, is not a multiple of it", part, chunk_size);
  }
  const std::string flag = "--kv " + policy_text();
  if (dtype && *dtype != DType::f32 && *dtype != DType::bf16 && *dtype != DType::i8 && *dtype != DType::f64) {
    fail("keys and values cannot be kept as {} (f32, bf16 or i8)", rwkvx::name(*dtype));
  }
  if (policy == KvPolicy::disk) const FileAllocator can_be_made(disk_folder());
  if (policy != KvPolicy::bounded) return;
  if (window < 1 || max > kMostTokens) {
    fail("{}: the window must be at least 1 token and MAX at most {}", flag, kMostTokens);
  }
  if (min <= window) {
    fail("{}: MIN ({}) must be larger than the window ({}), which always stays", flag, min, window);
  }
  if (max - window < min) {
    fail("{}: MAX ({}) must be at least MIN + WINDOW ({} + {}), so that a whole window of new tokens votes",
         flag, max, min, window);
  }
}

Path KvOptions::disk_folder() const { return folder.empty() ? temporary_folder() : folder; }

std::string KvOptions::policy_text() const {
  switch (policy) {
    case KvPolicy::full:
      return "full";
    case KvPolicy::host:
      return fmt::format("host:{}", near_gb);
    case KvPolicy::disk:
      return folder.empty() ? "disk" : "disk:" + folder.string();
    case KvPolicy::bounded:
      return fmt::format("bounded:{},{},{}{}", max, window, min,
                         rule == KvRule::both ? "" : fmt::format(",{}", name(rule)));
  }
  return "?";
}

std::string KvOptions::selection_text() const {
  switch (selection) {
    case Selection::mean:
      return "mean";
    case Selection::max:
      return fmt::format("max:{}", part);
    case Selection::full:
      return "full";
  }
  return "?";
}

void parse_selection(std::string_view text, KvOptions& options) {
  if (text == "mean") {
    options.selection = Selection::mean;
  } else if (text == "full") {
    options.selection = Selection::full;
  } else if (text == "max") {
    options.selection = Selection::max;
  } else {
    constexpr std::string_view kMax = "max:";
    const std::string_view number = text.substr(std::min(kMax.size(), text.size()));
    if (!text.starts_with(kMax) || !parse_whole(number, options.part) || options.part < 1) {
      fail("--select {}: expected mean, max[:TOKENS] or full", printable(text));
    }
    options.selection = Selection::max;
  }
}

void parse_kv_policy(std::string_view text, KvOptions& options) {
  const size_t colon = text.find(':');
  const std::string_view policy = text.substr(0, colon);
  bool more = colon != std::string_view::npos;
  std::string_view rest = more ? text.substr(colon + 1) : std::string_view();
  const auto wrong = [&]() { fail("--kv {}: expected {}", printable(text), kForms); };
  if (policy == "full" && !more) {
    options.policy = KvPolicy::full;
    return;
  }
  if (policy == "host" && (!more || parse_gigabytes(rest, options.near_gb))) {
    options.policy = KvPolicy::host;
    return;
  }
  if (policy == "disk" && (!more || !rest.empty())) {
    options.policy = KvPolicy::disk;
    options.folder = Path(rest);
    return;
  }
  if (policy != "bounded") wrong();
  options.policy = KvPolicy::bounded;
  if (more) {
    for (int64_t* number : {&options.max, &options.window, &options.min}) {
      if (!more) wrong();
      const size_t comma = rest.find(',');
      if (!parse_whole(rest.substr(0, comma), *number)) wrong();
      more = comma != rest.npos;
      if (more) rest.remove_prefix(comma + 1);
    }
    if (more) {
      const auto rule =
          std::find_if(kRules.begin(), kRules.end(), [&](KvRule one) { return name(one) == rest; });
      if (rule == kRules.end()) wrong();
      options.rule = *rule;
    }
  }
  options.check(options.part);
}

}  // namespace rwkvx
