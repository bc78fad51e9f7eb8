#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace rwkvx {

/// The text of a World vocabulary file, lines of `id literal length`, as the bytes of each token by id; ids
/// that have no line are empty. Ids rise from 1 on (0 is the end of a document) and may leave gaps. `file` is
/// for the messages. Errors name the file and the line.
std::vector<std::string> parse_world_vocabulary(std::string_view text, std::string_view file);

}  // namespace rwkvx
