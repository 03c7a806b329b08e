#include "tests/planner/report/sample_plans.hpp"

namespace shardwright::testing {

namespace {

void set(CategoryBytes& bytes, Category category, Bytes value)
{
    bytes[static_cast<std::size_t>(category)] = value;
}

LayerType layerOf(LayerKind kind, std::int64_t numel)
{
    LayerType type;
    type.kind = kind;
    ParameterSpec parameter;
    parameter.name = "weight";
    parameter.shape = {numel};
    parameter.numel = numel;
    type.parameters.push_back(parameter);
    return type;
}

CurvePoint point(OpId op, Phase phase, std::int32_t layer, Bytes states, Bytes gathered, Bytes activations)
{
    CurvePoint result;
    result.op = op;
    result.phase = phase;
    result.layer = layer;
    set(result.byCategory, Category::Parameters, states);
    set(result.byCategory, Category::GatheredParameters, gathered);
    set(result.byCategory, Category::Activations, activations);
    result.total = states + gathered + activations;
    return result;
}

} // namespace

Scenario sampleScenario()
{
    Scenario scenario;
    scenario.name = "sample";
    scenario.question = "Which of three strategies does a tiny model take?";
    scenario.file = "scenarios/sample.json";
    scenario.model.id = "tiny";
    scenario.model.source = "models/tiny/config.json";
    scenario.model.architecture.hidden = 10;
    scenario.model.architecture.layers = 2;
    scenario.model.architecture.vocab = 100;
    scenario.model.layerTypes = {layerOf(LayerKind::Embedding, 1000), layerOf(LayerKind::Block, 1000)};
    scenario.model.layers = {0, 1, 1};
    scenario.cluster.id = "two-nodes";
    scenario.cluster.source = "scenarios/clusters/two-nodes.json";
    scenario.cluster.gpu.name = "GPU-80";
    scenario.cluster.gpu.memory = {80.0 * kGiB, Provenance::Vendor, "the sheet of GPU-80"};
    scenario.cluster.gpusPerNode = 8;
    scenario.cluster.nodes = 2;
    scenario.cluster.intraNode.kind = LinkKind::NvSwitch;
    scenario.cluster.interNode.kind = LinkKind::InfiniBand;
    scenario.cluster.hostMemory = {1000.0 * kGiB, Provenance::Assumed, "a common size"};
    scenario.training.sequenceLength = 512;
    return scenario;
}

Plan sampleFittingPlan()
{
    Plan plan;
    plan.strategy = "deepspeed-zero3-offload-nvme";
    plan.framework = "deepspeed";
    plan.verdict = Verdict::Fits;
    plan.headroom = 0.5;
    plan.states = {10_GiB, 0_B, 10_GiB, 0_B};

    plan.gpu.capacity = 80_GiB;
    plan.gpu.modelStates = 20_GiB;
    plan.gpu.peakAllocated = 32_GiB;
    plan.gpu.peakReserved = 36_GiB;
    plan.gpu.peakUsed = 40_GiB;
    plan.gpu.held = 20_GiB;
    plan.gpu.initPeak = 24_GiB;
    plan.gpu.peakBeforeFirstStep = 30_GiB;
    plan.gpu.peakMoment = "backward of block 2 of 2";
    set(plan.gpu.byCategory, Category::Parameters, 10_GiB);
    set(plan.gpu.byCategory, Category::Gradients, 10_GiB);
    set(plan.gpu.byCategory, Category::GatheredParameters, 4_GiB);
    set(plan.gpu.byCategory, Category::Activations, 8_GiB);
    plan.gpu.overheads = {{"CUDA context", 3_GiB, Provenance::Measured, "a run on GPU-80"},
                          {"communicators", 1_GiB, Provenance::Assumed, "rule of thumb"}};
    plan.gpu.peakItems = {{"16-bit shards", "2 B x P/N", "stage3.py", Category::Parameters, Place::Gpu, 1, 10_GiB},
                          {"gradient shards", "2 B x P/N", "stage3.py", Category::Gradients, Place::Gpu, 1, 10_GiB},
                          {"inputs of blocks", "2 B x T x H", "", Category::Activations, Place::Gpu, 2, 4_GiB},
                          {"unsharded block", "2 B x P_b", "partition_parameters.py", Category::GatheredParameters,
                           Place::Gpu, 1, 4_GiB}};
    plan.gpu.curve = {
        point(0, Phase::Forward, 0, 20_GiB, 4_GiB, 0_GiB),   point(1, Phase::Forward, 1, 20_GiB, 4_GiB, 4_GiB),
        point(2, Phase::Forward, 2, 20_GiB, 4_GiB, 8_GiB),   point(3, Phase::Loss, 2, 20_GiB, 0_GiB, 9_GiB),
        point(4, Phase::Backward, 2, 20_GiB, 4_GiB, 8_GiB),  point(5, Phase::Backward, 1, 20_GiB, 4_GiB, 4_GiB),
        point(6, Phase::Optimizer, -1, 20_GiB, 0_GiB, 0_GiB)};

    plan.host.pinnedPerRank = 16_GiB;
    plan.host.pageablePerRank = 4_GiB;
    plan.host.bytesPerRank = 20_GiB;
    plan.host.bytesPerNode = 160_GiB;
    plan.host.capacity = 1000_GiB;
    plan.host.initPeakPerNode = 170_GiB;
    plan.host.items = {
        {"swap buffers", "4 B x 4 x P/N", "swap_tensor", Category::OptimizerStates, Place::HostPinned, 4, 4_GiB}};
    plan.nvme = {1500_GB, 300_GB, 200_GB, 3000_GB};

    plan.traffic.psi = 3;
    plan.traffic.psiTextbook = 2;
    plan.traffic.psiDifference = "the third gather is the recomputation";
    plan.traffic.psiInterNode = 1.5;
    plan.traffic.sentBytesPerGpu = 42_GB;
    plan.traffic.intraNodeBytesPerGpu = 28_GB;
    plan.traffic.interNodeBytesPerGpu = 14_GB;
    plan.traffic.interNodeBytesPerNode = 112_GB;
    plan.traffic.interNodeRingBytesPerNode = 120_GB;
    plan.traffic.hostToDeviceBytes = 5_GB;
    plan.traffic.deviceToHostBytes = 6_GB;
    plan.traffic.collectives = {{OpKind::AllGather, "world", "block weights", 16, 2, 4, 32_GB, 30_GB},
                                {OpKind::ReduceScatter, "world", "block gradients", 16, 2, 2, 16_GB, 12_GB}};
    plan.checkpoint = {14_GB, 28_GB, 98_GB, 6_GB, 2, "one file of states and one of weights per rank"};
    StepTime step;
    step.seconds = 4;
    step.tokensPerSecond = 2048;
    step.tokensPerSecondPerGpu = 128;
    step.samplesPerSecond = 4;
    step.tflopsPerGpu = 140;
    step.mfu = 0.45;
    step.hfu = 0.6;
    step.breakdown = {2, 0.5, 0.75, 0, 0.25, 0.4, 0.1};
    step.hiddenCommunicationSeconds = 2.25;
    step.lowSeconds = 3.5;
    step.highSeconds = 5;
    step.assumptions = {
        {"matrix products reach what cuBLAS was measured at", Provenance::Measured, "a table of GEMMs"}};
    plan.step = step;
    plan.cost = {0.05, 6103.515625, 33600.0};
    plan.networkBytesPerSecondPerNode = 48e9;
    plan.checkpointSeconds = 2.45;
    plan.assumptions = {{"gradients are reduced in bf16", Provenance::Vendor, "the default of the framework"}};
    plan.excluded = {{"memory of the data loader", Provenance::Assumed, ""}};
    return plan;
}

Plan sampleTooLargePlan()
{
    Plan plan;
    plan.strategy = "ddp";
    plan.framework = "ddp";
    plan.verdict = Verdict::DoesNotFit;
    plan.headroom = -0.25;
    plan.reasons = {"model states alone are 90.00 GiB"};
    plan.states = {15_GiB, 0_B, 15_GiB, 60_GiB};
    plan.gpu.capacity = 80_GiB;
    plan.gpu.modelStates = 90_GiB;
    plan.gpu.peakAllocated = 98_GiB;
    plan.gpu.peakReserved = 99_GiB;
    plan.gpu.peakUsed = 100_GiB;
    set(plan.gpu.byCategory, Category::Parameters, 15_GiB);
    set(plan.gpu.byCategory, Category::Gradients, 15_GiB);
    set(plan.gpu.byCategory, Category::OptimizerStates, 60_GiB);
    set(plan.gpu.byCategory, Category::Activations, 8_GiB);
    plan.traffic.psi = 2;
    plan.traffic.psiTextbook = 2;
    plan.traffic.sentBytesPerGpu = 28_GB;
    plan.traffic.interNodeBytesPerNode = 15_GB;
    StepTime step; // as it would be if it fitted
    step.seconds = 3;
    step.tokensPerSecondPerGpu = 170.6;
    step.mfu = 0.6;
    step.breakdown.compute = 3;
    step.lowSeconds = 2;
    step.highSeconds = 4;
    plan.step = step;
    plan.smallestChange = Suggestion{"shard the optimizer states", {"deepspeed-zero1"}, 50_GiB};
    return plan;
}

Plan sampleImpossiblePlan()
{
    Plan plan;
    plan.strategy = "fsdp1, my own";
    plan.framework = "fsdp1";
    plan.verdict = Verdict::NotPossible;
    plan.reasons = {"fp16 needs a gradient scaler that offloading forbids"};
    return plan;
}

std::vector<Plan> samplePlans()
{
    return {sampleFittingPlan(), sampleTooLargePlan(), sampleImpossiblePlan()};
}

} // namespace shardwright::testing
