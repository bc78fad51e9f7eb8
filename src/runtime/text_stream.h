#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace rwkvx {

/// Turns the bytes of one token after the other into text that can be shown at once. A UTF-8 character comes
/// out whole or not yet (tokens may be lone bytes of one); bytes that no character can have pass through as
/// they are. Text ends before the first stop string, no part of which is ever shown. What comes out does not
/// depend on how the bytes were split into tokens.
class TextStream {
 public:
  /// Stop strings match on bytes and across tokens. The one that ends first wins, of those that end together
  /// the longest. Errors: an empty stop string (UsageError, names --stop).
  explicit TextStream(std::vector<std::string> stops = {});

  struct Piece {
    std::string text;      ///< to be shown now
    bool stopped = false;  ///< a stop string came: nothing more will be shown
  };
  /// Must not be called after it stopped.
  Piece feed(std::string_view bytes);
  /// The end of the text: what was held back as the possible beginning of a character or a stop string.
  std::string finish();
  bool stopped() const { return stopped_; }

 private:
  std::vector<std::string> stops_;
  std::string held_;  ///< fed and not yet shown
  bool stopped_ = false;
};

/// How many bytes at the end of `bytes` are the beginning of a UTF-8 character that more bytes could
/// complete: 0 to 3 (Unicode 15, table 3-7).
size_t incomplete_utf8_tail(std::string_view bytes);

}  // namespace rwkvx
