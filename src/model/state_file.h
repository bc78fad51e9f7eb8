#pragma once

#include <string>
#include <string_view>

#include "base/file.h"
#include "model/state.h"

namespace rwkvx {

/// Saved states. The file: 8 bytes of magic, a length and a JSON header, the recurrent part, the used rows of
/// every KV page with its key sums, and the XXH3 of all that. docs/formats.md has the layout.
///
/// `fingerprint` binds the file to its model (LoadedWeights::fingerprint). `extra` is the caller's: any JSON
/// text.
void save_state(const Path& path, const State& state, uint64_t fingerprint, std::string_view extra);

/// Replaces `state` and returns `extra`. A state saved in another precision, or with keys and
/// values of another type, is converted. Errors: not a state file, damaged, of another model or chunk size,
/// with other bounds, too long for `state`'s; `state` is then untouched.
std::string load_state(const Path& path, State& state, uint64_t fingerprint);

}  // namespace rwkvx
