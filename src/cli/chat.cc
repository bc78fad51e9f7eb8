
#include "base/error.h"
#include "cli/line_editor.h"
#include "cli/options.h"
#include "cli/sampler_options.h"
#include "cli/terminal.h"
#include "runtime/conversation.h"

namespace rwkvx::cli {
namespace {

constexpr std::string_view kHelp =
    "/reset        forget the conversation\n"
    "/undo         take back the last turn\n"
    "/regen        answer the last message again\n"
    "/save FILE    save the conversation\n"
    "/load FILE    go on with a saved one\n"
    "/help         this list\n"
    "/quit         leave (or Ctrl-D)\n"
    "A backslash at the end of a line continues the message on the next. Ctrl-C stops an answer.\n";

struct ChatOptions {
  RunOptions run;
  SamplerFlags sampler;
  GenerationOptions generation{.max_tokens = 1024, .stops = {}, .ignore_end = false};
  std::string system, load, think;
};

void note(const std::string& text) { fmt::print(stderr, "{}\n", text); }

class Chat {
 public:
  explicit Chat(const ChatOptions& options)
      : model_(load_model(options.run.model_options())),
        conversation_(model_, load_tokenizer(model_->checkpoint(), options.run.vocabulary_path()),
                      conversation_options(options)) {
    if (!options.load.empty()) load(options.load);
  }

  void run() {
    watch_interrupt();
    if (editor_.interactive()) note("Type a message, /help for commands.");
    while (const std::optional<std::string> line = editor_.read("> ")) {
      interrupted() = false;
      if (line->find_first_not_of(" \t\r\n") == std::string::npos) continue;
      try {
        if (line->front() == '/') {
          if (!command(*line)) return;
        } else {
          answer([&](auto&&... with) { return conversation_.say(*line, with...); });
        }
      } catch (const Interrupted&) {
        note("\nstopped; the message was taken back");
      } catch (const Error& error) {
        if (!editor_.interactive()) throw;
        note(std::string("rwkvx: ") + error.what());
      }
    }
  }

 private:
  static ConversationOptions conversation_options(const ChatOptions& options) {
    ConversationOptions o;
    o.format.system = options.system;
    if (options.think == "on") o.format.thinking = Thinking::think;
    if (options.think == "off") o.format.thinking = Thinking::pretend;
    o.sampler = options.sampler.resolved();
    o.generation = options.generation;
    return o;
  }

  template <typename Say>
  void answer(Say say) {
    ProgressBar bar("prompt", "tokens");
    bool blank = true;  // answers open with a space or a line break
    const Generation generation = say(
        [&](std::string_view piece) {
          bar.clear();
          if (blank) piece.remove_prefix(std::min(piece.find_first_not_of(" \n"), piece.size()));
          blank = blank && piece.empty();
          print(piece);
        },
        &interrupted(), bar.callback());
    bar.clear();
    print("\n");
    if (generation.reason == StopReason::max_tokens) note("(cut at --max-tokens)");
  }

  void load(const std::string& file) {
    conversation_.load(file);
    for (const Conversation::Turn& turn : conversation_.turns())
      note(fmt::format("> {}\n{}", turn.message, turn.answer));
  }

  /// False to leave.
  bool command(const std::string& line) {
    const size_t space = line.find(' ');
    const std::string name = line.substr(0, space);
    const std::string argument =
        space == std::string::npos ? "" : line.substr(line.find_first_not_of(' ', space));
    if (name == "/quit" || name == "/exit") return false;
    if (name == "/help") {
      note(std::string(kHelp));
    } else if (name == "/reset") {
      conversation_.reset();
      note("forgotten");
    } else if (name == "/undo") {
      conversation_.undo();
      note(fmt::format("taken back; {} turns left", conversation_.turns().size()));
    } else if (name == "/regen") {
      answer([&](auto&&... with) { return conversation_.regenerate(with...); });
    } else if (name == "/save" || name == "/load") {
      if (argument.empty()) fail("{} needs a file name", name);
      if (name == "/save") {
        conversation_.save(argument);
        note("saved " + argument);
      } else {
        load(argument);
      }
    } else {
      fail("unknown command {}; /help lists them", printable(name));
    }
    return true;
  }

  LineEditor editor_;
  std::shared_ptr<const Model> model_;
  Conversation conversation_;
};

}  // namespace

void add_chat(CLI::App& app) {
  auto* command = app.add_subcommand("chat", "Talk with a model; /help inside lists the commands");
  auto o = std::make_shared<ChatOptions>();
  add_model_argument(*command, o->run);
  command->add_option("--system", o->system, "What the model is told before the first message");
  command->add_option("--think", o->think, "Of G1 models: on lets it reason first, off has it answer at once")
      ->check(CLI::IsMember({"on", "off"}));
  command->add_option("--load", o->load, "Go on with a conversation saved by /save");
  command->add_option("--max-tokens", o->generation.max_tokens, "Longest answer")
      ->check(CLI::Range(int64_t{1}, kMostTokens))
      ->capture_default_str();
  command->add_option("--stop", o->generation.stops, "Also stop before this text; may be given several times")
      ->allow_extra_args(false);
  add_sampler_options(*command, o->sampler);
  add_run_options(*command, o->run, "bf16");
  add_vocabulary_option(*command, o->run);
  command->callback([o] { Chat(*o).run(); });
}

}  // namespace rwkvx::cli
