#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"

namespace rwkvx {

/// A file that grows line by line; each is on its way to the disk when add() returns.
class LineFile {
 public:
  /// Opens for appending. Errors: cannot be opened; another process is writing it.
  explicit LineFile(const Path& path);
  ~LineFile();
  LineFile(const LineFile&) = delete;
  LineFile& operator=(const LineFile&) = delete;
  /// Adds a line break. Errors: cannot be written (a full disk).
  void add(std::string_view line);
  /// Cuts the file to so many bytes.
  void cut(uint64_t size);

 private:
  Path path_;
  int fd_ = -1;
};

/// The results of a long run in a folder, so that an interrupted run goes on where it stopped:
/// `settings.json` says what was run, `results.jsonl` has a line for each finished part. A line that was cut
/// off by a crash is dropped.
class RunFolder {
 public:
  /// Creates the folder, or continues the one that is there. Errors: a folder with other settings (names the
  /// first that differs), or with results but no settings; damaged files; another process writing there.
  RunFolder(const Path& folder, const nlohmann::ordered_json& settings);

  const Path& path() const { return folder_; }
  /// What earlier runs finished, in order, and what add() added.
  const std::vector<nlohmann::ordered_json>& results() const { return results_; }
  void add(nlohmann::ordered_json result);

 private:
  Path folder_;
  LineFile file_;
  std::vector<nlohmann::ordered_json> results_;
};

/// One field of a CSV file (RFC 4180): quoted where it must be, control characters escaped.
std::string csv_field(std::string_view text);

/// JSON text; bytes that are not UTF-8 are replaced.
std::string json_text(const nlohmann::ordered_json& json, int indent = -1);

}  // namespace rwkvx
