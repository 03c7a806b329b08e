// What a rank keeps and moves, computed by hand for a model of two blocks:
//
//   block  q 8x8 = 64, k and v 4x8 = 32 each, o 8x8 = 64, gate and up 12x8 = 96 each, down 8x12 = 96, two norms of 8
//          = 496 elements
//   embedding 10x8 = 80, final norm 8, head 10x8 = 80
//   1160 elements in all

#include <gtest/gtest.h>

#include "core/model_file.hpp"
#include "tests/planner/frameworks/small_input.hpp"

namespace shardwright {
namespace {

constexpr std::int64_t kBlock = 64 + 2 * 32 + 64 + 3 * 96 + 2 * 8;
constexpr std::int64_t kOuter = 80 + 8 + 80;
constexpr std::int64_t kModel = 2 * kBlock + kOuter;

Bytes payloads(const Traffic& traffic, OpKind op)
{
    Bytes bytes;
    for (const CollectiveTraffic& collective : traffic.collectives)
        if (collective.op == op)
            bytes += collective.payloadBytes;
    return bytes;
}

TEST(SmallModel, HasTheElementsCountedAbove)
{
    EXPECT_EQ(llamaOf({}).parameters(), kModel);
    EXPECT_EQ(kModel, 1160);
}

// Flat parameters are padded to the group: block 496 -> 498, root 168 = 3 x 56.
TEST(Fsdp1Sizes, ShardsOfThreeRanks)
{
    const SmallInput small(Fsdp1Options{}, 3);
    const std::int64_t shard = 2 * (498 / 3) + 168 / 3;
    const ModelStates states = small.rules()->modelStates();
    EXPECT_EQ(states.parameters, Bytes(4 * shard)); // upcast to fp32
    EXPECT_EQ(states.gradients, Bytes(4 * shard));
    EXPECT_EQ(states.optimizerStates, Bytes(8 * shard));
    EXPECT_EQ(states.masterParameters, Bytes(0));
}

// Blocks are gathered twice, the root once; everything is reduced once; bf16 both ways.
TEST(Fsdp1Sizes, FullShardGathersBlocksTwiceAndTheRootOnce)
{
    const Traffic traffic = SmallInput(Fsdp1Options{}, 3).traffic();
    EXPECT_EQ(payloads(traffic, OpKind::AllGather), Bytes(2 * (2 * 2 * 498 + 168)));
    EXPECT_EQ(payloads(traffic, OpKind::ReduceScatter), Bytes(2 * (2 * 498 + 168)));
    EXPECT_EQ(payloads(traffic, OpKind::AllReduce), Bytes(0));
}

// Every tensor begins on 16 bytes of the compute dtype: with a vocabulary of 9 and a hidden size of 9 (one head of 9),
// block tensors of 81, 81, 81, 81, 12x9 = 108 (three times), 9 and 9 elements begin on multiples of 8 (bf16).
TEST(Fsdp1Sizes, TensorsAreAlignedInTheComputeDtype)
{
    SmallInput small(Fsdp1Options{}, 2);
    small.model = llamaOf({9, 1, 1, 9, 12, 9, false});
    // In forward order: norm 9, q k v o 81 each, norm 9, gate up down 108 each. All but the last take whole eights.
    const std::int64_t block = 16 + 4 * 88 + 16 + 112 + 112 + 108;
    const std::int64_t root = 88 + 16 + 81; // embedding 81, norm 9, head 81
    const auto half = [](std::int64_t elements) { return (elements + 1) / 2; };
    EXPECT_EQ(small.rules()->modelStates().parameters, Bytes(4 * (half(block) + half(root))));

    auto flat = Fsdp1Options{};
    flat.useOrigParams = false; // back to back
    small.strategy.options = flat;
    EXPECT_EQ(small.rules()->modelStates().parameters, Bytes(4 * (half(2 * 9 + 4 * 81 + 3 * 108) + half(81 + 9 + 81))));

    small.training.precision.mixed.reset(); // fp32: multiples of 4
    small.strategy.options = Fsdp1Options{};
    const std::int64_t blockFp32 = 12 + 4 * 84 + 12 + 3 * 108;
    EXPECT_EQ(small.rules()->modelStates().parameters, Bytes(4 * (half(blockFp32) + half(84 + 12 + 81))));
}

// fully_shard pads dimension 0 of every parameter: over three ranks rows of 8 become 3, of 4 become 2, of 12 become 4,
// of 10 become 4.
TEST(Fsdp2Sizes, ShardsOfThreeRanksArePaddedTensorByTensor)
{
    const SmallInput small(Fsdp2Options{}, 3);
    const std::int64_t block = 3 * 8 + 2 * (2 * 8) + 3 * 8 + 2 * (4 * 8) + 3 * 12 + 3 + 3;
    const std::int64_t shard = 2 * block + 4 * 8 + 3 + 4 * 8;
    const ModelStates states = small.rules()->modelStates();
    EXPECT_EQ(states.parameters, Bytes(4 * shard));
    EXPECT_EQ(states.gradients, Bytes(4 * shard));
    EXPECT_EQ(states.optimizerStates, Bytes(8 * shard));
    // Blocks and embedding are gathered twice, [final norm, head] once.
    const Traffic traffic = small.traffic();
    EXPECT_EQ(payloads(traffic, OpKind::AllGather), Bytes(2 * 3 * (2 * (2 * block + 32) + 3 + 32)));
    EXPECT_EQ(payloads(traffic, OpKind::ReduceScatter), Bytes(2 * 3 * shard));
}

/// Sharding is exact up to padding: less than one row per tensor and rank (fully_shard), less than N elements a unit
/// and 8 elements a tensor (FSDP1, bf16); never less than the model.
TEST(Padding, IsBoundedForOddSizesAndGroups)
{
    for (const std::int64_t hidden : {8, 9, 13, 24})
        for (const int ranks : {1, 2, 3, 7})
            for (const bool second : {false, true}) {
                SmallInput small(second ? StrategyOptions(Fsdp2Options{}) : StrategyOptions(Fsdp1Options{}), ranks);
                small.model = llamaOf({hidden, 3, 1, 5, 11, 17, false});
                const std::int64_t kept = small.rules()->modelStates().parameters.count() / 4 * ranks;
                const std::int64_t model = small.model.parameters();
                const std::int64_t tensors = 3 * 9 + 3;
                const std::int64_t rowPadding = tensors * (ranks - 1) * std::max<std::int64_t>(hidden, 11);
                const std::int64_t flatPadding = 4 * (ranks - 1) + tensors * 7;
                EXPECT_GE(kept, model) << hidden << " " << ranks;
                EXPECT_LE(kept, model + (second ? rowPadding : flatPadding)) << hidden << " " << ranks;
            }
}

// Accelerate: weights loaded in bf16 without mixed precision stay bf16 (2 + 2 + 4 = 8 bytes a parameter); with
// mixed_precision bf16 they are upcast to fp32 (4 + 4 + 8 = 16). Of Llama-2-7B, whose tensors divide by 8.
TEST(Precision, AcceleratesRowsForFsdp)
{
    for (const bool second : {false, true}) {
        SmallInput small(second ? StrategyOptions(Fsdp2Options{}) : StrategyOptions(Fsdp1Options{}), 8);
        small.model = readModel("llama-2-7b");
        small.training.precision.load = DType::Bf16;
        const std::int64_t parameters = small.model.parameters();
        small.training.precision.mixed.reset();
        EXPECT_EQ(small.rules()->modelStates().total(), Bytes(8 * parameters / 8));
        small.training.precision.mixed = DType::Bf16;
        EXPECT_EQ(small.rules()->modelStates().total(), Bytes(16 * parameters / 8));
    }
}

// ZeRO (arXiv 1910.02054) sec. 3.1: 16 bytes a parameter without sharding.
TEST(Precision, DdpKeepsSixteenBytesAParameter)
{
    SmallInput small(DdpOptions{}, 4);
    EXPECT_EQ(small.rules()->modelStates().total(), Bytes(16 * kModel));
    small.strategy.options = NativeOptions{0, true, false};
    EXPECT_EQ(small.rules()->modelStates().total(), Bytes(16 * kModel)); // 2 + 2 + 4 + 8
    small.strategy.options = fsdp1(ShardingStrategy::NoShard);
    EXPECT_EQ(small.rules()->modelStates().total(), Bytes(16 * kModel));
}

// ZeRO (arXiv 1910.02054) fig. 1: 2 + 2 + 12/N, 2 + 14/N and 16/N bytes a parameter, up to padding to N = 4 by layer.
TEST(Precision, NativeStagesKeepWhatThePaperSays)
{
    const auto states = [](int stage) {
        return SmallInput(NativeOptions{stage, true, false}, 4).rules()->modelStates().total();
    };
    // Every layer of the small model divides by 4.
    EXPECT_EQ(states(1), Bytes(4 * kModel + 12 * kModel / 4));
    EXPECT_EQ(states(2), Bytes(2 * kModel + 14 * kModel / 4));
    EXPECT_EQ(states(3), Bytes(16 * kModel / 4));
}

// Frozen parameters are not upcast, have no gradients and no moments.
TEST(Adapters, FrozenParametersKeepTheirLoadDtype)
{
    SmallInput small(Fsdp2Options{}, 1);
    small.training.precision.load = DType::Bf16;
    small.training.lora.emplace();
    small.training.lora->rank = 2;
    small.model = applyLora(small.model, *small.training.lora, "test", "");
    // A (2 x in) and B (out x 2) for each matrix: q 2x8 + 8x2, k and v 2x8 + 4x2, o 2x8 + 8x2, gate and up 2x8 + 12x2,
    // down 2x12 + 8x2.
    const std::int64_t adapters = 2 * (32 + 2 * 24 + 32 + 2 * 40 + 40);
    const ModelStates states = small.rules()->modelStates();
    EXPECT_EQ(states.parameters, Bytes(2 * kModel + 4 * adapters));
    EXPECT_EQ(states.gradients, Bytes(4 * adapters));
    EXPECT_EQ(states.optimizerStates, Bytes(8 * adapters));
}

// QLoRA: the 480 matrix elements of a block take half a byte, norms, embedding and head two, adapters and each of their
// moments four.
TEST(Adapters, DdpPacksTheFrozenMatricesOfBlocks)
{
    SmallInput small(DdpOptions{}, 1);
    small.training.precision.load = DType::Bf16;
    small.training.lora.emplace();
    small.training.lora->rank = 2;
    small.training.lora->baseDtype = DType::Nf4;
    small.model = applyLora(small.model, *small.training.lora, "test", "");
    const std::int64_t adapters = 2 * (32 + 2 * 24 + 32 + 2 * 40 + 40);
    const ModelStates states = small.rules()->modelStates();
    EXPECT_EQ(states.parameters, Bytes(2 * 480 / 2 + 2 * (2 * 16 + kOuter) + 4 * adapters));
    EXPECT_EQ(states.gradients, Bytes(4 * adapters));
    EXPECT_EQ(states.optimizerStates, Bytes(8 * adapters));
    EXPECT_EQ(small.memory().gpuHeld, states.parameters + states.optimizerStates + states.gradients); // and buckets
}

// While a unit is wrapped, FSDP1 holds it whole next to the flat parameter it builds, both in the load dtype. Children
// come first, last block first; the root's 168 elements come when both blocks are sharded (fp32, 166 elements each).
TEST(Initialisation, Fsdp1HoldsAUnitTwice)
{
    const MemoryReplay memory = SmallInput(Fsdp1Options{}, 3).memory();
    const std::int64_t secondBlock = 4 * 166 + 4 * (496 + 498); // first block's shard, then module and flat
    EXPECT_EQ(memory.gpuInitPeak, Bytes(secondBlock + 0));
}

// Accelerate with cpu_ram_efficient_loading: rank 0 broadcasts tensor by tensor, so one whole tensor stands beside the
// shards; otherwise fully_shard moves a whole unit to the GPU.
TEST(Initialisation, Fsdp2HoldsATensorOrAUnit)
{
    SmallInput small(Fsdp2Options{}, 2);
    // Shards of two ranks are halves: all divide.
    const std::int64_t shards = 4 * kModel / 2;
    EXPECT_EQ(small.memory().gpuInitPeak, Bytes(shards + 4 * 80)); // the head, last
    auto options = Fsdp2Options{};
    options.cpuRamEfficientLoading = false;
    small.strategy.options = options;
    // The second block: embedding and first block are sharded already, its own shard comes beside it.
    EXPECT_EQ(small.memory().gpuInitPeak, Bytes(4 * (80 + 2 * 496) / 2 + 4 * 496));
}

} // namespace
} // namespace shardwright
