// Sequence parallelism by all-to-all over heads (DeepSpeed-Ulysses, arXiv 2309.14509).

#include <gtest/gtest.h>

#include "core/json_cursor.hpp"
#include "core/model_file.hpp"
#include "planner/parallelism/model_slice.hpp"
#include "planner/readers/closed_form.hpp"
#include "planner/readers/traffic_sum.hpp"
#include "tests/planner/frameworks/small_input.hpp"

using namespace shardwright;

namespace {

struct Job : SmallInput {
    explicit Job(int stage, std::int64_t context = 4, std::int64_t heads = 8) : SmallInput(DeepSpeedOptions{}, 8)
    {
        std::get<DeepSpeedOptions>(strategy.options).stage = stage;
        // Four key-value heads of eight: a model of grouped queries.
        model = modelFromJson(parseJson(R"({"model_type": "llama", "hidden_size": 64, "intermediate_size": 96,
            "num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 128})",
                                        "test"),
                              "small", "test");
        model.architecture.heads = heads;
        training.sequenceLength = 256;
        strategy.parallelism.context = context;
        strategy.parallelism.exchange = ContextExchange::Ulysses;
    }
    Traffic trafficOfSlice() const
    {
        const ModelSlice slice = sliceModel(input()).front();
        return sumTraffic(makeRules(inputOf(input(), slice))->emit(), 1, 8);
    }
};

const CollectiveTraffic* exchanges(const Traffic& traffic)
{
    for (const CollectiveTraffic& each : traffic.collectives)
        if (each.op == OpKind::AllToAll && each.group == "context")
            return &each;
    return nullptr;
}

} // namespace

TEST(Ulysses, everyStageOfZeroIsConsistent)
{
    for (const int stage : {0, 1, 2, 3}) {
        const Job job(stage);
        ASSERT_EQ(refusals(job.input()), std::vector<std::string>{});
        const ModelSlice slice = sliceModel(job.input()).front();
        const PlanInput part = inputOf(job.input(), slice);
        const MemoryReplay replay = replayMemory(makeRules(part)->emit(), false);
        ClosedForm form(part);
        EXPECT_EQ(form.evaluate(part).peakAllocated, replay.gpu.bytes) << stage;
    }
}

TEST(Ulysses, exchangesQueriesKeysValuesAndOutputsThereAndBack)
{
    // A rank's 64 tokens: queries and outputs of 64 elements, keys and values of 32, in forward and in backward.
    const Traffic traffic = Job(1).trafficOfSlice();
    std::int64_t count = 0;
    Bytes bytes;
    for (const CollectiveTraffic& each : traffic.collectives)
        if (each.op == OpKind::AllToAll && each.group == "context") {
            count += each.count;
            bytes += each.payloadBytes;
        }
    EXPECT_EQ(count, 8 * 3);
    EXPECT_EQ(bytes, Bytes(3 * 2 * 64 * (64 + 64 + 32 + 32) * 2));
    // O(s h / P) on every link whatever the ranks are: the paper's claim against the ring's O(s h).
    ASSERT_NE(exchanges(traffic), nullptr);
    EXPECT_EQ(exchanges(traffic)->ranks, 4);
}

TEST(Ulysses, halvesWithTwiceTheRanks)
{
    const auto sent = [](std::int64_t context) {
        Bytes bytes;
        for (const CollectiveTraffic& each : Job(1, context).trafficOfSlice().collectives)
            if (each.op == OpKind::AllToAll)
                bytes += each.payloadBytes;
        return bytes;
    };
    EXPECT_EQ(sent(2), sent(4) * 2);
}

TEST(Ulysses, needsHeadsForEveryRankAndIsRefusedElsewhereByName)
{
    const auto one = [](const Job& job, std::string_view word) {
        const std::vector<std::string> reasons = refusals(job.input());
        ASSERT_EQ(reasons.size(), 1U) << word;
        EXPECT_NE(reasons.front().find(word), std::string::npos) << reasons.front();
    };
    one(Job(1, 8), "key-value heads");
    Job ring(1);
    ring.strategy.parallelism.exchange = ContextExchange::Ring;
    one(ring, "ulysses");
    Job titan(1);
    titan.strategy.options = Fsdp2Options{};
    one(titan, "Ulysses");
}
