// shardrun calibrate: this machine as a cluster file.

#include <thread>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "core/cli/long_run.hpp"
#include "core/cli/streams.hpp"
#include "core/cluster_file.hpp"
#include "core/json_cursor.hpp"
#include "executor/cli/commands.hpp"
#include "executor/cli/output.hpp"
#include "executor/run/calibration.hpp"
#include "executor/state/durable_file.hpp"

namespace shardwright::cli {

namespace {

constexpr const char* kHelp = R"(Examples:
  shardrun calibrate --ranks 4 -o machine.json
  shardplan compare scenarios/tiny-llama-4-ranks.json --cluster machine.json --emit-plan ddp -o plan.json
  shardrun plan.json --calibrated --strict

Measures, on as many rank threads at once as --ranks says: matrix products, attention, pointwise kernels, the optimizer,
copies, collectives between the threads, and a file in --nvme's folder. Nothing else should run meanwhile.)";

struct CalibrateOptions {
    CalibrationOptions measured;
    std::string output;
    bool force = false;
};

ExitCode runCalibration(const CalibrateOptions& options)
{
    if (!options.output.empty())
        requireOutput(options.output, options.force);
    const StopOnSignal stopOnSignal;
    bool stopped = false;
    ProgressLine progress;
    struct Stopped {};
    Cluster cluster;
    try {
        cluster = calibrate(options.measured, [&](const std::string& what) {
            if (stopRequested)
                throw Stopped{};
            progress.show(what);
        });
    } catch (const Stopped&) {
        stopped = true;
    }
    progress.clear();
    if (stopped)
        return ExitCode::Interrupted;
    const std::string text = toJson(cluster).dump(2) + "\n";
    if (options.output.empty())
        printOut(text);
    else
        writeFileDurably(options.output, text);
    return ExitCode::Done;
}

} // namespace

Command addCalibrate(CLI::App& root)
{
    CLI::App* app = root.add_subcommand("calibrate", "this machine as a cluster file that shardplan takes");
    app->footer(kHelp);
    const auto options = std::make_shared<CalibrateOptions>();
    const int cores = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
    options->measured.ranks = cores;
    constexpr int kMostRanks = 1024;
    app->add_option("--ranks", options->measured.ranks, "rank threads that work at the same time")
        ->capture_default_str()
        ->check(CLI::Range(1, kMostRanks));
    app->add_option("--threads", options->measured.threads, "computing threads of each rank")
        ->capture_default_str()
        ->check(CLI::Range(1, kMostRanks));
    app->add_option("--nvme", options->measured.nvmeFolder, "folder of a drive to measure too")
        ->check(CLI::ExistingDirectory);
    app->add_option("-o,--output", options->output, "file to write; without it, standard output");
    app->add_flag("--force", options->force, "replace the file");
    return {app, [options] { return runCalibration(*options); }};
}

} // namespace shardwright::cli
