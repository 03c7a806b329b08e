#include "planner/executable_plan.hpp"

#include "planner/frameworks/rules.hpp"
#include "planner/plan_builder.hpp"
#include "planner/report/result_json.hpp"

namespace shardwright {

ExecutablePlan executablePlan(const Scenario& scenario, const Strategy& strategy)
{
    ExecutablePlan result;
    result.scenario = scenario.name;
    result.model = scenario.model;
    result.modelConfig = scenario.modelConfig.empty() ? readTextFile(scenario.model.source) : scenario.modelConfig;
    result.training = scenario.training;
    result.training.implementation = Implementation::Shardrun;
    result.strategy = strategy;
    result.ranks = scenario.cluster.gpus();
    result.ranksPerNode = scenario.cluster.gpusPerNode;

    const PlanInput input{result.model, scenario.cluster, result.training, result.strategy};
    Findings findings(scenario.file.empty() ? scenario.name : scenario.file);
    for (const std::string& reason : refusals(input))
        findings.add("strategy " + strategy.name, "cannot be carried out by shardrun: " + reason);
    const Parallelism& parallelism = strategy.parallelism;
    if (findings.empty() &&
        (parallelism.tensor > 1 || parallelism.pipeline > 1 || parallelism.context > 1 || parallelism.expert > 1))
        findings.add("strategy " + strategy.name, "splits the model over ranks, which shardrun does not do",
                     "data parallelism alone");
    findings.throwIfAny();
    const auto rules = makeRules(input);
    result.schedule = rules->emitToRun();
    if (!result.schedule.executable())
        throw InputError(findings.file(), "strategy " + strategy.name,
                         "the schedule of this framework is not recorded for execution",
                         "ddp, fsdp1, fsdp2, deepspeed or native");
    PlanDetail detail;
    detail.suggest = false;
    result.prediction = planToJson(buildPlan(input, detail), ReportDetail::Summary);
    return result;
}

} // namespace shardwright
