#include <regex>
#include <set>
#include <sstream>

#include <gtest/gtest.h>

#include "core/json_cursor.hpp"
#include "planner/report/result_json.hpp"
#include "tests/golden.hpp"
#include "tests/paths.hpp"
#include "tests/planner/report/sample_plans.hpp"

namespace shardwright {
namespace {

using namespace testing;

/// Every key of `contract` stands in `json` in the same place; a list in the contract describes each element.
void expectHolds(const Json& contract, const Json& json, const std::string& place)
{
    if (contract.is_object()) {
        ASSERT_TRUE(json.is_object()) << place;
        for (const auto& item : contract.items()) {
            ASSERT_TRUE(json.contains(item.key())) << place << "/" << item.key();
            expectHolds(item.value(), json[item.key()], place + "/" + item.key());
        }
    } else if (contract.is_array() && !contract.empty()) {
        ASSERT_TRUE(json.is_array()) << place;
        for (const Json& element : json)
            expectHolds(contract[0], element, place + "/*");
    } else if (contract == "any") {
        return;
    } else if (contract.is_string()) {
        EXPECT_STREQ(json.type_name(), contract.get<std::string>().c_str()) << place;
    }
}

TEST(ResultJson, HoldsEveryFieldOfTheContract)
{
    const Json contract = Json::parse(R"({
        "schema": "string", "scenario": "string",
        "model": {"id": "string", "parameters": "number", "trainable_parameters": "number"},
        "cluster": {"gpus": "number", "nodes": "number"},
        "plans": [{"strategy": "string", "framework": "string", "fits": "boolean", "reasons": "array",
            "gpu": {"capacity_bytes": "number", "model_states_bytes": "number", "peak_allocated_bytes": "number",
                    "peak_reserved_bytes": "number", "peak_used_bytes": "number", "by_category": "object"},
            "host": {"bytes_per_rank": "number", "pinned_bytes_per_rank": "number", "bytes_per_node": "number",
                     "capacity_bytes": "number"},
            "nvme": {"bytes_per_node": "number", "read_bytes_per_step": "number", "write_bytes_per_step": "number"},
            "traffic": {"psi": "number", "psi_textbook": "number", "bytes_per_gpu": "number",
                        "intra_node_bytes_per_gpu": "number", "inter_node_bytes_per_gpu": "number",
                        "inter_node_bytes_per_node": "number",
                        "collectives": [{"op": "string", "group": "string", "ranks": "number", "count": "number",
                                         "bytes": "number"}]},
            "network_needed_bytes_per_second_per_node": "any", "cost": "object",
            "checkpoint": {"write_seconds": "any"}}],
        "recommended": "string"})");
    const Recommendation recommendation{"deepspeed-zero3-offload-nvme", "the only one that fits"};
    const Json json = resultToJson(sampleScenario(), samplePlans(), recommendation);
    expectHolds(contract, json, "");
    EXPECT_EQ(json["plans"].size(), 3U);
    EXPECT_EQ(json["schema"], "shardwright-result/1");
    EXPECT_EQ(json["model"]["parameters"], 3000);
    EXPECT_EQ(json["cluster"]["gpus"], 16);
    EXPECT_TRUE(resultToJson(sampleScenario(), samplePlans(), std::nullopt)["recommended"].is_null());
}

TEST(ResultJson, AStepHoldsEveryFieldOfTheContractAndAnImpossibleOneNone)
{
    const Json contract = Json::parse(R"({"seconds": "number", "tokens_per_second": "number",
        "tokens_per_second_per_gpu": "number", "samples_per_second": "number", "tflops_per_gpu": "number",
        "mfu": "number", "hfu": "number",
        "breakdown": {"compute": "number", "recompute": "number", "exposed_communication": "number",
                      "bubble": "number", "offload": "number", "optimizer": "number", "other": "number"},
        "hidden_communication_seconds": "number", "low_seconds": "number", "high_seconds": "number",
        "assumptions": [{"text": "string", "tag": "string", "source": "string"}]})");
    const Json step = planToJson(sampleFittingPlan())["step"];
    expectHolds(contract, step, "step");
    EXPECT_EQ(step.size(), contract.size());
    double sum = 0;
    for (const auto& part : step["breakdown"])
        sum += part.get<double>();
    EXPECT_NEAR(sum, step["seconds"].get<double>(), 1e-8);
    EXPECT_TRUE(planToJson(sampleImpossiblePlan())["step"].is_null());
    EXPECT_TRUE(planToJson(sampleImpossiblePlan())["cost"]["dollars_per_step"].is_null());
}

/// The names of all fields below `json`.
void collectFields(const Json& json, std::set<std::string>& fields)
{
    for (const auto& item : json.items()) {
        if (json.is_object())
            fields.insert(item.key());
        if (item.value().is_structured())
            collectFields(item.value(), fields);
    }
}

TEST(ResultJson, EveryFieldIsDocumented)
{
    const std::string readme = readTextFile(inSource("planner/README.md"));
    std::set<std::string> fields;
    collectFields(resultToJson(sampleScenario(), samplePlans(), std::nullopt, ReportDetail::Full), fields);
    for (const std::string& field : fields) // "`gpu.held_bytes`", "`gpu.curve[]`", "`.held_bytes`"
        EXPECT_TRUE(std::regex_search(readme, std::regex("[`.]" + field + "(\\[\\])?[`.]"))) << field;
}

TEST(ResultJson, IsTheSameTextEveryTime)
{
    const Recommendation recommendation{"deepspeed-zero3-offload-nvme", "the only one that fits"};
    expectGolden("planner/golden/report/result.json",
                 jsonText(resultToJson(sampleScenario(), samplePlans(), recommendation)) + "\n");
    expectGolden("planner/golden/report/plan_full.json", jsonText(planToJson(sampleFittingPlan())) + "\n");
}

TEST(ResultJson, CategoriesSumToThePeak)
{
    const Json gpu = planToJson(sampleFittingPlan())["gpu"];
    std::int64_t sum = 0;
    for (const auto& item : gpu["by_category"].items())
        sum += item.value().get<std::int64_t>();
    EXPECT_EQ(gpu["by_category"].size(), kCategoryCount);
    EXPECT_EQ(sum, gpu["peak_allocated_bytes"].get<std::int64_t>());
}

TEST(ResultJson, TextThatIsNotUtf8DoesNotThrow)
{
    Plan plan = sampleFittingPlan();
    plan.strategy = "caf\xe9";
    EXPECT_NE(jsonText(planToJson(plan)).find("caf\xef\xbf\xbd"), std::string::npos);
}

TEST(PlansToCsv, HasOneLinePerPlanAndEqualFieldCounts)
{
    const std::string csv = plansToCsv(samplePlans());
    expectGolden("planner/golden/report/plans.csv", csv);
    std::istringstream lines(csv);
    std::string line;
    std::vector<std::string> all;
    while (std::getline(lines, line))
        all.push_back(line);
    ASSERT_EQ(all.size(), 4U);
    EXPECT_EQ(std::count(all[1].begin(), all[1].end(), ','), std::count(all[0].begin(), all[0].end(), ','));
    EXPECT_EQ(all[3].rfind("\"fsdp1, my own\",fsdp1,not-possible,", 0), 0U) << all[3];
}

} // namespace
} // namespace shardwright
