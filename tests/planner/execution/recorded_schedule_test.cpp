// Schedules that the rooms record for shardrun, played in numbers.

#include <gtest/gtest.h>

#include "tests/planner/execution/recorded_schedule.hpp"
#include "tests/planner/execution/recording_input.hpp"

namespace shardwright {

namespace {

const std::vector<std::pair<int, int>> kNodes{{1, 1}, {1, 2}, {1, 3}, {2, 2}, {2, 4}}; // nodes, ranks of a node

void expectAllSound(const std::string& name, const StrategyOptions& options)
{
    for (const auto& [nodes, gpus] : kNodes)
        for (const std::int64_t accumulation : {1, 2, 4})
            for (const bool mixed : {false, true})
                for (const bool tied : {false, true})
                    expectSound(name, options,
                                {nodes, gpus, accumulation, mixed ? std::optional(DType::Bf16) : std::nullopt, tied});
}

} // namespace

class RecordedSchedules : public testing::TestWithParam<std::pair<std::string, StrategyOptions>> {};

TEST_P(RecordedSchedules, TrainEveryElementFromTheMeanOverAllRanks)
{
    const auto& [name, options] = GetParam();
    expectAllSound(name, options);
    if (const auto* one = std::get_if<Fsdp1Options>(&options)) {
        Fsdp1Options reducing = *one;
        reducing.noSync = false;
        expectAllSound(name + ", reducing every micro-step", reducing);
    }
    if (const auto* two = std::get_if<Fsdp2Options>(&options)) {
        Fsdp2Options reducing = *two;
        reducing.noSync = false;
        expectAllSound(name + ", reducing every micro-step", reducing);
    }
}

INSTANTIATE_TEST_SUITE_P(All, RecordedSchedules, testing::ValuesIn(everyStrategy()), [](const auto& instance) {
    std::string name = instance.param.first;
    for (char& letter : name)
        if (std::isalnum(static_cast<unsigned char>(letter)) == 0)
            letter = '_';
    return name;
});

namespace {

DdpOptions smallBuckets(bool views)
{
    DdpOptions options;
    options.bucketCap = Bytes(700); // through the middle of modules and layers
    options.gradientAsBucketView = views;
    return options;
}

} // namespace

TEST(RecordedSchedule, BucketsMayEndWithinAModule)
{
    for (const bool views : {false, true}) {
        SmallInput input = recordingInput(smallBuckets(views), {1, 3, 2, DType::Bf16});
        input.model = smallGpt2();
        EXPECT_EQ(refusals(input.input()), std::vector<std::string>{});
        EXPECT_EQ(textOf(recordingProblems(input.input())), "");
        expectAllSound(views ? "ddp, views" : "ddp", smallBuckets(views));
    }
}

TEST(RecordedSchedule, CheckpointingGathersAgainWhatItRecomputes)
{
    for (const Checkpointing checkpointing : {Checkpointing::Selective, Checkpointing::Full, Checkpointing::Cpu})
        for (const auto& [name, options] : everyStrategy())
            expectSound(name, options, {2, 2, 2, DType::Bf16, false, checkpointing});
}

TEST(RecordedSchedule, OptimizersKeepTheMomentsThatTheyNeed)
{
    for (const Optimizer optimizer : {Optimizer::Adam, Optimizer::SgdMomentum, Optimizer::Sgd})
        for (const auto& [name, options] : everyStrategy())
            expectSound(name, options, {1, 3, 2, std::nullopt, true, Checkpointing::None, optimizer});
}

namespace {

/// FSDP1 with offload uploads the root's shard before its backward, though its parameters are whole already.
bool isInVain(const Schedule& schedule, std::size_t index)
{
    const Action& action = schedule.actions[index];
    const auto operand = [&](std::size_t i) { return schedule.operands[i]; };
    if (action.verb != Verb::Move || action.writes != 1)
        return false;
    const BufferId made = operand(action.firstOperand + action.reads);
    const auto bufferClass = static_cast<std::size_t>(schedule.buffers[static_cast<std::size_t>(made)]);
    if (schedule.sizes.buffers[bufferClass].spec->name != "shard in the compute dtype")
        return false;
    for (const Action& other : schedule.actions)
        for (std::size_t i = other.firstOperand; i < other.firstOperand + other.reads; ++i)
            if (operand(i) == made)
                return false;
    return true;
}

} // namespace

/// That the play of a schedule tells a wrong one from a right one.
TEST(RecordedSchedule, NoActionCanBeLeftOutUnnoticed)
{
    Fsdp1Options offload;
    offload.offloadParams = true;
    Fsdp2Options replicated;
    replicated.replicate = 0;
    replicated.noSync = false;
    NativeOptions scattered;
    scattered.stage = 2;
    const std::vector<std::pair<std::string, StrategyOptions>> all{
        {"ddp", smallBuckets(false)}, {"fsdp1 offload", offload}, {"fsdp2 hsdp", replicated}, {"native 2", scattered}};
    for (const auto& [name, options] : all)
        expectEveryActionCounts(name, recordingInput(options, {2, 2, 2, DType::Bf16, true}), isInVain);
}

} // namespace shardwright
