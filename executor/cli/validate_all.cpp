// shardrun validate-all: every plan of a folder, carried out; one table.

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <memory>

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "core/cli/long_run.hpp"
#include "core/cli/streams.hpp"
#include "core/validation.hpp"
#include "executor/cli/commands.hpp"
#include "executor/comm/transports.hpp"
#include "executor/run/run_plan.hpp"

namespace shardwright::cli {

namespace {

namespace fs = std::filesystem;

constexpr const char* kHelp = R"(Examples:
  shardrun validate-all scenarios/validation
  shardrun validate-all scenarios/validation --steps 5 --markdown

Runs every plan (*.plan.json) of the folder on threads and lays memory and traffic beside the plan's figures. Every step
trains on the same synthetic tokens, so that the loss has to fall from the first step to the last. Exits with 1 when a
figure is out of tolerance, a plan fails, a loss does not fall, or the steps are too few for a plan to be judged.)";

// 1-bit Adam freezes its variance behind the warm-up: that of a single step's gradients lets the loss grow.
constexpr std::int64_t kFewestWarmUpSteps = 2;

struct Options {
    std::string folder;
    std::int64_t steps = 4;
    bool markdown = false;
};

struct Row {
    std::string name;
    std::string strategy;
    std::int64_t ranks = 0;
    double firstLoss = 0;
    double lastLoss = 0;
    double predictedPeak = 0;
    double measuredPeak = 0;
    std::size_t figures = 0;
    std::vector<std::string> out; // of tolerance; or the failure
    std::string notJudged;        // why; empty where it was

    std::string verdict() const
    {
        if (!out.empty())
            return fmt::format("{}", fmt::join(out, "; "));
        return notJudged.empty() ? "none" : "not judged: " + notJudged;
    }
};

/// The sequences of the first step in all steps: losses on tokens drawn anew differ by more than a step gains.
class SameEveryStep final : public BatchSource {
public:
    SameEveryStep(std::unique_ptr<BatchSource> source, std::int64_t sequences)
        : m_source(std::move(source)), m_sequences(sequences)
    {
    }

    void read(std::int64_t index, std::int64_t length, std::int64_t* tokens, std::int64_t* labels) const override
    {
        m_source->read(index % m_sequences, length, tokens, labels);
    }

private:
    std::unique_ptr<BatchSource> m_source;
    std::int64_t m_sequences; // of a step
};

/// A folder for NVMe files that goes with its owner.
class ScratchFolder {
public:
    ScratchFolder()
    {
        std::string pattern = (fs::temp_directory_path() / "shardrun-XXXXXX").string();
        if (::mkdtemp(pattern.data()) == nullptr)
            throw EnvironmentError(pattern + ": no folder can be made there");
        m_path = pattern;
    }
    ~ScratchFolder()
    {
        std::error_code ignored;
        fs::remove_all(m_path, ignored);
    }
    ScratchFolder(const ScratchFolder&) = delete;
    ScratchFolder& operator=(const ScratchFolder&) = delete;
    const std::string& path() const { return m_path; }

private:
    std::string m_path;
};

std::vector<std::string> plansIn(const std::string& folder)
{
    std::vector<std::string> paths;
    if (!fs::is_directory(folder))
        throw InputError("command line", folder, "is no folder", "a folder of plans, as scenarios/validation");
    for (const fs::directory_entry& entry : fs::directory_iterator(folder))
        if (const std::string name = entry.path().filename().string();
            name.size() > 10 && name.substr(name.size() - 10) == ".plan.json")
            paths.push_back(entry.path().string());
    if (paths.empty())
        throw InputError("command line", folder, "holds no plan", "files named *.plan.json");
    std::sort(paths.begin(), paths.end());
    return paths;
}

Row carriedOut(const std::string& path, const Options& options)
{
    Row row;
    const std::string file = fs::path(path).filename().string();
    row.name = file.substr(0, file.size() - 10);
    try {
        const ExecutablePlan plan = readPlanFile(path);
        row.strategy = plan.strategy.name;
        row.ranks = plan.ranks;
        const ScratchFolder scratch;
        RunSettings settings;
        settings.steps = options.steps;
        settings.executor.optimizer.warmUpSteps = std::max(kFewestWarmUpSteps, options.steps / 2);
        settings.batches = std::make_shared<SameEveryStep>(
            syntheticTokens(plan.model.architecture.vocab, settings.seed),
            checkedMultiply(checkedMultiply(plan.training.microBatch, plan.training.gradientAccumulation), plan.ranks));
        settings.executor.nvmeFolder = scratch.path();
        settings.stop = &stopRequested;
        const Measurement measurement = runPlan(plan, settings, makeThreadTransports(static_cast<int>(plan.ranks)));
        if (!measurement.complete)
            return row;
        row.firstLoss = measurement.losses.front();
        row.lastLoss = measurement.losses.back();
        if (!(row.lastLoss < row.firstLoss))
            row.out.emplace_back("the loss does not fall");
        const ValidationReport report = validate(plan, measurement, false);
        row.notJudged = report.notJudged;
        for (const ValidationRow& figure : report.rows) {
            if (figure.quantity == "peak, device") {
                row.predictedPeak = figure.predicted;
                row.measuredPeak = figure.measured;
            }
            if (!report.notJudged.empty())
                continue;
            if (figure.tolerance != Tolerance::ForInformation)
                ++row.figures;
            if (!figure.within())
                row.out.push_back(fmt::format("{}: {:.0f} predicted, {:.0f} measured", figure.quantity,
                                              figure.predicted, figure.measured));
        }
    } catch (const std::exception& failure) {
        row.out.emplace_back(failure.what());
    }
    return row;
}

void print(const std::vector<Row>& rows, bool markdown)
{
    constexpr double kKib = 1024;
    if (markdown)
        printOut("| plan | ranks | loss | peak predicted, KiB | measured, KiB | figures | out |\n"
                 "|---|---:|---|---:|---:|---:|---|\n");
    else
        printOut(fmt::format("{:<40} {:>5}  {:<16} {:>12} {:>12} {:>8}  {}\n", "plan", "ranks", "loss", "peak, KiB",
                             "measured", "figures", "out of tolerance"));
    for (const Row& row : rows) {
        const std::string loss = fmt::format("{:.4f} -> {:.4f}", row.firstLoss, row.lastLoss);
        if (markdown)
            printOut(fmt::format("| {} | {} | {} | {:.1f} | {:.1f} | {} | {} |\n", row.name, row.ranks, loss,
                                 row.predictedPeak / kKib, row.measuredPeak / kKib, row.figures,
                                 row.verdict() == "none" ? "" : row.verdict()));
        else
            printOut(fmt::format("{:<40} {:>5}  {:<16} {:>12.1f} {:>12.1f} {:>8}  {}\n", row.name, row.ranks, loss,
                                 row.predictedPeak / kKib, row.measuredPeak / kKib, row.figures, row.verdict()));
    }
}

ExitCode validateAll(const Options& options)
{
    const StopOnSignal stopOnSignal;
    const std::vector<std::string> paths = plansIn(options.folder);
    ProgressLine progress;
    std::vector<Row> rows;
    for (const std::string& path : paths) {
        progress.show(fmt::format("{} of {}: {}", rows.size() + 1, paths.size(), path));
        rows.push_back(carriedOut(path, options));
        if (stopRequested)
            break;
    }
    progress.clear();
    if (stopRequested)
        rows.pop_back();
    print(rows, options.markdown);
    const auto good = static_cast<std::size_t>(
        std::count_if(rows.begin(), rows.end(), [](const Row& row) { return row.verdict() == "none"; }));
    const auto open = std::count_if(rows.begin(), rows.end(),
                                    [](const Row& row) { return row.out.empty() && !row.notJudged.empty(); });
    std::size_t figures = 0;
    for (const Row& row : rows)
        figures += row.figures;
    if (!options.markdown)
        printOut(fmt::format("{} of {} plans within tolerance{}, {} figures\n", good, rows.size(),
                             open > 0 ? fmt::format(", {} not judged", open) : "", figures));
    if (stopRequested)
        return ExitCode::Interrupted;
    return good == rows.size() ? ExitCode::Done : ExitCode::No;
}

} // namespace

Command addValidateAll(CLI::App& root)
{
    CLI::App* app = root.add_subcommand("validate-all", "every plan of a folder carried out, one table");
    app->footer(kHelp);
    const auto options = std::make_shared<Options>();
    app->add_option("folder", options->folder, "plans, named *.plan.json")->required();
    app->add_option("--steps", options->steps, "optimizer steps of each")
        ->capture_default_str()
        ->check(CLI::Range(std::int64_t{2}, std::int64_t{1000000}));
    app->add_flag("--markdown", options->markdown, "the table as Markdown");
    return {app, [options] { return validateAll(*options); }};
}

} // namespace shardwright::cli
