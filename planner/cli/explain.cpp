#include <memory>

#include <CLI/CLI.hpp>

#include "core/json_cursor.hpp"
#include "planner/cli/commands.hpp"
#include "planner/cli/output.hpp"
#include "planner/cli/planning.hpp"
#include "planner/cli/scenario_options.hpp"
#include "planner/report/explain_report.hpp"
#include "planner/report/result_json.hpp"

namespace shardwright::cli {

namespace {

constexpr const char* kHelp = R"(Examples:
  shardplan explain scenarios/llama-2-7b-8xa100.json --strategy fsdp2-full-shard
  shardplan explain scenarios/llama-2-7b-8xa100.json --strategy ddp --sequence-length 4096
  shardplan explain --model llama-3-8b --cluster dgx-h100 --strategy deepspeed-zero3 --format json

Each number with its formula and inputs, where the inputs come from, what is assumed and what is left out. --format
json adds every live buffer at the peak and the memory after every operation of the step.)";

struct Options {
    ScenarioOptions question;
    OutputOptions output;
    std::string strategy;
};

ExitCode explain(const Options& options)
{
    const auto read = readWith(options.strategy, options.question);
    if (!read)
        return ExitCode::No;
    const Scenario& scenario = *read;
    const std::vector<Plan> plans = plansOf(scenario, PlanDetail{});
    if (options.output.format() == Format::Json)
        options.output.write(jsonText(resultToJson(scenario, plans, std::nullopt, ReportDetail::Full)) + '\n');
    else
        options.output.write(explainText(scenario, plans.front(), options.output.style()));
    return ExitCode::Done;
}

} // namespace

Command addExplain(CLI::App& root, Findings& findings)
{
    auto options = std::make_shared<Options>();
    CLI::App* app = root.add_subcommand("explain", "One option in full: every number with its formula and sources");
    app->footer(kHelp);
    app->add_option("--strategy", options->strategy,
                    "the strategy to explain (`shardplan strategies`), or \"recommended\"")
        ->type_name("NAME")
        ->required();
    options->question.add(*app, ScenarioOptions::Strategies::One);
    options->output.add(*app, findings, Formats::TextJson);
    return {app, [options] { return explain(*options); }};
}

} // namespace shardwright::cli
