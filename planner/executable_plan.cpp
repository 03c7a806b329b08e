#include "planner/executable_plan.hpp"

#include <algorithm>

#include "core/json_cursor.hpp"
#include "planner/frameworks/rules.hpp"
#include "planner/plan_builder.hpp"
#include "planner/readers/host_link.hpp"
#include "planner/report/result_json.hpp"

namespace shardwright {

namespace {

/// Ranks that move as much as the one before them are not told again.
Json toJson(const std::vector<HostLinkBytes>& links)
{
    Json list = Json::array();
    for (std::size_t rank = 0; rank < links.size(); ++rank)
        if (rank == 0 || links[rank] != links[rank - 1])
            list.push_back({{"from_rank", rank},
                            {"host_to_device_bytes", links[rank].toDevice.count()},
                            {"device_to_host_bytes", links[rank].toHost.count()}});
    return list;
}

} // namespace

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
    const std::vector<HostLinkBytes> links =
        hostLinkByRank(result.schedule, listParameters(result.model), result.ranks);
    if (std::any_of(links.begin(), links.end(), [](const HostLinkBytes& link) { return link != HostLinkBytes{}; }))
        result.prediction["traffic"]["host_link_by_rank"] = toJson(links);
    return result;
}

} // namespace shardwright
