#include "runtime/session.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "model/state_file.h"

namespace rwkvx {
namespace {

std::string hex(std::span<const std::byte> bytes) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string out;
  out.reserve(2 * bytes.size());
  for (const std::byte b : bytes) {
    out += kDigits[std::to_integer<size_t>(b) >> 4];
    out += kDigits[std::to_integer<size_t>(b) & 15];
  }
  return out;
}

/// The floats behind their bytes in hexadecimal; wrong digits or lengths give none.
std::vector<float> floats(std::string_view digits) {
  std::vector<uint8_t> bytes(digits.size() / 2);
  for (size_t i = 0; i < bytes.size(); ++i) {
    const char* at = digits.data() + 2 * i;
    if (std::from_chars(at, at + 2, bytes[i], 16).ptr != at + 2) return {};
  }
  std::vector<float> out(bytes.size() / sizeof(float));
  if (!out.empty()) std::memcpy(out.data(), bytes.data(), out.size() * sizeof(float));
  return out;
}

}  // namespace

Session::Session(std::shared_ptr<const Model> model)
    : model_(std::move(model)),
      state_(model_->new_state()),
      arena_(std::make_shared<Arena>(model_->ops().allocator())) {}

int64_t Session::segment_rows() const {
  const Ops::Pieces most = model_->ops().pieces();
  const int64_t row_bytes =
      4 * (24 * model_->config().channels + model_->config().ffn);  // temporaries of a block
  const int64_t rows = most.bytes / row_bytes / 64 * 64;
  return std::clamp<int64_t>(rows, 64, most.rows);
}

void Session::append(std::span<const int32_t> tokens) {
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] < 0 || tokens[i] >= model_->config().vocab) {
      fail("token {} at position {} is outside the model's vocabulary of {}", tokens[i],
           length() + static_cast<int64_t>(i), model_->config().vocab);
    }
  }
  pending_.insert(pending_.end(), tokens.begin(), tokens.end());
}

void Session::consume(size_t keep, const Progress& progress) {
  const size_t total = pending_.size() > keep ? pending_.size() - keep : 0;
  const auto segment = static_cast<size_t>(segment_rows());
  size_t done = 0;
  const auto drop_consumed = [&] {
    pending_.erase(pending_.begin(), pending_.begin() + static_cast<std::ptrdiff_t>(done));
  };
  try {
    while (done < total) {
      if (progress && total > 1) progress(done, total);
      const size_t n = std::min(segment, total - done);
      const bool last = done + n == total;
      const SequenceInput input{std::span(pending_).subspan(done, n), &state_};
      logits_known_ = false;
      if (last && keep == 0) {
        const Arena::Scope scope(*arena_);
        Ops& ops = model_->ops();
        const View host = logits_memory();
        const View made = ops.reads_host_memory() ? host : arena_->take(host.dtype(), host.shape());
        model_->forward(std::span(&input, 1), LogitsOf::last, made, *arena_);
        if (made.data() != host.data()) {
          ops.download(made.data(), {static_cast<std::byte*>(host.data()), host.bytes()});
        }
        logits_known_ = true;
      } else {
        model_->forward(std::span(&input, 1), LogitsOf::none, View(), *arena_);
      }
      done += n;
    }
    if (progress && total > 1) progress(total, total);
  } catch (...) {
    drop_consumed();
    throw;
  }
  drop_consumed();
}

View Session::logits_memory() {
  if (!logits_) logits_ = Buffer(DType::f32, {1, model_->config().vocab});
  return logits_;
}

std::span<const float> Session::known_logits() const {
  if (!logits_known_) return {};
  return {logits_.as<float>(), static_cast<size_t>(model_->config().vocab)};
}

std::span<const float> Session::logits(const Progress& progress) {
  RWKVX_ASSERT(model_->ops().real() == DType::f32);
  consume(0, progress);
  if (!logits_known_)
    fail("there is nothing to continue from: the prompt is empty (--prompt, --prompt-file)");
  return known_logits();
}

Session Session::fork() const {
  Session copy(model_);
  copy.state_ = state_.fork();
  copy.arena_ = arena_;
  copy.pending_ = pending_;
  if (logits_known_) {
    std::memcpy(copy.logits_memory().data(), logits_.view().data(), logits_.view().bytes());
    copy.logits_known_ = true;
  }
  return copy;
}

void Session::reset() {
  state_.reset();
  pending_.clear();
  logits_known_ = false;
}

void Session::save(const Path& path, std::string_view extra) const {
  const std::string logits = pending_.empty() ? hex(std::as_bytes(known_logits())) : "";  // exact, NaN passes
  const nlohmann::json json = {{"pending", pending_}, {"logits", logits}, {"extra", std::string(extra)}};
  save_state(path, state_, model_->fingerprint(),
             json.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace));
}

std::string Session::load(const Path& path) {
  State loaded = model_->new_state();
  const std::string text = load_state(path, loaded, model_->fingerprint());
  try {
    const nlohmann::json json = nlohmann::json::parse(text);
    const auto saved = json.at("pending").get<std::vector<int64_t>>();
    const std::vector<float> logits = floats(json.at("logits").get<std::string>());
    auto extra = json.at("extra").get<std::string>();
    if (!logits.empty() && static_cast<int64_t>(logits.size()) != model_->config().vocab) {
      fail("{}: the saved logits do not fit the model", path.string());
    }
    for (const int64_t token : saved) {
      if (token < 0 || token >= model_->config().vocab) {
        fail("{}: its pending token {} is outside the model's vocabulary of {}", path.string(), token,
             model_->config().vocab);
      }
    }
    const View room = logits_memory();
    pending_.assign(saved.begin(), saved.end());
    std::ranges::copy(logits, room.as<float>());
    logits_known_ = !logits.empty();
    state_ = std::move(loaded);
    return extra;
  } catch (const nlohmann::json::exception&) {
    fail("{}: the state file's session data is damaged", path.string());
  }
}

}  // namespace rwkvx
