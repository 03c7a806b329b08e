// What the host spends on issuing kernels, beside programs whose GPU was measured to wait for it.

#include "planner/costs/host_costs.hpp"

#include <gtest/gtest.h>

#include "core/cluster_file.hpp"
#include "core/model_file.hpp"
#include "planner/costs/layer_costs.hpp"

namespace shardwright {
namespace {

constexpr int kBlock = 1;

struct Issued {
    double seconds = 0;
    int kernels = 0;
};

class Program {
public:
    explicit Program(const std::string& model) : m_model(readModel(model)) { strategy.options = DdpOptions{}; }

    Training training;
    Strategy strategy;

    Issued of(OpKind kind, int layer) const
    {
        const PlanInput input{m_model, m_cluster, training, strategy};
        const ActivationModel activations(m_model, training, DType::Bf16);
        const LayerCosts costs(input, activations);
        Op op;
        op.kind = kind;
        op.layer = layer;
        return {costs.hostSeconds(op), costs.kernels(op)};
    }
    double forwardOfAll() const
    {
        double sum = 0;
        for (int layer = 0; layer < static_cast<int>(m_model.layers.size()); ++layer)
            sum += of(OpKind::Forward, layer).seconds;
        return sum;
    }

private:
    const Model m_model;
    const Cluster m_cluster = readCluster("dgx-a100-80gb");
};

TEST(HostCosts, DecodingBloomIsBoundByItsHost)
{
    // github.com/bigcode-project/bigcode-inference-benchmark: a BLOOM of 24 layers in bf16 takes 13.8 ms for a token of
    // one sequence on an A100, and as long for those of eight.
    Program bloom("bloom-560m");
    bloom.training.attention = Attention::Eager;
    EXPECT_NEAR(bloom.forwardOfAll() / 13.8e-3, 1, 0.3);
}

TEST(HostCosts, CompiledGraphsCostLess)
{
    Program eager("llama-2-7b");
    Program compiled("llama-2-7b");
    compiled.training.compile = true;
    for (const OpKind pass : {OpKind::Forward, OpKind::Backward})
        EXPECT_LT(compiled.of(pass, kBlock).seconds, eager.of(pass, kBlock).seconds / 4);
}

TEST(HostCosts, RecomputationPaysForItsRegion)
{
    Program full("llama-2-7b");
    full.training.checkpointing = Checkpointing::Full;
    full.training.checkpointEarlyStop = false;
    const Issued again = full.of(OpKind::Recompute, kBlock);
    const Issued first = full.of(OpKind::Forward, kBlock);
    EXPECT_EQ(again.kernels, first.kernels);
    // 390 us for a region of three kernels, less those
    EXPECT_NEAR(again.seconds - first.seconds, 390e-6 - 3 * first.seconds / first.kernels, 1e-9);
    full.training.compile = true; // recomputed within the graph of the backward
    const Issued compiled = full.of(OpKind::Recompute, kBlock);
    EXPECT_LT(compiled.seconds, 100e-6);
}

TEST(HostCosts, MegatronCallsPythonAroundItsKernels)
{
    Program torch("megatron-gpt3-7b");
    torch.training.fusedNorm = true;
    Program megatron = torch;
    megatron.training.implementation = Implementation::Megatron;
    const Issued plain = torch.of(OpKind::Forward, kBlock);
    const Issued wrapped = megatron.of(OpKind::Forward, kBlock);
    EXPECT_GT(wrapped.seconds / wrapped.kernels, plain.seconds / plain.kernels);
}

TEST(HostCosts, AProgramWithoutPythonPaysTheDriver)
{
    Program program("gpt2");
    const double python = program.of(OpKind::Forward, kBlock).seconds;
    program.strategy.options = NativeOptions{};
    const Issued native = program.of(OpKind::Forward, kBlock);
    EXPECT_LT(native.seconds, python / 5);
    EXPECT_DOUBLE_EQ(native.seconds, 3e-6 * native.kernels);
}

} // namespace
} // namespace shardwright
