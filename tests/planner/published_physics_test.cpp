#include <gtest/gtest.h>

#include "core/json_cursor.hpp"
#include "core/scenario_file.hpp"
#include "planner/published/physics.hpp"

namespace shardwright {
namespace {

/// One node of two GPUs of 100 TFLOP/s and 16 GiB; a decoder of 2 layers, hidden 64, 4 heads, ffn 128, vocabulary 1000.
Scenario smallScenario(const Json& training)
{
    Json json = Json::parse(R"({
        "schema": "shardwright-scenario/1",
        "model": {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
                  "num_key_value_heads": 4, "intermediate_size": 128, "vocab_size": 1000,
                  "max_position_embeddings": 128, "tie_word_embeddings": false},
        "cluster": {"name": "box", "gpus_per_node": 2, "nodes": 2,
            "gpu": {"name": "G", "compute_capability": 80, "memory": {"value": 16, "unit": "GiB", "tag": "vendor", "source": "x"},
                    "memory_bandwidth": "1 TB/s",
                    "peak_flops": {"bf16": "100 TFLOP/s", "fp32": "10 TFLOP/s", "fp8": "200 TFLOP/s"}},
            "intra_node": {"kind": "nvlink", "bandwidth": {"value": 100, "unit": "GB/s", "tag": "vendor", "source": "x"}, "latency": "3 us"},
            "inter_node": {"kind": "ethernet", "bandwidth": {"value": 10, "unit": "GB/s", "tag": "vendor", "source": "x"}, "latency": "30 us"},
            "host": {"memory": {"value": 128, "unit": "GiB", "tag": "vendor", "source": "x"}, "memory_bandwidth": "100 GB/s", "cpu_cores": 16,
                     "pcie_bandwidth": {"value": 20, "unit": "GB/s", "tag": "measured", "source": "x"}}},
        "strategies": ["ddp"]
    })");
    json["training"] = training;
    return scenarioFromJson(json, "s.json");
}

PublishedFigure figureOf(MeasuredKind kind, double value, MeasuredWindow window = MeasuredWindow::SteadyState)
{
    PublishedFigure figure;
    figure.strategy = "ddp";
    figure.kind = kind;
    figure.window = window;
    figure.value = value;
    figure.source = "nobody";
    return figure;
}

/// Per GPU: 2 GiB of parameters, 4 of master weights, 2 of gradients, 8 of moments.
Plan planWithStates()
{
    Plan plan;
    plan.states = {2_GiB, 4_GiB, 2_GiB, 8_GiB};
    plan.gpu.modelStates = plan.states.total();
    plan.gpu.capacity = 16_GiB;
    return plan;
}

constexpr double kOneGiB = 1024.0 * 1024 * 1024;

// Matrices of a layer: 4 x 64 x 64 of attention, 3 x 64 x 128 of the MLP; two layers and the head of 64 x 1000.
constexpr double kBlockMatrices = 2 * (4.0 * 64 * 64 + 3.0 * 64 * 128);
constexpr double kMatrices = kBlockMatrices + 64.0 * 1000;
constexpr double kTokens = 128.0 * 3 * 5 * 4; // sequence x micro-batch x accumulation x GPUs

TEST(FlopBounds, countsMatricesThreeTimesAndHalfOfTheScores)
{
    const Scenario scenario =
        smallScenario({{"sequence_length", 128}, {"micro_batch", 3}, {"gradient_accumulation", 5}});
    const FlopBounds work = stepWork(scenario.model, scenario.training, scenario.cluster.gpus());
    const double causalScores = 2.0 /*layers*/ * (4.0 * 128 * 64) / 2; // 4 s H per layer and token, half of it
    EXPECT_DOUBLE_EQ(work.least, kTokens * (6 * kMatrices + 3 * causalScores));
    // Generous sources count every parameter, lookups and norms too, and the whole score matrix: 12 L H s.
    const double norms = 5 * 64;
    EXPECT_DOUBLE_EQ(work.most, kTokens * (6 * (kMatrices + 64.0 * 1000 + norms) + 12.0 * 2 * 64 * 128));
}

TEST(FlopBounds, recomputationAddsTheForwardOfTheBlocks)
{
    const Scenario plain = smallScenario({{"sequence_length", 128}});
    const Scenario full = smallScenario({{"sequence_length", 128}, {"activation_checkpointing", "full"}});
    const double ranks = 4;
    const FlopBounds without = stepWork(plain.model, plain.training, 4);
    const FlopBounds with = stepWork(full.model, full.training, 4);
    EXPECT_DOUBLE_EQ(with.least - without.least, 128 * ranks * (2 * kBlockMatrices + 2.0 * 2 * 128 * 64));
    EXPECT_DOUBLE_EQ(with.most, without.most * 4 / 3);
}

TEST(FlopBounds, frozenWeightsHaveNoGradientProducts)
{
    const Scenario scenario = smallScenario({{"sequence_length", 128}, {"lora", {{"rank", 2}}}});
    const Scenario whole = smallScenario({{"sequence_length", 128}});
    // Adapters are 2 of 64 wide; the frozen weights' third product is gone.
    EXPECT_LT(stepWork(scenario.model, scenario.training, 4).least,
              stepWork(whole.model, whole.training, 4).least * 0.8);
    EXPECT_GT(stepWork(scenario.model, scenario.training, 4).least, 128.0 * 4 * 4 * kMatrices);
}

TEST(PeakFlops, followsThePrecision)
{
    const Gpu gpu = smallScenario({{"sequence_length", 128}}).cluster.gpu;
    EXPECT_DOUBLE_EQ(peakFlops(gpu, {DType::Bf16, DType::Fp32, false}).value(), 100e12);
    EXPECT_DOUBLE_EQ(peakFlops(gpu, {DType::Bf16, DType::Fp32, true}).value(), 200e12);
    EXPECT_DOUBLE_EQ(peakFlops(gpu, {std::nullopt, DType::Fp32, false}).value(), 50e12); // TF32
    EXPECT_FALSE(peakFlops(gpu, {DType::Fp16, DType::Fp32, false}).has_value());
}

TEST(Objections, memoryBelowTheStates)
{
    const Scenario scenario = smallScenario({{"sequence_length", 128}});
    const Plan plan = planWithStates();
    const auto reasons = objections(scenario, figureOf(MeasuredKind::GpuAllocated, 15 * kOneGiB), plan);
    ASSERT_EQ(reasons.size(), 1U);
    EXPECT_NE(reasons[0].find("15.00 GiB are less than the 16.00 GiB"), std::string::npos) << reasons[0];
    EXPECT_TRUE(objections(scenario, figureOf(MeasuredKind::GpuAllocated, 15.9 * kOneGiB), plan).empty());
}

TEST(Objections, whatMustBeLiveDependsOnTheMoment)
{
    const Scenario scenario = smallScenario({{"sequence_length", 128}});
    const Plan plan = planWithStates();
    const auto held = [&](double gib, MeasuredWindow window) {
        return objections(scenario, figureOf(MeasuredKind::GpuHeld, gib * kOneGiB, window), plan).size();
    };
    EXPECT_EQ(held(14, MeasuredWindow::SteadyState), 0U); // gradients may be gone
    EXPECT_EQ(held(13, MeasuredWindow::SteadyState), 1U);
    EXPECT_EQ(held(6, MeasuredWindow::BeforeFirstOptimizerStep), 0U); // moments are not there yet
    EXPECT_EQ(held(5, MeasuredWindow::BeforeFirstOptimizerStep), 1U);
    EXPECT_EQ(held(1, MeasuredWindow::AfterInit), 0U);
}

TEST(Objections, stepsFasterThanThePeak)
{
    const Scenario scenario = smallScenario({{"sequence_length", 128}});
    const double least = stepWork(scenario.model, scenario.training, 4).least;
    const double atPeak = least / (4 * 100e12);
    EXPECT_TRUE(objections(scenario, figureOf(MeasuredKind::StepSeconds, atPeak * 1.001), {}).empty());
    const auto reasons = objections(scenario, figureOf(MeasuredKind::StepSeconds, atPeak / 2), {});
    ASSERT_EQ(reasons.size(), 1U);
    EXPECT_NE(reasons[0].find("200 TFLOP/s per GPU, more than its peak of 100"), std::string::npos) << reasons[0];
    EXPECT_TRUE(objections(scenario, figureOf(MeasuredKind::TflopsPerGpu, 100), {}).empty());
    EXPECT_EQ(objections(scenario, figureOf(MeasuredKind::TflopsPerGpu, 102), {}).size(), 1U);
}

TEST(Objections, ranksOfOneReplicaShareItsWork)
{
    Scenario scenario = smallScenario({{"sequence_length", 128}});
    const double atPeak = stepWork(scenario.model, scenario.training, 4).least / (4 * 100e12);
    scenario.strategies.front().parallelism.tensor = 2; // two replicas on four GPUs: half of the tokens
    EXPECT_TRUE(objections(scenario, figureOf(MeasuredKind::StepSeconds, atPeak * 0.51), {}).empty());
    EXPECT_EQ(objections(scenario, figureOf(MeasuredKind::StepSeconds, atPeak * 0.49), {}).size(), 1U);
}

TEST(Objections, stepsFasterThanTheLinks)
{
    const Scenario scenario = smallScenario({{"sequence_length", 128}});
    Plan plan;
    plan.traffic.interNodeBytesPerNode = 20_GB; // at 10 GB/s: 2 s
    plan.traffic.intraNodeBytesPerGpu = 100_GB; // at 100 GB/s: 1 s
    EXPECT_DOUBLE_EQ(slowestTransfer(plan, scenario.cluster).seconds, 2);
    EXPECT_TRUE(objections(scenario, figureOf(MeasuredKind::StepSeconds, 2), plan).empty());
    const auto reasons = objections(scenario, figureOf(MeasuredKind::StepSeconds, 1.5), plan);
    ASSERT_EQ(reasons.size(), 1U);
    EXPECT_NE(reasons[0].find("the network between nodes: 20 GB per step at 10 GB/s"), std::string::npos) << reasons[0];
    // Measured 20 GB/s of PCIe may be 25 on a better board: 100 GB take at least 4 s.
    plan.traffic.hostToDeviceBytes = 100_GB;
    EXPECT_DOUBLE_EQ(slowestTransfer(plan, scenario.cluster).seconds, 4);
}

TEST(Objections, teraflopsThatLeaveNoTimeForTheTraffic)
{
    const Scenario scenario = smallScenario({{"sequence_length", 128}});
    Plan plan;
    plan.traffic.interNodeBytesPerNode = 20_GB;
    // 50 TFLOP/s leave microseconds for the little model's step, and its traffic would take two seconds.
    EXPECT_EQ(objections(scenario, figureOf(MeasuredKind::TflopsPerGpu, 50), plan).size(), 1U);
    EXPECT_TRUE(objections(scenario, figureOf(MeasuredKind::TflopsPerGpu, 50), {}).empty());
}

TEST(Objections, hostMemoryBelowTheOffloadedStates)
{
    const Scenario scenario = smallScenario({{"sequence_length", 128}});
    Plan plan;
    LiveItem moments;
    moments.category = Category::OptimizerStates;
    moments.place = Place::HostPageable;
    moments.count = 2;
    moments.bytesEach = 10_GB; // 20 GB per rank, 40 GB per node of 2 GPUs
    LiveItem staging = moments;
    staging.category = Category::CommunicationBuffers; // not a state
    plan.host.items = {moments, staging};
    EXPECT_EQ(objections(scenario, figureOf(MeasuredKind::HostUsed, 39e9), plan).size(), 1U);
    EXPECT_TRUE(objections(scenario, figureOf(MeasuredKind::HostUsed, 40e9), plan).empty());
}

TEST(Objections, modelsWhoseStatesCannotFit)
{
    const Scenario scenario = smallScenario({{"sequence_length", 128}});
    const Plan plan = planWithStates(); // exactly the GPU of 16 GiB
    const auto parameters = static_cast<double>(scenario.model.parameters());
    EXPECT_TRUE(objections(scenario, figureOf(MeasuredKind::LargestModel, parameters), plan).empty());
    EXPECT_EQ(objections(scenario, figureOf(MeasuredKind::LargestModel, parameters * 1.1), plan).size(), 1U);
    Plan tooLarge = plan;
    tooLarge.states.optimizerStates = 9_GiB;
    EXPECT_TRUE(objections(scenario, figureOf(MeasuredKind::Fits, 0), plan).empty());
    EXPECT_EQ(objections(scenario, figureOf(MeasuredKind::Fits, 0), tooLarge).size(), 1U);
}

TEST(Objections, nothingIsSaidAboutWhatTheFrameworkRefuses)
{
    const Scenario scenario = smallScenario({{"sequence_length", 128}});
    Plan plan = planWithStates();
    plan.verdict = Verdict::NotPossible;
    EXPECT_TRUE(objections(scenario, figureOf(MeasuredKind::GpuAllocated, 1), plan).empty());
}

} // namespace
} // namespace shardwright
