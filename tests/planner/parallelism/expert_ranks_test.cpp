// Experts over tensor-parallel ranks (Megatron-LM, expert tensor parallel size 1).

#include <gtest/gtest.h>

#include "planner/parallelism/model_slice.hpp"
#include "planner/readers/closed_form.hpp"
#include "planner/readers/traffic_sum.hpp"
#include "tests/planner/frameworks/small_input.hpp"

using namespace shardwright;

namespace {

constexpr LlamaShape kShape{16, 3, 4, 4, 24, 64, false};
constexpr std::int64_t kExperts = 8;
constexpr std::int64_t kExpertElements = 3 * 16 * 24; // gate, up and down of one expert
constexpr std::int64_t kTokens = 32;

struct Job : SmallInput {
    Job(const StrategyOptions& options, std::int64_t tensor, std::int64_t expert, std::int64_t expertTensor = 0)
        : SmallInput(options, 8)
    {
        model = mixtralOf(kShape, kExperts);
        training.sequenceLength = kTokens;
        strategy.parallelism.tensor = tensor;
        strategy.parallelism.sequenceParallel = tensor > 1;
        strategy.parallelism.expert = expert;
        strategy.parallelism.expertTensor = expertTensor;
        training.implementation =
            std::holds_alternative<MegatronOptions>(options) ? Implementation::Megatron : Implementation::Torchtitan;
    }
    ModelSlice slice() const { return sliceModel(input()).front(); }
};

const CollectiveTraffic* find(const Traffic& traffic, OpKind op, std::string_view group)
{
    for (const CollectiveTraffic& each : traffic.collectives)
        if (each.op == op && each.group == group)
            return &each;
    return nullptr;
}

void expectConsistent(const Job& job)
{
    ASSERT_EQ(refusals(job.input()), std::vector<std::string>{});
    const ModelSlice slice = job.slice();
    const PlanInput part = inputOf(job.input(), slice);
    const Schedule schedule = makeRules(part)->emit();
    const MemoryReplay replay = replayMemory(schedule, false); // throws where a buffer is freed twice
    ClosedForm form(part);
    const ClosedFormResult closed = form.evaluate(part);
    EXPECT_EQ(closed.peakAllocated, replay.gpu.bytes);
    EXPECT_EQ(closed.sentBytesPerGpu, sumTraffic(schedule, part.model.parameters(), 8).sentBytesPerGpu);
}

} // namespace

TEST(ExpertRanks, spanTensorParallelRanksWhenExpertsAreWhole)
{
    // Tensor parallel 2 and expert parallel 8 on 8 GPUs: an expert each, nobody else holds it.
    Job job(MegatronOptions{}, 2, 8, 1);
    expectConsistent(job);
    const ModelSlice slice = job.slice();
    std::int64_t held = 0;
    for (const int type : slice.model.layers)
        for (const ParameterSpec& parameter : slice.model.layerTypes[static_cast<std::size_t>(type)].parameters)
            if (parameter.role == ParameterRole::Expert)
                held += parameter.numel * parameter.repeat;
    EXPECT_EQ(held, 3 * kExpertElements);
    const PlanInput part = inputOf(job.input(), slice);
    const Traffic traffic = sumTraffic(makeRules(part)->emit(), part.model.parameters(), 8);
    EXPECT_EQ(find(traffic, OpKind::ReduceScatter, "expert data"), nullptr); // nothing to reduce with
    // Each of the two tensor-parallel ranks sends its half of the tokens.
    const CollectiveTraffic* tokens = find(traffic, OpKind::AllToAll, "expert");
    ASSERT_NE(tokens, nullptr);
    EXPECT_EQ(tokens->ranks, 8);
    EXPECT_EQ(tokens->payloadBytes, Bytes(tokens->count * 2 * (kTokens / 2) * 16 * 2));
}

TEST(ExpertRanks, wholeExpertsNeedNoGatheredSequence)
{
    // Without expert parallelism both ways compute the same; whole experts on every rank take the tokens as they are
    // split, cut ones need all of them.
    const auto gathers = [](std::int64_t expertTensor) {
        const Job job(MegatronOptions{}, 2, 1, expertTensor);
        const ModelSlice slice = job.slice();
        const Traffic traffic = sumTraffic(makeRules(inputOf(job.input(), slice))->emit(), 1, 8);
        return find(traffic, OpKind::AllGather, "tensor")->count;
    };
    EXPECT_LT(gathers(1), gathers(2));
}

TEST(ExpertRanks, whatIsNotPlannedIsRefusedByName)
{
    const auto one = [](const Job& job, std::string_view word) {
        const std::vector<std::string> reasons = refusals(job.input());
        ASSERT_EQ(reasons.size(), 1U) << word << ": " << ::testing::PrintToString(reasons);
        EXPECT_NE(reasons.front().find(word), std::string::npos) << reasons.front();
    };
    one(Job(MegatronOptions{}, 2, 4), "expert_tensor 1");
    one(Job(MegatronOptions{}, 4, 2, 2), "expert_tensor 2");
    one(Job(Fsdp2Options{}, 2, 1, 1), "expert_tensor");
    DeepSpeedOptions zero1;
    zero1.stage = 1;
    Job underDeepSpeed(zero1, 2, 1, 1);
    underDeepSpeed.training.implementation = Implementation::Megatron;
    one(underDeepSpeed, "expert_tensor");
    Job split(MegatronOptions{}, 2, 8, 1);
    split.strategy.parallelism.sequenceParallel = false;
    EXPECT_FALSE(refusals(split.input()).empty());
}
