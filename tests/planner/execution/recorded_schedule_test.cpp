// Schedules that the rooms record for shardrun, played in numbers.

#include <gtest/gtest.h>

#include "tests/planner/execution/recorded_schedule.hpp"
#include "tests/planner/frameworks/small_input.hpp"

namespace shardwright {

namespace {

struct Question {
    std::string name;
    StrategyOptions options;
    int gpusPerNode = 1;
    int nodes = 1;
    std::int64_t accumulation = 1;
    std::optional<DType> mixed;
    bool tied = false;
};

SmallInput inputOf(const Question& question)
{
    SmallInput input(question.options, question.gpusPerNode, question.nodes);
    LlamaShape shape;
    shape.tied = question.tied;
    shape.hidden = 6; // no number of ranks divides everything
    shape.ffn = 11;
    shape.vocab = 13;
    shape.headDim = 2;
    input.model = llamaOf(shape);
    input.training.implementation = Implementation::Shardrun;
    input.training.gradientAccumulation = question.accumulation;
    input.training.precision.mixed = question.mixed;
    return input;
}

std::string textOf(const std::vector<std::string>& problems)
{
    std::string text;
    for (const std::string& problem : problems)
        text += "\n  " + problem;
    return text;
}

void expectSound(const Question& question)
{
    const SmallInput input = inputOf(question);
    if (!refusals(input.input()).empty())
        return;
    const std::vector<std::string> problems = recordingProblems(input.input());
    EXPECT_TRUE(problems.empty()) << question.name << ", " << question.nodes << " x " << question.gpusPerNode
                                  << " ranks, accumulation " << question.accumulation
                                  << (question.mixed ? ", bf16" : ", fp32") << (question.tied ? ", tied" : "")
                                  << textOf(problems);
}

const std::vector<std::pair<int, int>> kNodes{{1, 1}, {1, 2}, {1, 3}, {2, 2}, {2, 4}}; // nodes, ranks of a node

void expectAllSound(const std::string& name, const StrategyOptions& options)
{
    for (const auto& [nodes, gpus] : kNodes)
        for (const std::int64_t accumulation : {1, 2, 4})
            for (const bool mixed : {false, true})
                for (const bool tied : {false, true})
                    expectSound({name, options, gpus, nodes, accumulation,
                                 mixed ? std::optional(DType::Bf16) : std::nullopt, tied});
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

} // namespace shardwright
