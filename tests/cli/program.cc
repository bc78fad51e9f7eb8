#include "cli/program.h"

#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <fstream>
#include <random>

#include "base/error.h"

namespace rwkvx::test {

Program::Program(const std::vector<std::string>& arguments, const Setting& setting) {
  std::ofstream(folder_ / "in", std::ios::binary) << setting.input;
  const std::string in = (folder_ / "in").string(), err = (folder_ / "err").string(),
                    out = setting.output ? setting.output->string() : (folder_ / "out").string();
  std::vector<std::string> words{setting.program ? setting.program->string() : RWKVX_PROGRAM};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  pid_ = ::fork();
  if (pid_ < 0) fail("cannot fork: {}", std::strerror(errno));
  if (pid_ > 0) return;

  // The child: only calls that are safe between fork and exec in a process of one thread.
  const auto open_as = [](const std::string& path, int flags, int descriptor) {
    const int fd = ::open(path.c_str(), flags, 0600);
    if (fd < 0 || ::dup2(fd, descriptor) < 0) ::_exit(125);
    ::close(fd);
  };
  open_as(in, O_RDONLY, STDIN_FILENO);
  open_as(out, O_WRONLY | (setting.output ? 0 : O_CREAT | O_TRUNC), STDOUT_FILENO);
  open_as(err, O_WRONLY | O_CREAT | O_TRUNC, STDERR_FILENO);
  for (const std::string& variable : setting.environment) ::putenv(const_cast<char*>(variable.c_str()));
  if (setting.folder && ::chdir(setting.folder->c_str()) != 0) ::_exit(125);
  if (setting.largest_file) {
    std::signal(SIGXFSZ, SIG_IGN);  // so that write() fails
    const rlimit limit{*setting.largest_file, *setting.largest_file};
    if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) ::_exit(125);
  }
  ::execv(argv[0], argv.data());
  ::_exit(126);
}

Program::~Program() {
  if (status_) return;
  ::kill(pid_, SIGKILL);
  int ignored = 0;
  ::waitpid(pid_, &ignored, 0);
}

void Program::send(int signal) const { ::kill(pid_, signal); }

std::string Program::output() const {
  const Path path = folder_ / "out";  // made by the child
  return std::filesystem::exists(path) ? read_file(path) : "";
}

bool Program::running() {
  int status = 0;
  if (!status_ && ::waitpid(pid_, &status, WNOHANG) == pid_) status_ = status;
  return !status_;
}

Result Program::wait() {
  int status = 0;
  while (!status_) {
    if (::waitpid(pid_, &status, 0) == pid_) status_ = status;
  }
  Result result;
  if (WIFEXITED(*status_)) result.code = WEXITSTATUS(*status_);
  if (WIFSIGNALED(*status_)) result.signal = WTERMSIG(*status_);
  result.out = output();
  result.err = read_file(folder_ / "err");
  return result;
}

Terminal::Terminal(const std::vector<std::string>& arguments) {
  std::vector<std::string> words{RWKVX_PROGRAM};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  pid_ = ::forkpty(&screen_, nullptr, nullptr, nullptr);
  if (pid_ < 0) fail("cannot open a terminal: {}", std::strerror(errno));
  if (pid_ > 0) return;
  ::setenv("TERM", "dumb", 1);
  ::execv(argv[0], argv.data());
  ::_exit(126);
}

Terminal::~Terminal() {
  if (!ended_) {
    ::kill(pid_, SIGKILL);
    int ignored = 0;
    ::waitpid(pid_, &ignored, 0);
  }
  ::close(screen_);
}

void Terminal::type(const std::string& keys) const {
  // Before the editor has the terminal, its keys are edited away by the line discipline.
  if (keys.find_first_of("\x04\x10") != std::string::npos) {
    termios mode{};
    while (::tcgetattr(screen_, &mode) == 0 && (mode.c_lflag & ICANON) != 0 && ::kill(pid_, 0) == 0) {
      ::usleep(1000);
    }
  }
  if (::write(screen_, keys.data(), keys.size()) != static_cast<ssize_t>(keys.size())) fail("cannot type");
}

bool Terminal::read_more() {
  // Far above what any answer takes: a program that waits for a key must fail its test and not hang it.
  constexpr int patience_ms = 120'000;
  pollfd screen{screen_, POLLIN, 0};
  if (::poll(&screen, 1, patience_ms) == 0) {
    shown_ += "\n[no output for two minutes: stopped]\n";
    ::kill(pid_, SIGKILL);
    return false;
  }
  char block[4096];
  const ssize_t n = ::read(screen_, block, sizeof block);
  if (n <= 0) return false;  // EIO when the other side has gone
  shown_.append(block, static_cast<size_t>(n));
  return true;
}

bool Terminal::shows(const std::string& text) {
  while (true) {
    const size_t found = shown_.find(text, seen_);
    if (found != std::string::npos) {
      seen_ = found + text.size();
      return true;
    }
    if (!read_more()) return false;
  }
}

int Terminal::wait() {
  while (read_more()) {
  }
  int status = 0;
  ::waitpid(pid_, &status, 0);
  ended_ = true;
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

Result run_program(const std::vector<std::string>& arguments, const Setting& setting) {
  return Program(arguments, setting).wait();
}

void expect_error(const Result& result, int code, const std::vector<std::string>& parts) {
  EXPECT_EQ(result.code, code);
  EXPECT_EQ(result.signal, 0);
  EXPECT_EQ(result.out, "");
  EXPECT_THAT(result.err, testing::StartsWith("rwkvx: "));
  EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
  for (const std::string& part : parts) EXPECT_THAT(result.err, testing::HasSubstr(part));
}

TensorFile successor_model(const std::string& text) {
  // Blocks that add nothing; the head's row for a byte is the embedding of the byte before it.
  constexpr int64_t C = 64;
  TensorFile file = small_model(1, 0);
  for (const char* name : {"blocks.0.att.output.weight", "blocks.0.ffn.value.weight"}) {
    std::fill(file.at(name).bytes.begin(), file.at(name).bytes.end(), std::byte{0});
  }
  for (const char* name : {"blocks.0.ln0", "ln_out"}) {
    file.erase(std::string(name) + ".weight");
    file.erase(std::string(name) + ".bias");
    file.add(std::string(name) + ".weight", {C}, 1);
    file.add(std::string(name) + ".bias", {C}, 0);
  }
  std::mt19937_64 random(1);
  Buffer embedding(DType::f32, {256, C}), head(DType::f32, {256, C});
  for (int64_t i = 0; i < 256 * C; ++i) embedding.as<float>()[i] = random() % 2 == 0 ? 1.0f : -1.0f;
  const auto follow = [&](unsigned char before, unsigned char after) {
    for (int64_t c = 0; c < C; ++c) head.as<float>()[after * C + c] += embedding.as<float>()[before * C + c];
  };
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  for (size_t i = 0; i < text.size(); ++i) follow(byte(i), byte((i + 1) % text.size()));
  file.erase("emb.weight");
  file.erase("head.weight");
  file.add("emb.weight", embedding);
  file.add("head.weight", head);
  return file;
}

std::string ProgramTest::with(const std::string& name, const std::string& bytes) const {
  std::ofstream out(folder_ / name, std::ios::binary);
  out << bytes;
  return file(name);
}

}  // namespace rwkvx::test
