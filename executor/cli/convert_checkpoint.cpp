// shardrun convert-checkpoint: between sharded and full.

#include <filesystem>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "core/cli/streams.hpp"
#include "executor/cli/commands.hpp"
#include "executor/state/checkpoint.hpp"

namespace shardwright::cli {

namespace {

constexpr const char* kHelp = R"(Examples:
  shardrun convert-checkpoint run/step-000020 full --to full
  shardrun convert-checkpoint full eight --to sharded --ranks 8

A full checkpoint has config.json and model.safetensors as Hugging Face reads them, and optimizer.safetensors. shardrun
resumes from either kind with any number of ranks.)";

struct ConvertOptions {
    std::string from;
    std::string to;
    std::string kind;
    int ranks = 0;
    bool force = false;
};

ExitCode convert(const ConvertOptions& options)
{
    const CheckpointKind kind = *valueOf<CheckpointKind>(options.kind);
    if (kind == CheckpointKind::Sharded && options.ranks == 0)
        throw InputError("command line", "--ranks", "is missing", "the number of files to cut the checkpoint into");
    if (kind == CheckpointKind::Full && options.ranks != 0)
        throw InputError("command line", "--ranks", "belongs to --to sharded", "--to full without it");
    if (!options.force && std::filesystem::exists(options.to) && !std::filesystem::is_empty(options.to))
        throw InputError("command line", options.to, "is there already", "a new folder, or --force");
    convertCheckpoint(checkpointFolder(options.from), options.to, kind, options.ranks);
    printOut(fmt::format("{}: {} checkpoint of step {}\n", options.to, options.kind, readManifest(options.to).step));
    return ExitCode::Done;
}

} // namespace

Command addConvertCheckpoint(CLI::App& root)
{
    CLI::App* app = root.add_subcommand("convert-checkpoint", "a checkpoint as one of the other kind");
    app->footer(kHelp);
    const auto options = std::make_shared<ConvertOptions>();
    constexpr int kMostRanks = 100000;
    app->add_option("from", options->from, "a checkpoint's folder, or a run's folder of them")->required();
    app->add_option("to", options->to, "folder to write")->required();
    app->add_option("--to", options->kind, "full or sharded")->required()->check(CLI::IsMember({"full", "sharded"}));
    app->add_option("--ranks", options->ranks, "files of a sharded one")->check(CLI::Range(1, kMostRanks));
    app->add_flag("--force", options->force, "write into a folder that holds something");
    return {app, [options] { return convert(*options); }};
}

} // namespace shardwright::cli
