#pragma once

#include <string_view>

namespace rwkvx {

/// Whether a sentence ends with this token or text: . ! or ?, and behind it at most quotes, ) and space.
bool ends_sentence(std::string_view text);

}  // namespace rwkvx
