// Seconds, kernels and FLOPs of layers: by hand where a hand can, and properties for all families.

#include <cmath>

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "core/cluster_file.hpp"
#include "core/model_file.hpp"
#include "planner/costs/attention_kernels.hpp"
#include "planner/costs/layer_costs.hpp"
#include "planner/costs/matrix_product.hpp"

using namespace shardwright;

namespace {

Training training(std::int64_t sequenceLength = 2048, std::int64_t microBatch = 2)
{
    Training training;
    training.sequenceLength = sequenceLength;
    training.microBatch = microBatch;
    return training;
}

const Cluster& cluster(const std::string& id = "dgx-a100-80gb")
{
    static std::map<std::string, Cluster> read;
    const auto it = read.find(id);
    return it != read.end() ? it->second : read.emplace(id, readCluster(id)).first->second;
}

Op op(OpKind kind, int layer, int first = -1, int end = -1)
{
    Op op;
    op.kind = kind;
    op.layer = layer;
    op.firstPart = static_cast<std::int16_t>(first);
    op.endPart = static_cast<std::int16_t>(end);
    return op;
}

/// A model's costs with everything that must outlive them.
class Costs {
public:
    Costs(Model model, const Training& training, const std::string& clusterId = "dgx-a100-80gb")
        : m_model(std::move(model)), m_training(training), m_input{m_model, cluster(clusterId), m_training, m_strategy},
          m_activations(m_model, m_training, DType::Bf16), costs(m_input, m_activations)
    {
    }

private:
    const Model m_model;
    const Training m_training;
    const Strategy m_strategy{};
    const PlanInput m_input;
    const ActivationModel m_activations;

public:
    const LayerCosts costs;
    const ActivationModel& activations() const { return m_activations; }
    double forward(int layer) const { return costs.seconds(op(OpKind::Forward, layer)); }
    double recompute(int layer) const { return costs.seconds(op(OpKind::Recompute, layer)); }
    double backward(int layer) const { return costs.seconds(op(OpKind::Backward, layer)); }
    double flops(OpKind kind, int layer) const { return costs.flops(op(kind, layer)); }
    double micro() const
    {
        double sum = costs.seconds(op(OpKind::LossForward, -1)) + costs.seconds(op(OpKind::LossBackward, -1));
        for (int layer = 0; layer < static_cast<int>(m_model.layers.size()); ++layer)
            sum += forward(layer) + recompute(layer) + backward(layer);
        return sum;
    }
};

constexpr int kFirstBlock = 1;

} // namespace

TEST(MatrixProduct, oneFullWaveByHand)
{
    // 108 tiles of 256 x 128 on 108 multiprocessors: one wave. 2 x 256 x 128 x 8192 FLOPs a multiprocessor.
    const Gpu& gpu = cluster().gpu;
    GpuFacts facts = gpuFacts(gpu);
    ASSERT_EQ(facts.multiprocessors, 108);
    const MatrixProduct product{1, 256 * 12, 128 * 9, 8192, DType::Bf16, 2};
    const double rate = 312e12 * facts.tensorShare / 108;
    const double expected = 2.0 * 256 * 128 * 8192 / rate + facts.tileSeconds + facts.productSeconds;
    EXPECT_NEAR(seconds(gpu, facts, product), expected, 1e-9 + 0.02 * expected);
    // one tile more is a second wave, unless smaller tiles fit better
    MatrixProduct more = product;
    more.m += 1;
    EXPECT_GT(seconds(gpu, facts, more), 1.2 * seconds(gpu, facts, product));
}

TEST(MatrixProduct, thinProductsAreBoundByMemory)
{
    const Gpu& gpu = cluster().gpu;
    const GpuFacts facts = gpuFacts(gpu);
    const MatrixProduct product{1, 16384, 16, 4096, DType::Bf16, 2};                 // an adapter of rank 16
    const double bytes = 2.0 * (16384.0 * 4096 + 4096.0 * 16 + 16384.0 * 16) - 40e6; // beyond the cache
    const double moving = bytes / (2.039e12 * facts.memoryShare);
    EXPECT_GT(seconds(gpu, facts, product), moving);
    EXPECT_LT(seconds(gpu, facts, product), 1.3 * moving + facts.productSeconds);
}

TEST(GpuFacts, theSlowestOfManySetsThePace)
{
    // Order statistics of the normal distribution (Harter 1961): 0.564, 1.424 and 2.508 deviations for 2, 8 and 100.
    const Gpu& gpu = cluster().gpu;
    const double one = gpuFacts(gpu).tensorShare;
    const double deviation = 0.05 / 2.85;
    EXPECT_NEAR(gpuFacts(gpu, 2).tensorShare / one, 1 - 0.564 * deviation, 5e-4);
    EXPECT_NEAR(gpuFacts(gpu, 8).tensorShare / one, 1 - 1.424 * deviation, 5e-4);
    EXPECT_NEAR(gpuFacts(gpu, 100).tensorShare / one, 1 - 2.508 * deviation, 5e-4);
    EXPECT_EQ(gpuFacts(gpu, 8).memoryShare, gpuFacts(gpu).memoryShare);
}

RC_GTEST_PROP(MatrixProduct, neverFasterThanItsPeakNorForMoreWork, ())
{
    const Gpu& gpu = cluster(*rc::gen::element<std::string>("dgx-a100-80gb", "dgx-h100", "dgx-2-v100-32gb")).gpu;
    const GpuFacts facts = gpuFacts(gpu);
    const auto size = [] { return static_cast<std::int64_t>(*rc::gen::inRange(1, 20000)); };
    const MatrixProduct product{*rc::gen::inRange(1, 8), size(), size(), size(), DType::Fp16, 2};
    const double took = seconds(gpu, facts, product);
    RC_ASSERT(took > product.flops() / gpu.peakFlops.at(DType::Fp16).value);
    MatrixProduct more = product;
    more.m += 1;
    RC_ASSERT(seconds(gpu, facts, more) >= took);
    more = product;
    more.batch += 1;
    RC_ASSERT(seconds(gpu, facts, more) >= took);
}

TEST(Attention, flopsAsThePaperCounts)
{
    // FlashAttention-2's benchmark: 4 s^2 d heads forward, halved by the mask; 2.5 times that backward
    const AttentionShape shape{2, 32, 4096, 4096, 128, 128, true};
    EXPECT_DOUBLE_EQ(attentionFlops(shape, false), 2.0 * 32 * 4.0 * 4096 * 4096 * 128 / 2);
    EXPECT_DOUBLE_EQ(attentionFlops(shape, true), 2.5 * attentionFlops(shape, false));
}

TEST(LayerCosts, llamaBlockHasTheFlopsOfItsMatrices)
{
    const Model model = readModel("llama-2-7b");
    const Training setup = training();
    const Costs costs(model, setup);
    const double tokens = 4096;
    const double matrices = 4.0 * 4096 * 4096 + 3.0 * 4096 * 11008;
    const double attention = 2 * 4.0 * 2048 * 2048 * 4096 / 2; // two sequences, half of the square
    EXPECT_DOUBLE_EQ(costs.flops(OpKind::Forward, kFirstBlock), 2 * tokens * matrices + attention);
    EXPECT_DOUBLE_EQ(costs.flops(OpKind::Backward, kFirstBlock), 4 * tokens * matrices + 2.5 * attention);
    const int head = static_cast<int>(model.layers.size()) - 1;
    EXPECT_DOUBLE_EQ(costs.flops(OpKind::Forward, head), 2 * tokens * 4096 * 32000);
    EXPECT_DOUBLE_EQ(costs.flops(OpKind::Backward, head), 4 * tokens * 4096 * 32000);
}

TEST(LayerCosts, expertsMultiplyEveryTokenAsOftenAsItIsRouted)
{
    const Model model = readModel("mixtral-8x7b");
    for (const Implementation implementation : {Implementation::HuggingFace, Implementation::Torchtitan}) {
        Training setup = training();
        setup.implementation = implementation;
        const Costs costs(model, setup);
        const double matrices = 2.0 * 4096 * 4096 + 2.0 * 4096 * 1024 + 8.0 * 4096 + 2 * 3.0 * 4096 * 14336;
        const double attention = 2 * 4.0 * 2048 * 2048 * 4096 / 2;
        EXPECT_DOUBLE_EQ(costs.flops(OpKind::Forward, kFirstBlock), 2 * 4096.0 * matrices + attention);
    }
}

TEST(LayerCosts, checkpointingRunsTheForwardAgain)
{
    const Model model = readModel("llama-2-7b");
    Training setup = training();
    EXPECT_EQ(Costs(model, setup).recompute(kFirstBlock), 0);
    setup.checkpointing = Checkpointing::Full;
    const Costs whole(model, setup);
    EXPECT_DOUBLE_EQ(whole.recompute(kFirstBlock), whole.forward(kFirstBlock));

    // without reentrance the last product is not run again: nothing of backward needs what it makes
    setup.implementation = Implementation::Torchtitan;
    const Costs stopped(model, setup);
    EXPECT_DOUBLE_EQ(stopped.flops(OpKind::Forward, kFirstBlock) - stopped.flops(OpKind::Recompute, kFirstBlock),
                     2 * 4096.0 * 4096 * 11008);

    // torchtitan's selective checkpointing keeps wq, wv, w1 and attention; wk, wo and w3 run again
    setup.checkpointing = Checkpointing::Selective;
    const Costs selective(model, setup);
    EXPECT_DOUBLE_EQ(selective.flops(OpKind::Recompute, kFirstBlock),
                     2 * 4096.0 * (2 * 4096.0 * 4096 + 4096.0 * 11008));

    // Megatron's runs the attention core only
    setup.implementation = Implementation::Megatron;
    setup.attention = Attention::Eager;
    const Costs core(readModel("gpt-175b"), setup);
    EXPECT_LT(core.recompute(kFirstBlock), 0.3 * core.forward(kFirstBlock));
}

TEST(LayerCosts, adaptersTrainWithoutTheWeightsGradient)
{
    const Model model = readModel("llama-2-7b");
    Training setup = training();
    const Costs full(model, setup);
    setup.lora = Lora{};
    setup.lora->rank = 16;
    const Model adapted = applyLora(model, *setup.lora, "test", "/training/lora");
    const Costs lora(adapted, setup);
    EXPECT_GT(lora.forward(kFirstBlock), full.forward(kFirstBlock));
    EXPECT_LT(lora.backward(kFirstBlock), 0.75 * full.backward(kFirstBlock));
    setup.lora->baseDtype = DType::Nf4; // weights are written out before every product
    const Costs quantised(adapted, setup);
    EXPECT_GT(quantised.forward(kFirstBlock), lora.forward(kFirstBlock));
    EXPECT_GT(quantised.backward(kFirstBlock), lora.backward(kFirstBlock));
    const double elements = 4.0 * 4096 * 4096 + 3.0 * 4096 * 11008;
    EXPECT_NEAR(quantised.forward(kFirstBlock) - lora.forward(kFirstBlock), elements * 2.5 / (2.039e12 * 0.83), 3e-5);
}

TEST(LayerCosts, float8IsFasterWhereProductsAreLarge)
{
    const Model model = readModel("llama-3-8b");
    Training setup = training(8192, 2);
    setup.compile = true;
    setup.implementation = Implementation::Torchtitan;
    const Costs half(model, setup, "dgx-h100");
    setup.precision.fp8 = true;
    const Costs quarter(model, setup, "dgx-h100");
    EXPECT_LT(quarter.forward(kFirstBlock), 0.85 * half.forward(kFirstBlock));
    EXPECT_GT(quarter.forward(kFirstBlock), 0.5 * half.forward(kFirstBlock));
    setup.sequenceLength = 64;
    setup.microBatch = 1; // casting the weights costs more than the products gain
    const Costs few(model, setup, "dgx-h100");
    setup.precision.fp8 = false;
    EXPECT_GT(few.forward(kFirstBlock), Costs(model, setup, "dgx-h100").forward(kFirstBlock));
}

TEST(LayerCosts, float8ScaledByRowCastsTwiceAndScalesResults)
{
    const Model model = readModel("llama-3-8b");
    Training setup = training(8192, 1);
    setup.compile = true;
    setup.implementation = Implementation::Torchtitan;
    setup.precision.fp8 = true;
    const Costs byTensor(model, setup, "dgx-h100");
    setup.precision.fp8Scaling = Float8Scaling::Rowwise;
    const Costs byRow(model, setup, "dgx-h100");

    // Inputs and outputs of q, k, v, o, gate, up and down, elements a token; elements of their weights.
    const double in = 8192 * (6.0 * 4096 + 14336);
    const double out = 8192 * (3.0 * 4096 + 2 * 1024 + 2 * 14336);
    const double weights = 2.0 * 4096 * 4096 + 2.0 * 4096 * 1024 + 3.0 * 4096 * 14336;
    const Gpu& gpu = cluster("dgx-h100").gpu;
    const GpuFacts facts = gpuFacts(gpu, 8);
    const double bandwidth = sustainedBandwidth(gpu, facts);
    double products = 0;
    for (const auto& [n, k] : std::vector<std::pair<int, int>>{
             {4096, 4096}, {1024, 4096}, {1024, 4096}, {4096, 4096}, {14336, 4096}, {14336, 4096}, {4096, 14336}})
        products += seconds(gpu, facts, {1, 8192, n, k, DType::Fp8, 2});

    // Forward: the kernel that makes an input writes it in fp8 (1 byte), where by tensor another reads 2 and writes 1;
    // weights are read once and not twice; a kernel less. Products take 1 / 0.95 of the time.
    EXPECT_NEAR(byRow.forward(kFirstBlock) - byTensor.forward(kFirstBlock),
                products * (1 / 0.95 - 1) - (2 * in + 2 * weights) / bandwidth - 7 * facts.kernelSeconds, 1e-9);
    // Backward, bytes an element: in the other order inputs, gradients of outputs and weights are read for their
    // largest values (2) and read and cast (3) at 0.65 / 2.1 of the rate; gradients of outputs in their own order by
    // the kernel that makes them (1). By tensor gradients of outputs are read and written twice (4), inputs turned in
    // fp8 (2), weights read twice and written (5). The gradients of inputs and weights that were made are read and
    // written once more by row (4).
    const double other = 2 + 3 * 2.1 / 0.65;
    EXPECT_NEAR(byRow.backward(kFirstBlock) - byTensor.backward(kFirstBlock),
                ((other + 1 - 4) * out + (other - 2 + 4) * in + (other - 5 + 4) * weights) / bandwidth +
                    7 * (7 - 4 + 2) * facts.kernelSeconds,
                1e-9);
}

TEST(LayerCosts, compilingAndFusedKernelsSaveMemoryPasses)
{
    const Model model = readModel("llama-2-7b");
    Training setup = training();
    const Costs eager(model, setup);
    setup.fusedNorm = true;
    const Costs fused(model, setup);
    setup.compile = true;
    const Costs compiled(model, setup);
    EXPECT_LT(fused.forward(kFirstBlock), eager.forward(kFirstBlock));
    EXPECT_LT(compiled.forward(kFirstBlock), fused.forward(kFirstBlock));
    EXPECT_LT(compiled.costs.kernels(op(OpKind::Forward, kFirstBlock)),
              eager.costs.kernels(op(OpKind::Forward, kFirstBlock)) / 2);
    EXPECT_EQ(compiled.flops(OpKind::Forward, kFirstBlock), eager.flops(OpKind::Forward, kFirstBlock));
}

TEST(LayerCosts, rowsThatAreNotAlignedHalveTheRateOfProducts)
{
    // GPT-2's vocabulary of 50,257 is odd; nanoGPT pads it to 50,304. Its blocks are aligned.
    Model padded = readModel("gpt2");
    Model odd = padded;
    const auto resize = [](Model& model, std::int64_t vocab) {
        model.architecture.vocab = vocab;
        for (LayerType& type : model.layerTypes)
            for (ParameterSpec& parameter : type.parameters)
                if (parameter.role == ParameterRole::Embedding || parameter.role == ParameterRole::Head) {
                    parameter.shape.front() = vocab;
                    parameter.numel = vocab * parameter.shape.back();
                }
    };
    resize(odd, 50257);
    resize(padded, 50304);
    const Training setup = training(1024, 8);
    const Costs slow(odd, setup);
    const Costs fast(padded, setup);
    const int head = static_cast<int>(odd.layers.size()) - 1;
    for (const double ratio : {slow.forward(head) / fast.forward(head), slow.backward(head) / fast.backward(head)}) {
        EXPECT_LT(ratio, 2.01); // memory traffic is the same
        EXPECT_GT(ratio, 1.5);
    }
    EXPECT_EQ(slow.forward(kFirstBlock), fast.forward(kFirstBlock));
    MatrixProduct product{1, 8192, 8192, 8190, DType::Bf16, 2, true}; // hardly any of it is memory traffic
    const GpuFacts facts = gpuFacts(cluster().gpu);
    const double aligned = seconds(cluster().gpu, facts, product);
    product.aligned = false;
    EXPECT_NEAR(seconds(cluster().gpu, facts, product), 2 * aligned, 0.05 * aligned);
}

TEST(LayerCosts, modelFlopsAsPalmCounts)
{
    // Llama-2-7B: 6.476 billion parameters in blocks and 131 million in the head; 12 L H s a token of attention
    const double matrices = 32 * (4.0 * 4096 * 4096 + 3.0 * 4096 * 11008) + 4096.0 * 32000;
    EXPECT_DOUBLE_EQ(modelFlopsPerToken(readModel("llama-2-7b"), 4096), 6 * matrices + 12.0 * 32 * 4096 * 4096);
    const Model gpt2 = readModel("gpt2"); // its head borrows the embedding
    EXPECT_DOUBLE_EQ(modelFlopsPerToken(gpt2, 1024),
                     6 * (12 * 12.0 * 768 * 768 + 768.0 * 50257) + 12.0 * 12 * 768 * 1024);
    const Model adapted = applyLora(readModel("llama-2-7b"), Lora{}, "test", "/training/lora");
    EXPECT_LT(modelFlopsPerToken(adapted, 4096), 0.72 * modelFlopsPerToken(readModel("llama-2-7b"), 4096));
}

RC_GTEST_PROP(LayerCosts, stagesAddUpAndMoreTokensTakeLonger, ())
{
    const std::string id = *rc::gen::element<std::string>("llama-3-8b", "mixtral-8x7b", "gpt2", "gemma-2-9b", "phi-2",
                                                          "falcon-7b", "deepseek-v2-lite", "mpt-7b", "bloom-560m");
    Training setup = training(*rc::gen::inRange(1, 3000), *rc::gen::inRange(1, 4));
    setup.attention = *rc::gen::element(Attention::Flash, Attention::Eager);
    setup.checkpointing = *rc::gen::element(Checkpointing::None, Checkpointing::Selective, Checkpointing::Full);
    setup.implementation = *rc::gen::element(Implementation::HuggingFace, Implementation::Torchtitan,
                                             Implementation::LlmFoundry, Implementation::Megatron);
    setup.loss = *rc::gen::element(LossKind::Default, LossKind::ShiftedCopy, LossKind::Compiled, LossKind::Fused);
    setup.compile = *rc::gen::arbitrary<bool>();
    const Costs costs(readModel(id), setup);
    const auto layers = static_cast<int>(costs.activations().model().layers.size());
    for (int layer = 0; layer < layers; ++layer) {
        const LayerProgram& program = costs.activations().program(layer);
        for (const auto& [kind, pass] : {std::pair{OpKind::Forward, &program.forwardPass()},
                                         std::pair{OpKind::Recompute, &program.recomputePass()},
                                         std::pair{OpKind::Backward, &program.backwardPass()}}) {
            double sum = 0;
            for (int part = 0; part < static_cast<int>(pass->size()); ++part)
                sum += costs.costs.seconds(op(kind, layer, part, part + 1));
            const double whole = costs.costs.seconds(op(kind, layer));
            RC_ASSERT(std::abs(sum - whole) <= 1e-9 * (1 + whole));
            RC_ASSERT(whole >= 0);
        }
        RC_ASSERT(costs.recompute(layer) <= costs.forward(layer) + costs.backward(layer));
        RC_ASSERT(costs.backward(layer) >= 0);
    }
    Training longer = setup;
    // By multiples of eight: rows of scores stay aligned or not. A longer sequence that is aligned may be the faster
    // one.
    longer.sequenceLength += 8 * *rc::gen::inRange(1, 60);
    RC_ASSERT(Costs(readModel(id), longer).micro() >= costs.micro());
    Training wider = setup;
    wider.microBatch += 1;
    RC_ASSERT(Costs(readModel(id), wider).micro() >= costs.micro());
}
