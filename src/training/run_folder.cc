#include "training/run_folder.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "formats/catalog.h"
#include "model/checkpoint_writer.h"

namespace rwkvx {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr const char* kModel = "model.safetensors";
constexpr const char* kOptimizer = "optimizer.safetensors";
constexpr const char* kProgress = "progress.json";
constexpr std::string_view kPrefix = "step-", kUnfinished = ".part", kOld = ".old";

/// The step of "step-00001000"; nothing for other names.
std::optional<int64_t> step_of(const std::string& name) {
  int64_t step = 0;
  if (!name.starts_with(kPrefix)) return std::nullopt;
  const char* const end = name.data() + name.size();
  const auto [stopped, error] = std::from_chars(name.data() + kPrefix.size(), end, step);
  if (error != std::errc() || stopped != end || step < 0) return std::nullopt;
  return step;
}

/// Makes a rename last through a power cut.
void sync_folder(const Path& folder) {
  const int fd = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return;
  ::fsync(fd);
  ::close(fd);
}

Buffer host_copy(ConstView view, Ops& ops) {
  Buffer host(view.dtype(), view.shape());
  ops.download(view.data(), host.view().raw());
  return host;
}

void write_model(const Path& path, const Parameters& parameters) {
  Checkpoint checkpoint;
  checkpoint.config = parameters.config();
  checkpoint.catalog.path = path;
  for (const Parameters::Tensor& tensor : parameters.tensors()) {
    auto host = std::make_shared<Buffer>(host_copy(tensor.master, parameters.ops()));
    checkpoint.catalog.add(tensor.spec.name, host->view());
    checkpoint.catalog.keep(host);
  }
  WriteOptions options;
  options.format = FileFormat::safetensors;
  write_checkpoint(checkpoint, path, options);
}

std::string moment_name(int which, const Optimizer::Moments& moments) {
  return (which == 0 ? "m." : "v.") + moments.tensor->spec.name;
}

void write_optimizer(const Path& path, const Optimizer& optimizer, Ops& ops) {
  std::vector<TensorToWrite> tensors;
  Buffer current;
  for (const Optimizer::Moments& moments : optimizer.moments()) {
    for (const int which : {0, 1}) {
      const ConstView view = which == 0 ? moments.first : moments.second;
      tensors.push_back({moment_name(which, moments), view.dtype(), view.shape(), [&current, &ops, view] {
                           current = host_copy(view, ops);
                           return ConstView(current);
                         }});
    }
  }
  write_safetensors(path, tensors, {{"format", std::string("pt")}});
}

void read_optimizer(const Path& path, const Optimizer& optimizer, Ops& ops) {
  const Catalog catalog = read_safetensors(path);
  size_t used = 0;
  for (const Optimizer::Moments& moments : optimizer.moments()) {
    for (const int which : {0, 1}) {
      const View view = which == 0 ? moments.first : moments.second;
      const std::string wanted = moment_name(which, moments);
      const CatalogTensor* found = catalog.find(wanted);
      if (found == nullptr) fail("{}: {} is missing", path.string(), wanted);
      if (found->data.shape() != view.shape() || found->data.dtype() != view.dtype()) {
        fail("{}: {} is {} of {}; {} of {} is needed", path.string(), wanted, found->data.shape().str(),
             name(found->data.dtype()), view.shape().str(), name(view.dtype()));
      }
      ops.upload(found->data.raw(), view.data());
      ++used;
    }
  }
  if (used != catalog.tensors().size())
    fail("{}: it holds moments of tensors that this run does not train", path.string());
}

void write_progress(const Path& path, const TrainProgress& p) {
  const Json json{{"step", p.step},
                  {"samples", p.samples},
                  {"tokens", p.tokens},
                  {"smoothed_loss", p.smoothed_loss},
                  {"smoothed_weight", p.smoothed_weight}};
  AtomicFile file(path);
  file.write(json.dump(2) + "\n");
  file.commit();
}

TrainProgress read_progress(const Path& path) {
  try {
    const Json json = Json::parse(read_file(path, 1 << 20));
    TrainProgress p;
    json.at("step").get_to(p.step);
    json.at("samples").get_to(p.samples);
    json.at("tokens").get_to(p.tokens);
    json.at("smoothed_loss").get_to(p.smoothed_loss);
    json.at("smoothed_weight").get_to(p.smoothed_weight);
    return p;
  } catch (const Json::exception&) {
    fail("{}: damaged; remove this checkpoint to go on from the one before", path.string());
  }
}

}  // namespace

void RunFolder::create(const TrainConfig& config) const {
  if (fs::exists(config_file())) {
    fail("{} holds a run already; go on with it by --resume, or choose another folder", path_.string());
  }
  std::error_code error;
  fs::create_directories(path_ / "checkpoints", error);
  if (error) fail("cannot make the folder {}: {}", path_.string(), error.message());
  replace_config(config);
}

void RunFolder::replace_config(const TrainConfig& config) const {
  AtomicFile file(config_file());
  file.write(to_json(config));
  file.commit();
}

void RunFolder::keep_mixture(const Path& mixture) const {
  AtomicFile file(mixture_file());
  file.write(read_file(mixture));
  file.commit();
}

TrainConfig RunFolder::config() const {
  if (!fs::exists(config_file())) fail("{}: there is no run in it (no config.json)", path_.string());
  TrainConfig config;
  read_json(read_file(config_file(), 1 << 20), config_file(), config);
  return config;
}

Path RunFolder::checkpoint(int64_t step) const {
  return path_ / "checkpoints" / fmt::format("{}{:08}", kPrefix, step);
}

std::vector<int64_t> RunFolder::checkpoints() const {
  std::vector<int64_t> steps;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(path_ / "checkpoints", error)) {
    if (const auto step = step_of(entry.path().filename().string())) steps.push_back(*step);
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

void RunFolder::save(const TrainProgress& progress, const Parameters& parameters, const Optimizer& optimizer,
                     int64_t keep) const {
  const Path target = checkpoint(progress.step);
  Path part = target, old = target;
  part += kUnfinished;
  old += kOld;
  std::error_code error;
  fs::remove_all(part, error);
  fs::create_directories(part, error);
  if (error) fail("cannot make the folder {}: {}", part.string(), error.message());
  try {
    write_model(part / kModel, parameters);
    write_optimizer(part / kOptimizer, optimizer, parameters.ops());
    write_progress(part / kProgress, progress);
    sync_folder(part);
  } catch (...) {
    fs::remove_all(part, error);
    throw;
  }
  // A folder cannot be renamed onto one that is not empty.
  if (fs::exists(target)) fs::rename(target, old, error);
  fs::rename(part, target, error);
  if (error) fail("cannot rename {}: {}", part.string(), error.message());
  sync_folder(target.parent_path());
  const std::vector<int64_t> steps = checkpoints();
  for (size_t i = 0; i + static_cast<size_t>(keep) < steps.size(); ++i)
    fs::remove_all(checkpoint(steps[i]), error);
  for (const auto& entry : fs::directory_iterator(path_ / "checkpoints", error)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with(kPrefix) && (name.ends_with(kUnfinished) || name.ends_with(kOld)))
      fs::remove_all(entry.path(), error);
  }
}

ModelConfig RunFolder::model_config(int64_t step) const {
  return open_checkpoint(checkpoint(step) / kModel)->config;
}

TrainProgress RunFolder::load(int64_t step, Parameters& parameters, Optimizer& optimizer) const {
  const Path folder = checkpoint(step);
  const TrainProgress progress = read_progress(folder / kProgress);
  if (progress.step != step)
    fail("{}: it says step {}; the folder was renamed", (folder / kProgress).string(), progress.step);
  const ModelConfig& c = parameters.config();
  parameters.load(*open_checkpoint(folder / kModel, {c.chunk_size, c.top_k}));
  read_optimizer(folder / kOptimizer, optimizer, parameters.ops());
  return progress;
}

void RunFolder::cut_metrics(int64_t step) const {
  if (!fs::exists(metrics_file())) return;
  const std::string text = read_file(metrics_file());
  std::string kept;
  for (size_t at = 0; at < text.size();) {
    const size_t end = text.find('\n', at);
    if (end == text.npos) break;  // cut by a crash
    const std::string line = text.substr(at, end + 1 - at);
    const auto json = Json::parse(line, nullptr, false);
    if (json.is_object() && json.contains("step") && json["step"].is_number_integer() && json["step"] <= step)
      kept += line;
    at = end + 1;
  }
  AtomicFile file(metrics_file());
  file.write(kept);
  file.commit();
}

}  // namespace rwkvx
