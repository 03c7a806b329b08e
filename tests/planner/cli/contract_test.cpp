// The JSON contract of a result, key by key, and that every format tells the same figures.

#include <gtest/gtest.h>

#include <set>

#include "core/json_cursor.hpp"
#include "core/scenario_file.hpp"
#include "tests/planner/cli/process.hpp"

namespace shardwright::testing {

namespace {

enum class Type { Integer, Number, Text, Flag, List, Object };

bool isOf(const Json& value, Type type)
{
    switch (type) {
    case Type::Integer: return value.is_number_integer();
    case Type::Number: return value.is_number();
    case Type::Text: return value.is_string();
    case Type::Flag: return value.is_boolean();
    case Type::List: return value.is_array();
    case Type::Object: return value.is_object();
    }
    return false;
}

void expectMembers(const Json& object, const std::vector<std::pair<std::string, Type>>& members,
                   const std::string& where)
{
    for (const auto& [key, type] : members) {
        ASSERT_TRUE(object.contains(key)) << where << " has no \"" << key << '"';
        EXPECT_TRUE(isOf(object[key], type)) << where << '/' << key << " is " << object[key].dump();
    }
}

void expectStep(const Json& step)
{
    expectMembers(step,
                  {{"seconds", Type::Number},
                   {"tokens_per_second", Type::Number},
                   {"tokens_per_second_per_gpu", Type::Number},
                   {"samples_per_second", Type::Number},
                   {"tflops_per_gpu", Type::Number},
                   {"mfu", Type::Number},
                   {"hfu", Type::Number},
                   {"breakdown", Type::Object},
                   {"hidden_communication_seconds", Type::Number},
                   {"low_seconds", Type::Number},
                   {"high_seconds", Type::Number},
                   {"assumptions", Type::List}},
                  "step");
    expectMembers(step["breakdown"],
                  {{"compute", Type::Number},
                   {"recompute", Type::Number},
                   {"exposed_communication", Type::Number},
                   {"bubble", Type::Number},
                   {"offload", Type::Number},
                   {"optimizer", Type::Number},
                   {"other", Type::Number}},
                  "breakdown");
}

void expectPlan(const Json& plan)
{
    expectMembers(plan,
                  {{"strategy", Type::Text},
                   {"framework", Type::Text},
                   {"fits", Type::Flag},
                   {"reasons", Type::List},
                   {"gpu", Type::Object},
                   {"host", Type::Object},
                   {"nvme", Type::Object},
                   {"traffic", Type::Object}},
                  "plan");
    expectMembers(plan, {{"cost", Type::Object}, {"verdict", Type::Text}}, "plan");
    EXPECT_TRUE(plan.contains("network_needed_bytes_per_second_per_node"));
    EXPECT_EQ(plan["step"].is_null(), plan["verdict"] == "not-possible");
    if (!plan["step"].is_null())
        expectStep(plan["step"]);
    expectMembers(plan["gpu"],
                  {{"capacity_bytes", Type::Integer},
                   {"model_states_bytes", Type::Integer},
                   {"peak_allocated_bytes", Type::Integer},
                   {"peak_reserved_bytes", Type::Integer},
                   {"peak_used_bytes", Type::Integer},
                   {"by_category", Type::Object}},
                  "gpu");
    expectMembers(plan["host"],
                  {{"bytes_per_rank", Type::Integer},
                   {"pinned_bytes_per_rank", Type::Integer},
                   {"bytes_per_node", Type::Integer},
                   {"capacity_bytes", Type::Integer}},
                  "host");
    expectMembers(plan["nvme"],
                  {{"bytes_per_node", Type::Integer},
                   {"read_bytes_per_step", Type::Integer},
                   {"write_bytes_per_step", Type::Integer}},
                  "nvme");
    expectMembers(plan["traffic"],
                  {{"psi", Type::Number},
                   {"psi_textbook", Type::Number},
                   {"bytes_per_gpu", Type::Integer},
                   {"intra_node_bytes_per_gpu", Type::Integer},
                   {"inter_node_bytes_per_gpu", Type::Integer},
                   {"inter_node_bytes_per_node", Type::Integer},
                   {"collectives", Type::List}},
                  "traffic");
    for (const Json& collective : plan["traffic"]["collectives"])
        expectMembers(collective,
                      {{"op", Type::Text},
                       {"group", Type::Text},
                       {"ranks", Type::Integer},
                       {"count", Type::Integer},
                       {"bytes", Type::Integer}},
                      "collective");
}

TEST(CliContract, EveryKeyOfTheContractIsThereWithItsType)
{
    const Json result = shardplanJson({"compare", kScenario7b, "--format", "json"});
    expectMembers(result,
                  {{"schema", Type::Text},
                   {"scenario", Type::Text},
                   {"model", Type::Object},
                   {"cluster", Type::Object},
                   {"plans", Type::List},
                   {"recommended", Type::Text}},
                  "result");
    expectMembers(result["model"],
                  {{"id", Type::Text}, {"parameters", Type::Integer}, {"trainable_parameters", Type::Integer}},
                  "model");
    expectMembers(result["cluster"], {{"gpus", Type::Integer}, {"nodes", Type::Integer}}, "cluster");
    EXPECT_EQ(result["model"]["parameters"], 6738415616); // 13.48 GB of bf16 weights on the Hugging Face hub
    EXPECT_EQ(result["cluster"]["gpus"], 8);
    for (const Json& plan : result["plans"])
        expectPlan(plan);
}

TEST(CliContract, PlansAreTheStrategiesAskedForInTheirOrder)
{
    const Json result = shardplanJson(
        {"compare", kScenario7b, "--strategies", "fsdp2-full-shard,ddp,fsdp1-full-shard", "--format", "json"});
    std::vector<std::string> names;
    for (const Json& plan : result["plans"])
        names.push_back(plan["strategy"]);
    EXPECT_EQ(names, (std::vector<std::string>{"fsdp2-full-shard", "ddp", "fsdp1-full-shard"}));
}

TEST(CliContract, WithoutStrategiesEveryPredefinedOneIsCompared)
{
    const Json result = shardplanJson(
        {"compare", "--model", "llama-2-7b", "--cluster", "dgx-h100", "--nodes", "2", "--format", "json"});
    std::set<std::string> names;
    for (const Json& plan : result["plans"])
        names.insert(plan["strategy"].get<std::string>());
    for (const std::string& name : strategyNames())
        EXPECT_EQ(names.count(name), name.rfind("native", 0) == 0 || name.rfind("megatron", 0) == 0 ? 0u : 1u) << name;
    EXPECT_EQ(result["cluster"]["gpus"], 16);
    EXPECT_EQ(result["cluster"]["nodes"], 2);
}

/// Also one that a search names and no list of predefined ones holds.
TEST(CliContract, TraceDrawsTheStrategyThatIsRecommendedOrNamed)
{
    const Json compared = shardplanJson({"compare", kScenario7b, "--format", "json"});
    const auto traced = [](const std::string& name) {
        return shardplanJson({"trace", kScenario7b, "--strategy", name})["otherData"]["strategy"];
    };
    EXPECT_EQ(traced("recommended"), compared["recommended"]);
    EXPECT_EQ(traced("fsdp2-shard-grad-op-offload"), "fsdp2-shard-grad-op-offload");
    EXPECT_EQ(shardplan({"trace", kScenario7b, "--strategy", "recommended", "--sequence-length", "100000000"}).exitCode,
              1);
}

/// What the trace shows of a pipeline is the step that compare states.
TEST(CliContract, TracesOfPipelinesEndWithTheStep)
{
    const std::string name = "megatron-distributed-optimizer-tp8sp-pp4v2";
    const std::vector<std::string> question{"scenarios/megatron-70b-64xh100.json", "--gradient-accumulation", "8"};
    const auto with = [&](std::vector<std::string> arguments, const char* option) {
        arguments.insert(arguments.end(), question.begin(), question.end());
        arguments.insert(arguments.end(), {option, name});
        return arguments;
    };
    const Json compared = shardplanJson(with({"compare", "--format", "json"}, "--strategies"));
    const Json trace = shardplanJson(with({"trace"}, "--strategy"));
    double pipeline = -1;
    for (const Json& event : trace["traceEvents"])
        if (event["name"] == "process_name" && event["args"]["name"] == "pipeline, all stages")
            pipeline = event["pid"].get<double>();
    ASSERT_GE(pipeline, 0);
    std::size_t passes = 0;
    double end = 0;
    for (const Json& event : trace["traceEvents"])
        if (event["ph"] == "X" && event["pid"] == pipeline) {
            passes += event["cat"] == "optimizer" ? 0 : 1;
            end = std::max(end, event["ts"].get<double>() + event["dur"].get<double>());
        }
    EXPECT_EQ(passes, 2u * 4 * 2 * 8); // both ways, stages, chunks, micro-batches
    EXPECT_NEAR(end / 1e6, compared["plans"][0]["step"]["seconds"].get<double>(), 1e-6);
    EXPECT_EQ(trace["otherData"]["planned_step_seconds"], compared["plans"][0]["step"]["seconds"]);
}

TEST(CliContract, NothingFittingIsNull)
{
    const Ran ran = shardplan({"compare", kScenario7b, "--strategies", "ddp", "--format", "json"});
    EXPECT_EQ(ran.exitCode, 1);
    const Json result = Json::parse(ran.out);
    EXPECT_TRUE(result["recommended"].is_null());
    EXPECT_FALSE(result["plans"][0]["fits"]);
    EXPECT_FALSE(result["plans"][0]["reasons"].empty());
}

TEST(CliContract, CsvHasTheFiguresOfTheJson)
{
    const Json result = shardplanJson({"compare", kScenario7b, "--format", "json"});
    const std::vector<std::string> csv = lines(shardplan({"compare", kScenario7b, "--format", "csv"}).out);
    ASSERT_EQ(csv.size(), result["plans"].size() + 1);
    std::vector<std::string> columns;
    std::istringstream head(csv.front());
    for (std::string column; std::getline(head, column, ',');)
        columns.push_back(column);
    const auto position = std::find(columns.begin(), columns.end(), "gpu.peak_used_bytes") - columns.begin();
    ASSERT_LT(position, static_cast<std::ptrdiff_t>(columns.size())) << csv.front();
    for (std::size_t row = 1; row < csv.size(); ++row) {
        std::istringstream cells(csv[row]);
        std::string cell;
        std::getline(cells, cell, ',');
        const Json& plan = result["plans"][row - 1];
        EXPECT_EQ(cell, plan["strategy"].get<std::string>());
        for (std::ptrdiff_t i = 0; i < position; ++i) // no quoted field stands before it
            std::getline(cells, cell, ',');
        EXPECT_EQ(cell, plan["gpu"]["peak_used_bytes"].dump());
    }
}

TEST(CliContract, OnlyFittingKeepsExactlyWhatFits)
{
    const Json all = shardplanJson({"compare", kScenario7b, "--format", "json"});
    const Json fitting = shardplanJson({"compare", kScenario7b, "--only-fitting", "--format", "json"});
    std::vector<std::string> expected;
    for (const Json& plan : all["plans"])
        if (plan["fits"])
            expected.push_back(plan["strategy"]);
    std::vector<std::string> found;
    for (const Json& plan : fitting["plans"])
        found.push_back(plan["strategy"]);
    EXPECT_EQ(found, expected);
    EXPECT_LT(found.size(), all["plans"].size());
    EXPECT_EQ(fitting["recommended"], all["recommended"]);

    const Json best = shardplanJson({"compare", kScenario7b, "--recommend", "--format", "json"});
    ASSERT_EQ(best["plans"].size(), 1u);
    EXPECT_EQ(best["plans"][0]["strategy"], all["recommended"]);
}

TEST(CliContract, FlagsReplaceTheScenariosValues)
{
    const TemporaryFolder folder;
    Json scenario = Json::parse(R"({"schema": "shardwright-scenario/1", "model": "llama-2-7b", "cluster":
        {"id": "dgx-h100", "nodes": 2}, "training": {"sequence_length": 8192, "micro_batch": 2,
        "gradient_accumulation": 4, "activation_checkpointing": "full", "checkpoint_every": 2, "optimizer": "lion",
        "precision": {"mixed": "fp16", "load": "bf16"}, "attention": "sdpa", "implementation": "torchtitan",
        "loss": "fused", "compile": true, "lora": {"rank": 8, "target_modules": ["q_proj", "v_proj"]}},
        "strategies": ["fsdp2-full-shard"]})");
    scenario["name"] = "llama-2-7b-8xa100";
    const std::string file = folder.write("spelled-out.json", scenario.dump());
    const Json fromFile = shardplanJson({"compare", file, "--format", "json"});
    const Json fromFlags = shardplanJson({"compare",
                                          kScenario7b,
                                          "--cluster",
                                          "dgx-h100",
                                          "--nodes",
                                          "2",
                                          "--sequence-length",
                                          "8192",
                                          "--micro-batch",
                                          "2",
                                          "--gradient-accumulation",
                                          "4",
                                          "--activation-checkpointing",
                                          "full",
                                          "--checkpoint-every",
                                          "2",
                                          "--optimizer",
                                          "lion",
                                          "--precision",
                                          "fp16",
                                          "--load-dtype",
                                          "bf16",
                                          "--attention",
                                          "sdpa",
                                          "--implementation",
                                          "torchtitan",
                                          "--loss",
                                          "fused",
                                          "--compile",
                                          "--lora-rank",
                                          "8",
                                          "--lora-targets",
                                          "q_proj,v_proj",
                                          "--strategies",
                                          "fsdp2-full-shard",
                                          "--format",
                                          "json"});
    EXPECT_EQ(fromFlags, fromFile);
    const Json before = shardplanJson({"compare", kScenario7b, "--strategies", "fsdp2-full-shard", "--format", "json"});
    EXPECT_NE(before["plans"][0]["gpu"], fromFile["plans"][0]["gpu"]);
}

TEST(CliContract, ASwitchCanBeSetBack)
{
    const TemporaryFolder folder;
    const std::string file =
        folder.write("compiled.json",
                     R"({"schema": "shardwright-scenario/1", "model": "llama-2-7b", "cluster": "dgx-h100",
            "strategies": ["fsdp2-full-shard"], "training": {"compile": true}})");
    const auto peak = [&](const std::vector<std::string>& flags) {
        std::vector<std::string> arguments{"compare", file, "--format", "json"};
        arguments.insert(arguments.end(), flags.begin(), flags.end());
        return shardplanJson(arguments)["plans"][0]["gpu"]["peak_allocated_bytes"].get<std::int64_t>();
    };
    EXPECT_EQ(peak({}), peak({"--compile"}));
    EXPECT_GT(peak({"--compile=false"}), peak({})); // uncompiled blocks keep the results of pointwise operations
}

TEST(CliContract, GpusPerNodeCountsInTheCluster)
{
    const Json result = shardplanJson(
        {"compare", kScenario7b, "--gpus-per-node", "4", "--strategies", "fsdp2-full-shard", "--format", "json"});
    EXPECT_EQ(result["cluster"]["gpus"], 4);
}

TEST(CliContract, ExplainTellsTheSameAndMore)
{
    const Json compared =
        shardplanJson({"compare", kScenario7b, "--strategies", "fsdp2-full-shard", "--format", "json"});
    const Json explained =
        shardplanJson({"explain", kScenario7b, "--strategy", "fsdp2-full-shard", "--format", "json"});
    const Json& plan = explained["plans"][0];
    EXPECT_EQ(plan["gpu"]["peak_used_bytes"], compared["plans"][0]["gpu"]["peak_used_bytes"]);
    std::int64_t live = 0;
    for (const Json& item : plan["gpu"]["peak_items"])
        live += item["bytes"].get<std::int64_t>();
    EXPECT_EQ(live, plan["gpu"]["peak_allocated_bytes"].get<std::int64_t>());
    EXPECT_FALSE(plan["gpu"]["curve"].empty());
}

TEST(CliContract, ListsAreJsonToo)
{
    const Json models = shardplanJson({"models", "--format", "json"});
    std::map<std::string, std::int64_t> parameters;
    for (const Json& model : models)
        parameters[model["id"]] = model["parameters"];
    EXPECT_EQ(parameters.at("llama-2-7b"), 6738415616);
    EXPECT_EQ(parameters.at("llama-3-8b"), 8030261248);

    const Json list = shardplanJson({"models", "--parameters", "llama-3-8b", "--format", "json"});
    std::int64_t elements = 0;
    for (const Json& parameter : list)
        elements += parameter["elements"].get<std::int64_t>();
    EXPECT_EQ(elements, 8030261248);

    EXPECT_EQ(shardplanJson({"strategies", "--format", "json"}).size(), strategyNames().size());
    EXPECT_GT(shardplanJson({"clusters", "--format", "json"}).size(), 10u);
}

TEST(CliContract, AShownClusterIsAClusterFile)
{
    const TemporaryFolder folder;
    EXPECT_EQ(shardplan({"clusters", "dgx-a100-80gb", "--format", "json", "-o", folder.file("mine.json")}).exitCode, 0);
    const Json mine =
        shardplanJson({"compare", kScenario7b, "--cluster", folder.file("mine.json"), "--format", "json"});
    const Json shipped = shardplanJson({"compare", kScenario7b, "--cluster", "dgx-a100-80gb", "--format", "json"});
    EXPECT_EQ(mine["plans"], shipped["plans"]);
}

TEST(CliContract, AShownStrategyIsAScenariosStrategy)
{
    for (const char* name : {"fsdp1-hybrid-shard", "fsdp2-full-shard-offload", "ddp"}) {
        Json spelledOut = shardplanJson({"strategies", name, "--format", "json"});
        spelledOut["name"] = "my-own";
        const Json scenario{{"schema", "shardwright-scenario/1"},
                            {"model", "llama-2-7b"},
                            {"cluster", "dgx-a100-80gb"},
                            {"strategies", Json::array({spelledOut, name})}};
        const TemporaryFolder folder;
        const Ran ran = shardplan({"compare", folder.write("s.json", scenario.dump()), "--format", "json"});
        Json plans = Json::parse(ran.out)["plans"];
        plans[0]["strategy"] = name;
        EXPECT_EQ(plans[0], plans[1]);
    }
}

} // namespace

} // namespace shardwright::testing
