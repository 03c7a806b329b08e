#include <memory>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "core/json_cursor.hpp"
#include "core/validation.hpp"
#include "planner/cli/commands.hpp"
#include "planner/cli/output.hpp"
#include "planner/report/result_json.hpp"

namespace shardwright::cli {

namespace {

constexpr const char* kHelp = R"(Examples:
  shardrun plan.json --steps 20 -o measurement.json
  shardplan validate plan.json measurement.json
  shardplan validate plan.json measurement.json --strict --calibrated

Predicted beside measured, with the error and whether it keeps its tolerance: model states, host and NVMe bytes and
traffic exactly, peak memory within 1 %. --calibrated: the plan's cluster is this machine as `shardrun calibrate`
describes it, so that the step time has to come within 15 %. With --strict a figure out of tolerance exits with 1, and so
does a run of too few steps to be judged.)";

struct Options {
    std::string plan;
    std::string measurement;
    bool strict = false;
    bool calibrated = false;
    OutputOptions output;
};

ExitCode validateRun(const Options& options)
{
    const ExecutablePlan plan = readPlanFile(options.plan);
    const Measurement measurement = readMeasurement(options.measurement);
    if (measurement.strategy != plan.strategy.name || measurement.scenario != plan.scenario)
        throw InputError(options.measurement, "/strategy",
                         fmt::format("measures {} of {}, not {} of {}", measurement.strategy, measurement.scenario,
                                     plan.strategy.name, plan.scenario),
                         "the measurement of this plan");
    const ValidationReport report = validate(plan, measurement, options.calibrated);
    options.output.write(options.output.format() == Format::Json ? jsonText(toJson(report)) + "\n" : tableOf(report));
    return options.strict && !report.within() ? ExitCode::No : ExitCode::Done;
}

} // namespace

Command addValidate(CLI::App& root, Findings& findings)
{
    auto options = std::make_shared<Options>();
    CLI::App* app = root.add_subcommand("validate", "What a plan predicted beside what shardrun measured");
    app->footer(kHelp);
    app->add_option("plan", options->plan, "plan.json, as `compare --emit-plan` wrote it")
        ->type_name("PLAN")
        ->required();
    app->add_option("measurement", options->measurement, "measurement.json, as shardrun wrote it")
        ->type_name("MEASUREMENT")
        ->required();
    app->add_flag("--strict", options->strict, "exit with 1 when a figure is out of tolerance");
    app->add_flag("--calibrated", options->calibrated, "hold the step time to its tolerance");
    options->output.add(*app, findings, Formats::TextJson);
    return {app, [options] { return validateRun(*options); }};
}

} // namespace shardwright::cli
