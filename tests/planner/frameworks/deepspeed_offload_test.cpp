// What offloading leaves on the GPU, puts into host memory, and keeps on NVMe.

#include <gtest/gtest.h>

#include "core/json_cursor.hpp"
#include "tests/planner/frameworks/deepspeed_support.hpp"

namespace shardwright::deepspeed_test {
namespace {

/// Bytes read from or written to NVMe in one step.
std::int64_t moved(const Schedule& schedule, OpKind kind)
{
    std::int64_t bytes = 0;
    for (const Segment& segment : schedule.segments)
        for (std::uint32_t i = segment.firstOp; i < segment.endOp; ++i)
            if (schedule.ops[i].kind == kind && schedule.ops[i].payload >= 0)
                bytes += schedule.sizes.payloads[static_cast<std::size_t>(schedule.ops[i].payload)].bytes.count() *
                         segment.repeat;
    return bytes;
}

// 18 bytes a parameter: fp32 master, gradient and moments, 16-bit staging; the largest tensor's buffer beside them.
TEST(DeepSpeedOffload, Zero2KeepsTheOptimizerInTheHost)
{
    Question question;
    question.options().stage = 2;
    question.options().offloadOptimizer = OffloadDevice::Cpu;
    question.options().pinMemory = false;
    const MemoryReplay pageable = question.memory();
    EXPECT_EQ(pageable.hostPageable.bytes, Bytes((4 + 4 + 2 + 8) * 906 + 2 * 1024));
    EXPECT_EQ(pageable.hostPinned.bytes, Bytes(0));
    EXPECT_EQ(pageable.gpuHeld, Bytes(2 * kTinyParameters + 2 * 1024));
    question.options().pinMemory = true;
    const MemoryReplay pinned = question.memory();
    EXPECT_EQ(pinned.hostPageable.bytes, Bytes(8 * 906));
    EXPECT_EQ(pinned.hostPinned.bytes, Bytes(4096 + 4096 + 2048 + 2048)); // 3,624, 3,624, 1,812 and 2,048 rounded up
}

TEST(DeepSpeedOffload, Zero3KeepsTheOptimizerInTheHost)
{
    Question question;
    question.options().offloadOptimizer = OffloadDevice::Cpu;
    question.options().pinMemory = false;
    EXPECT_EQ(question.memory().hostPageable.bytes, Bytes(18 * 906 - 2 * 906 + 2 * 906));
    EXPECT_EQ(question.memory().gpuHeld, Bytes(2 * 906 + 2 * 4000));
    question.options().offloadParam = OffloadDevice::Cpu;
    question.options().paramPinMemory = false;
    EXPECT_EQ(question.memory().hostPageable.bytes, Bytes(20 * 906));
    EXPECT_EQ(question.memory().gpuHeld, Bytes(2 * 4000));
    question.options().pinMemory = true;
    question.options().paramPinMemory = true;
    const MemoryReplay pinned = question.memory();
    EXPECT_EQ(pinned.hostPinned.bytes, Bytes(2048 + 4096 + 2048)); // 16-bit gradients, fp32 gradients, parameters
    EXPECT_EQ(pinned.hostPageable.bytes, Bytes(12 * 906));         // master (cloned) and moments
}

// ZeRO-Infinity reads parameters, gradient and moments and writes all but the gradient, which backward has written.
TEST(DeepSpeedOffload, NvmeOptimizerReads16AndWrites16Bytes)
{
    Question question;
    question.model = readModel("gpt2");
    question.options().offloadOptimizer = OffloadDevice::Nvme;
    const Schedule schedule = question.rules()->emit();
    const std::int64_t shard = question.rules()->modelStates().parameters.count() / 2;
    EXPECT_EQ(moved(schedule, OpKind::NvmeRead), 16 * shard);
    EXPECT_EQ(moved(schedule, OpKind::NvmeWrite), (12 + 4) * shard);
    const MemoryReplay memory = replayMemory(schedule, false);
    EXPECT_EQ(memory.nvme.bytes, Bytes(16 * shard));
    const Bytes buffer(nextPowerOfTwo(4 * shard));
    EXPECT_EQ(liveBytes(schedule.sizes, memory.hostPinned, Place::HostPinned, "swap buffers of the optimizer, pinned"),
              4 * buffer);
}

/// Embedding and head have shards of exactly 1 MiB on eight ranks, the least that is swapped; all others are smaller.
Model largeEnds()
{
    return modelFromJson({{"model_type", "llama"},
                          {"architectures", {"LlamaForCausalLM"}},
                          {"hidden_size", 512},
                          {"num_hidden_layers", 1},
                          {"num_attention_heads", 8},
                          {"num_key_value_heads", 8},
                          {"intermediate_size", 1024},
                          {"vocab_size", 8192},
                          {"tie_word_embeddings", false},
                          {"max_position_embeddings", 64}},
                         "large-ends", "test", "");
}
constexpr std::int64_t kEnd = 524288; // elements of a shard of the embedding or the head
constexpr std::int64_t kAttention = 512 * 512 / 8;
constexpr std::int64_t kMlp = 512 * 1024 / 8;
constexpr std::int64_t kNorm = 512 / 8;

TEST(DeepSpeedOffload, NvmeTakesShardsOfOneMebibyteAndMore)
{
    Question question;
    question.model = largeEnds();
    question.options().offloadParam = OffloadDevice::Nvme;
    question.options().maxInCpu = 0;
    question.options().paramBufferSize = 100;
    const Schedule schedule = question.rules()->emit();
    const MemoryReplay memory = replayMemory(schedule, false);
    EXPECT_EQ(memory.nvme.bytes, Bytes(2 * 2 * kEnd));
    EXPECT_EQ(moved(schedule, OpKind::NvmeWrite), 2 * 2 * kEnd);
    const auto pinned = [&](std::string_view name) {
        return liveBytes(schedule.sizes, memory.hostPinned, Place::HostPinned, name);
    };
    EXPECT_EQ(pinned("small parameter shards in host memory, pinned"),
              Bytes(2 * (4 * kAttention + 3 * kMlp + 3 * kNorm))); // each a power of two
    EXPECT_EQ(pinned("parameter shards in host memory, pinned"), Bytes(0));
    // The whole rank is one sub-group, of 2.6 MiB.
    EXPECT_EQ(pinned("buffer of updated parameters on their way to NVMe, pinned"), Bytes(4 << 20));
    // Without offload_optimizer the masters are on the GPU: all that is updated goes down, on its way to NVMe too.
    EXPECT_EQ(moved(schedule, OpKind::CopyToHost), 2 * (2 * kEnd + 4 * kAttention + 3 * kMlp + 3 * kNorm));
}

/// Whole sub-groups stay in host memory, in order, as long as max_in_cpu elements hold them: the first is the embedding
/// with three matrices of attention, 622,592 elements or a norm more.
TEST(DeepSpeedOffload, SubGroupsThatMaxInCpuHoldsStayInHostMemory)
{
    Question question;
    question.model = largeEnds();
    question.options().subGroupSize = 600000;
    question.options().offloadParam = OffloadDevice::Nvme;
    const auto onNvme = [&](std::int64_t maxInCpu) {
        question.options().maxInCpu = maxInCpu;
        return question.memory().nvme.bytes;
    };
    EXPECT_EQ(onNvme(1000000000), Bytes(0));
    EXPECT_EQ(onNvme(700000), Bytes(2 * kEnd)); // the head
    EXPECT_EQ(onNvme(600000), Bytes(2 * 2 * kEnd));
    const Schedule schedule = question.rules()->emit();
    EXPECT_EQ(liveBytes(schedule.sizes, replayMemory(schedule, false).hostPinned, Place::HostPinned,
                        "parameter shards in host memory, pinned"),
              Bytes(2 << 20)); // 600,000 elements are taken even where no sub-group fits
}

// ratio: the first quarter of the sub-groups is stepped on the GPU.
TEST(DeepSpeedOffload, PartialOffloadStepsSomeSubGroupsOnTheGpu)
{
    Question question;
    question.options().subGroupSize = 200;
    question.options().offloadOptimizer = OffloadDevice::Cpu;
    question.options().pinMemory = false;
    const Bytes all = question.memory().hostPageable.bytes;
    const Bytes none = question.memory().gpuHeld;
    question.options().offloadRatio = 0.5;
    const Bytes half = question.memory().hostPageable.bytes;
    const Bytes moved = question.memory().gpuHeld - none;
    EXPECT_GT(moved, Bytes(0));
    EXPECT_EQ(all - half, moved); // master, moments and fp32 gradients leave the host for the GPU
}

// The step needs 6 bytes an element of one sub-group beside the states.
TEST(DeepSpeedOffload, SmallerSubGroupsNeedLessAtTheStep)
{
    Question question;
    question.training.sequenceLength = 1;
    question.options().reduceBucketSize = 1;
    question.options().maxReuseDistance = 0;
    question.options().prefetchBucketSize = 0;
    question.model = readModel("gpt2-xl");
    question.options().subGroupSize = 1000000000;
    const MemoryReplay whole = question.memory();
    const double shard = static_cast<double>(question.model.parameters()) / 8;
    EXPECT_NEAR((whole.gpu.bytes - whole.gpuHeld).asDouble(), 6 * shard, 0.001 * shard);
}

} // namespace
} // namespace shardwright::deepspeed_test
