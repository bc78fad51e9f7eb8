#include "retrieval/sentence.h"

namespace rwkvx {

bool ends_sentence(std::string_view text) {
  const size_t last = text.find_last_not_of(" \t\r\n\"')");
  return last != text.npos && (text[last] == '.' || text[last] == '!' || text[last] == '?');
}

}  // namespace rwkvx
