#include <memory>
#include <thread>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "core/cli/long_run.hpp"
#include "core/json_cursor.hpp"
#include "core/scenario_file.hpp"
#include "planner/cli/commands.hpp"
#include "planner/cli/output.hpp"
#include "planner/cli/scenario_options.hpp"
#include "planner/report/result_json.hpp"
#include "planner/search/inverse.hpp"
#include "planner/search/report.hpp"
#include "planner/search/simulated_clock.hpp"

namespace shardwright::cli {

namespace {

constexpr const char* kHelp = R"(Examples:
  shardplan search scenarios/llama-2-7b-8xa100.json
  shardplan search scenarios/llama-2-13b-4x8-ethernet.json --objective gpu-hours --explain-rejected
  shardplan search scenarios/llama-2-7b-8xa100.json --pareto memory,time --format csv
  shardplan search scenarios/llama-2-7b-8xa100.json --objective longest-sequence
  shardplan search scenarios/llama-2-7b-8xa100.json --print-space > space.json
  shardplan search scenarios/llama-2-7b-8xa100.json --space space.json --save-best best.json

What is found is proven best in the declared space, which --print-space shows and --space replaces: every axis is a
list of values or "auto" (planner/README.md). All candidates are compared at one global batch. A candidate has to fit
with room for PyTorch's allocator; each that is shown is planned in full, as `compare` would.
Exits with 1 when nothing fits. Ctrl-C ends the search with the best so far, which is then not proven, and exit code
130.)";

struct Options {
    ScenarioOptions question;
    OutputOptions output;
    std::string space;
    std::string objective = "tokens-per-second";
    std::string pareto;
    std::string saveBest;
    int top = 10;
    int threads = 0;
    bool explainRejected = false;
    bool printSpace = false;
};

bool isInverse(search::Objective objective)
{
    return objective == search::Objective::LargestModel || objective == search::Objective::LongestSequence ||
           objective == search::Objective::LargestMicroBatch;
}

/// The objective; what is wrong with the command's own flags is told at once.
search::Objective checked(const Options& options, const Scenario& scenario)
{
    Findings findings("command line");
    const auto objective = valueOf<search::Objective>(options.objective);
    if (!objective)
        findings.add("--objective", fmt::format("is \"{}\"", options.objective), allNames<search::Objective>());
    if (!options.pareto.empty() && options.pareto != "memory,time")
        findings.add("--pareto", fmt::format("is \"{}\"", options.pareto), "memory,time");
    if (!options.pareto.empty() && objective && isInverse(*objective))
        findings.add("--pareto", fmt::format("does not go with --objective {}", options.objective), "one of the two");
    if (objective == search::Objective::Cost && scenario.cluster.pricePerGpuHour.value <= 0)
        findings.add("--objective", fmt::format("cost: cluster \"{}\" has no price", scenario.cluster.id),
                     "--price, a cluster with \"price_per_gpu_hour\", or gpu-hours");
    findings.throwIfAny();
    return *objective;
}

/// The best as a scenario of its own, for compare, explain and export.
void saveBest(const Options& options, const Scenario& scenario, const search::Result& result)
{
    if (options.saveBest.empty() || result.answers.empty())
        return;
    const search::Answer& best = result.answers.front();
    Scenario saved = scenario;
    saved.cluster = best.candidate.cluster;
    saved.training = best.candidate.training;
    saved.strategies = {best.candidate.strategy};
    saved.published.clear();
    writeWhole(options.saveBest, jsonText(toJson(saved)) + '\n', options.output.force());
}

ExitCode finish(const search::Result& result)
{
    if (stopRequested)
        return ExitCode::Interrupted;
    return result.answers.empty() ? ExitCode::No : ExitCode::Done;
}

ExitCode runInverse(const Options& options, const search::Asked& asked, ProgressLine& progress)
{
    const search::Inverse inverse =
        search::solveInverse(asked.scenario, asked.space, asked.request, search::simulatedClock);
    progress.finish(stopRequested ? "stopped" : "searched the whole space");
    switch (options.output.format()) {
    case Format::Text: options.output.write(inverseText(asked, inverse, options.output.style())); break;
    case Format::Json: options.output.write(jsonText(inverseJson(asked, inverse)) + '\n'); break;
    case Format::Csv: options.output.write(searchCsv({inverse.scenario, inverse.space, asked.request}, inverse.best));
    }
    if (inverse.value)
        saveBest(options, inverse.scenario, inverse.best);
    return finish(inverse.best);
}

ExitCode run(const Options& options)
{
    refuseExisting(options.saveBest.empty() ? std::vector<std::string>{} : std::vector<std::string>{options.saveBest},
                   options.output.force());
    const Scenario scenario = options.question.read();
    const search::Objective objective = checked(options, scenario);
    const search::Space space = options.space.empty()
                                    ? search::defaultSpace(scenario, objective)
                                    : search::spaceFromJson(parseJson(readTextFile(options.space), options.space),
                                                            options.space, scenario, objective);
    if (options.printSpace) {
        options.output.write(jsonText(toJson(space)) + '\n');
        return ExitCode::Done;
    }
    const StopOnSignal stop;
    ProgressLine progress(kProgressPause);
    search::Request request;
    request.objective = objective;
    request.top = static_cast<std::size_t>(options.top);
    request.front = !options.pareto.empty();
    request.judgeAll = options.explainRejected;
    request.threads =
        options.threads > 0 ? options.threads : static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
    request.stop = &stopRequested;
    request.progress = [&](std::size_t done, std::size_t all) {
        progress.show(fmt::format("searching: {} of {} parts of the space done", done, all));
    };
    const search::Asked asked{scenario, space, request, options.explainRejected};
    if (isInverse(objective))
        return runInverse(options, asked, progress);
    const search::Result result = search::search({scenario, space}, request, search::simulatedClock);
    progress.finish(stopRequested ? "stopped" : "searched the whole space");
    switch (options.output.format()) {
    case Format::Text: options.output.write(searchText(asked, result, options.output.style())); break;
    case Format::Json: options.output.write(jsonText(searchJson(asked, result)) + '\n'); break;
    case Format::Csv: options.output.write(searchCsv(asked, result)); break;
    }
    saveBest(options, scenario, result);
    return finish(result);
}

} // namespace

Command addSearch(CLI::App& root, Findings& findings)
{
    auto options = std::make_shared<Options>();
    CLI::App* app = root.add_subcommand("search", "The proven best way to train it: every strategy, batch and split");
    app->footer(kHelp);
    app->add_option("--space", options->space, "the space to search, instead of what suits the scenario")
        ->type_name("FILE")
        ->group("Search");
    app->add_flag("--print-space", options->printSpace, "print the space that would be searched, and end")
        ->group("Search");
    app->add_option("--objective", options->objective,
                    "tokens-per-second, step-time, gpu-hours, cost, fewest-gpus, largest-model, longest-sequence or "
                    "largest-micro-batch")
        ->type_name("WHAT")
        ->group("Search");
    constexpr int kMostAnswers = 10000;
    app->add_option("--top", options->top, "how many of the best to show (10)")
        ->type_name("N")
        ->check(CLI::Range(1, kMostAnswers))
        ->group("Search");
    app->add_option("--pareto", options->pareto, "instead: all that nothing beats in both memory and time")
        ->type_name("memory,time")
        ->group("Search");
    app->add_flag("--explain-rejected", options->explainRejected,
                  "judge every candidate, and say why those that cannot be taken cannot, with the nearest miss")
        ->group("Search");
    constexpr int kMostThreads = 1024;
    app->add_option("--threads", options->threads, "threads (all cores); the answer does not depend on it")
        ->type_name("N")
        ->check(CLI::Range(1, kMostThreads))
        ->group("Search");
    app->add_option("--save-best", options->saveBest, "write the best as a scenario for compare, explain and export")
        ->type_name("FILE")
        ->group("Answer");
    options->question.add(*app, ScenarioOptions::Strategies::One);
    options->output.add(*app, findings, Formats::TextJsonCsv);
    return {app, [options] { return run(*options); }};
}

} // namespace shardwright::cli
