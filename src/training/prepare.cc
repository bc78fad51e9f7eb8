#include "training/prepare.h"

#include <algorithm>
#include <deque>
#include <future>
#include <thread>

#include "base/error.h"

namespace rwkvx {
namespace {

/// What one piece becomes: its tokens, and where among them documents end.
struct Tokenized {
  std::vector<TokenId> tokens;
  std::vector<TokenMark> marks;  ///< of each token; empty: none has one
  std::vector<size_t> ends;
  uint64_t bytes = 0, empty = 0, bad = 0;
};

class Worker {
 public:
  Worker(const Tokenizer& tokenizer, const PrepareOptions& options)
      : tokenizer_(tokenizer), options_(options) {}

  Tokenized operator()(const MappedFile& file, const TextPiece& piece) const {
    Tokenized out;
    out.bytes = piece.text.size();
    if (!piece.json_lines) {
      tokenizer_.encode(piece.text, out.tokens);
      if (piece.ends_document) end(out);
      return out;
    }
    for (std::string_view rest = piece.text; !rest.empty();) {
      const size_t length = std::min(rest.find('\n'), rest.size());
      add_line(file, rest.substr(0, length), out);
      rest.remove_prefix(std::min(length + 1, rest.size()));
    }
    return out;
  }

 private:
  void add_line(const MappedFile& file, std::string_view line, Tokenized& out) const {
    if (line.find_first_not_of(" \t\r") == line.npos) return;
    std::string text;
    std::optional<std::vector<TextSegment>> segments;
    try {
      segments = text_segments(line);
      if (!segments) text = text_of_json(line, options_.text.field);
    } catch (const Error& error) {
      if (!options_.skip_bad_lines) {
        fail("{}, line {}: {} (--skip-bad-lines goes on without such lines)", file.path().string(),
             line_number(file, line.data()), error.what());
      }
      ++out.bad;
      return;
    }
    const size_t before = out.tokens.size();
    if (segments) {
      add_segments(*segments, out);
    } else {
      tokenizer_.encode(text, out.tokens);
    }
    if (out.tokens.size() == before) {
      ++out.empty;
      return;
    }
    end(out);
  }
  /// Segments are tokenized apart.
  void add_segments(const std::vector<TextSegment>& segments, Tokenized& out) const {
    out.marks.resize(out.tokens.size());  // of what came before
    for (const TextSegment& segment : segments) {
      const size_t first = out.tokens.size();
      tokenizer_.encode(segment.text, out.tokens);
      out.marks.resize(out.tokens.size(), {segment.mark.weight, false});
      if (first < out.tokens.size()) out.marks[first].reset = segment.mark.reset;
    }
  }
  void end(Tokenized& out) const {
    if (options_.document_end) out.tokens.push_back(*options_.document_end);
    // The end of a document counts as what is before it does.
    if (!out.marks.empty()) {
      const bool marked = out.marks.size() + 1 == out.tokens.size() && options_.document_end;
      out.marks.resize(out.tokens.size(), {marked ? out.marks.back().weight : 1, false});
    }
    out.ends.push_back(out.tokens.size());
  }

  const Tokenizer& tokenizer_;
  const PrepareOptions& options_;
};

/// Writes the pieces in order while others are being tokenized.
class Pipeline {
 public:
  Pipeline(TokenFileWriter& writer, PrepareReport& report, const Progress& progress, uint64_t total)
      : writer_(writer), report_(report), progress_(progress), total_(total) {}

  void add(std::future<Tokenized> piece, size_t most) {
    pending_.push_back(std::move(piece));
    while (pending_.size() > most) write_first();
  }
  void finish() {
    while (!pending_.empty()) write_first();
  }

 private:
  void write_first() {
    const Tokenized piece = pending_.front().get();
    pending_.pop_front();
    size_t begin = 0;
    const auto append = [&](size_t end) {
      const auto tokens = std::span(piece.tokens).subspan(begin, end - begin);
      if (piece.marks.empty()) {
        writer_.append(tokens);
      } else {
        writer_.append(tokens, std::span(piece.marks).subspan(begin, end - begin));
      }
      begin = end;
    };
    for (const size_t end : piece.ends) {
      append(end);
      writer_.end_document();
    }
    append(piece.tokens.size());
    report_.bytes += piece.bytes;
    report_.empty_documents += piece.empty;
    report_.bad_lines += piece.bad;
    if (progress_) progress_(report_.bytes, total_);
  }

  TokenFileWriter& writer_;
  PrepareReport& report_;
  const Progress& progress_;
  uint64_t total_;
  std::deque<std::future<Tokenized>> pending_;
};

}  // namespace

PrepareReport prepare_tokens(std::span<const Path> inputs, const Path& output, const Tokenizer& tokenizer,
                             const PrepareOptions& options, const Progress& progress) {
  int64_t vocab = tokenizer.vocab_size();
  if (options.document_end) {
    if (*options.document_end < 0) fail("a document cannot end with token {}", *options.document_end);
    vocab = std::max<int64_t>(vocab, int64_t{*options.document_end} + 1);
  }
  std::vector<std::shared_ptr<const MappedFile>> files;
  uint64_t total = 0;
  for (const Path& input : inputs) {
    files.push_back(MappedFile::open(input));
    total += files.back()->bytes().size();
  }
  const size_t threads = options.threads > 0 ? static_cast<size_t>(options.threads)
                                             : std::max<size_t>(1, std::thread::hardware_concurrency());
  const CutTable cuts(tokenizer);
  const Worker worker(tokenizer, options);
  PrepareReport report;
  TokenFileWriter writer(output, token_type_for(vocab));
  Pipeline pipeline(writer, report, progress, total);
  for (const auto& file : files) {
    for_each_piece(*file, options.text, cuts, options.piece_bytes, [&](const TextPiece& piece) {
      pipeline.add(std::async(std::launch::async, [&worker, &file, piece] { return worker(*file, piece); }),
                   threads);
    });
  }
  pipeline.finish();
  if (writer.tokens() == 0) fail("there is no text in the {} input files", inputs.size());
  report.documents = writer.documents();
  report.tokens = writer.tokens();
  writer.commit();
  return report;
}

}  // namespace rwkvx
