#include "training/mixture/fields.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace rwkvx {

int64_t draw(const IntRange& range, Random& random) {
  return range.low + static_cast<int64_t>(random.next() % static_cast<uint64_t>(range.high - range.low + 1));
}

int64_t draw_log(const IntRange& range, Random& random) {
  const auto low = std::log(static_cast<double>(range.low)),
             high = std::log(static_cast<double>(range.high) + 1);
  return std::clamp(static_cast<int64_t>(std::exp(low + (high - low) * random.uniform())), range.low,
                    range.high);
}

Fields::Fields(const Json& json, std::string where) : json_(json), where_(std::move(where)) {
  if (!json.is_object()) fail("{}: a JSON object is needed, not {}", where_, printable(json.dump()));
}

void Fields::refuse(const char* name, const std::string& what) const {
  const auto found = json_.find(name);
  fail("{}: \"{}\" must be {}{}", where_, name, what,
       found == json_.end() ? "; it is missing" : ", not " + printable(found->dump()));
}

const Fields::Json* Fields::any(const char* name) {
  known_.insert(name);
  const auto found = json_.find(name);
  return found == json_.end() ? nullptr : &*found;
}

double Fields::number(const char* name, double otherwise, double low, double high) {
  const Json* json = any(name);
  if (json == nullptr) return otherwise;
  const double value = json->is_number() ? json->get<double>() : std::nan("");
  if (!(value >= low && value <= high)) refuse(name, fmt::format("a number from {:g} to {:g}", low, high));
  return value;
}

int64_t Fields::integer(const char* name, int64_t otherwise, int64_t low, int64_t high) {
  const Json* json = any(name);
  if (json != nullptr && json->is_array())
    refuse(name, fmt::format("a whole number from {} to {}", low, high));
  return range(name, {otherwise, otherwise}, low, high).low;
}

IntRange Fields::range(const char* name, IntRange otherwise, int64_t low, int64_t high) {
  const Json* json = any(name);
  if (json == nullptr) return otherwise;
  // Not through get<int64_t>, which wraps what is larger.
  const auto fits = [&](const Json& j) {
    return j.is_number_integer() && j.get<double>() >= static_cast<double>(low) &&
           j.get<double>() <= static_cast<double>(high);
  };
  if (fits(*json)) return {json->get<int64_t>(), json->get<int64_t>()};
  if (!json->is_array() || json->size() != 2 || !fits((*json)[0]) || !fits((*json)[1]) ||
      (*json)[0].get<int64_t>() > (*json)[1].get<int64_t>()) {
    refuse(name, fmt::format("a whole number from {} to {}, or two of them [least, most]", low, high));
  }
  return {(*json)[0].get<int64_t>(), (*json)[1].get<int64_t>()};
}

ShareRange Fields::shares(const char* name, ShareRange otherwise) {
  const Json* json = any(name);
  if (json == nullptr) return otherwise;
  const auto share = [&](const Json& j) {
    const double value = j.is_number() ? j.get<double>() : std::nan("");
    if (!(value >= 0 && value <= 1)) refuse(name, "a share from 0 to 1, or two of them [least, most]");
    return value;
  };
  if (!json->is_array()) return {share(*json), share(*json)};
  if (json->size() != 2 || share((*json)[0]) > share((*json)[1]))
    refuse(name, "a share from 0 to 1, or two of them [least, most]");
  return {share((*json)[0]), share((*json)[1])};
}

std::string Fields::text(const char* name, const std::string& otherwise) {
  const Json* json = any(name);
  if (json == nullptr) return otherwise;
  if (!json->is_string()) refuse(name, "a text");
  return json->get<std::string>();
}

std::vector<std::string> Fields::texts(const char* name, const std::vector<std::string>& otherwise) {
  const Json* json = any(name);
  if (json == nullptr) return otherwise;
  std::vector<std::string> out;
  if (json->is_array()) {
    for (const Json& one : *json) {
      if (one.is_string()) out.push_back(one.get<std::string>());
    }
  }
  if (out.empty() || out.size() != json->size()) refuse(name, "a list of texts");
  return out;
}

void Fields::finish() const {
  for (const auto& [name, value] : json_.items()) {
    if (known_.contains(name)) continue;
    std::string list;
    for (const std::string& known : known_) list += (list.empty() ? "" : ", ") + known;
    fail("{}: there is no field \"{}\"; there are {}", where_, printable(name), list);
  }
}

}  // namespace rwkvx
