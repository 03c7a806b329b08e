#include <algorithm>
#include <memory>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "core/cli/streams.hpp"
#include "planner/cli/commands.hpp"
#include "planner/cli/config_output.hpp"
#include "planner/cli/planning.hpp"
#include "planner/cli/scenario_options.hpp"
#include "planner/recommendation.hpp"

namespace shardwright::cli {

namespace {

constexpr const char* kHelp = R"(Examples:
  shardplan export scenarios/llama-2-7b-8xa100.json --strategy deepspeed-zero3 --to deepspeed
  shardplan export scenarios/llama-2-7b-8xa100.json --strategy recommended --to accelerate -o run
  shardplan export --model llama-3-8b --cluster dgx-h100 --strategy fsdp2-full-shard --to accelerate-fsdp

Without -o the files go to standard output, the launch command and what the files cannot say to standard error. With -o
they are written whole; a file that exists is replaced only with --force. `--strategy recommended` takes the best of
what the format can tell, and exits with 1 when none of that fits.)";

struct Options {
    ScenarioOptions question;
    OutputOptions output;
    std::string strategy;
    std::string to;
    std::string script = "train.py";
};

/// Whether files of the format can tell a framework with these options.
bool canTell(ConfigFormat format, const StrategyOptions& options)
{
    switch (format) {
    case ConfigFormat::AccelerateFsdp1: return std::holds_alternative<Fsdp1Options>(options);
    case ConfigFormat::AccelerateFsdp2: return std::holds_alternative<Fsdp2Options>(options);
    case ConfigFormat::AccelerateDdp: return std::holds_alternative<DdpOptions>(options);
    case ConfigFormat::DeepSpeed:
    case ConfigFormat::AccelerateDeepSpeed:
    case ConfigFormat::AccelerateDeepSpeedPlugin: return std::holds_alternative<DeepSpeedOptions>(options);
    }
    return false;
}

/// Whether the format takes this strategy: not NVMe in the plugin's few keys, nor FSDP2 without any sharding.
bool canExport(const Scenario& scenario, const Strategy& strategy, ConfigFormat format)
{
    if (!canTell(format, strategy.options))
        return false;
    try {
        exportConfig(scenario, strategy, format);
        return true;
    } catch (const InputError&) {
        return false;
    }
}

/// Leaves the strategies that the format can tell; InputError when there are none.
void keepExportable(Scenario& scenario, const std::string& to)
{
    std::vector<Strategy>& list = scenario.strategies;
    list.erase(std::remove_if(list.begin(), list.end(),
                              [&](const Strategy& strategy) {
                                  return !canExport(scenario, strategy, configFormat(to, strategy.options));
                              }),
               list.end());
    if (list.empty())
        throw InputError("command line", "--to", fmt::format("\"{}\" tells none of the scenario's strategies", to),
                         "another format, or --strategy with a name");
}

/// The plan to export; nothing when the recommended one is asked for and none fits.
std::optional<Plan> choose(const Options& options, const Scenario& scenario)
{
    PlanDetail detail;
    detail.curve = false;
    detail.suggest = false;
    std::vector<Plan> plans = plansOf(scenario, detail);
    if (options.strategy != kRecommended)
        return std::move(plans.front());
    const auto index = recommend(plans);
    if (!index)
        return std::nullopt;
    return std::move(plans[*index]);
}

std::string verdictLine(const Plan& plan)
{
    if (plan.verdict == Verdict::Fits)
        return {};
    return fmt::format("{}: {}: {}\n", plan.strategy, plan.verdict == Verdict::Tight ? "tight" : "does not fit",
                       fmt::join(plan.reasons, "; "));
}

ExitCode exportConfigs(const Options& options)
{
    const bool recommended = options.strategy == kRecommended;
    Scenario scenario = options.question.read(recommended ? std::nullopt : std::optional(options.strategy));
    if (recommended)
        keepExportable(scenario, options.to);
    const auto plan = choose(options, scenario);
    if (!plan) {
        printErr(fmt::format("scenario {}: nothing that {} can tell fits; `shardplan compare` says what would\n",
                             scenario.name, options.to));
        return ExitCode::No;
    }
    if (plan->verdict == Verdict::NotPossible)
        throw InputError("strategy " + plan->strategy, "",
                         fmt::format("is not possible: {}", fmt::join(plan->reasons, "; ")),
                         "another strategy or other settings");
    const auto strategy = std::find_if(scenario.strategies.begin(), scenario.strategies.end(),
                                       [&](const Strategy& each) { return each.name == plan->strategy; });
    const ConfigExport config = exportConfig(scenario, *strategy, configFormat(options.to, strategy->options),
                                             {options.output.path(), options.script});
    const std::string beside = fmt::format("strategy: {}\nlaunch:   {}\n", plan->strategy, config.launchCommand) +
                               verdictLine(*plan) + noteLines(config.notes);
    deliver(config, beside, {{"strategy", plan->strategy}, {"fits", plan->fits()}, {"reasons", plan->reasons}},
            options.output);
    return ExitCode::Done;
}

} // namespace

Command addExport(CLI::App& root, Findings& findings)
{
    auto options = std::make_shared<Options>();
    CLI::App* app = root.add_subcommand("export", "The config files and the command that launch an option");
    app->footer(kHelp + formatHelp());
    app->add_option("--strategy", options->strategy, "a strategy, or \"recommended\"")->type_name("NAME")->required();
    addFormatOption(*app, options->to);
    app->add_option("--script", options->script, "your training script, for the launch command")->type_name("FILE");
    options->question.add(*app, ScenarioOptions::Strategies::One);
    options->output.add(*app, findings, Formats::TextJson, OutputOptions::Target::Folder);
    return {app, [options] { return exportConfigs(*options); }};
}

} // namespace shardwright::cli
