// shardrun run: a plan, carried out.

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "core/cli/long_run.hpp"
#include "core/cli/streams.hpp"
#include "core/json_cursor.hpp"
#include "core/validation.hpp"
#include "executor/cli/commands.hpp"
#include "executor/cli/output.hpp"
#include "executor/comm/transports.hpp"
#include "executor/run/run_plan.hpp"
#include "executor/state/durable_file.hpp"

namespace shardwright::cli {

namespace {

struct RunOptions {
    std::string plan;
    std::string memoryLimit;
    std::string solo;
    std::string output;
    bool strict = false;
    bool calibrated = false;
    bool force = false;
    std::int64_t timeLimit = std::chrono::duration_cast<std::chrono::seconds>(TransportOptions{}.timeLimit).count();
    RunSettings settings;
};

/// "3/64": be rank 3 of 64.
std::vector<std::unique_ptr<Transport>> soloEnd(const std::string& text, const ExecutablePlan& plan)
{
    const auto wrong = [&] {
        return InputError("command line", "--solo", fmt::format("\"{}\" is no rank of ranks", text),
                          fmt::format("R/{}, R from 0 to {}", plan.ranks, plan.ranks - 1));
    };
    const std::size_t slash = text.find('/');
    const auto isNumber = [](const std::string& word) {
        return !word.empty() && word.size() < 9 && word.find_first_not_of("0123456789") == std::string::npos;
    };
    if (slash == std::string::npos || !isNumber(text.substr(0, slash)) || !isNumber(text.substr(slash + 1)))
        throw wrong();
    const int rank = std::stoi(text.substr(0, slash));
    const int ranks = std::stoi(text.substr(slash + 1));
    if (ranks != plan.ranks || rank >= ranks)
        throw wrong();
    std::vector<std::unique_ptr<Transport>> ends;
    ends.push_back(makeSoloTransport(rank, ranks));
    return ends;
}

std::vector<std::unique_ptr<Transport>> mpiEnd(const ExecutablePlan& plan, const TransportOptions& options)
{
    std::vector<std::unique_ptr<Transport>> ends;
    ends.push_back(makeMpiTransport(options));
    if (ends.front()->ranks() != plan.ranks)
        throw InputError(
            "command line", "mpirun",
            fmt::format("{} is a plan for {} ranks, but MPI has {}", plan.file, plan.ranks, ends.front()->ranks()),
            fmt::format("mpirun -n {}", plan.ranks));
    return ends;
}

std::vector<std::unique_ptr<Transport>> endsFor(const RunOptions& options, const ExecutablePlan& plan)
{
    if (!options.solo.empty())
        return soloEnd(options.solo, plan);
    ThreadTransportOptions transport;
    transport.timeLimit = std::chrono::seconds(options.timeLimit);
    if (startedByMpi())
        return mpiEnd(plan, transport);
    constexpr std::int64_t kMostThreads = 10000;
    if (plan.ranks > kMostThreads)
        throw InputError(plan.file, "/plan/ranks", fmt::format("{} ranks cannot be threads of one process", plan.ranks),
                         fmt::format("at most {}, or mpirun, or --solo R/{}", kMostThreads, plan.ranks));
    return makeThreadTransports(static_cast<int>(plan.ranks), transport);
}

/// Options that contradict each other, and places that cannot be written, before anything is read or done.
void check(const RunOptions& options)
{
    if (!options.solo.empty() && startedByMpi())
        throw InputError("command line", "--solo", "is alone, but mpirun has started this process",
                         "shardrun without mpirun, or no --solo");
    if (!options.solo.empty() && !options.settings.checkpoints.empty())
        throw InputError("command line", "--checkpoint", "would be of one rank of many under --solo",
                         "no --checkpoint, or all ranks");
    if (!options.output.empty())
        requireOutput(options.output, options.force);
}

/// "2GiB", "500 MB", or bytes.
Bytes parseMemoryLimit(const std::string& text)
{
    constexpr std::pair<const char*, double> kUnits[] = {
        {"", 1},      {"B", 1}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"KiB", 1024.0}, {"MiB", 1024.0 * 1024},
        {"GiB", kGiB}};
    std::size_t digits = 0;
    double value = 0;
    try {
        value = std::stod(text, &digits);
    } catch (const std::exception&) {
        digits = 0;
    }
    const std::size_t unitAt = std::min(text.size(), text.find_first_not_of(' ', digits));
    for (const auto& [unit, factor] : kUnits)
        if (digits > 0 && text.substr(unitAt) == unit && value > 0 && value * factor < 9e18)
            return Bytes(static_cast<std::int64_t>(value * factor));
    throw InputError("command line", "--memory-limit", fmt::format("\"{}\" is no amount of memory", text),
                     "such as 2GiB, 500MB or 1000000");
}

std::string progressText(const StepDone& done)
{
    return fmt::format("step {}/{}  loss {:.4f}  {:.0f} tokens/s  device memory {}", done.step, done.steps, done.loss,
                       done.tokensPerSecond, formatBinary(done.peak));
}

ExitCode run(RunOptions options)
{
    const ExecutablePlan plan = readPlanFile(options.plan);
    check(options);
    if (!options.memoryLimit.empty())
        options.settings.executor.memoryLimit = parseMemoryLimit(options.memoryLimit);
    const StopOnSignal stopOnSignal;
    options.settings.stop = &stopRequested;
    ProgressLine progress;
    const auto ends = endsFor(options, plan);
    const bool speaks = ends.front()->rank() == 0 || !options.solo.empty();
    if (speaks) {
        options.settings.afterStep = [&](const StepDone& done) { progress.show(progressText(done)); };
        options.settings.remark = [](const std::string& text) { printErr("shardrun: " + text + '\n'); };
    }
    const Measurement measurement = runPlan(plan, options.settings, ends);
    progress.finish();
    if (measurement.steps == 0) {
        if (speaks)
            printErr("shardrun: stopped before the first step was done\n");
        return ExitCode::Interrupted;
    }
    if (speaks && !options.output.empty())
        writeFileDurably(options.output, toJson(measurement).dump(1) + '\n');
    constexpr double kShortestStep = 0.2; // seconds below which a step is mostly what no plan describes
    const bool timeCounts = options.calibrated && measurement.secondsPerStep > kShortestStep;
    const ValidationReport report = validate(plan, measurement, timeCounts);
    if (speaks) {
        printOut(fmt::format(
            "{}{} under {}: {} steps on {} {}, loss {:.4f} -> {:.4f}, {:.3g} s a step, {:.0f} tokens/s\n\n{}",
            measurement.complete ? "" : "stopped early: ", plan.model.id, plan.strategy.name, measurement.steps,
            plan.ranks, plan.ranks == 1 ? "rank" : "ranks", measurement.losses.front(), measurement.losses.back(),
            measurement.secondsPerStep, measurement.tokensPerSecond, tableOf(report)));
    }
    if (!measurement.complete)
        return ExitCode::Interrupted;
    return options.strict && !report.within() ? ExitCode::No : ExitCode::Done;
}

} // namespace

Command addRun(CLI::App& root)
{
    CLI::App* app = root.add_subcommand("run", "carry out a plan and lay measured beside predicted");
    const auto options = std::make_shared<RunOptions>();
    RunSettings& settings = options->settings;
    const CLI::Validator rate( // CLI::Range lets NaN through
        [](const std::string& text) {
            double value = 0;
            const bool good = CLI::detail::lexical_cast(text, value) && value >= 0 && std::isfinite(value);
            return good ? std::string() : fmt::format("\"{}\" is no learning rate; expected 0 or more", text);
        },
        "RATE");
    constexpr int kMostPatience = 86400; // a day
    const CLI::Validator notEmpty(       // as an unset variable of a script leaves it
        [](const std::string& text) {
            return text.empty() ? std::string("is \"\"; expected a rank of ranks, such as 3/64") : std::string();
        },
        "TEXT");
    app->add_option("plan", options->plan, "plan.json, as `shardplan compare --emit-plan STRATEGY` writes it")
        ->required();
    app->add_option("--steps", settings.steps, "optimizer steps to do")
        ->capture_default_str()
        ->check(CLI::Range(std::int64_t{1}, std::int64_t{1000000000}));
    app->add_option("--seed", settings.seed, "of first weights, synthetic tokens and dropout")->capture_default_str();
    app->add_option("--data", settings.text, "a text whose bytes are the tokens; without it, synthetic ones");
    app->add_option("--weights", settings.weights, "a safetensors file, or a folder of them as Hugging Face has it");
    app->add_option("--learning-rate", settings.executor.optimizer.learningRate, "of the optimizer")
        ->capture_default_str()
        ->check(rate);
    app->add_option("--warm-up-steps", settings.executor.optimizer.warmUpSteps,
                    "first steps of an optimizer that begins uncompressed (1-bit Adam's freeze_step); the plan says "
                    "nothing of them")
        ->capture_default_str()
        ->check(CLI::NonNegativeNumber);
    app->add_option("--threads", settings.executor.threads, "of each rank's computing")
        ->capture_default_str()
        ->check(CLI::Range(1, 1024));
    app->add_option("--memory-limit", options->memoryLimit, "most live bytes of a rank's device, such as 2GiB");
    app->add_option("--nvme", settings.executor.nvmeFolder, "folder for the files of buffers on NVMe");
    app->add_option("--checkpoint", settings.checkpoints, "folder that checkpoints are written into");
    app->add_option("--checkpoint-every", settings.checkpointEvery, "steps between two; else after the last one only")
        ->check(CLI::NonNegativeNumber);
    app->add_option("--resume", settings.resume, "checkpoint, or folder of them, to go on from");
    app->add_option("--solo", options->solo, "R/N: be rank R of N alone; collectives are counted, not carried out")
        ->check(notEmpty);
    app->add_option("--time-limit", options->timeLimit,
                    "seconds that a rank waits for another one before the run is given up")
        ->capture_default_str()
        ->check(CLI::Range(1, kMostPatience));
    app->add_option("-o,--output", options->output, "measurement.json");
    app->add_flag("--force", options->force, "write over the file of -o");
    app->add_flag("--calibrated", options->calibrated,
                  "the plan's cluster is this machine (`shardrun calibrate`): hold the step time to its tolerance");
    app->add_flag("--strict", options->strict,
                  "exit code 1 where something measured is out of tolerance, or nothing could be judged");
    return {app, [options] { return run(*options); }};
}

} // namespace shardwright::cli
