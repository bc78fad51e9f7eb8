#include "model/support.h"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>

#include "base/error.h"
#include "model/checkpoint_writer.h"
#include "model/quantise_plan.h"
#include "tensor/convert.h"

namespace rwkvx::test {

Path data(const std::string& file) { return Path(RWKVX_TEST_DATA) / file; }
Path models(const std::string& file) {
  return Path(RWKVX_TEST_DATA).parent_path().parent_path() / "models" / file;
}

TemporaryFolder::TemporaryFolder() {
  std::string name = (std::filesystem::temp_directory_path() / "rwkvx-test-XXXXXX").string();
  if (::mkdtemp(name.data()) == nullptr) fail("cannot make {}: {}", name, std::strerror(errno));
  path_ = name;
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::vector<std::string> TemporaryFolder::files() const {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(path_)) {
    names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::string unavailable(const std::string& backend) {
  try {
    make_ops({backend, Precision::f32, 1});
    return "";
  } catch (const Error& error) {
    return error.what();
  }
}

std::shared_ptr<const Model> open_model(const Path& path, const std::string& backend, Precision precision,
                                        const CheckpointOptions& options, const KvOptions& kv) {
  return std::make_shared<const Model>(open_checkpoint(path, options), make_ops({backend, precision, 2}), kv);
}

void write_quantised(const Checkpoint& source, DType type, const Path& path) {
  const QuantisePlan plan{type, {}};
  write_checkpoint(source, path, {FileFormat::gguf, {}, {}, [&](const TensorSpec& spec, DType found) {
                                    return plan.type_of(spec, found);
                                  }});
}

Golden read_golden(const std::string& name) {
  Golden golden;
  golden.model = data("goldens/" + name + "/model.safetensors");
  const Catalog file = open_catalog(data("goldens/" + name + "/expected.safetensors"));
  const auto number = [&](const char* key) {
    const std::string* text = file.text(key);
    int64_t n = 0;
    if (text == nullptr || std::from_chars(text->data(), text->data() + text->size(), n).ec != std::errc())
      fail("{}: no number {}", file.path.string(), key);
    return n;
  };
  golden.options = {number("chunk"), number("topk")};
  const auto copy = [&](const std::string& tensor) {
    const CatalogTensor* found = file.find(tensor);
    if (found == nullptr) fail("{}: no tensor {}", file.path.string(), tensor);
    Buffer buffer(found->data.dtype(), found->data.shape());
    std::memcpy(buffer.view().data(), found->data.data(), found->data.bytes());
    return buffer;
  };
  golden.logits = copy("logits");
  for (int64_t i = 0; i < number("n_layer"); ++i) golden.states.push_back(copy("state." + std::to_string(i)));
  const Buffer tokens = copy("tokens");
  const int64_t B = tokens.view().dim(0), T = tokens.view().dim(1);
  for (int64_t b = 0; b < B; ++b) {
    const int64_t* row = tokens.as<int64_t>() + b * T;
    golden.tokens.emplace_back(row, row + T);
  }
  return golden;
}

std::vector<int32_t> random_tokens(size_t count, int64_t vocab, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<int32_t> tokens(count);
  for (int32_t& token : tokens) token = static_cast<int32_t>(random() % static_cast<uint64_t>(vocab));
  return tokens;
}

std::vector<size_t> random_split(size_t total, size_t longest, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<size_t> pieces;
  while (total > 0) {
    pieces.push_back(std::min(total, 1 + random() % longest));
    total -= pieces.back();
  }
  return pieces;
}

std::vector<float> run(const Model& model, State& state, std::span<const int32_t> tokens,
                       std::span<const size_t> pieces) {
  const int64_t V = model.config().vocab;
  std::vector<float> out(tokens.size() * static_cast<size_t>(V));
  Arena arena(model.ops().allocator());
  size_t done = 0;
  for (const size_t piece : pieces) {
    const Arena::Scope scope(arena);
    const View logits = arena.take(DType::f32, {static_cast<int64_t>(piece), V});
    const SequenceInput input{tokens.subspan(done, piece), &state};
    model.forward(std::span(&input, 1), LogitsOf::all, logits, arena);
    const auto to = std::span(out).subspan(done * static_cast<size_t>(V), piece * static_cast<size_t>(V));
    model.ops().download(logits.data(), std::as_writable_bytes(to));
    done += piece;
  }
  EXPECT_EQ(done, tokens.size());
  return out;
}

std::vector<float> run(const Model& model, State& state, std::span<const int32_t> tokens) {
  const size_t all = tokens.size();
  return run(model, state, tokens, std::span(&all, 1));
}

Distance distance(std::span<const float> got, std::span<const float> expected) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const Distance infinite{kInfinity, kInfinity, false};
  if (got.size() != expected.size() || expected.empty()) return infinite;
  Distance d;
  double largest = 0, squares = 0, difference_squares = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const double g = got[i], e = expected[i];
    if (!std::isfinite(g) || !std::isfinite(e)) return infinite;
    d.max = std::max(d.max, std::abs(g - e));
    largest = std::max(largest, std::abs(e));
    difference_squares += (g - e) * (g - e);
    squares += e * e;
  }
  if (d.max > 0) {
    d.max /= largest;
    d.rms = std::sqrt(difference_squares / squares);
  }
  d.bitwise = std::memcmp(got.data(), expected.data(), got.size_bytes()) == 0;
  return d;
}

double row_error(std::span<const float> got, std::span<const float> expected, size_t width, double share) {
  if (!std::isfinite(distance(got, expected).max)) return std::numeric_limits<double>::infinity();
  std::vector<double> errors;
  double squares = 0;
  for (size_t row = 0; row < got.size(); row += width) {
    double sum = 0;
    for (size_t i = row; i < row + width; ++i) {
      const double g = got[i], e = expected[i];
      sum += (g - e) * (g - e);
      squares += e * e;
    }
    errors.push_back(sum);
  }
  std::sort(errors.begin(), errors.end());
  const auto rows = static_cast<double>(errors.size());
  const double mean = squares / rows;
  return std::sqrt(errors[static_cast<size_t>(std::ceil(share * rows)) - 1] / mean);
}

std::span<const float> floats(const Buffer& buffer) {
  return {buffer.as<float>(), static_cast<size_t>(buffer.view().elements())};
}

std::vector<float> contents(const State& state) {
  const ModelConfig& c = state.config();
  std::vector<float> out(static_cast<size_t>(state.recurrent().elements()));
  state.ops().download(state.recurrent().data(), std::as_writable_bytes(std::span(out)));
  const auto append = [&](ConstView values) {
    const size_t before = out.size();
    out.resize(before + static_cast<size_t>(values.elements()));
    convert(values, View(out.data() + before, DType::f32, values.shape()));
  };
  for (int64_t j = 0; j < c.sparse_blocks; ++j) {
    const KvChunks kv = state.kv(j).chunks();
    Buffer page(kv.dtype, {c.heads(), c.chunk_size, kHeadSize}), sums(DType::f32, {c.channels}),
        scales(DType::f32, {c.heads(), c.chunk_size}), wide(DType::f32, {c.chunk_size, kHeadSize});
    for (size_t i = 0; i < kv.keys.size(); ++i) {
      const int64_t used = std::min(c.chunk_size, kv.length - static_cast<int64_t>(i) * c.chunk_size);
      state.ops().download(kv.key_sums[i], sums.view().raw());
      for (const bool keys : {true, false}) {
        state.ops().download(keys ? kv.keys[i] : kv.values[i], page.view().raw());
        if (kv.dtype == DType::i8) {
          state.ops().download(keys ? kv.key_scales[i] : kv.value_scales[i], scales.view().raw());
        }
        for (int64_t h = 0; h < c.heads(); ++h) {
          const ConstView rows = page.view().rows(h, 1).reshaped({c.chunk_size, kHeadSize});
          if (kv.dtype != DType::i8) {
            append(rows.rows(0, used));
            continue;
          }
          for (int64_t e = 0; e < wide.view().elements(); ++e) {
            wide.as<float>()[e] = static_cast<float>(rows.as<int8_t>()[e]) *
                                  scales.as<float>()[h * c.chunk_size + e / kHeadSize];
          }
          append(wide.view().rows(0, used));
        }
      }
      append(sums);
    }
  }
  return out;
}

}  // namespace rwkvx::test
