#pragma once

#include <string>

#include "retrieval/needle_task.h"

namespace rwkvx {

/// What the keys of facts are.
enum class FactKeys {
  pairs,   ///< draw_key: "adjective-noun"
  people,  ///< first names
  things,  ///< "pass key", "door code", …
};
std::string draw_fact_key(FactKeys keys, Random& random);
/// How many keys there are.
int64_t fact_key_count(FactKeys keys);

/// A way to state facts with a key and a value, and to ask for the value. The evaluation's words
/// (needle_task.h) are others; passkey_style() has those of the pass key, with other things beside it.
struct FactStyle {
  NeedleText text;
  FactKeys keys = FactKeys::pairs;
};
FactStyle draw_fact_style(Random& random);

/// The words of a task without {key} such as "passkey", with the thing that it hides as {key}: one text can
/// then hold several.
FactStyle passkey_style(const NeedleText& text);
inline constexpr const char* kPassKey = "pass key";  ///< the key that the task itself asks for

}  // namespace rwkvx
