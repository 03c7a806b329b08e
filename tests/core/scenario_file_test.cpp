#include <filesystem>

#include <gtest/gtest.h>

#include "core/catalogue.hpp"
#include "core/json_cursor.hpp"
#include "core/scenario_file.hpp"
#include "tests/temporary_folder.hpp"

namespace shardwright {
namespace {

namespace fs = std::filesystem;

/// A scenario that needs no file: parts of it are replaced by the tests.
Json soundScenario()
{
    return Json::parse(R"({
        "schema": "shardwright-scenario/1",
        "model": {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
                  "num_key_value_heads": 4, "intermediate_size": 128, "vocab_size": 1000,
                  "max_position_embeddings": 128, "tie_word_embeddings": false},
        "cluster": {"name": "box", "gpus_per_node": 2, "nodes": 2,
            "gpu": {"name": "G", "compute_capability": 80, "memory": "16 GiB", "memory_bandwidth": "1 TB/s",
                    "peak_flops": {"bf16": "100 TFLOP/s"}},
            "intra_node": {"kind": "nvlink", "bandwidth": "100 GB/s", "latency": "3 us"},
            "inter_node": {"kind": "ethernet", "bandwidth": "100 Gbit/s", "latency": "30 us"},
            "host": {"memory": "128 GiB", "memory_bandwidth": "100 GB/s", "cpu_cores": 16,
                     "pcie_bandwidth": "20 GB/s"}},
        "training": {"sequence_length": 128},
        "strategies": ["ddp", "deepspeed-mics"],
        "published": [{"strategy": "ddp", "kind": "gpu-used", "value": 1.5, "unit": "GiB", "source": "nobody"}]
    })");
}

std::string complaintsOf(const Json& json, const std::string& file = "s.json")
{
    try {
        scenarioFromJson(json, file);
    } catch (const InputError& error) {
        return error.what();
    }
    return {};
}

std::vector<std::string> shippedScenarios()
{
    std::vector<std::string> paths;
    for (const fs::path& folder : {fs::path("scenarios"), fs::path("scenarios") / "published"})
        for (const auto& entry : fs::directory_iterator(fs::path(homeFolder()) / folder))
            if (entry.path().extension() == ".json")
                paths.push_back(entry.path().string());
    std::sort(paths.begin(), paths.end());
    return paths;
}

TEST(ShippedScenarios, ReadWithoutFindingsAndAskAQuestion)
{
    const auto paths = shippedScenarios();
    ASSERT_GE(paths.size(), 15U);
    for (const std::string& path : paths) {
        const Scenario scenario = readScenario(path);
        EXPECT_FALSE(scenario.strategies.empty()) << path;
        EXPECT_GT(scenario.model.parameters(), 0) << path;
        EXPECT_FALSE(scenario.question.empty()) << path;
        for (const PublishedFigure& figure : scenario.published)
            EXPECT_FALSE(figure.source.empty()) << path;
    }
}

TEST(ShippedScenarios, SurviveWritingAndReading)
{
    for (const std::string& path : shippedScenarios()) {
        const Json json = toJson(readScenario(path));
        EXPECT_EQ(toJson(scenarioFromJson(json, "elsewhere/again.json")), json) << path;
    }
}

TEST(ScenarioFile, ReadsModelAndClusterInline)
{
    const Scenario scenario = scenarioFromJson(soundScenario(), "s.json");
    EXPECT_EQ(scenario.name, "s");
    // 2 x 1000 x 64 embedding and head; per block 4 x 64^2 attention, 3 x 64 x 128 MLP, 2 x 64 norms; final norm 64.
    EXPECT_EQ(scenario.model.parameters(), 2 * 1000 * 64 + 2 * (4 * 64 * 64 + 3 * 64 * 128 + 2 * 64) + 64);
    EXPECT_EQ(scenario.cluster.gpus(), 4);
    ASSERT_EQ(scenario.strategies.size(), 2U);
    EXPECT_EQ(std::get<DeepSpeedOptions>(scenario.strategies[1].options).micsShardSize, 2);
    ASSERT_EQ(scenario.published.size(), 1U);
    EXPECT_DOUBLE_EQ(scenario.published[0].value, 1.5 * kGiB);
    const Json written = toJson(scenario);
    EXPECT_EQ(written["model"], soundScenario()["model"]);
    EXPECT_EQ(written["strategies"], soundScenario()["strategies"]);
    EXPECT_EQ(toJson(scenarioFromJson(written, "s.json")), written);
}

TEST(ScenarioFile, WithoutStrategiesAllPredefinedOnesAreCompared)
{
    Json json = soundScenario();
    json.erase("strategies");
    const Scenario scenario = scenarioFromJson(json, "s.json");
    std::size_t expected = 0;
    std::size_t ofMegatron = 0;
    for (const std::string& name : strategyNames()) {
        const bool megatron = name.rfind("megatron", 0) == 0;
        ofMegatron += megatron ? 1 : 0;
        expected += megatron || name.rfind("native", 0) == 0 ? 0 : 1;
    }
    EXPECT_EQ(scenario.strategies.size(), expected);
    EXPECT_GT(ofMegatron, 0U);
    Json withItsLayers = json;
    withItsLayers["training"]["implementation"] = "megatron";
    EXPECT_EQ(scenarioFromJson(withItsLayers, "s.json").strategies.size(), expected + ofMegatron);
    json["strategies"] = {"native-zero3", "all"};
    EXPECT_EQ(scenarioFromJson(json, "s.json").strategies.size(), expected + 1);
}

TEST(ScenarioFile, PathsAreRelativeToTheFile)
{
    const TemporaryFolder folder;
    Json cluster = soundScenario()["cluster"];
    cluster["schema"] = "shardwright-cluster/1";
    folder.write("machines/box.json", cluster.dump());
    folder.write("tiny/config.json", soundScenario()["model"].dump());
    Json json = soundScenario();
    json["model"] = "../tiny";
    json["cluster"] = {{"path", "../machines/box.json"}, {"nodes", 7}};
    const Scenario scenario = readScenario(folder.write("questions/q.json", json.dump()));
    EXPECT_EQ(scenario.cluster.id, "box");
    EXPECT_EQ(scenario.cluster.gpus(), 14);
    EXPECT_EQ(scenario.model.architecture.hidden, 64);
    const Scenario again = scenarioFromJson(toJson(scenario), "elsewhere.json");
    EXPECT_EQ(toJson(again), toJson(scenario));
}

TEST(ScenarioFile, ACoupleOfMillionGpusAndALongSequenceAreFine)
{
    Json json = soundScenario();
    json["cluster"] = {{"id", "dgx-h100"}, {"nodes", 250000}};
    json["training"] = {{"sequence_length", 10000000}};
    const Scenario scenario = scenarioFromJson(json, "s.json");
    EXPECT_EQ(scenario.cluster.gpus(), 2000000);
    EXPECT_EQ(scenario.training.tokensPerMicroBatch(), 10000000);
}

TEST(ScenarioFile, AdaptersAreApplied)
{
    Json json = soundScenario();
    json["training"]["lora"] = {{"rank", 8}, {"target_modules", {"q_proj"}}};
    const Scenario scenario = scenarioFromJson(json, "s.json");
    EXPECT_EQ(scenario.model.trainableParameters(), 2 * 8 * (64 + 64)); // 2 blocks, A (8 x 64) and B (64 x 8)
}

TEST(ScenarioFile, TellsTheMistakesOfAllSectionsAtOnce)
{
    Json json = soundScenario();
    json["modle"] = 1;
    json["schema"] = "shardwright-scenario/2";
    json["model"]["hidden_size"] = "64";
    json["cluster"]["gpu"].erase("memory");
    json["training"]["micro_batch"] = 0;
    json["strategies"] = {"ddp", "ddp", "fsdp4"};
    json["published"] = Json::parse(R"([
        {"strategy": "zero", "kind": "gpu-used", "value": 1, "unit": "GB", "source": "x"},
        {"strategy": "ddp", "kind": "gpu-used", "value": 1, "unit": "s", "source": "x"},
        {"strategy": "ddp", "kind": "fits", "value": 1, "source": "x"},
        {"strategy": "ddp", "kind": "speedup", "value": 2, "unit": "x", "source": "x"},
        {"strategy": "ddp", "over": "ddb", "kind": "speedup", "value": 2, "unit": "s", "source": "x"},
        {"strategy": "ddp", "over": "ddp", "kind": "step-seconds", "value": 2, "unit": "s", "source": "x"}])");
    const std::string text = complaintsOf(json);
    for (const char* expected :
         {"/modle: is not a known key; expected \"model\" perhaps", "/schema: is another format", "/model/hidden_size",
          "/cluster/gpu: \"memory\" is missing", "/training/micro_batch: is 0",
          "/strategies: holds two strategies named \"ddp\"", "/strategies/2: \"fsdp4\" is not a predefined strategy",
          "/published/0/strategy: \"zero\" is not among", "/published/1/unit: \"s\" is not a unit of this figure",
          "/published/2: \"fits\" has no value", "/published/3: \"over\" is missing",
          "/published/4/over: \"ddb\" is not among", "/published/4/unit: \"s\" is not a unit of this figure",
          "/published/5: \"step-seconds\" is over nothing"})
        EXPECT_NE(text.find(expected), std::string::npos) << expected << "\nin\n" << text;
}

TEST(ScenarioFile, UnknownNamesBringTheNearestOnes)
{
    Json json = soundScenario();
    json["model"] = "llama2-7b";
    json["cluster"] = {{"id", "dgx-h10"}, {"nodes", 2}};
    const std::string text = complaintsOf(json);
    EXPECT_NE(text.find("\"llama-2-7b\""), std::string::npos) << text;
    EXPECT_NE(text.find("\"dgx-h100\" perhaps"), std::string::npos) << text;
    EXPECT_EQ(text.find("inter_node"), std::string::npos) << "a follow-up of the unknown id: " << text;
}

TEST(ScenarioFile, SeveralNodesNeedALinkBetweenThem)
{
    Json json = soundScenario();
    json["cluster"] = {{"id", "1xrtx4090"}, {"nodes", 2}, {"gpus_per_node", 2}};
    const std::string text = complaintsOf(json);
    EXPECT_NE(text.find("/cluster: 2 nodes but no inter_node link"), std::string::npos) << text;
    EXPECT_NE(text.find("/cluster: 2 GPUs per node but no intra_node link"), std::string::npos) << text;
}

TEST(ScenariosReadme, NamesEveryKeyAndItsExampleReads)
{
    const std::string readme = readTextFile(homeFolder() + "/scenarios/README.md");
    Training training;
    training.lora.emplace().baseDtype = DType::Nf4;
    std::vector<Json> written{toJson(training)};
    for (const char* name : {"ddp", "fsdp1-full-shard", "fsdp2-full-shard", "megatron-tp2", "native-zero3"})
        written.push_back(toJson(*strategyByName(name, 8)));
    written.push_back(written[4]["parallelism"]);
    for (const Json& json : written)
        for (const auto& item : json.items())
            EXPECT_NE(readme.find("`" + item.key() + "`"), std::string::npos) << item.key();
    for (const auto& entry : EnumNames<MeasuredKind>::table)
        EXPECT_NE(readme.find("`" + std::string(entry.second) + "`"), std::string::npos) << entry.second;
    const std::size_t begin = readme.find("```json\n") + 8;
    const Json example = parseJson(readme.substr(begin, readme.find("```", begin) - begin), "README.md");
    const Scenario scenario = scenarioFromJson(example, "README.md");
    EXPECT_EQ(scenario.cluster.gpus(), 16);
    EXPECT_EQ(std::get<Fsdp2Options>(scenario.strategies.back().options).reshardGroup, 4);
}

} // namespace
} // namespace shardwright
