#include "core/plan_file.hpp"

#include <fmt/format.h>

#include "core/json_cursor.hpp"
#include "core/model_file.hpp"
#include "core/scenario_file.hpp"
#include "core/schedule_json.hpp"

namespace shardwright {

namespace {

constexpr const char* kKind = "shardwright-plan";
constexpr std::int64_t kMostRanks = 1 << 20;

/// FNV-1a, 64 bits: tells a file that was cut or edited, nothing more.
std::uint64_t checksumOf(const std::string& text)
{
    constexpr std::uint64_t kOffset = 14695981039346656037ULL; // draft-eastlake-fnv-17 sec. 5
    constexpr std::uint64_t kPrime = 1099511628211ULL;
    std::uint64_t hash = kOffset;
    for (const char byte : text)
        hash = (hash ^ static_cast<unsigned char>(byte)) * kPrime;
    return hash;
}

std::string checksumText(const Json& body)
{
    return fmt::format("{:016x}", checksumOf(body.dump()));
}

/// The body, once version and checksum are right.
const Json& checkedBody(const Json& json, const std::string& file)
{
    if (!json.is_object() || json.value("kind", Json()) != kKind)
        throw InputError(
            file, "/kind", "this is no plan for shardrun",
            fmt::format("a file that `shardplan compare SCENARIO --emit-plan STRATEGY` wrote (kind \"{}\")", kKind));
    const Json version = json.value("version", Json());
    if (version != kPlanFormat)
        throw InputError(file, "/version",
                         fmt::format("plan format {} is not one that this shardrun reads", version.dump()),
                         fmt::format("{}: emit the plan again with the shardplan that belongs to it", kPlanFormat));
    const auto body = json.find("plan");
    if (body == json.end() || !body->is_object())
        throw InputError(file, "/plan", "the plan itself is missing", "an object");
    if (json.value("checksum", Json()) != checksumText(*body))
        throw InputError(file, "/checksum", "the plan was changed or cut after it was written",
                         "the file as `shardplan compare --emit-plan` wrote it");
    return *body;
}

} // namespace

std::string planFileText(const ExecutablePlan& plan)
{
    Json body = Json::object();
    body["scenario"] = plan.scenario;
    body["strategy"] = toJson(plan.strategy);
    body["ranks"] = plan.ranks;
    body["ranks_per_node"] = plan.ranksPerNode;
    body["training"] = toJson(plan.training);
    body["model_id"] = plan.model.id;
    body["model"] = parseJson(plan.modelConfig, plan.model.source);
    body["schedule"] = toJson(plan.schedule);
    body["prediction"] = plan.prediction;
    return sealedPlan(std::move(body));
}

std::string sealedPlan(Json body)
{
    Json json = Json::object();
    json["kind"] = kKind;
    json["version"] = kPlanFormat;
    json["checksum"] = checksumText(body);
    json["plan"] = std::move(body);
    return json.dump() + "\n";
}

ExecutablePlan planFromText(const std::string& text, const std::string& file)
{
    const Json json = parseJson(text, file);
    const Json& body = checkedBody(json, file);
    ExecutablePlan plan;
    plan.file = file;
    Findings findings(file);
    const JsonCursor cursor(body, findings, "/plan");
    cursor.rejectUnknownKeys(
        {"scenario", "strategy", "ranks", "ranks_per_node", "training", "model_id", "model", "schedule", "prediction"});
    cursor.read("scenario", plan.scenario);
    cursor.read("ranks", plan.ranks, 1, kMostRanks);
    cursor.read("ranks_per_node", plan.ranksPerNode, 1, kMostRanks);
    std::string id;
    cursor.read("model_id", id);
    if (const auto training = cursor.require("training", "how the model is trained"))
        plan.training = trainingFromJson(*training);
    if (const auto strategy = cursor.require("strategy", "the strategy that was planned"))
        plan.strategy = strategyFromJson(*strategy, static_cast<int>(plan.ranksPerNode));
    if (const auto model = cursor.require("model", "the model's Hugging Face config")) {
        try {
            plan.model = modelFromJson(model->json(), id, file, model->pointer());
            plan.modelConfig = model->json().dump(2);
        } catch (const InputError& error) {
            findings.add(error);
        }
    }
    if (const auto prediction = cursor.require("prediction", "the figures that were predicted"))
        plan.prediction = prediction->json();
    findings.throwIfAny();
    if (const auto schedule = cursor.require("schedule", "the operations"))
        readSchedule(*schedule, listParameters(plan.model), static_cast<std::int64_t>(plan.model.layers.size()), plan);
    findings.throwIfAny();
    return plan;
}

ExecutablePlan readPlanFile(const std::string& path)
{
    return planFromText(readTextFile(path), path);
}

} // namespace shardwright
