#include "planner/search/space.hpp"

#include <gtest/gtest.h>

#include "core/cluster_file.hpp"
#include "core/json_cursor.hpp"
#include "core/model_file.hpp"

namespace shardwright::search {

namespace {

Scenario scenario(const char* model = "llama-3.2-1b", const char* cluster = "dgx-a100-80gb", int nodes = 1)
{
    Scenario scenario;
    scenario.model = readModel(model);
    scenario.cluster = readCluster(cluster);
    scenario.cluster.nodes = nodes;
    return scenario;
}

std::string findingsOf(const Json& json)
{
    try {
        spaceFromJson(json, "space.json", scenario(), Objective::StepTime);
    } catch (const InputError& error) {
        return error.what();
    }
    return {};
}

TEST(SearchSpaceTest, TheGlobalBatchIsTheScenariosUnlessDeclared)
{
    Scenario asked = scenario();
    asked.training.microBatch = 2;
    asked.training.gradientAccumulation = 3;
    EXPECT_EQ(defaultSpace(asked, Objective::StepTime).globalBatch, 2 * 3 * 8);
    const Space declared = spaceFromJson({{"schema", "shardwright-space/1"}, {"global_batch", 40}}, "space.json", asked,
                                         Objective::StepTime);
    EXPECT_EQ(declared.globalBatch, 40);
    EXPECT_EQ(declared.microBatch, (std::vector<std::int64_t>{1, 2, 4, 5, 8, 10, 20, 40})); // divisors
}

TEST(SearchSpaceTest, WhatIsWrittenReadsBackEqual)
{
    const Scenario asked = scenario("mixtral-8x7b", "dgx-h100", 4);
    for (const auto& [objective, name] : EnumNames<Objective>::table) {
        Space space = defaultSpace(asked, objective);
        space.shardGroup = {kWholeGroup, kNodeGroup, 4};
        space.sequence = {512, 4096, 256};
        const Json written = toJson(space);
        EXPECT_EQ(toJson(spaceFromJson(written, "space.json", asked, objective)), written) << name;
    }
}

TEST(SearchSpaceTest, AutoIsTheDefault)
{
    const Scenario asked = scenario();
    Json json = toJson(defaultSpace(asked, Objective::StepTime));
    const Json expected = json;
    for (auto& item : json.items())
        if (item.key() != "schema")
            item.value() = "auto";
    EXPECT_EQ(toJson(spaceFromJson(json, "space.json", asked, Objective::StepTime)), expected);
}

TEST(SearchSpaceTest, EverythingWrongIsToldAtOnce)
{
    const std::string text = findingsOf({{"schema", "shardwright-space/1"},
                                         {"frameworks", {"fsdp2", "fsdp3"}},
                                         {"tensor", 4},
                                         {"micro_batch", {1, 2, 1}},
                                         {"shard_group", {"rack"}},
                                         {"gpus", {12}},
                                         {"checkpointing", {"full"}},
                                         {"sequence_length", {{"from", 10}, {"to", 5}}}});
    for (const char* place : {"/frameworks/1", "/tensor", "/micro_batch/2", "/shard_group/0", "/gpus/0",
                              "/checkpointing", "/sequence_length"})
        EXPECT_NE(text.find(place), std::string::npos) << place << " in\n" << text;
    EXPECT_NE(text.find("activation_checkpointing"), std::string::npos) << "the nearest known key\n" << text;
}

TEST(SearchSpaceTest, WithoutItsSchemaItIsNoSpace)
{
    EXPECT_NE(findingsOf(Json::object()).find("schema"), std::string::npos);
    EXPECT_NE(findingsOf(Json::array()).find("space.json"), std::string::npos);
}

TEST(SearchSpaceTest, GpusVaryWhereTheObjectiveAsks)
{
    const Scenario asked = scenario("llama-3.2-1b", "dgx-a100-80gb", 3);
    EXPECT_EQ(defaultSpace(asked, Objective::StepTime).gpus, std::vector<std::int64_t>{24});
    EXPECT_EQ(defaultSpace(asked, Objective::FewestGpus).gpus, (std::vector<std::int64_t>{1, 2, 4, 8, 16, 24}));
}

} // namespace

} // namespace shardwright::search
