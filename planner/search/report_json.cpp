#include <fmt/format.h>

#include "core/json_cursor.hpp"
#include "core/scenario_file.hpp"
#include "planner/report/result_json.hpp"
#include "planner/search/report.hpp"

namespace shardwright::search {

namespace {

constexpr const char* kSchema = "shardwright-search/1";

Json settings(const Candidates& candidates, const Assignment& so)
{
    return {{"strategy", candidates.strategyName(so)},
            {"framework", nameOf(so.framework)},
            {"sharding", nameOf(so.sharding)},
            {"shard_group", so.shardGroup == kWholeGroup ? Json("all") : Json(so.shardGroup)},
            {"offload", nameOf(so.offload)},
            {"zero_plus_plus", nameOf(so.zeroPlusPlus)},
            {"gpus", so.gpus},
            {"tensor", so.tensor},
            {"sequence_parallel", so.sequenceParallel},
            {"pipeline", so.pipeline},
            {"virtual_stages", so.virtualStages},
            {"context", so.context},
            {"context_exchange", nameOf(so.exchange)},
            {"expert", so.expert},
            {"expert_tensor", so.expertTensor},
            {"data", so.dataRanks()},
            {"activation_checkpointing", nameOf(so.checkpointing)},
            {"checkpoint_every", so.checkpointEvery},
            {"checkpoint_segment", so.checkpointSegment},
            {"micro_batch", so.microBatch},
            {"gradient_accumulation", candidates.accumulation(so)}};
}

Json answersJson(const Asked& asked, const Result& result)
{
    const Candidates candidates(asked.scenario, asked.space);
    Json list = Json::array();
    for (const Answer& answer : result.answers)
        list.push_back({{"settings", settings(candidates, answer.assignment)},
                        {"strategy", toJson(answer.candidate.strategy)},
                        {"plan", planToJson(answer.plan, ReportDetail::Summary)}});
    return list;
}

Json rejectedJson(const Asked& asked, const Result& result)
{
    const Candidates candidates(asked.scenario, asked.space);
    Json list = Json::array();
    for (const auto& [reason, rejected] : result.rejected.reasons()) {
        const bool whole = rejected.nearest.size() == kAxes;
        list.push_back({{"kind", nameOf(reason.obstacle)},
                        {"reason", reason.text},
                        {"candidates", rejected.candidates},
                        {"nearest", whole ? settings(candidates, candidates.assignment(rejected.nearest)) : Json()},
                        {"miss_bytes", rejected.miss > 0 ? Json(static_cast<std::int64_t>(rejected.miss)) : Json()}});
    }
    return list;
}

void addResult(Json& json, const Asked& asked, const Result& result)
{
    json["proven"] = result.proven;
    json["candidates"] = {{"declared", result.declared},
                          {"judged", result.counts.evaluated},
                          {"ruled_out_by_bound", result.counts.beaten},
                          {"rejected", result.rejected.total()}};
    json["answers"] = answersJson(asked, result);
    if (asked.explainRejected)
        json["rejected"] = rejectedJson(asked, result);
}

Json head(const Asked& asked)
{
    return {{"schema", kSchema},
            {"scenario", asked.scenario.name},
            {"objective", asked.request.front ? "pareto memory,time" : std::string(nameOf(asked.request.objective))},
            {"space", toJson(asked.space)}};
}

} // namespace

Json searchJson(const Asked& asked, const Result& result)
{
    Json json = head(asked);
    addResult(json, asked, result);
    return json;
}

Json inverseJson(const Asked& asked, const Inverse& inverse)
{
    Json json = head(asked);
    json["value"] = inverse.value ? Json(*inverse.value) : Json();
    json["at_end_of_range"] = inverse.atEnd;
    if (!inverse.value) {
        json["proven"] = inverse.proven;
        json["answers"] = Json::array();
        return json;
    }
    json["model_parameters"] = inverse.scenario.model.parameters();
    json["model_heads"] = inverse.scenario.model.architecture.heads;
    addResult(json, {inverse.scenario, inverse.space, asked.request, asked.explainRejected}, inverse.best);
    json["proven"] = inverse.proven;
    return json;
}

std::string searchCsv(const Asked& asked, const Result& result)
{
    const Candidates candidates(asked.scenario, asked.space);
    std::string text;
    for (const Answer& answer : result.answers) {
        const Json row = settings(candidates, answer.assignment);
        std::string head;
        std::string line;
        for (const auto& item : row.items()) {
            head += item.key() + ',';
            line += csvField(item.value().is_string() ? item.value().get<std::string>() : item.value().dump()) + ',';
        }
        const std::string plan = plansToCsv({answer.plan}); // its head and one line
        const std::size_t end = plan.find('\n');
        if (text.empty())
            text = head + plan.substr(0, end + 1);
        text += line + plan.substr(end + 1);
    }
    return text;
}

} // namespace shardwright::search
