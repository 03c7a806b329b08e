#include <cmath>
#include <memory>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "core/json_cursor.hpp"
#include "planner/cli/commands.hpp"
#include "planner/cli/output.hpp"
#include "planner/cli/planning.hpp"
#include "planner/cli/scenario_options.hpp"
#include "planner/costs/op_costs.hpp"
#include "planner/frameworks/rules.hpp"
#include "planner/parallelism/model_slice.hpp"
#include "planner/parallelism/pipeline_time.hpp"
#include "planner/report/trace_json.hpp"

namespace shardwright::cli {

namespace {

constexpr const char* kHelp = R"(Examples:
  shardplan trace scenarios/llama-2-7b-8xa100.json --strategy fsdp2-full-shard -o step.json
  shardplan trace --model llama-3-8b --cluster dgx-h100 --strategy deepspeed-zero3 --gradient-accumulation 4

One simulated optimizer step in steady state as a Chrome trace: open it in ui.perfetto.dev or chrome://tracing. A track
for each stream, every operation with its payload and group, GPU memory by category. Of micro-steps that repeat the last
one is drawn. Under pipeline parallelism each kind of stage is a process of its own, drawn without waiting for others;
a process above them has all stages together, micro-batch by micro-batch, with their bubbles. What collectives take from
the computing beside them is not drawn: planned_step_seconds in "otherData" has it, as `compare` does.)";

struct Options {
    ScenarioOptions question;
    OutputOptions output;
    std::string strategy;
};

/// What a rank does in a step, and when.
struct Rank {
    std::string name;
    const Model* model;
    Schedule schedule;
    Timeline timeline;
    MemoryReplay memory;
};

Rank traced(const PlanInput& input, std::string name)
{
    const auto rules = makeRules(input);
    Rank rank{std::move(name), &input.model, rules->emit(), {}, {}};
    const OpTimes times = opTimes(rank.schedule, OpCosts(input, *rules->activations(), rank.schedule.sizes));
    for (const double seconds : times.seconds)
        if (!std::isfinite(seconds))
            throw InputError("strategy " + input.strategy.name, "",
                             "moves bytes over a link or drive that the cluster does not have",
                             "another strategy, or a cluster that names its bandwidth");
    rank.timeline = simulate(rank.schedule, times);
    rank.memory = replayMemory(rank.schedule, true);
    return rank;
}

ExitCode trace(const Options& options)
{
    const auto read = readWith(options.strategy, options.question);
    if (!read)
        return ExitCode::No;
    const Scenario& scenario = *read;
    const Strategy& strategy = scenario.strategies.front();
    PlanDetail detail;
    detail.curve = false;
    detail.allocator = false;
    detail.suggest = false;
    const Plan plan = plansOf(scenario, detail).front();
    if (plan.verdict == Verdict::NotPossible)
        throw InputError("strategy " + plan.strategy, "",
                         fmt::format("is not possible: {}", fmt::join(plan.reasons, "; ")),
                         "another strategy or other settings");
    const PlanInput input{scenario.model, scenario.cluster, scenario.training, strategy};
    const std::vector<ModelSlice> slices = needsSlices(input) ? sliceModel(input) : std::vector<ModelSlice>{};
    std::vector<Rank> ranks;
    if (slices.empty())
        ranks.push_back(traced(input, "rank"));
    for (const ModelSlice& slice : slices)
        ranks.push_back(traced(inputOf(input, slice), slice.stages == 1 ? "rank" : nameOfStage(slice)));
    TracedJob job;
    for (const Rank& rank : ranks)
        job.ranks.push_back({rank.name, rank.model, &rank.schedule, &rank.timeline, &rank.memory});
    std::optional<PipelineTimeline> pipeline;
    if (strategy.parallelism.pipeline > 1)
        pipeline = pipelineTimeline(input, slices, emitStages(input, slices));
    job.pipeline = pipeline ? &*pipeline : nullptr;
    if (plan.step)
        job.plannedSeconds = plan.step->seconds;
    options.output.write(traceJson(scenario.name, strategy.name, job));
    return ExitCode::Done;
}

} // namespace

Command addTrace(CLI::App& root, Findings& findings)
{
    auto options = std::make_shared<Options>();
    CLI::App* app = root.add_subcommand("trace", "One simulated step as a trace for Perfetto");
    app->footer(kHelp);
    app->add_option("--strategy", options->strategy,
                    "the strategy to trace (`shardplan strategies`), or \"recommended\"")
        ->type_name("NAME")
        ->required();
    options->question.add(*app, ScenarioOptions::Strategies::One);
    options->output.add(*app, findings, Formats::Json);
    return {app, [options] { return trace(*options); }};
}

} // namespace shardwright::cli
