#include "evaluation/run_folder.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/error.h"

namespace rwkvx {
namespace {

Path make_folder(const Path& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error || !std::filesystem::is_directory(folder)) {
    fail("{}: this folder cannot be made: {}", folder.string(),
         error ? error.message() : "a file is in its place");
  }
  return folder;
}

/// The first setting that differs.
void check_same(const Path& folder, const nlohmann::ordered_json& before, const nlohmann::ordered_json& now) {
  const auto shown = [](const nlohmann::ordered_json& json, const std::string& key) {
    return json.contains(key) ? printable(json_text(json.at(key))) : std::string("nothing");
  };
  nlohmann::ordered_json all = now;
  all.update(before);
  for (const auto& [key, value] : all.items()) {
    if (before.contains(key) && now.contains(key) && before.at(key) == now.at(key)) continue;
    fail("{}: the results there were made with {} = {}, not {}; choose another folder (--out)",
         folder.string(), printable(key), shown(before, key), shown(now, key));
  }
}

}  // namespace

LineFile::LineFile(const Path& path) : path_(path) {
  fd_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (fd_ < 0) fail("{}: cannot be written: {}", path.string(), std::strerror(errno));
  if (::flock(fd_, LOCK_EX | LOCK_NB) != 0) {
    ::close(fd_);
    fail("{}: another run is writing there; wait for it, or choose another folder (--out)", path.string());
  }
}

LineFile::~LineFile() { ::close(fd_); }

void LineFile::add(std::string_view line) {
  const std::string text = std::string(line) + "\n";
  // In one piece where possible, so that a crash cannot leave half a line in the middle.
  for (size_t written = 0; written < text.size();) {
    const ssize_t n = ::write(fd_, text.data() + written, text.size() - written);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) fail("{}: cannot be written: {}", path_.string(), std::strerror(errno));
    written += static_cast<size_t>(n);
  }
}

void LineFile::cut(uint64_t size) {
  if (::ftruncate(fd_, static_cast<off_t>(size)) != 0) {
    fail("{}: cannot be written: {}", path_.string(), std::strerror(errno));
  }
}

RunFolder::RunFolder(const Path& folder, const nlohmann::ordered_json& settings)
    : folder_(make_folder(folder)), file_(folder_ / "results.jsonl") {
  const Path settings_path = folder_ / "settings.json", results_path = folder_ / "results.jsonl";
  const std::string text = read_file(results_path);
  if (!std::filesystem::exists(settings_path)) {
    if (!text.empty()) {
      fail("{}: there are results but no settings.json that says of what; choose another folder (--out)",
           folder_.string());
    }
    AtomicFile file(settings_path);
    file.write(json_text(settings, 2) + "\n");
    file.commit();
    return;
  }
  const auto before = nlohmann::ordered_json::parse(read_file(settings_path), nullptr, false);
  if (!before.is_object()) fail("{}: is damaged: not a JSON object", settings_path.string());
  // As a reader of the file sees them.
  check_same(folder_, before, nlohmann::ordered_json::parse(json_text(settings)));

  const size_t last_break = text.rfind('\n');
  const size_t complete = last_break == text.npos ? 0 : last_break + 1;
  size_t line_number = 0;
  for (size_t at = 0; at < complete;) {
    const size_t end = text.find('\n', at);
    ++line_number;
    auto line = nlohmann::ordered_json::parse(text.substr(at, end - at), nullptr, false);
    if (!line.is_object()) fail("{}: line {} is damaged; remove it", results_path.string(), line_number);
    results_.push_back(std::move(line));
    at = end + 1;
  }
  if (complete < text.size()) file_.cut(complete);
}

void RunFolder::add(nlohmann::ordered_json result) {
  file_.add(json_text(result));
  results_.push_back(std::move(result));
}

std::string csv_field(std::string_view text) {
  std::string out;
  bool quote = false;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '\n') {
      out += "\\n";
    } else if (byte < 0x20 || byte == 0x7f) {
      out += fmt::format("\\x{:02x}", byte);
    } else if (c == '"') {
      out += "\"\"";
      quote = true;
    } else {
      out += c;
      quote = quote || c == ',' || c == ' ';
    }
  }
  return quote ? "\"" + out + "\"" : out;
}

std::string json_text(const nlohmann::ordered_json& json, int indent) {
  return json.dump(indent, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

}  // namespace rwkvx
