#include <csignal>
#include <cstdio>
#include <exception>
#include <new>

#include "base/error.h"
#include "cli/options.h"
#include "cli/terminal.h"

namespace {

/// One line, as for every other error.
std::string usage_message(const CLI::App* app, const CLI::Error& error) {
  const auto commands = app->get_subcommands();
  const auto unknown = app->remaining();
  const std::string what = commands.empty() && !unknown.empty()
                               ? fmt::format("there is no command '{}'", rwkvx::printable(unknown.front()))
                               : error.what();
  return fmt::format("rwkvx: {} (see rwkvx {}--help)\n", what,
                     commands.empty() ? "" : commands.front()->get_name() + " ");
}

}  // namespace

int main(int argc, char** argv) {
  using namespace rwkvx;
  CLI::App app{"rwkvx: runs RWKV-7 and RWKV-X language models", "rwkvx"};
  app.require_subcommand(1);
  app.set_version_flag("--version", RWKVX_VERSION);
  app.failure_message(usage_message);
  cli::add_info(app);
  cli::add_generate(app);
  cli::add_chat(app);
  cli::add_logits(app);
  cli::add_tokenize(app);
  cli::add_detokenize(app);
  cli::add_convert(app);
  cli::add_quantize(app);
  cli::add_bench(app);
  cli::add_recall(app);
  cli::add_expand(app);
  cli::add_data(app);
  cli::add_train(app);
  cli::add_needle(app);
  cli::add_loss(app);
  std::signal(SIGXFSZ, SIG_IGN);  // a limit on the size of files becomes an error with a message
  try {
    // CLI11 would only say that a command is missing.
    if (argc > 1 && argv[1][0] != '-' &&
        app.get_subcommands([&](CLI::App* command) { return command->check_name(argv[1]); }).empty()) {
      throw UsageError(fmt::format("there is no command '{}'; rwkvx --help lists them", printable(argv[1])));
    }
    app.parse(argc, argv);
    return 0;
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  } catch (const cli::Interrupted&) {
    std::fputs("rwkvx: interrupted\n", stderr);
    return 130;
  } catch (const UsageError& error) {
    std::fprintf(stderr, "rwkvx: %s\n", error.what());
    return 2;
  } catch (const Error& error) {
    std::fprintf(stderr, "rwkvx: %s\n", error.what());
  } catch (const std::bad_alloc&) {
    std::fputs("rwkvx: out of memory; try a smaller model, fewer sequences or a shorter text\n", stderr);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "rwkvx: internal error: %s\n", error.what());
  }
  return 1;
}
