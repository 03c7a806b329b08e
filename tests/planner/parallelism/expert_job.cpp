#include "tests/planner/parallelism/expert_job.hpp"

#include <gtest/gtest.h>

#include "planner/readers/closed_form.hpp"
#include "planner/readers/traffic_sum.hpp"

namespace shardwright {

namespace {

constexpr LlamaShape kShape{16, 3, 4, 4, 24, 64, false};
constexpr std::int64_t kExperts = 8;
constexpr int kGpus = 8;

} // namespace

ExpertJob::ExpertJob(const StrategyOptions& options, std::int64_t tensor, std::int64_t expert,
                     std::int64_t expertTensor)
    : SmallInput(options, kGpus)
{
    model = mixtralOf(kShape, kExperts);
    training.sequenceLength = kExpertJobTokens;
    strategy.parallelism.tensor = tensor;
    strategy.parallelism.sequenceParallel = tensor > 1;
    strategy.parallelism.expert = expert;
    strategy.parallelism.expertTensor = expertTensor;
    training.implementation =
        std::holds_alternative<MegatronOptions>(options) ? Implementation::Megatron : Implementation::Torchtitan;
}

const CollectiveTraffic* collectiveOf(const Traffic& traffic, OpKind op, std::string_view group)
{
    for (const CollectiveTraffic& each : traffic.collectives)
        if (each.op == op && each.group == group)
            return &each;
    return nullptr;
}

void expectConsistent(const ExpertJob& job)
{
    ASSERT_EQ(refusals(job.input()), std::vector<std::string>{});
    const ModelSlice slice = job.slice();
    const PlanInput part = inputOf(job.input(), slice);
    const Schedule schedule = makeRules(part)->emit();
    const MemoryReplay replay = replayMemory(schedule, false); // throws where a buffer is freed twice
    ClosedForm form(part);
    const ClosedFormResult closed = form.evaluate(part);
    EXPECT_EQ(closed.peakAllocated, replay.gpu.bytes);
    EXPECT_EQ(closed.sentBytesPerGpu, sumTraffic(schedule, part.model.parameters(), kGpus).sentBytesPerGpu);
}

void expectRefused(const ExpertJob& job, std::string_view word)
{
    const std::vector<std::string> reasons = refusals(job.input());
    ASSERT_EQ(reasons.size(), 1U) << word << ": " << ::testing::PrintToString(reasons);
    EXPECT_NE(reasons.front().find(word), std::string::npos) << reasons.front();
}

} // namespace shardwright
