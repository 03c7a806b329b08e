#include <algorithm>
#include <memory>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "core/cli/long_run.hpp"
#include "core/json_cursor.hpp"
#include "core/plain_text.hpp"
#include "planner/cli/commands.hpp"
#include "planner/cli/output.hpp"
#include "planner/published/ledger_report.hpp"
#include "planner/report/result_json.hpp"

namespace shardwright::cli {

namespace {

constexpr const char* kHelp = R"(Examples:
  shardplan ledger
  shardplan ledger --source torchtitan-2024-12 --rows
  shardplan ledger --source mosaic-v2-a100-80gb --source torchao-training --json

How well the figures that other people measured are met: every one of scenarios/published/ is predicted, and errors are
told by source, memory and step time apart, beside what other tools say of themselves on the same figures. Nothing is
fitted to these figures. --format json follows the contract in planner/README.md; --format csv has one line per source
and quantity, with --rows one per figure.
Ctrl-C ends the run without an answer, with exit code 130.)";

struct Options {
    OutputOptions output;
    std::vector<std::string> sources;
    bool rows = false;
    bool json = false;
};

/// The files of the named sources, or all.
std::vector<std::string> filesOf(const std::vector<std::string>& sources)
{
    const std::vector<std::string> all = ledgerFiles();
    if (sources.empty())
        return all;
    std::vector<std::string> names;
    for (const std::string& file : all)
        names.push_back(ledgerSourceName(file));
    Findings findings("command line");
    for (const std::string& source : sources) {
        if (std::find(names.begin(), names.end(), source) != names.end())
            continue;
        const std::string nearest = nearestWord(source, names);
        findings.add("--source", fmt::format("\"{}\" is not a source", withoutControls(source)),
                     nearest.empty() ? fmt::format("one of {}", fmt::join(names, ", "))
                                     : fmt::format("\"{}\" perhaps", nearest));
    }
    findings.throwIfAny();
    std::vector<std::string> files;
    for (const std::string& file : all)
        if (std::find(sources.begin(), sources.end(), ledgerSourceName(file)) != sources.end())
            files.push_back(file);
    return files;
}

ExitCode ledger(const Options& options)
{
    const StopOnSignal stopOnSignal;
    ProgressLine progress(kProgressPause);
    const auto text = [](std::int64_t done, std::int64_t total) {
        return fmt::format("{} of {} scenarios", done, total);
    };
    std::int64_t total = 0;
    const auto predicted = predictLedger(filesOf(options.sources), [&](std::int64_t done, std::int64_t all) {
        total = all;
        progress.show(text(done, all));
        return !stopRequested;
    });
    if (!predicted)
        return ExitCode::Interrupted;
    if (total > 0)
        progress.finish(text(total, total));
    switch (options.json ? Format::Json : options.output.format()) {
    case Format::Text: options.output.write(ledgerText(*predicted, options.output.style(), options.rows)); break;
    case Format::Json: options.output.write(jsonText(ledgerToJson(*predicted, options.rows)) + '\n'); break;
    case Format::Csv: options.output.write(ledgerCsv(*predicted, options.rows)); break;
    }
    return ExitCode::Done;
}

} // namespace

Command addLedger(CLI::App& root, Findings& findings)
{
    auto options = std::make_shared<Options>();
    CLI::App* app = root.add_subcommand("ledger", "How well published measurements are met, by source");
    app->footer(kHelp);
    app->add_option("--source", options->sources,
                    "only this file of scenarios/published/, without its ending; may repeat")
        ->type_name("NAME")
        ->expected(1)
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
        ->group("Answer");
    app->add_flag("--rows", options->rows, "every figure with its error")->group("Answer");
    options->output.add(*app, findings, Formats::TextJsonCsv);
    app->add_flag("--json", options->json, "the same as --format json")->group("Output");
    return {app, [options] { return ledger(*options); }};
}

} // namespace shardwright::cli
