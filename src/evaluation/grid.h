#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace rwkvx {

/// "4096", "64k", "1.5m": k is 1024, m 1024². Errors: UsageError that names `flag` for anything else, zero,
/// or more than 2^40.
int64_t parse_count(std::string_view text, std::string_view flag);

/// Context lengths in tokens, rising, each once: a list of counts and ranges that double, "1k..64k,100k". A
/// range ends with its upper end, also when doubling does not meet it. Errors: UsageError.
std::vector<int64_t> parse_lengths(std::string_view text);

/// Depths as fractions from 0 (begin of the haystack) to 1 (its end), rising, each once: a list in percent
/// ("0,12.5,50", "50%"), or a number of evenly spaced ones from 0 to 1 ("11"). Errors: UsageError.
std::vector<double> parse_depths(std::string_view text);

/// "64K", "100000": a length for labels, short where that is exact.
std::string length_label(int64_t length);
/// "8.33%"
std::string depth_label(double depth);

}  // namespace rwkvx
