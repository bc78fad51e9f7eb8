#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/types.h>

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/file.h"
#include "model/support.h"
#include "model/tensor_file.h"

namespace rwkvx::test {

/// What a run of the program left behind.
struct Result {
  int code = -1;   ///< exit code; -1 when a signal ended it
  int signal = 0;  ///< that signal
  std::string out, err;
};

struct Setting {
  std::string input = {};                     ///< stdin
  std::optional<Path> output = {};            ///< stdout goes here instead of into Result::out
  std::optional<uint64_t> largest_file = {};  ///< bytes; writing more fails, as on a full disk
  std::optional<Path> folder = {};            ///< to run in
  std::optional<Path> program = {};           ///< another copy of it
  std::vector<std::string> environment = {};  ///< NAME=value
};

/// The program in the background. Destroyed while running: killed.
class Program {
 public:
  explicit Program(const std::vector<std::string>& arguments, const Setting& setting = {});
  ~Program();
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  void send(int signal) const;
  /// What stdout has so far.
  std::string output() const;
  /// Waits for the end.
  Result wait();
  bool running();

 private:
  TemporaryFolder folder_;
  pid_t pid_ = -1;
  std::optional<int> status_;
};

/// The program at a terminal of its own, which shows stdout and stderr together.
class Terminal {
 public:
  explicit Terminal(const std::vector<std::string>& arguments);
  ~Terminal();
  Terminal(const Terminal&) = delete;
  Terminal& operator=(const Terminal&) = delete;

  /// Keys; "\x03" is Ctrl-C, "\x04" Ctrl-D, "\x10" Ctrl-P (the line before).
  void type(const std::string& keys) const;
  /// Reads on until what was shown since the last call contains `text`; false when the program ended before.
  bool shows(const std::string& text);
  const std::string& shown() const { return shown_; }
  /// Reads to the end; the exit code, -1 when a signal ended it.
  int wait();

 private:
  bool read_more();
  int screen_ = -1;
  pid_t pid_ = -1;
  bool ended_ = false;
  std::string shown_;
  size_t seen_ = 0;
};

Result run_program(const std::vector<std::string>& arguments, const Setting& setting = {});

/// Exit code 1 (2 for wrong usage), nothing on stdout, one line on stderr that says all of this.
void expect_error(const Result& result, int code, const std::vector<std::string>& parts);

/// A model that follows every byte of `text` with the next one and the last with the first, whatever came
/// before; the bytes must differ from each other. Other bytes are followed by the first.
TensorFile successor_model(const std::string& text);

class ProgramTest : public testing::Test {
 protected:
  std::string file(const std::string& name) const { return (folder_ / name).string(); }
  /// Writes a file and gives its path.
  std::string with(const std::string& name, const std::string& bytes) const;

  const TemporaryFolder folder_;
  const std::string proto_ = models("rwkvx-proto-1.3m.gguf").string();
};

}  // namespace rwkvx::test
