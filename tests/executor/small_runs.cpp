#include "tests/executor/small_runs.hpp"

#include <gtest/gtest.h>

#include "core/json_cursor.hpp"
#include "core/model_file.hpp"
#include "core/scenario_file.hpp"
#include "core/validation.hpp"
#include "executor/comm/transports.hpp"
#include "planner/executable_plan.hpp"
#include "tests/paths.hpp"

namespace shardwright {

namespace {

constexpr std::int64_t kSequenceLength = 16;

} // namespace

Scenario scenarioOf(const StrategyOptions& options, const SmallRun& run)
{
    Scenario scenario;
    scenario.name = "tiny";
    scenario.modelConfig = run.model;
    scenario.model = modelFromJson(Json::parse(scenario.modelConfig), "tiny", "test");
    scenario.cluster.gpusPerNode = run.ranksPerNode;
    scenario.cluster.nodes = run.nodes;
    scenario.training.implementation = Implementation::Shardrun;
    scenario.training.sequenceLength = kSequenceLength;
    scenario.training.microBatch = 2;
    scenario.training.gradientAccumulation = run.accumulation;
    scenario.training.precision.mixed = run.mixed;
    scenario.training.optimizer = run.optimizer;
    scenario.training.checkpointing = run.checkpointing;
    scenario.strategies = {{"tested", options}};
    return scenario;
}

Scenario scenarioOf(const std::string& strategy, const Json& model, int nodes, int ranksPerNode, Json training)
{
    const std::string file = inSource("scenarios/clusters/host-4-threads.json");
    Json cluster = parseJson(readTextFile(file), file);
    cluster["gpus_per_node"] = ranksPerNode;
    cluster["nodes"] = nodes;
    if (nodes > 1) {
        cluster["inter_node"] = cluster["intra_node"];
        cluster["inter_node"]["kind"] = "ethernet";
    }
    training["sequence_length"] = kSequenceLength;
    training["implementation"] = "shardrun";
    return scenarioFromJson({{"schema", "shardwright-scenario/1"},
                             {"name", "tiny"},
                             {"model", model},
                             {"cluster", cluster},
                             {"training", training},
                             {"strategies", Json::array({strategy})}},
                            "tiny");
}

ExecutablePlan planOf(const Scenario& scenario)
{
    return planFromText(planFileText(executablePlan(scenario, scenario.strategies.front())), "plan.json");
}

Measurement runOnThreads(const ExecutablePlan& plan, const RunSettings& settings)
{
    return runPlan(plan, settings, makeThreadTransports(static_cast<int>(plan.ranks)));
}

std::vector<double> lossesAlone(SmallRun run, const RunSettings& settings)
{
    run.accumulation *= run.nodes * run.ranksPerNode;
    run.nodes = run.ranksPerNode = 1;
    run.checkpointing = Checkpointing::None;
    NativeOptions whole;
    whole.stage = 0;
    return runOnThreads(planOf(scenarioOf(whole, run)), settings).losses;
}

void expectAsPredicted(const ExecutablePlan& plan, const Measurement& measured, const std::string& what)
{
    for (const ValidationRow& row : validate(plan, measured, false).rows)
        EXPECT_TRUE(row.within()) << what << ": " << row.quantity << ": predicted " << row.predicted << ", measured "
                                  << row.measured << ' ' << row.unit << ' ' << row.remark;
}

} // namespace shardwright
