// What moving states off the GPU costs.

#include <gtest/gtest.h>

#include "planner/frameworks/optimizer_rules.hpp"
#include "tests/planner/behaviours/behaviour_support.hpp"

namespace shardwright::behaviours {
namespace {

/// Whatever is offloaded, the GPU holds less and the step takes longer.
TEST(CpuOffload, IsSmallerOnTheGpuAndSlower)
{
    const Question question("llama-2-7b", "dgx-a100-80gb");
    const auto compare = [&](const StrategyOptions& on, const StrategyOptions& off) {
        const Plan here = question.plan(on);
        const Plan there = question.plan(off);
        EXPECT_LT(there.gpu.peakAllocated, here.gpu.peakAllocated);
        EXPECT_GT(there.host.bytesPerRank, here.host.bytesPerRank);
        EXPECT_GT(there.step->seconds, 2 * here.step->seconds);
        // The cause is the optimizer on the host and the way there, not the layers.
        const StepBreakdown& slow = there.step->breakdown;
        EXPECT_NEAR(slow.compute, here.step->breakdown.compute, 1e-9);
        EXPECT_GT(slow.optimizer + slow.offload, 0.5 * there.step->seconds);
    };
    compare(Fsdp1Options{}, fsdp1([](Fsdp1Options& o) { o.offloadParams = true; }));
    Fsdp2Options second;
    second.offloadParams = true;
    compare(Fsdp2Options{}, second);
    for (const int stage : {1, 2, 3})
        compare(zero(stage), zero(stage, [](DeepSpeedOptions& o) { o.offloadOptimizer = OffloadDevice::Cpu; }));
}

/// DeepSpeedCPUAdam is one vectorised pass over 28 bytes a parameter; torch's optimizer on the CPU, where it is not
/// fused, is eight passes over 80. (DeepSpeed's documentation claims 5 to 7 times; ops/adam/cpu_adam.py.)
TEST(CpuOffload, CpuAdamBeatsAPlainCpuOptimizer)
{
    Question question("llama-2-7b", "dgx-a100-80gb");
    question.training.fusedOptimizer = false;
    const StepTime plain = question.step(fsdp1([](Fsdp1Options& o) { o.offloadParams = true; }));
    const StepTime cpuAdam = question.step(zero(3, [](DeepSpeedOptions& o) {
        o.offloadOptimizer = OffloadDevice::Cpu;
        o.offloadParam = OffloadDevice::Cpu;
    }));
    EXPECT_LT(cpuAdam.seconds, plain.seconds);
    EXPECT_GT(plain.breakdown.optimizer, 2.5 * cpuAdam.breakdown.optimizer);
    const SteppedDtypes fp32;
    EXPECT_EQ(optimizerStepBytes(Optimizer::AdamW, OptimizerForm::Fused, 1, fp32), Bytes(28));
    EXPECT_EQ(optimizerStepBytes(Optimizer::AdamW, OptimizerForm::Foreach, 1, fp32), Bytes(80));
}

/// Offloaded parameters come over PCIe for every gather.
TEST(CpuOffload, OfParametersUploadsShardsForEveryGather)
{
    const Question question("llama-2-7b", "dgx-a100-80gb");
    const auto offloading = [](OffloadDevice param) {
        return zero(3, [&](DeepSpeedOptions& o) {
            o.offloadOptimizer = OffloadDevice::Cpu;
            o.offloadParam = param;
        });
    };
    const Plan optimizerOnly = question.plan(offloading(OffloadDevice::None));
    const Plan both = question.plan(offloading(OffloadDevice::Cpu));
    // 13.5 GB of 16-bit parameters over 8 ranks, once for forward and once for backward, less the reuse window, in
    // place of the updated shard that the other sends up after the step.
    EXPECT_GT(both.traffic.hostToDeviceBytes - optimizerOnly.traffic.hostToDeviceBytes, Bytes(1300000000));
    EXPECT_LT(both.gpu.peakAllocated, optimizerOnly.gpu.peakAllocated);
}

/// From NVMe the states come and go at the drives' rate, 16 B read and 12 B written a parameter each step.
TEST(NvmeOffload, IsBoundByTheDrives)
{
    const Question question("llama-2-7b", "dgx-a100-80gb");
    const auto nvme = [](bool pipelined) {
        return zero(3, [&](DeepSpeedOptions& o) {
            o.offloadOptimizer = OffloadDevice::Nvme;
            o.subGroupSize = 100000000;
            o.pipelineRead = o.pipelineWrite = pipelined;
        });
    };
    const StepTime cpu = question.step(zero(3, [](DeepSpeedOptions& o) { o.offloadOptimizer = OffloadDevice::Cpu; }));
    const StepTime sequential = question.step(nvme(false));
    const StepTime pipelined = question.step(nvme(true));
    EXPECT_GT(sequential.seconds, cpu.seconds);
    EXPECT_GT(sequential.breakdown.offload, cpu.breakdown.offload);
    const double parameters = static_cast<double>(question.model.parameters());
    const double drives = parameters * 16 / question.cluster.nvmeReadBandwidth.value +
                          parameters * 12 / question.cluster.nvmeWriteBandwidth.value;
    EXPECT_GT(sequential.breakdown.offload, drives);
    // pipeline_read and pipeline_write hide the host's part behind the drives; the drives themselves stay.
    EXPECT_LT(pipelined.seconds, sequential.seconds);
    EXPECT_GT(pipelined.seconds, drives);
}

/// A drive twice as fast helps; a faster link between GPUs does not.
TEST(NvmeOffload, FollowsTheDrives)
{
    Question question("llama-2-7b", "dgx-a100-80gb");
    const DeepSpeedOptions nvme = zero(3, [](DeepSpeedOptions& o) { o.offloadOptimizer = OffloadDevice::Nvme; });
    const double before = question.seconds(nvme);
    question.cluster.nvmeReadBandwidth.value *= 2;
    question.cluster.nvmeWriteBandwidth.value *= 2;
    EXPECT_LT(question.seconds(nvme), 0.8 * before);
}

} // namespace
} // namespace shardwright::behaviours
