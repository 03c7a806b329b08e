// Predictions beside figures that others measured. The bounds are what is honestly reached; each difference is told.

#include <gtest/gtest.h>

#include "tests/planner/frameworks/deepspeed_support.hpp"

namespace shardwright::deepspeed_test {
namespace {

struct Row {
    const char* name;
    int stage;
    bool checkpointed;
    std::int64_t microBatch;
    std::int64_t accumulation;
    OffloadDevice optimizer;
    OffloadDevice param;
    bool beforeFirstStep;
    double peak; // GiB, max_memory_allocated
    double low;  // error of the prediction in percent, bounds
    double high;
};

constexpr auto kNone = OffloadDevice::None;
constexpr auto kCpu = OffloadDevice::Cpu;

// gist.github.com/chenyaofo/d4cd6a20ab4b95cb3a49491747e2139a: LLaMA 7B, sequences of 4096, 8 x A800-80, DeepSpeed
// 0.14.2. Its ZeRO-2 rows stand 1 to 2.6 GiB above the prediction: 0.14.2 made the reduction bucket before backward, so
// that it stood beside the logits, and held a second copy of the partition's gradients.
constexpr Row kGist[] = {
    {"ZeRO-2, 1 x 8", 2, false, 1, 8, kNone, kNone, true, 44.8, -7, 1},
    {"ZeRO-2, checkpointed, 1 x 8", 2, true, 1, 8, kNone, kNone, true, 23.5, -5, 1},
    {"ZeRO-2, optimizer in the host, 1 x 8", 2, true, 1, 8, kCpu, kNone, false, 16.9, -4, 1},
    {"ZeRO-2, checkpointed, 4 x 2", 2, true, 4, 2, kNone, kNone, false, 38.6, -8, 1},
    {"ZeRO-3, 2 x 4", 3, false, 2, 4, kNone, kNone, false, 75.7, -2, 2},
    {"ZeRO-3, checkpointed, 2 x 4", 3, true, 2, 4, kNone, kNone, false, 20.4, -2, 2},
    {"ZeRO-3, optimizer in the host, 2 x 4", 3, true, 2, 4, kCpu, kNone, false, 9.4, -3, 2},
    {"ZeRO-3, all in the host, 2 x 4", 3, true, 2, 4, kCpu, kCpu, false, 7.9, -4, 2},
    {"ZeRO-3, checkpointed, 8 x 1", 3, true, 8, 1, kNone, kNone, false, 39.1, -2, 2},
    {"ZeRO-3, checkpointed, 16 x 1", 3, true, 16, 1, kNone, kNone, false, 63.9, -2, 2},
};

Question gist(const Row& row)
{
    Question question;
    question.model = readModel("llama-7b");
    question.cluster = readCluster("a800-80gb-x8");
    question.training.sequenceLength = 4096;
    question.training.microBatch = row.microBatch;
    question.training.gradientAccumulation = row.accumulation;
    question.training.checkpointing = row.checkpointed ? Checkpointing::Full : Checkpointing::None;
    question.training.attention = Attention::Sdpa;
    question.training.loss = LossKind::ShiftedCopy;
    question.training.holdsLogits = true;
    DeepSpeedOptions& options = question.options();
    options = DeepSpeedOptions{};
    options.stage = row.stage;
    options.offloadOptimizer = row.optimizer;
    options.offloadParam = row.param;
    options.pinMemory = options.paramPinMemory = false; // default before 0.19.5
    options.zero3Init = false;
    return question;
}

double error(const Question& question, const Row& row)
{
    const MemoryReplay memory = question.memory();
    const Bytes predicted = row.beforeFirstStep ? memory.gpuPeakBeforeFirstStep : memory.gpu.bytes;
    return 100 * (predicted.asDouble() / kGiB / row.peak - 1);
}

// The gist prints no settings of stage 3. Those of DeepSpeed-Chat's training (DeepSpeedExamples ds_utils.py
// get_train_ds_config: max_live_parameters and prefetch bucket 3e7, persistence 1e4, memory_efficient_linear false),
// from which many training programs start, explain its rows, the kept weights of the first one included.
TEST(DeepSpeedPublished, LlamaOnEightA800)
{
    for (const Row& row : kGist) {
        Question question = gist(row);
        question.options().maxLiveParameters = 30000000;
        question.options().prefetchBucketSize = 30000000;
        question.options().paramPersistenceThreshold = 10000;
        const double off = error(question, row);
        RecordProperty(row.name, std::to_string(off));
        EXPECT_GT(off, row.low) << row.name;
        EXPECT_LT(off, row.high) << row.name;
    }
}

// With DeepSpeed's own defaults the prefetcher runs ahead up to max_live_parameters, 1e9 elements: up to 1.2 GiB more.
TEST(DeepSpeedPublished, LlamaOnEightA800UnderDefaults)
{
    for (const Row& row : kGist) {
        if (row.stage != 3)
            continue;
        const double off = error(gist(row), row);
        RecordProperty(row.name, std::to_string(off));
        EXPECT_GT(off, row.low) << row.name;
        EXPECT_LT(off * row.peak / 100, 1.2) << row.name; // GiB
    }
}

// github.com/deepspeedai/DeepSpeed/issues/4527: 6,805 million parameters on 4 GPUs, ZeRO-3 with everything offloaded;
// nvidia-smi says 14,678 MiB after initialisation where the estimator says 0.49 GB. The model was built outside
// zero.Init: it goes to each GPU whole before it is partitioned, and PyTorch's allocator keeps that memory. The module
// (6,738 million parameters here) and the bucket are within 7 % of the figure; CUDA's context is the rest.
TEST(DeepSpeedPublished, EverythingOffloadedStillPassesThroughTheGpu)
{
    Question question;
    question.model = readModel("llama-7b");
    question.cluster.gpusPerNode = 4;
    DeepSpeedOptions& options = question.options();
    options = DeepSpeedOptions{};
    options.offloadOptimizer = options.offloadParam = kCpu;
    options.zero3Init = false;
    question.training.checkpointing = Checkpointing::Full;
    const MemoryReplay memory = question.memory();
    const double whole = 2.0 * static_cast<double>(question.model.parameters());
    EXPECT_NEAR(memory.gpuInitPeak.asDouble(), whole, 0.001 * whole);
    const double kept = whole + 2 * 5e8;
    EXPECT_NEAR(kept, 14678.0 * 1024 * 1024, 0.07 * kept);
    EXPECT_LT(kept, 14678.0 * 1024 * 1024);
    // and in the step: 1,838 MiB as nvidia-smi shows it before the second forward are the bucket and the context
    EXPECT_LT(memory.gpuHeld.asDouble(), 1838.0 * 1024 * 1024);
    EXPECT_GT(memory.gpuHeld.asDouble(), 2 * 5e8);
    options.zero3Init = true;
    EXPECT_LT(question.memory().gpuInitPeak.asDouble(), 0.1 * whole);
}

} // namespace
} // namespace shardwright::deepspeed_test
