#include "model/state_file.h"

#include <cstring>
#include <nlohmann/json.hpp>

#include "base/checked.h"
#include "base/error.h"
#include "base/hash.h"
#include "tensor/convert.h"

namespace rwkvx {
namespace {

constexpr std::string_view kMagic = "RWKVXST\x01";
constexpr uint64_t kLargest = uint64_t{1} << 62;  // number in a header
constexpr uint64_t kFixedBytes = 8 + 8 + 8;       // magic, header length, checksum

/// What the header says; also the only place that knows the order of the payload.
struct Header {
  uint64_t fingerprint = 0;
  int64_t position = 0;
  DType real = DType::f32, kv = DType::f32;
  int64_t layers = 0, sparse_blocks = 0, channels = 0, chunk_size = 0;
  std::string extra;
};

nlohmann::json to_json(const Header& h) {
  return {{"format", 1},
          {"model", fmt::format("{:016x}", h.fingerprint)},
          {"position", h.position},
          {"real", name(h.real)},
          {"kv", name(h.kv)},
          {"layers", h.layers},
          {"sparse_blocks", h.sparse_blocks},
          {"channels", h.channels},
          {"chunk_size", h.chunk_size},
          {"extra", h.extra}};
}

Header parse_header(std::string_view text, const std::string& file) {
  try {
    const nlohmann::json json = nlohmann::json::parse(text);
    const auto number = [&](const char* key) {
      const nlohmann::json& value = json.at(key);
      if (!value.is_number_integer() || (value.is_number_unsigned() && value.get<uint64_t>() > kLargest)) {
        fail("{}: the state file's header is damaged", file);
      }
      return value.get<int64_t>();
    };
    if (number("format") != 1) fail("{}: written by a newer rwkvx; update rwkvx to read it", file);
    Header h;
    const auto dtype = [&](const char* key) {
      const auto found = dtype_named(json.at(key).get<std::string>());
      if (!found || !is_float(*found)) fail("{}: the state file's header has an unknown type", file);
      return *found;
    };
    h.fingerprint = std::stoull(json.at("model").get<std::string>(), nullptr, 16);
    h.position = number("position");
    h.real = dtype("real");
    h.kv = dtype("kv");
    h.layers = number("layers");
    h.sparse_blocks = number("sparse_blocks");
    h.channels = number("channels");
    h.chunk_size = number("chunk_size");
    h.extra = json.at("extra").get<std::string>();
    return h;
  } catch (const nlohmann::json::exception&) {
    fail("{}: the state file's header is damaged", file);
  } catch (const std::logic_error&) {  // std::stoull
    fail("{}: the state file's header is damaged", file);
  }
}

/// The used part of one page: rows [0, used) of each of its 2 H blocks.
int64_t used_rows(int64_t length, int64_t chunk_size, int64_t page) {
  return std::min(chunk_size, length - page * chunk_size);
}

class Writer {
 public:
  explicit Writer(const Path& path) : file_(path) {}
  void write(std::span<const std::byte> bytes) {
    hash_.update(bytes);
    file_.write(bytes);
  }
  void write_number(uint64_t n) { write(std::as_bytes(std::span(&n, 1))); }
  void finish() {
    const uint64_t checksum = hash_.digest();
    file_.write(std::as_bytes(std::span(&checksum, 1)));
    file_.commit();
  }

 private:
  AtomicFile file_;
  Hash64 hash_;
};

/// Takes pieces off a checked payload.
class Reader {
 public:
  Reader(std::span<const std::byte> bytes, const std::string& file) : rest_(bytes), file_(file) {}
  std::span<const std::byte> take(uint64_t bytes) {
    if (bytes > rest_.size()) fail("{}: the state file is shorter than its header says", file_);
    const auto piece = rest_.first(bytes);
    rest_ = rest_.subspan(bytes);
    return piece;
  }
  /// `elements` of type `from`, converted to the type of `to`.
  void take_as(DType from, View to) {
    const auto raw = take(bytes_of(from, to.elements()));
    Buffer aligned(from, to.shape());
    std::memcpy(aligned.view().data(), raw.data(), raw.size());
    convert(aligned, to);
  }
  bool empty() const { return rest_.empty(); }

 private:
  std::span<const std::byte> rest_;
  const std::string& file_;
};

}  // namespace

void save_state(const Path& path, const State& state, uint64_t fingerprint, std::string_view extra) {
  const ModelConfig& c = state.config();
  Ops& ops = state.ops();
  const DType kv_type = c.sparse_blocks > 0 ? state.kv(0).dtype() : ops.real();
  const std::string header = to_json({fingerprint, state.position(), ops.real(), kv_type, c.layers,
                                      c.sparse_blocks, c.channels, c.chunk_size, std::string(extra)})
                                 .dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
  Writer writer(path);
  writer.write(std::as_bytes(std::span(kMagic)));
  writer.write_number(header.size());
  writer.write(std::as_bytes(std::span(header)));

  Buffer recurrent(ops.real(), state.recurrent().shape());
  ops.download(state.recurrent().data(), recurrent.view().raw());
  writer.write(recurrent.view().raw());
  for (int64_t j = 0; j < c.sparse_blocks; ++j) {
    const KvChunks kv = state.kv(j).chunks();
    Buffer page(kv.dtype, {2 * c.heads(), c.chunk_size, kHeadSize}), sums(ops.real(), {c.channels});
    for (size_t i = 0; i < kv.keys.size(); ++i) {
      const int64_t used = used_rows(kv.length, c.chunk_size, static_cast<int64_t>(i));
      ops.download(kv.keys[i], page.view().raw());
      ops.download(kv.key_sums[i], sums.view().raw());
      for (int64_t b = 0; b < page.view().dim(0); ++b) {
        writer.write(page.view().rows(b, 1).reshaped({c.chunk_size, kHeadSize}).rows(0, used).raw());
      }
      writer.write(sums.view().raw());
    }
  }
  writer.finish();
}

std::string load_state(const Path& path, State& state, uint64_t fingerprint) {
  const auto mapped = MappedFile::open(path);
  const std::span<const std::byte> bytes = mapped->bytes();
  const std::string file = path.string();
  if (bytes.size() < kFixedBytes || std::memcmp(bytes.data(), kMagic.data(), kMagic.size()) != 0) {
    fail("{} is not a state file of rwkvx (generate --state-out and chat's /save write them)", file);
  }
  uint64_t checksum = 0, header_bytes = 0;
  std::memcpy(&checksum, bytes.data() + bytes.size() - 8, 8);
  if (hash64(bytes.first(bytes.size() - 8)) != checksum) {
    fail("{}: the checksum does not match; the file is damaged or cut short", file);
  }
  std::memcpy(&header_bytes, bytes.data() + 8, 8);
  if (!in_bounds(16, header_bytes, bytes.size() - 8)) fail("{}: the state file's header is damaged", file);
  const Header h = parse_header(
      {reinterpret_cast<const char*>(bytes.data()) + 16, static_cast<size_t>(header_bytes)}, file);

  const ModelConfig& c = state.config();
  if (h.layers != c.layers || h.sparse_blocks != c.sparse_blocks || h.channels != c.channels) {
    fail("{}: a state of another model: {}+{} blocks of {} channels, this model has {}+{} of {}", file,
         h.layers, h.sparse_blocks, h.channels, c.layers, c.sparse_blocks, c.channels);
  }
  if (h.chunk_size != c.chunk_size) {
    fail("{}: saved with chunks of {} tokens, the model runs with {} (--chunk-size)", file, h.chunk_size,
         c.chunk_size);
  }
  if (h.fingerprint != fingerprint) {
    fail(
        "{}: a state of another model (fingerprint {:016x}, this model's is {:016x}); load the model it was "
        "saved with",
        file, h.fingerprint, fingerprint);
  }
  if (h.position < 0) fail("{}: the state file's header is damaged", file);

  Ops& ops = state.ops();
  State loaded(c, ops);
  loaded.set_position(h.position);
  Reader reader(bytes.subspan(16 + header_bytes, bytes.size() - kFixedBytes - header_bytes), file);
  Buffer recurrent(ops.real(), loaded.recurrent().shape());
  reader.take_as(h.real, recurrent);
  ops.upload(recurrent.view().raw(), loaded.recurrent().data());
  // Before room is made for what the header claims.
  const uint64_t token_bytes = 2 * static_cast<uint64_t>(c.sparse_blocks) * bytes_of(h.kv, c.channels);
  if (token_bytes > 0 && static_cast<uint64_t>(h.position) > bytes.size() / token_bytes) {
    fail("{}: the state file is shorter than its header says", file);
  }
  for (int64_t j = 0; j < c.sparse_blocks; ++j) {
    KvStore& store = loaded.kv(j);
    if (h.position > 0) store.extend(h.position);
    const KvChunks kv = store.chunks();
    Buffer page(kv.dtype, {2 * c.heads(), c.chunk_size, kHeadSize}), sums(ops.real(), {c.channels});
    for (size_t i = 0; i < kv.keys.size(); ++i) {
      const int64_t used = used_rows(kv.length, c.chunk_size, static_cast<int64_t>(i));
      for (int64_t b = 0; b < page.view().dim(0); ++b) {
        reader.take_as(h.kv, page.view().rows(b, 1).reshaped({c.chunk_size, kHeadSize}).rows(0, used));
      }
      reader.take_as(h.real, sums);
      ops.upload(page.view().raw(), kv.keys[i]);
      ops.upload(sums.view().raw(), kv.key_sums[i]);
    }
  }
  if (!reader.empty()) fail("{}: the state file is longer than its header says", file);
  state = std::move(loaded);
  return h.extra;
}

}  // namespace rwkvx
